"""How many connections each worker of a pool holds, in a small file that all of them map.

A worker that wakes for a new connection looks here first: while another one has fewer, it steps back for a moment and
lets that one take it. Without this a burst of connections lands on whichever worker happens to run, and stays there as
long as clients keep them open. Not here: any guarantee; counts are read without a lock and may be a moment old.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final

SLOTS_MAX: Final = 256
"""Workers of one pool; one page of memory."""

CLOSED: Final = 0xFFFF_FFFF
"""The count of a worker that takes no connections: not started, draining, or dead."""


class LoadTable:
    """A view of the file at `path`, which is made if it is missing."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fresh = os.fstat(descriptor).st_size == 0
            os.ftruncate(descriptor, SLOTS_MAX * 4)
            self._map = mmap.mmap(descriptor, SLOTS_MAX * 4)
        finally:
            os.close(descriptor)
        self._counts = memoryview(self._map).cast("I")
        if fresh:
            for slot in range(SLOTS_MAX):
                self._counts[slot] = CLOSED

    def set(self, slot: int, count: int) -> None:
        """Say how many connections the worker in `slot` holds."""
        self._counts[slot] = count

    def least(self) -> int:
        """Return the smallest count of any worker that takes connections; `CLOSED` if there is none."""
        return min(self._counts)

    def close(self) -> None:
        """Unmap the file."""
        self._counts.release()
        self._map.close()
