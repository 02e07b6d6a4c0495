"""The memory of the daemon's process: what it no longer uses goes back to the system, and looking for garbage takes little.

The C library keeps an arena of freed memory for each thread, and learns to take pieces of up to 32 MiB out of them once
one such piece was freed; half of what a daemon under load held was free memory of that kind. Python's collector looks at
everything that lives as long as the process, and the event loop waits. Not here: how much anything may hold.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of mallopt(3), glibc; another C library has no such function, or ignores what it does not know."""

ARENAS: Final = 2
"""Of the event loop and of all other threads: those of disks and databases wait more than they allocate."""

MAPPED_FROM_BYTES: Final = 128 * 1024
"""A piece of this size is mapped by itself, and is the system's again once it is freed. Said once, it stays."""

COLLECTOR_THRESHOLDS: Final = (20_000, 20, 50)
"""Objects between looks at the youngest, and looks between looks at the older ones, as in a worker."""


def return_freed_memory() -> None:
    """Have the C library give back what is freed; called before there is a second thread."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for name, value in (
        (_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES), (_M_TRIM_THRESHOLD, MAPPED_FROM_BYTES),
    ):  # fmt: skip
        mallopt(name, value)


def set_aside_lasting_objects() -> None:
    """Take what was made so far (modules, what was loaded) out of the collector's sight; it lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
