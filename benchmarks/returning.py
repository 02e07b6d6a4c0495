"""From `freehold rollback` to every node serving the release before: three daemons, the author's machine gone.

Real processes on loopback, which share the machine's cores. The two releases differ in code, configuration, the version of
a secret and their routes; a node counts as back when a visitor sees all four as they were. The clock starts before the
command's process does, and visitors ask each node every 10 ms. Once with all three nodes, once with one of them killed,
which is not waited for. Medians. The last row of each leaves out the command: from the node's own note that the rollback
is decided. Not here: that nothing is left behind (tests/e2e/durability/test_losses.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from statistics import median

from benchmarks.rows import Row, at_most
from tests.fixtures.build import component
from tests.support.mesh.losses import FIRST, SECOND, Losses, Seen
from tests.support.mesh.nodes import Machine, until

ROUNDS = 9
ASK_EVERY_S = 0.01
GIVE_UP_S = 60.0
AIM_S = 2.0


def run(quick: bool) -> Iterator[Row]:
    rounds = 3 if quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="fh-") as folder:
        stage = Losses(Path(folder), component)
        try:
            stage.deploy(*FIRST)
            stage.deploy(*SECOND)
            until(lambda: all(stage.seen(index) == SECOND for index in range(3)), 60, "the second release everywhere")
            stage.lose_the_author()
            yield from rows("three nodes", *measure(stage, range(3), rounds))
            stage.fleet.machines[2].kill()
            yield from rows("two nodes, the third killed", *measure(stage, range(2), rounds))
        finally:
            stage.close()


def rows(what: str, served_s: list[float], command_s: list[float], daemons_s: list[float]) -> Iterator[Row]:
    yield at_most(
        f"rollback, {what}: command to all serving, p50", round(median(served_s), 2), "s", AIM_S,
        note=f"{min(served_s):.2f} to {max(served_s):.2f}, {len(served_s)} rollbacks",
    )  # fmt: skip
    yield Row(f"rollback, {what}: the command's process, p50", round(median(command_s), 2), "s")
    yield Row(f"rollback, {what}: decided to all serving, p50", round(median(daemons_s), 2), "s")


def measure(stage: Losses, nodes: Sequence[int], rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Roll back and forth; return the seconds until all nodes served, until the command had ended, and from decision on."""
    machine = stage.fleet.machines[0]
    served_s, command_s, daemons_s = [], [], []
    here = next(seen for seen in (FIRST, SECOND) if stage.seen(0) == seen)
    with ThreadPoolExecutor(len(nodes)) as visitors:
        for _ in range(rounds):
            here = SECOND if here == FIRST else FIRST
            began_s = time.time()
            command = subprocess.Popen(
                [sys.executable, "-c", "from cli.main import main; main()", "rollback", "--project", "site", "-m", "back"],
                env=machine.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            back = [visitors.submit(visit, stage, index, here, began_s) for index in nodes]
            assert command.wait() == 0, "the rollback was refused"
            command_s.append(time.time() - began_s)
            served_s.append(max(future.result() for future in back))
            daemons_s.append(began_s + served_s[-1] - decided_s(machine))
    return served_s, command_s, daemons_s


def decided_s(machine: Machine) -> float:
    """When the node last noted a decided rollback, in its log; seconds since the epoch."""
    noted = [json.loads(line) for line in machine.log.read_text().splitlines() if '"rollback done"' in line]
    return datetime.fromisoformat(noted[-1]["time"]).timestamp()


def visit(stage: Losses, index: int, wanted: Seen, began_s: float) -> float:
    """Ask one node until a visitor sees the wanted release, whole; return the seconds since the beginning."""
    while stage.seen(index) != wanted:
        assert time.time() - began_s < GIVE_UP_S, f"node {index} does not serve {wanted}"
        time.sleep(ASK_EVERY_S)
    return time.time() - began_s
