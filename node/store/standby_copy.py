"""A second copy of a lane's data on a node that does not hold it: whole blocks that changed, applied all or not at all.

What came is written beside the copy and synced before any of it is applied, so a kill leaves the copy before or the one
behind it. Not here: when blocks come and when the copy takes the place of what is lost (node/serving/data_standby.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec

from node.errors import ConfigError
from node.keys import sync_tree, write_private
from node.store.data_copy import BLOCK_BYTES, MANIFEST_MAX_BYTES, DataCopy, check_copy, complete, write_block
from node.store.data_folders import DataFolders, Lane
from node.store.data_staging import Staging
from protocols.envelope import DecodeError, decode, encode
from protocols.machine import PeerId


class CopyNote(msgspec.Struct, frozen=True, tag="data_standby_copy"):
    """What a second copy is: of which holder's data, as it was at which moment of that holder's clock (wall ms)."""

    holder: PeerId
    at_ms: int
    copy: DataCopy


class StandbyCopy:
    """One lane's second copy."""

    def __init__(self, place: DataFolders, lane: Lane) -> None:
        self._place = place
        self._lane = lane
        self.folder = place.copies(lane)
        self._files = self.folder / "files"
        self._note = self.folder / "note"
        self._delta = self.folder / "delta"

    @property
    def note(self) -> CopyNote | None:
        """What the whole copy is; None if there is none."""
        return _read(self._note)

    def settle(self) -> None:
        """End what an earlier life was applying, and throw away what did not come whole. Raises OSError."""
        if _read(self._delta / "note") is not None:
            self._apply()
        shutil.rmtree(self._delta, ignore_errors=True)

    def wanted(self, copy: DataCopy) -> list[tuple[str, int]]:
        """Return the blocks that are not here, by file and number. Raises ConfigError for a copy that breaks a bound."""
        check_copy(copy)
        note = self.note
        have = {file.name: file.blocks for file in note.copy.files} if note is not None else {}
        return [
            (file.name, number)
            for file in copy.files
            for number, block in enumerate(file.blocks)
            if number >= len(have.get(file.name, ())) or have[file.name][number] != block
        ]

    def begin(self) -> None:
        """Make room for blocks that come."""
        shutil.rmtree(self._delta, ignore_errors=True)
        self._delta.mkdir(mode=0o700, parents=True)
        (self._delta / "blocks").touch(mode=0o600)

    def add(self, block: bytes, expected: bytes) -> None:
        """Take the next wanted block, whose SHA-256 is `expected`. Raises ConfigError for other bytes, OSError."""
        if len(block) > BLOCK_BYTES or hashlib.sha256(block).digest() != expected:
            raise ConfigError("a block is not what its holder said", "it is asked for again")
        with (self._delta / "blocks").open("ab") as file:
            file.write(block)

    def finish(self, holder: PeerId, at_ms: int, copy: DataCopy) -> None:
        """Make the copy what came, durable on return. Raises OSError; the copy is the one before then, or goes on later."""
        handle = os.open(self._delta / "blocks", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        write_private(self._delta / "note", encode(CopyNote(holder, at_ms, copy)))
        self._apply()
        shutil.rmtree(self._delta, ignore_errors=True)

    def _apply(self) -> None:
        note = _read(self._delta / "note")
        assert note is not None, "nothing to apply"
        self._files.mkdir(mode=0o700, parents=True, exist_ok=True)
        sizes = {file.name: file.size for file in note.copy.files}
        with (self._delta / "blocks").open("rb") as file:
            for name, number in self.wanted(note.copy):
                length = min(BLOCK_BYTES, sizes[name] - number * BLOCK_BYTES)
                write_block(self._files, name, number, file.read(length))
        for path in [path for path in self._files.rglob("*") if path.is_file()]:
            if path.relative_to(self._files).as_posix() not in sizes:
                path.unlink()
        for name, size in sizes.items():
            path = self._files / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            os.truncate(path, size)
        sync_tree(self._files)
        write_private(self._note, encode(note))

    def promote(self, at_ms: int) -> bool:
        """Put the copy in the place of the lane's data, which a mark holds; whether there was one.

        Raises ConfigError if the copy is damaged, OSError, sqlite3.Error. To be called again after a kill.
        """
        note = self.note
        if note is None:
            return False
        staging = Staging(self._place, self._lane)
        if staging.begun is None and any(self._files.iterdir()):
            complete(note.copy, self._files)
            staging.install(at_ms, stays_frozen=False, source=str(self._files.relative_to(self._place.folder)))
        staging.go_on()
        self.forget()
        return True

    def forget(self) -> None:
        """Throw the copy away."""
        self._note.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> CopyNote | None:
    try:
        note: CopyNote = decode(path.read_bytes(), CopyNote, MANIFEST_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError, DecodeError):
        return None
    return note
