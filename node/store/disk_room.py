"""The room on the data folder's disk: a reserve for what a voter has begun to say, and a watch that tells when it is short.

A full disk stops voting, not serving. Below ROOM_MIN_BYTES the node falls silent as a voter, takes in nothing that it is
not owed, and logs to memory only; it goes on serving, following the chain and answering. What it must still write (the
vote under way, a decision it heard of) then takes its space from the reserve, a file of zeros that is cut shorter bit
by bit: as little as that is gone again before anybody else can take it. With room again the reserve is made whole
first, and then the node speaks. Not here: who falls silent (protocols/chain/chain.py, `Mute`), and the writes (storage.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger("freehold.room")

ROOM_MIN_BYTES = 16 << 20
"""Below this much free space a node does not vote: both databases' logs may grow by 4 MiB before they are reused."""

ROOM_MARGIN_BYTES = 4 << 20
"""So much more must be free before a silent node speaks again, lest it change its mind every second."""

RESERVE_BYTES = 16 << 20
"""Thousands of decisions and records."""

STEP_BYTES = 1 << 20
LOOK_EVERY_S = 1.0
MUTED = "its disk is full"


class Reserve:
    """A file that holds disk space back."""

    def __init__(self, path: Path) -> None:
        """Take the file's path; `fill` makes it."""
        self._path = path

    @property
    def missing_bytes(self) -> int:
        """How much of the reserve is not held."""
        try:
            return max(0, RESERVE_BYTES - self._path.stat().st_size)
        except FileNotFoundError:
            return RESERVE_BYTES

    def fill(self) -> None:
        """Hold the whole reserve, or as much of it as before if the disk has no room."""
        before = RESERVE_BYTES - self.missing_bytes
        if before == RESERVE_BYTES:
            return
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _allocate(handle, before, RESERVE_BYTES - before)
        except OSError:
            os.ftruncate(handle, before)
        finally:
            os.close(handle)

    def release(self) -> bool:
        """Let go of one step; False if there is nothing left."""
        held = RESERVE_BYTES - self.missing_bytes
        if held == 0:
            return False
        os.truncate(self._path, max(0, held - STEP_BYTES))
        return True


class RoomWatch:
    """Looks at the disk every second and tells the node when there is no room, and when there is again."""

    def __init__(
        self, folder: Path, reserve: Reserve, tell: Callable[[str], bool], hold: Callable[[], str] = lambda: ""
    ) -> None:
        """Take the data folder, its reserve, and who is told why the node falls silent, or "": False to be told again.

        `hold` says why it is to be silent although there is room, or "".
        """
        self._hold = hold
        self._folder = folder
        self._reserve = reserve
        self._tell = tell
        self._told = ""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Look once."""
        free, missing = free_bytes(self._folder), self._reserve.missing_bytes
        if missing and free >= ROOM_MIN_BYTES + missing:
            self._reserve.fill()
            free, missing = free_bytes(self._folder), self._reserve.missing_bytes
        enough = ROOM_MIN_BYTES + (ROOM_MARGIN_BYTES if self._told == MUTED else 0)
        muted = MUTED if missing or free < enough else self._hold()
        if muted == self._told or not self._tell(muted):
            return
        was, self._told = self._told, muted
        if muted == MUTED:
            _log.error(
                "the disk of %s is full: this node serves on and does not vote; free some space", self._folder,
                extra={"event": "room.full", "detail": f"{free} bytes are free"},
            )  # fmt: skip
        elif was == MUTED:
            _log.info("there is room on the disk again", extra={"event": "room.again", "detail": f"{free} bytes free"})


def free_bytes(folder: Path) -> int:
    """What this process may still write under `folder`."""
    pair = os.statvfs(folder)
    return pair.f_bavail * pair.f_frsize


def _allocate(handle: int, start: int, count: int) -> None:
    allocate = getattr(os, "posix_fallocate", None)  # macOS has none
    if allocate is not None:
        allocate(handle, start, count)
        return
    for offset in range(start, start + count, STEP_BYTES):
        os.pwrite(handle, bytes(min(STEP_BYTES, start + count - offset)), offset)
