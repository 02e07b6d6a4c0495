"""The node's durable state behind `Persist`: `vote.db`, `state.db` and the fence file.

`vote.db` is small and disciplined: what this voter promised, accepted and knows as decided. `state.db` holds records
and can be rebuilt by sync. The fence is a file of two slots, a disk sector each, written in place and fsynced. Each
database has one connection on one thread (SQLite before 3.51.3 can corrupt a WAL that two connections checkpoint),
WAL, synchronous=FULL. Any error of a durable write is a StorageError: the process must end, nothing is retried on a
page that may be marked clean. Only what found no room is tried again, with space from the reserve (disk_room.py): of that
nothing was written. Not here: what the tables mean (protocols/), and artifacts (artifacts.py).
"""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import aiosqlite

from node.errors import CorruptStoreError, DiskFullError, StorageError
from node.store.disk_room import Reserve, free_bytes
from protocols.chain.fence import SLOT_KEYS
from protocols.machine import Persist, Store, Write
from runtime.durable import sync_folder

SCHEMA_VERSION = 2
FENCE_SLOT_SPACING_BYTES = 4096
"""The slots lie in different sectors (and pages), so that one torn write cannot spoil both."""

OPEN_BYTES = 4 << 20
"""What opening two databases and the first records of a start may take."""

