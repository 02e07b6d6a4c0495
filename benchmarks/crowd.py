"""Many nodes of one mesh in one process, so that a mesh of 32 fits on a machine: real daemons, sockets, disks, workers.

`python -m benchmarks.crowd FOLDER COUNT` reads an invite line, joins with it COUNT times, says "up", and ends with its
input. Not here: the node that is measured, which is a process of its own (fleet.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from node.config import NodeConfig, read_config
from node.daemon import Daemon
from node.membership.found import join_mesh
from protocols.trust.invites import read_line

ANYWHERE: Final = ("127.0.0.1:0",)
UP_TIMEOUT_S: Final = 60.0


@contextlib.contextmanager
def joined(folder: Path, line: str, count: int, compiled: Path) -> Iterator[None]:
    """Run so many nodes for the duration of the block; `compiled` is the folder of compiled code they share."""
    folder.mkdir()
    (folder / "r").mkdir(mode=0o700)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.crowd", str(folder), str(count), str(compiled)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "RUNTIME_DIRECTORY": str(folder / "r")},
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "up\n", (folder / "log").read_text()[-2000:]
        yield
    finally:
        process.stdin.close()
        process.wait(120)
        process.stdout.close()


async def _run(folder: Path, count: int, compiled: str) -> None:
    line = read_line(sys.stdin.readline().strip())
    daemons: list[Daemon] = []
    async with asyncio.TaskGroup() as group:
        for number in range(1, count + 1):
            place = folder / f"n{number:02d}"
            config = NodeConfig(
                place.name, listen=ANYWHERE, ingress=ANYWHERE, workers=1, voter_after_s=2, compiled=compiled,
                engine="python",
            )  # fmt: skip
            await join_mesh(place, config, line)
            daemon = Daemon(place, read_config(place))
            group.create_task(daemon.run())
            async with asyncio.timeout(UP_TIMEOUT_S):
                await daemon.started.wait()
            daemons.append(daemon)
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for daemon in daemons:
            daemon.stop()


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
