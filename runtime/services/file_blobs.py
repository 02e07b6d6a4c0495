"""The embedded blob provider: objects as files named by the digest of their bytes, and a database of their names.

An object streams into a file of its own, is synced, and gets its name in the transaction that makes it visible: so a name
always leads to whole bytes, and equal objects lie there once. Not here: which containers an app may use (the host checks).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from runtime.durable import sync_folder
from runtime.providers import BlobInfo, ProviderError
from runtime.services import freeze
from runtime.services.sqlite_file import SqliteFile, lane_folder

BLOBS_VERSION: Final = 1
BLOBS_SCHEMA: Final = """
CREATE TABLE containers (name TEXT PRIMARY KEY, created_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE contents (digest BLOB PRIMARY KEY, size INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE objects (
    container TEXT NOT NULL, name TEXT NOT NULL, digest BLOB NOT NULL REFERENCES contents (digest),
    created_ms INTEGER NOT NULL, PRIMARY KEY (container, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX objects_by_digest ON objects (digest);
"""

UNFINISHED_MAX_AGE_S: Final = 24 * 3600.0
"""What is older was left by a process that is gone: no call of an app takes so long."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class BlobCaps:
    """Limits of one project's environment, in bytes and numbers."""

    name_max_bytes: int = 1024
    object_max_bytes: int = 1024 * 1024 * 1024
    objects_max: int = 50_000
    total_max_bytes: int = 16 * 1024 * 1024 * 1024
    unfinished_max_bytes: int = 4 * 1024 * 1024 * 1024


class FileBlobs:
    """A `BlobProvider` over the folder `blobs` of a lane; safe from any thread and process."""

    def __init__(
        self, folder: Path, owner: str, caps: BlobCaps | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`owner` is "PROJECT" or "PROJECT/ENVIRONMENT"; `clock` tells wall seconds."""
        self.caps = caps or BlobCaps()
        lane = lane_folder(folder, owner)
        self.file = SqliteFile(lane, "blobs", BLOBS_SCHEMA, BLOBS_VERSION)
        self._contents = lane / "blobs"
        self._clock = clock
        self._lock = threading.Lock()
        self._unfinished_bytes = 0
        self._number = 0
        self._closed = False

    def close(self) -> None:
        """Close it for good."""
        self._closed = True
        self.file.close()

    def created_ms(self, container: str) -> int:
        """Return when the container was first used, which makes it."""
        query = "SELECT created_ms FROM containers WHERE name = ?"

        def make(db: sqlite3.Connection) -> int:
            db.execute("INSERT OR IGNORE INTO containers VALUES (?, ?)", (container, self._now_ms()))
            return int(db.execute(query, (container,)).fetchone()[0])

        entry = self.file.read(lambda db: db.execute(query, (container,)).fetchone())
        return int(entry[0]) if entry is not None else self.file.write(make)

    def put(self) -> FileWriter:
        """Begin an object; its bytes go to the disk as they come."""
        if self._closed:
            raise ProviderError("other", "the container is closed")
        with self._lock:
            self._number += 1
            name = f"{os.getpid()}-{self._number}.new"
        return _disk(lambda: FileWriter(self, self._contents / name))

    def get(self, container: str, name: str, start: int = 0, end: int | None = None) -> FileReader:
        """Open an object, or its bytes from `start` to `end`, both included."""
        query = "SELECT digest, size FROM objects JOIN contents USING (digest) WHERE container = ? AND name = ?"
        for _ in range(3):  # another one may be put in its place between the look and the opening
            entry = self.file.read(lambda db: db.execute(query, (container, name)).fetchone())
            if entry is None:
                raise ProviderError("other", f"there is no object {name[:60]!r}")
            with suppress(FileNotFoundError):
                size = int(entry[1])
                stop = size if end is None else min(end + 1, size)
                return FileReader(self._path(entry[0]), min(start, size), max(stop - min(start, size), 0))
        raise ProviderError("other", f"the bytes of {name[:60]!r} are gone", retry_after_s=1)

    def info(self, container: str, name: str) -> BlobInfo | None:
        """Return what is known of an object, or None."""
        query = "SELECT size, created_ms FROM objects JOIN contents USING (digest) WHERE container = ? AND name = ?"
        entry = self.file.read(lambda db: db.execute(query, (container, name)).fetchone())
        return None if entry is None else BlobInfo(*entry)

    def names(self, container: str, after: str | None, limit: int) -> Sequence[str]:
        """Return names in byte order after `after`."""
        query = "SELECT name FROM objects WHERE container = ? AND name > ? ORDER BY name LIMIT ?"
        rows = self.file.read(lambda db: db.execute(query, (container, after or "", limit)).fetchall())
        return [row[0] for row in rows]

    def copy(self, source: tuple[str, str], target: tuple[str, str], *, move: bool = False) -> None:
        """Put an object under another container and name too, or instead."""
        self._check_name(target[1])

        def link(db: sqlite3.Connection) -> list[bytes]:
            query = "SELECT digest, size FROM objects JOIN contents USING (digest) WHERE container = ? AND name = ?"
            entry = db.execute(query, source).fetchone()
            if entry is None:
                raise ProviderError("other", f"there is no object {source[1][:60]!r}")
            dropped = self._name(db, target, entry[0], entry[1])
            if move and source != target:
                db.execute("DELETE FROM objects WHERE container = ? AND name = ?", source)
            return dropped

        self._sweep(self.file.write(link))

    def delete(self, container: str, names: Sequence[str] | None) -> None:
        """Remove objects, or all of the container; no error for one that is absent."""

        def remove(db: sqlite3.Connection) -> list[bytes]:
            if names is None:
                rows = db.execute("DELETE FROM objects WHERE container = ? RETURNING digest", (container,)).fetchall()
                return [row[0] for row in rows]
            query = "DELETE FROM objects WHERE container = ? AND name = ? RETURNING digest"
            return [row[0] for name in names for row in db.execute(query, (container, name)).fetchall()]

        self._sweep(self.file.write(remove))

    def charge(self, size_bytes: int) -> None:
        """Count bytes of objects on their way in; negative as they leave it."""
        with self._lock:
            self._unfinished_bytes += size_bytes
            full = size_bytes > 0 and self._unfinished_bytes > self.caps.unfinished_max_bytes
        if full:
            raise ProviderError("other", "too many bytes are on their way into objects at once")

    def keep(self, file: Path, digest: bytes, size: int, names: Sequence[tuple[str, str]]) -> None:
        """Give a synced file its place and its names, in one transaction: no other process removes it meanwhile."""
        for _, name in names:
            self._check_name(name)

        def place(db: sqlite3.Connection) -> list[bytes]:
            path = self._path(digest)
            dropped = [gone for target in names for gone in self._name(db, target, digest, size)]
            if not path.exists():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                file.rename(path)
                sync_folder(path.parent)
                sync_folder(self._contents)
            return dropped

        self._sweep(_disk(lambda: self.file.write(place)))

    def _name(self, db: sqlite3.Connection, target: tuple[str, str], digest: bytes, size: int) -> list[bytes]:
        """Let a name lead to these bytes; return the digest it led to before. Inside a write transaction."""
        query = "DELETE FROM objects WHERE container = ? AND name = ? RETURNING digest"
        dropped = [row[0] for row in db.execute(query, target).fetchall() if row[0] != digest]
        db.execute("INSERT OR IGNORE INTO contents VALUES (?, ?)", (digest, size))
        db.execute("INSERT INTO objects VALUES (?, ?, ?, ?)", (*target, digest, self._now_ms()))
        (count,) = db.execute("SELECT count(*) FROM objects").fetchone()
        (total,) = db.execute("SELECT sum(size) FROM contents").fetchone()
        if count > self.caps.objects_max:
            raise ProviderError("other", f"there are {self.caps.objects_max} objects already")
        if total > self.caps.total_max_bytes:
            raise ProviderError("other", f"all objects together would exceed {self.caps.total_max_bytes} bytes")
        return dropped

    def _sweep(self, digests: Sequence[bytes]) -> None:
        """Remove bytes that no name leads to any more: after the commit that dropped them, under a lock of its own."""
        if not digests:
            return

        def forget(db: sqlite3.Connection) -> None:
            for digest in set(digests):
                if db.execute("SELECT 1 FROM objects WHERE digest = ? LIMIT 1", (digest,)).fetchone() is None:
                    db.execute("DELETE FROM contents WHERE digest = ?", (digest,))
                    self._path(digest).unlink(missing_ok=True)

        with suppress(ProviderError):  # the names are gone, which is what was asked; the bytes go another time
            self.file.write(forget)

    def clean(self) -> None:
        """Remove what processes that are gone left unfinished, and bytes that a crash left without a name."""
        if not self._contents.is_dir() or freeze.note_of(self.file.lane) is not None:
            return
        old_s = self._clock() - UNFINISHED_MAX_AGE_S
        for path in self._contents.glob("*.new"):
            with suppress(OSError):
                if not _lives(path.name.partition("-")[0]) or path.stat().st_mtime < old_s:
                    path.unlink()

        def forget(db: sqlite3.Connection) -> None:
            for path in self._contents.glob("??/*"):
                query = "SELECT 1 FROM objects WHERE digest = ? LIMIT 1"
                if len(path.name) == 64 and db.execute(query, (bytes.fromhex(path.name),)).fetchone() is None:
                    path.unlink(missing_ok=True)

        self.file.write(forget)

    def make_folder(self) -> None:
        """Make the folder of contents; the database comes first, and is not begun while the data is away."""
        if not self._contents.is_dir():
            self.file.read(lambda db: None)
            self._contents.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self._contents.parent)

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._contents / name[:2] / name

    def _check_name(self, name: str) -> None:
        if not 0 < len(name.encode()) <= self.caps.name_max_bytes:
            raise ProviderError("other", f"an object's name has 1 to {self.caps.name_max_bytes} bytes")

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


class FileWriter:
    """A `BlobWriter` into a file; used by one thread at a time."""

    def __init__(self, provider: FileBlobs, path: Path) -> None:
        provider.make_folder()
        self._provider = provider
        self._path = path
        self._file: BinaryIO | None = path.open("xb")
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Add bytes. Raises `ProviderError`."""
        if self._file is None:
            raise ProviderError("other", "the object is finished")
        if self.size + len(data) > self._provider.caps.object_max_bytes:
            raise ProviderError("other", f"an object has at most {self._provider.caps.object_max_bytes} bytes")
        self._provider.charge(len(data))
        self.size += len(data)
        self._digest.update(data)
        file = self._file
        _disk(lambda: file.write(data))

    def commit(self, names: Sequence[tuple[str, str]]) -> None:
        """Put it under these containers and names, durable on return."""
        file = self._file
        if file is None:
            raise ProviderError("other", "the object is finished")

        def sync() -> None:
            file.flush()
            os.fsync(file.fileno())

        try:
            _disk(sync)
            self._provider.keep(self._path, self._digest.digest(), self.size, names)
        finally:
            self.close()

    def close(self) -> None:
        """Throw away what was not committed."""
        if self._file is not None:
            with suppress(OSError):  # a full disk is told by write and commit; here nobody asks any more
                self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)  # renamed away, if it was kept
            self._provider.charge(-self.size)


class FileReader:
    """A `BlobReader` over an open file; it stays readable when its name is gone."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = path.open("rb")
        self._file.seek(start)
        self.size = size
        self._left = size

    def read(self, max_bytes: int) -> bytes:
        """Return the next bytes; empty at the end."""
        data = _disk(lambda: self._file.read(min(max_bytes, self._left)))
        if not data and self._left and max_bytes:
            raise ProviderError("other", "the object's file is shorter than it was")
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


def _disk(action: Callable[[], ResultT]) -> ResultT:
    """Run what touches files; a failure becomes a `ProviderError` without paths."""
    try:
        return action()
    except OSError as error:
        full = error.errno in {28, 122}  # ENOSPC, EDQUOT
        said = "the disk of the node is full" if full else f"the node's disk failed ({error.strerror})"
        raise ProviderError("other", said) from error


def _lives(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists()
