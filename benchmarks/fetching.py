"""One artifact of 20 MB from one holder to four nodes at once: ours, and aiohttp serving and downloading the same file.

Five processes on loopback each time, which share the machine's cores. Both sides' fetchers check the digest and fsync
before the file gets its name; ours also checks each chunk, encrypts, and could go on with another holder. Three rounds,
each with an artifact nobody has read before; the best counts. Not here: one stream's own rate (`transport`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from aiohttp import web

from benchmarks.processes import reset_high_water, resident_mib
from benchmarks.rows import Row, at_most, beside
from node.mesh.artifact_fetcher import Fetcher
from node.store.artifacts import ArtifactStore
from protocols.libp2p import multiaddr
from tests.support.mesh.libp2p_peers import LOOPBACK, TestNode, make_transport

NODES = 4
SIZE_BYTES = 20_000_000
ROUNDS = 3
ROOT = Path(__file__).resolve().parents[1]


def run(quick: bool) -> Iterator[Row]:
    rounds = 1 if quick else ROUNDS
    mine_s, rise_mib, holder_mib = distribute("hold", "fetch", rounds)
    theirs_s, _, _ = distribute("http-hold", "http-fetch", rounds)
    total_mib = NODES * SIZE_BYTES / 2**20
    yield Row(f"20 MB artifact to {NODES} nodes", round(mine_s, 2), "s", peer=f"aiohttp: {theirs_s:.2f} s")
    yield beside(
        f"20 MB artifact to {NODES} nodes, all together", round(total_mib / mine_s), "MiB/s", "aiohttp",
        round(total_mib / theirs_s), note="one holder; Noise and chunk digests are in ours only",
    )  # fmt: skip
    yield at_most("rise of a fetching node's resident memory", round(rise_mib, 1), "MiB", 16, note="largest of four")
    yield at_most("rise of the holder's resident memory", round(holder_mib, 1), "MiB", 16)


def distribute(holding: str, fetching: str, rounds: int) -> tuple[float, float, float]:
    """Return the best round's seconds, the largest rise of a fetcher's memory and the holder's, in MiB."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch) / "holder"
        folder.mkdir()
        names = [make_artifact(folder, number) for number in range(rounds)]
        holder = stack.enter_context(role(holding, str(folder)))
        address = line(holder)
        fetchers = [stack.enter_context(role(fetching, f"{scratch}/{number}", address)) for number in range(NODES)]
        for fetcher in fetchers:
            assert line(fetcher) == "ready"
        before = resident_mib(holder.pid)
        reset_high_water(holder.pid)
        best, rise = 1e9, 0.0
        for name in names:
            began = time.perf_counter()
            for fetcher in fetchers:
                tell(fetcher, name)
            rise = max(rise, *(float(line(process)) for process in fetchers))
            best = min(best, time.perf_counter() - began)
        held = resident_mib(holder.pid, "VmHWM") - before
        for fetcher in (*fetchers, holder):
            assert fetcher.stdin is not None
            fetcher.stdin.close()
    return best, rise, held


def make_artifact(folder: Path, number: int) -> str:
    data = random.Random(number).randbytes(SIZE_BYTES)
    name = hashlib.sha256(data).hexdigest()
    (folder / name).write_bytes(data)
    return name


def role(*arguments: str) -> subprocess.Popen[str]:
    """One process of this module."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'e2e'}"}
    command = [sys.executable, "-m", "benchmarks.fetching", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, cwd=ROOT
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    text = process.stdout.readline().strip()
    assert text, f"{process.args} ended"
    return text


def tell(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


# --- the five processes -----------------------------------------------------------------------------------------------


async def hold(folder: str) -> None:
    async with node(folder) as (_, here):
        print(here.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def fetch(folder: str, address: str) -> None:
    async with node(folder) as (fetcher, here):
        await here.transport.dial([multiaddr.parse(address)])
        await here.until(lambda: bool(here.ready))
        await measure(lambda name: fetcher.ensure(bytes.fromhex(name)))


@contextlib.asynccontextmanager
async def node(folder: str):  # type: ignore[no-untyped-def]
    here = TestNode(make_transport(LOOPBACK))
    fetcher = Fetcher(
        ArtifactStore(Path(folder)), here.transport, lambda: [event.peer for event in here.ready],
        may_fetch=lambda _peer: True, on_reject=lambda *refused: print(refused, file=sys.stderr),
    )  # fmt: skip
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(entry) for entry in (here.transport.run(), here.watch(), fetcher.run())]
        await here.transport.started.wait()
        yield fetcher, here
        for task in tasks:
            task.cancel()


async def http_hold(folder: str) -> None:
    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


async def http_fetch(folder: str, address: str) -> None:
    await asyncio.to_thread(Path(folder).mkdir)
    async with aiohttp.ClientSession() as session:

        async def download(name: str) -> None:
            part = Path(folder) / f"{name}.part"
            sha = hashlib.sha256()
            async with session.get(f"{address}/{name}") as answer:
                with part.open("wb") as file:
                    async for piece in answer.content.iter_any():
                        sha.update(piece)
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
            assert sha.hexdigest() == name
            part.rename(Path(folder) / name)

        await measure(download)


async def measure(get) -> None:  # type: ignore[no-untyped-def]
    """Get each artifact named on standard input; print by how much memory rose meanwhile."""
    print("ready", flush=True)
    while name := (await asyncio.to_thread(sys.stdin.readline)).strip():
        before = resident_mib(os.getpid())
        reset_high_water(os.getpid())
        await get(name)
        print(resident_mib(os.getpid(), "VmHWM") - before, flush=True)


if __name__ == "__main__":
    roles = {"hold": hold, "fetch": fetch, "http-hold": http_hold, "http-fetch": http_fetch}
    asyncio.run(roles[sys.argv[1]](*sys.argv[2:]))  # type: ignore[operator]
