"""The embedded key-value provider: one SQLite database per project and environment, shared by all worker processes of the node.

Stores are namespaces inside the database. Not here: what makes a write durable (`sqlite_file.py`), replication (the node
places an app where its data is), migrations backwards, or permission checks (the host checks that an app may open a
store). SQL semantics: sqlite.org/stricttables.html.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.providers import ProviderError
from runtime.services.sqlite_file import SqliteFile, lane_folder

KEYVALUE_VERSION: Final = 1

KEYVALUE_SCHEMA: Final = """
CREATE TABLE stores (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE entries (
    store INTEGER NOT NULL REFERENCES stores (id), key TEXT NOT NULL, value BLOB NOT NULL, UNIQUE (store, key)
) STRICT;
"""

STORE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1


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
        self._caps = caps or StoreCaps()
        self.file = SqliteFile(lane_folder(folder, owner), "keyvalue", KEYVALUE_SCHEMA, KEYVALUE_VERSION)

    def open(self, store: str) -> SqliteBucket:
        """Open `store`, made on first use; raises `ProviderError`."""
        if not STORE_NAME.fullmatch(store):
            raise ProviderError("no-such-store", "bad store name")
        entry = self.file.read(lambda db: db.execute("SELECT id FROM stores WHERE name = ?", (store,)).fetchone())
        if entry is None:

            def create(db: sqlite3.Connection) -> tuple[int]:
                db.execute("INSERT OR IGNORE INTO stores (name) VALUES (?)", (store,))
                row: tuple[int] = db.execute("SELECT id FROM stores WHERE name = ?", (store,)).fetchone()
                return row

            entry = self.file.write(create)
        return SqliteBucket(self.file, entry[0], self._caps)

    def close(self) -> None:
        """Close it for good."""
        self.file.close()


class SqliteBucket:
    """One open store of a `SqliteKeyValue`."""

    def __init__(self, database: SqliteFile, store: int, caps: StoreCaps) -> None:
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