Tables = dict[str, dict[bytes, bytes]]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    table_name TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, checksum INTEGER, PRIMARY KEY (table_name, key)
) STRICT, WITHOUT ROWID
"""
_MIGRATIONS = {1: "ALTER TABLE entries ADD COLUMN checksum INTEGER"}
"""What leads from each older schema to the next; rows of the first have no checksum until they are written again."""

_UPSERT = """
INSERT INTO entries (table_name, key, value, checksum) VALUES (?, ?, ?, ?)
ON CONFLICT (table_name, key) DO UPDATE SET value = excluded.value, checksum = excluded.checksum
"""
_DELETE = "DELETE FROM entries WHERE table_name = ? AND key = ?"


class Database:
    """One SQLite file as durable tables of bytes."""

    def __init__(self, path: Path, fence: FenceFile | None = None) -> None:
        """Take the file's path; `open` creates it. `fence` is the file whose writes take turns with this one's."""
        self.path = path
        self._fence = fence
        self._connection: aiosqlite.Connection | None = None
        self.commit_count = 0
        self.damaged_rows = 0
        """Rows that `load` left out: SQLite's own check does not see a bit that flips inside a value."""

    async def open(self) -> None:
        """Open or create the file.

        Raises CorruptStoreError if it fails its check or is from a newer version, StorageError if the disk fails.
        """
        try:
            self._connection = await aiosqlite.connect(self.path, isolation_level=None)
            await self._set_up(self._connection)
        except CorruptStoreError:
            await self.close()
            raise
        except sqlite3.DatabaseError as error:
            await self.close()
            if is_damage(error):
                raise CorruptStoreError(f"{self.path.name} is damaged: {error}") from error
            raise failure(self.path.name, error) from error

    async def _set_up(self, connection: aiosqlite.Connection) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "trusted_schema=OFF", "mmap_size=0"):
            await connection.execute(f"PRAGMA {pragma}")
        answer = await (await connection.execute("PRAGMA quick_check(1)")).fetchone()
        if answer is None or answer[0] != "ok":
            raise CorruptStoreError(f"{self.path.name} fails its integrity check: {answer and answer[0]}")
        version = await (await connection.execute("PRAGMA user_version")).fetchone()
        assert version is not None
        if version[0] > SCHEMA_VERSION:
            raise CorruptStoreError(
                f"{self.path.name} has schema {version[0]} of a newer Freehold; this one knows {SCHEMA_VERSION}",
                "start the newer version again",
            )
        if version[0] != SCHEMA_VERSION:
            older = range(version[0], SCHEMA_VERSION) if version[0] else ()
            steps = ("BEGIN IMMEDIATE", *(_MIGRATIONS[number] for number in older), _SCHEMA)
            for step in (*steps, f"PRAGMA user_version={SCHEMA_VERSION}", "COMMIT"):
                await connection.execute(step)

    async def load(self) -> Tables:
        """Return everything in it that is as it was written: table -> key -> value."""
        assert self._connection is not None
        tables: Tables = {}
        async with self._connection.execute("SELECT table_name, key, value, checksum FROM entries") as cursor:
            async for name, key, value, expected in cursor:
                if expected is not None and checksum(name, key, value) != expected:
                    self.damaged_rows += 1
                else:
                    tables.setdefault(name, {})[key] = value
        return tables

    async def apply(self, effects: deque[Persist]) -> None:
        """Make each effect durable in turn, each all or nothing, and take it off `effects`.

        Raises StorageError; the caller must then end the process.
        """
        assert self._connection is not None
        await self._connection._execute(  # type: ignore[no-untyped-call]
            self._write, self._connection._conn, effects
        )

    def _write(self, connection: sqlite3.Connection, effects: deque[Persist]) -> None:
        """Do it all in one hop to the database's thread."""
        while effects:
            if effects[0].store is Store.FENCE:
                assert self._fence is not None
                self._fence.apply(effects[0].writes)
            else:
                try:
                    _commit(connection, effects[0].writes)
                except sqlite3.Error as error:
                    raise failure(self.path.name, error) from error
                self.commit_count += 1
            effects.popleft()

    async def close(self) -> None:
        """Close the file; what was acknowledged is durable already."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


def checksum(table: str, key: bytes, value: bytes) -> int:
    """The CRC-32 of a row: against disks that err, not against people, who could write any checksum."""
    return zlib.crc32(value, zlib.crc32(key, zlib.crc32(table.encode())))


def _commit(connection: sqlite3.Connection, writes: Sequence[Write]) -> None:
    """One transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for write in writes:
            if write.value is None:
                connection.execute(_DELETE, (write.table, write.key))
            else:
                number = checksum(write.table, write.key, write.value)
                connection.execute(_UPSERT, (write.table, write.key, write.value, number))
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class FenceFile:
    """The two-slot file; see protocols/chain/fence.py for what the slots say."""

    def __init__(self, path: Path, copy: Path | None = None) -> None:
        """Take the file's path; the first write creates it. `copy` lies in the volatile folder, see `apply`."""
        self._path = path
        self._copy = copy
        self._handle: int | None = None
        self._copy_handle: int | None = None
        self.sync_count = 0

    def load(self) -> dict[bytes, bytes]:
        """Return the slots' bytes by slot key; none if there is no file yet."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        slots = {}
        for index, key in enumerate(SLOT_KEYS):
            start = index * FENCE_SLOT_SPACING_BYTES
            length = int.from_bytes(data[start : start + 2], "big")
            slots[key] = data[start + 2 : start + 2 + length]
        return slots

    def apply(self, writes: Sequence[Write]) -> None:
        """Write the named slots in place and fsync; then leave a copy of the newest where a reboot or a restore loses it.

        Raises StorageError.
        """
        try:
            if self._handle is None:
                self._handle = self._open()
            for write in writes:
                assert write.value is not None
                assert len(write.value) + 2 <= FENCE_SLOT_SPACING_BYTES
                start = SLOT_KEYS.index(write.key) * FENCE_SLOT_SPACING_BYTES
                os.pwrite(self._handle, len(write.value).to_bytes(2, "big") + write.value, start)
            os.fdatasync(self._handle)
            if self._copy is not None:
                self._write_copy(self._copy, writes[-1].value or b"")
        except OSError as error:
            raise failure(self._path.name, error) from error
        self.sync_count += 1

    def _write_copy(self, path: Path, value: bytes) -> None:
        """In place: a copy that is torn by the process's end is no copy, and costs a boot read."""
        try:
            if self._copy_handle is None:
                self._copy_handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(self._copy_handle, value, 0)
        except OSError:  # no copy, rather than an old one: the next start then asks the others what was said
            path.unlink(missing_ok=True)

    def _open(self) -> int:
        """Open the file, made with both slots' blocks allocated: a later write in place needs no room."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            size = FENCE_SLOT_SPACING_BYTES * len(SLOT_KEYS)
            held = os.fstat(handle).st_size
            if held < size:
                os.pwrite(handle, bytes(size - held), held)
                os.fsync(handle)
                sync_folder(self._path.parent)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def close(self) -> None:
        """Close the file and its copy."""
        for handle in (self._handle, self._copy_handle):
            if handle is not None:
                os.close(handle)
        self._handle = self._copy_handle = None


class Storage:
    """All three stores of one node, in one folder."""

    def __init__(self, folder: Path, fence_copy: Path | None = None) -> None:
        """Take the data folder, which must exist, and where the volatile copy of the fence goes."""
        self._folder = folder
        self.fence = FenceFile(folder / "fence", fence_copy)
        self.vote = Database(folder / "vote.db", self.fence)
        self.state = Database(folder / "state.db")
        self.reserve = Reserve(folder / "reserve")

    async def open(self) -> tuple[Tables | None, Tables | None, dict[bytes, bytes]]:
        """Open all; return the vote tables, the state tables and the fence slots. None where a database is damaged.

        A damaged database is set aside under a name that ends in `.damaged-N`, never deleted, and an empty one opened.
        Raises StorageError if the disk fails: what cannot be read now may be whole.
        """
        while free_bytes(self._folder) < OPEN_BYTES and self.reserve.release():
            pass
        try:
            vote = await self._open_or_set_aside(self.vote)
            state = await self._open_or_set_aside(self.state)
        except BaseException:
            await self.close()
            raise
        return vote, state, self.fence.load()

    @property
    def sync_count(self) -> int:
        """How many durable writes were waited for since the start; the databases' own checkpoints are not among them."""
        return self.vote.commit_count + self.state.commit_count + self.fence.sync_count

    async def apply(self, *effects: Persist) -> None:
        """Perform each `Persist` in turn. Raises StorageError; the caller must then end the process."""
        for of_state, group in itertools.groupby(effects, lambda effect: effect.store is Store.STATE):
            database, left = self.state if of_state else self.vote, deque(group)
            while left:
                try:
                    await database.apply(left)
                except DiskFullError:
                    if not self.reserve.release():
                        raise

    async def close(self) -> None:
        """Close all."""
        await self.vote.close()
        await self.state.close()
        self.fence.close()

    async def _open_or_set_aside(self, database: Database) -> Tables | None:
        existed = database.path.exists()
        try:
            await database.open()
            return await database.load() if existed else {}
        except (CorruptStoreError, sqlite3.DatabaseError) as error:
            if isinstance(error, CorruptStoreError) and error.advice:
                raise
            if isinstance(error, sqlite3.DatabaseError) and not is_damage(error):
                raise failure(database.path.name, error) from error
            await database.close()
            set_aside(database.path)
            await database.open()
            return None


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error of SQLite speaks of the file's bytes, not of the disk under it or of who may open it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def failure(name: str, error: sqlite3.Error | OSError) -> StorageError:
    """What a failed write means: a disk without room, or one that is not to be trusted."""
    full = (
        error.errno in {errno.ENOSPC, errno.EDQUOT}
        if isinstance(error, OSError)
        else getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    )
    if full:
        return DiskFullError(f"{name}: no room for a durable write: {error}", "free some space, then start the node")
    return StorageError(
        f"{name}: a durable write failed: {error}",
        "look at the disk (dmesg, smartctl); if it is lost, the voter is replaced: freehold mesh voters --replace",
    )


def set_aside(path: Path) -> Path:
    """Rename a database and its WAL out of the way; return the new name."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(target.with_name(target.name + suffix))
    sync_folder(path.parent)
    return target
