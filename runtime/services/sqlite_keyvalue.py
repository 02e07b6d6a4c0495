"""The embedded key-value provider: one SQLite database per project and environment, shared by all worker processes of the node.

Every write is one immediate transaction with `synchronous=FULL` in WAL mode, so a completed call survives a crash and
concurrent increments and swaps from any number of processes lose nothing. Stores are namespaces inside the database.
Not here: replication (the node places an app where its data is), migrations backwards, or permission checks (the host
checks that an app may open a store). SQL semantics: sqlite.org/wal.html, sqlite.org/stricttables.html.
"""

from __future__ import annotations

import fcntl
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from runtime.providers import ProviderError
from runtime.services import freeze

SCHEMA_VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE stores (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE entries (
    store INTEGER NOT NULL REFERENCES stores (id), key TEXT NOT NULL, value BLOB NOT NULL, UNIQUE (store, key)
) STRICT;
"""

STORE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
PROJECT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

BUSY_TIMEOUT_S: Final = 3.0
"""Longest wait for another writer; a write takes milliseconds, so longer means a queue nobody will outwait."""

IDLE_CONNECTIONS_MAX: Final = 16
"""Connections kept open per database and process, one per guest thread that uses it at the same moment."""

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1

ResultT = TypeVar("ResultT")

FileIdentity = tuple[int, int]
"""Device and inode of an open database: another file of the same name is other data."""


@dataclass(frozen=True, slots=True)
class StoreCaps:
    """Limits of every store. Sizes are of UTF-8 keys and raw values, without SQLite's own overhead."""

    key_max_bytes: int = 1024
    value_max_bytes: int = 4 * 1024 * 1024
    store_max_bytes: int = 1024 * 1024 * 1024
    page_max_keys: int = 500
    batch_max_keys: int = 1000


class SqliteKeyValue:
    """A `KeyValueProvider` over one database in `folder`; safe from any thread and process.

    `owner` is whose it is: "PROJECT", or "PROJECT/ENVIRONMENT" where a project runs in several.
    """

    def __init__(self, folder: Path, owner: str, caps: StoreCaps | None = None) -> None:
        names = owner.split("/")
        if len(names) > 2 or not all(PROJECT_NAME.fullmatch(name) for name in names):
            raise ProviderError("other", "bad project or environment name")
        self._caps = caps or StoreCaps()
        self._path = folder.joinpath(*names, "keyvalue.db")
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._idle: list[tuple[FileIdentity, sqlite3.Connection]] = []
        self._ready = False
        self._closed = False

    def open(self, store: str) -> SqliteBucket:
        """Open `store`, made on first use; raises `ProviderError`."""
        if not STORE_NAME.fullmatch(store):
            raise ProviderError("no-such-store", "bad store name")
        found = self.read(lambda db: db.execute("SELECT id FROM stores WHERE name = ?", (store,)).fetchone())
        if found is None:

            def create(db: sqlite3.Connection) -> tuple[int]:
                db.execute("INSERT OR IGNORE INTO stores (name) VALUES (?)", (store,))
                row: tuple[int] = db.execute("SELECT id FROM stores WHERE name = ?", (store,)).fetchone()
                return row

            found = self.write(create)
        return SqliteBucket(self, found[0], self._caps)

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
            found = self._path.stat()
        except OSError:
            gone = "the store's file is gone: it moved to another node, or was removed"
            raise ProviderError("other", gone, retry_after_s=freeze.RETRY_AFTER_S) from None
        return found.st_dev, found.st_ino

    def _open_file(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> None:
        """Make folder and schema, once; a lock file keeps processes that start together from racing into WAL mode."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._path.parent / "keyvalue.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._path.exists():
                    freeze.check(self._path.parent)
                connection = self._open_file()
                try:
                    _migrate(connection)
                finally:
                    connection.close()
        except OSError as error:
            raise ProviderError("other", "the store's folder cannot be written") from error
        self._ready = True


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise ProviderError("other", f"the store was written by a newer version ({version})")
    if version == 0:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _reason(error: sqlite3.Error) -> str:
    """A short text for the guest, without paths or SQL."""
    name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
    if name.startswith("SQLITE_BUSY"):
        return "the store is busy"
    return "the store's disk is full" if name == "SQLITE_FULL" else f"the store failed ({name})"


class SqliteBucket:
    """One open store of a `SqliteKeyValue`."""

    def __init__(self, database: SqliteKeyValue, store: int, caps: StoreCaps) -> None:
        self._database = database
        self._store = store
        self._caps = caps

    def get(self, key: str) -> bytes | None:
        """Return the value of `key`, or None."""
        return self._database.read(lambda db: self._get(db, key))

    def set(self, key: str, value: bytes) -> None:
        """Store `value` under `key`."""
        self.set_many(((key, value),))

    def delete(self, key: str) -> None:
        """Remove `key`; no error if absent."""
        self.delete_many((key,))

    def exists(self, key: str) -> bool:
        """Whether `key` is present."""
        query = "SELECT 1 FROM entries WHERE store = ? AND key = ?"
        return self._database.read(lambda db: db.execute(query, (self._store, key)).fetchone()) is not None

    def list_keys(self, cursor: str | None) -> tuple[Sequence[str], str | None]:
        """Return a page of keys in byte order after `cursor`, which is the last key of the page before, or None."""
        limit = self._caps.page_max_keys
        query = "SELECT key FROM entries WHERE store = ? AND key > ? ORDER BY key LIMIT ?"
        first = "SELECT key FROM entries WHERE store = ? ORDER BY key LIMIT ?"

        def page(db: sqlite3.Connection) -> list[tuple[str]]:
            if cursor is None:
                return db.execute(first, (self._store, limit + 1)).fetchall()
            return db.execute(query, (self._store, cursor, limit + 1)).fetchall()

        keys = [row[0] for row in self._database.read(page)]
        return keys[:limit], keys[limit - 1] if len(keys) > limit else None

    def increment(self, key: str, delta: int) -> int:
        """Add `delta` to the decimal integer kept as text under `key`, 0 if absent; the sum must fit 64 bits."""

        def add(db: sqlite3.Connection) -> int:
            present = self._get(db, key)
            total = _integer(present) + delta
            if not INTEGER_MIN <= total <= INTEGER_MAX:
                raise ProviderError("other", "the sum does not fit 64 bits")
            self._put(db, key, b"%d" % total)
            return total

        return self._database.write(add)

    def swap(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """Store `value` only if the present value is `expected` (None: absent), atomically; whether it did."""

        def compare(db: sqlite3.Connection) -> bool:
            if self._get(db, key) != expected:
                return False
            self._put(db, key, value)
            return True

        return self._database.write(compare)

    def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """Return the values of `keys`, in their order."""
        self._check_batch(len(keys))
        return self._database.read(lambda db: [self._get(db, key) for key in keys])

    def set_many(self, pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store all pairs, or none of them."""
        self._check_batch(len(pairs))

        def put(db: sqlite3.Connection) -> None:
            for key, value in pairs:
                self._put(db, key, value)

        self._database.write(put)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove all keys, or none of them."""
        self._check_batch(len(keys))

        def remove(db: sqlite3.Connection) -> None:
            freed = 0
            for key in keys:
                query = "DELETE FROM entries WHERE store = ? AND key = ? RETURNING length(value)"
                rows = db.execute(query, (self._store, key)).fetchall()
                freed += sum(length + len(key.encode()) for (length,) in rows)
            db.execute("UPDATE stores SET bytes = bytes - ? WHERE id = ?", (freed, self._store))

        self._database.write(remove)

    def _check_batch(self, count: int) -> None:
        if count > self._caps.batch_max_keys:
            raise ProviderError("other", f"more than {self._caps.batch_max_keys} keys in one call")

    def _get(self, db: sqlite3.Connection, key: str) -> bytes | None:
        query = "SELECT value FROM entries WHERE store = ? AND key = ?"
        row = db.execute(query, (self._store, key)).fetchone()
        return None if row is None else bytes(row[0])

    def _put(self, db: sqlite3.Connection, key: str, value: bytes) -> None:
        """Write one entry and account for it; inside a write transaction."""
        key_bytes = len(key.encode())
        if key_bytes > self._caps.key_max_bytes:
            raise ProviderError("other", f"a key has more than {self._caps.key_max_bytes} bytes")
        if len(value) > self._caps.value_max_bytes:
            raise ProviderError("other", f"a value has more than {self._caps.value_max_bytes} bytes")
        query = "SELECT length(value) FROM entries WHERE store = ? AND key = ?"
        row = db.execute(query, (self._store, key)).fetchone()
        growth = len(value) + key_bytes if row is None else len(value) - row[0]
        query = "UPDATE stores SET bytes = bytes + ? WHERE id = ? RETURNING bytes"
        (total,) = db.execute(query, (growth, self._store)).fetchone()
        if growth > 0 and total > self._caps.store_max_bytes:
            raise ProviderError("other", f"the store would exceed {self._caps.store_max_bytes} bytes")
        query = "INSERT INTO entries VALUES (?, ?, ?) ON CONFLICT (store, key) DO UPDATE SET value = excluded.value"
        db.execute(query, (self._store, key, value))


def _integer(value: bytes | None) -> int:
    if value is None:
        return 0
    try:
        if len(value) > 20:
            raise ValueError
        return int(value)
    except ValueError:
        raise ProviderError("other", "the value under this key is not a decimal integer") from None
