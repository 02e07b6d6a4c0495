"""Audit entries that wait for the records this node lost, in a file: a process that ends must not forget them.

The file is there for as long as the node's own chain of entries may be incomplete here, with or without an entry in it:
a process that starts beside it must not begin the chain anew. Each entry is a frame: length, CRC-32, bytes; an append is
durable on return, and a frame that was cut off by the process's end was never acknowledged. Not here: what an entry
says, and when the wait is over (audit.py).
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from protocols.envelope import DecodeError, decode, encode
from protocols.records.audit import ENTRY_MAX_BYTES, AuditEntry
from runtime.durable import sync_folder

BACKLOG_FILE_NAME = "audit-backlog"
_HEAD_BYTES = 8


class Backlog:
    """The file, in a node's data folder."""

    def __init__(self, folder: Path) -> None:
        """Take the data folder."""
        self._path = folder / BACKLOG_FILE_NAME
        self._end = 0

    @property
    def open(self) -> bool:
        """Whether there is a wait."""
        return self._path.exists()

    def begin(self) -> None:
        """Have a file, durably; the whole entries of one that is there stay. Raises OSError."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._end = max((end for end, _ in self._frames()), default=0)
            os.ftruncate(handle, self._end)
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_folder(self._path.parent)

    def append(self, entry: AuditEntry) -> None:
        """Add an entry, durably. Raises OSError; the next one then takes its place."""
        data = encode(entry)
        frame = len(data).to_bytes(4, "big") + zlib.crc32(data).to_bytes(4, "big") + data
        with self._path.open("r+b") as file:
            file.seek(self._end)
            file.write(frame)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(frame)

    def load(self) -> list[AuditEntry]:
        """Return the entries, oldest first; none if there is no file."""
        return [entry for _, entry in self._frames()]

    def end(self) -> None:
        """Remove the file, durably."""
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)

    def _frames(self) -> list[tuple[int, AuditEntry]]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        pairs: list[tuple[int, AuditEntry]] = []
        start = 0
        while start + _HEAD_BYTES <= len(data):
            length = int.from_bytes(data[start : start + 4], "big")
            end = start + _HEAD_BYTES + length
            body = data[start + _HEAD_BYTES : end]
            if end > len(data) or zlib.crc32(body).to_bytes(4, "big") != data[start + 4 : start + _HEAD_BYTES]:
                break
            try:
                pairs.append((end, decode(body, AuditEntry, ENTRY_MAX_BYTES)))
            except DecodeError:
                break
            start = end
        return pairs
