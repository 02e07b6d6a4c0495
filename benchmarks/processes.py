"""What processes cost, from /proc: processor time and memory. Linux only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of the processes, all threads, in seconds."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


def thread_cpu_s(pid: int) -> float:
    """Time of the process's main thread alone, which runs a worker's event loop; from schedstat, in seconds."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def threads_cpu_s(pid: int) -> float:
    """Time of all living threads of the process, from schedstat (nanoseconds, where `stat` counts hundredths)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def resident_mib(pid: int, field: str = "VmRSS") -> float:
    """A memory line of /proc/PID/status in MiB; `VmHWM` is the high-water mark."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def proportional_mib(pid: int) -> float:
    """Memory of the process in MiB, shared pages divided among their users."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise KeyError("Pss")


def reset_high_water(pid: int) -> None:
    """Let `VmHWM` begin again at what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
