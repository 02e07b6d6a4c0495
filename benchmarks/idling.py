"""What a node costs while nothing happens: processor time and memory of each daemon of an idle mesh of three.

Three daemons with one worker each have formed a mesh and run no app. Processor time is that of all threads over half a
minute; memory is resident (RSS) and proportional (PSS: shared pages divided among their users). Workers are processes
of their own: their memory is a row, an app's is in `starting`. Not here: a node that serves (`serving`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Final

from benchmarks import fleet
from benchmarks.processes import proportional_mib, resident_mib, threads_cpu_s
from benchmarks.rows import Row, at_most

NODES: Final = 3
SETTLE_S: Final = 10.0
"""Joining, growing and the first syncs are over by then."""

WATCH_S: Final = 30.0
CPU_AIM_PERCENT: Final = 1.0
MEMORY_AIM_MIB: Final = 90.0


def run(quick: bool) -> Iterator[Row]:
    with fleet.running(NODES) as machines:
        daemons = [machine.process.pid for machine in machines if machine.process is not None]
        time.sleep(SETTLE_S / (5 if quick else 1))
        watch_s = WATCH_S / (5 if quick else 1)
        before, began_s = [threads_cpu_s(pid) for pid in daemons], time.monotonic()
        time.sleep(watch_s)
        took_s = time.monotonic() - began_s
        shares = [(threads_cpu_s(pid) - was) / took_s * 100 for pid, was in zip(daemons, before, strict=True)]
        note = f"mean of {NODES} nodes over {watch_s:.0f} s; the most of one: {max(shares):.2f} %"
        yield at_most("idle daemon: CPU of one core", round(mean(shares), 2), "%", CPU_AIM_PERCENT, note=note)
        resident = max(map(resident_mib, daemons))
        yield at_most("idle daemon: resident, without its workers", round(resident, 1), "MiB", MEMORY_AIM_MIB)
        yield Row("idle daemon: proportional", round(max(map(proportional_mib, daemons)), 1), "MiB")
        workers = [pid for daemon in daemons for pid in children(daemon)]
        yield Row("idle worker without an app: resident", round(max(map(resident_mib, workers)), 1), "MiB")
        yield Row("idle worker without an app: proportional", round(max(map(proportional_mib, workers)), 1), "MiB")


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
