"""One SQLite database of a lane that the node itself writes: made on first use, durable at each write, still while frozen.

Every write is one immediate transaction with `synchronous=FULL` in WAL mode, so a completed call survives a crash and
concurrent writers in any number of processes lose nothing. Not here: what is kept (key-value stores, blobs, queues), and
databases that guests write statements for (`sqlite_sql.py`). SQL semantics: sqlite.org/wal.html.
"""

from __future__ import annotations

import fcntl
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from runtime.providers import ProviderError
from runtime.services import freeze

PROJECT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

BUSY_TIMEOUT_S: Final = 3.0
"""Longest wait for another writer; a write takes milliseconds, so longer means a queue nobody will outwait."""

IDLE_CONNECTIONS_MAX: Final = 16
"""Connections kept open per database and process, one per guest thread that uses it at the same moment."""

ResultT = TypeVar("ResultT")

FileIdentity = tuple[int, int]
"""Device and inode of an open database: another file of the same name is other data."""


def lane_folder(folder: Path, owner: str) -> Path:
    """Return where the data of `owner` lies: "PROJECT", or "PROJECT/ENVIRONMENT". Raises `ProviderError`."""
    names = owner.split("/")
    if len(names) > 2 or not all(PROJECT_NAME.fullmatch(name) for name in names):
        raise ProviderError("other", "bad project or environment name")
    return folder.joinpath(*names)


class SqliteFile:
    """The database `name`.db in a lane's folder, with `schema` as its tables; safe from any thread and process."""

    def __init__(self, lane: Path, name: str, schema: str, version: int) -> None:
        self.lane = lane
        self._path = lane / f"{name}.db"
        self._schema = schema
        self._version = version
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._idle: list[tuple[FileIdentity, sqlite3.Connection]] = []
        self._ready = False
        self._closed = False

    def close(self) -> None:
        """Close idle connections, for good; those in use close when they come back, and every later call is refused."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def read(self, action: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        """Run `action` outside a transaction; raises `ProviderError`."""
        return freeze.patiently(lambda: self._read(action))  # the first use of all may have to make the file

    def _read(self, action: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        with self._connection() as (_, connection):
            return action(connection)

    def write(self, action: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        """Run `action` in one immediate transaction, durable on return; raises `ProviderError` and changes nothing.

        While the data is frozen it waits; see freeze.py.
        """
        return freeze.patiently(lambda: self._write(action))

    def _write(self, action: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        # One writer per process at a time: threads queue here in order instead of in SQLite's sleeping retries.
        if not self._writing.acquire(timeout=BUSY_TIMEOUT_S):
            raise ProviderError("other", "the store is busy")
        try:
            with self._connection() as (identity, connection):
                connection.execute("BEGIN IMMEDIATE")
                try:
                    freeze.check(self._path.parent)
                    if self._identity() != identity:  # a move or a person put it elsewhere since it was opened
                        raise freeze.FrozenError
                    result = action(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                return result
        finally:
            self._writing.release()

    @contextmanager
    def _connection(self) -> Iterator[tuple[FileIdentity, sqlite3.Connection]]:
        try:
            identity, connection = self._take()
            try:
                yield identity, connection
            finally:
                with self._lock:
                    keep = not self._closed and len(self._idle) < IDLE_CONNECTIONS_MAX
                    if keep:
                        self._idle.append((identity, connection))
                if not keep:
                    connection.close()
        except sqlite3.Error as error:
            raise ProviderError("other", _reason(error)) from error

    def _take(self) -> tuple[FileIdentity, sqlite3.Connection]:
        """A connection to the file that bears the name now: a copy put in its place is other data than an open one."""
        if not self._ready:
            self._prepare()
        identity = self._identity()
        with self._lock:
            if self._closed:
                raise ProviderError("other", "the store is closed", retry_after_s=freeze.RETRY_AFTER_S)
            if self._idle and self._idle[-1][0] == identity:
                return self._idle.pop()
            stale, self._idle = self._idle, []
        for _, connection in stale:
            connection.close()
        return identity, self._open_file()

    def _identity(self) -> FileIdentity:
        try:
            pair = self._path.stat()
        except OSError:
            gone = "the store's file is gone: it moved to another node, or was removed"
            raise ProviderError("other", gone, retry_after_s=freeze.RETRY_AFTER_S) from None
        return pair.st_dev, pair.st_ino

    def _open_file(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> None:
        """Make folder and schema, once; a lock file keeps processes that start together from racing into WAL mode."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._path.parent / f"{self._path.stem}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._path.exists():
                    freeze.check(self._path.parent)
                connection = self._open_file()
                try:
                    self._migrate(connection)
                finally:
                    connection.close()
        except OSError as error:
            raise ProviderError("other", "the store's folder cannot be written") from error
        self._ready = True

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > self._version:
            raise ProviderError("other", f"the store was written by a newer version ({version})")
        if version == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN; {self._schema} PRAGMA user_version = {self._version}; COMMIT;")


def _reason(error: sqlite3.Error) -> str:
    """A short text for the guest, without paths or SQL."""
    name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
    if name.startswith("SQLITE_BUSY"):
        return "the store is busy"
    return "the store's disk is full" if name == "SQLITE_FULL" else f"the store failed ({name})"
