"""The copy of the stores before a schema change, and the way back: whole, once, and again after a crash at any step."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import deque
from pathlib import Path

import pytest

from node.store import schema_copy
from node.store.schema_copy import copy_before_change, copy_folder, forget_copies, put_back_if_newer, schema_of
from node.store.storage import SCHEMA_VERSION, Database, Storage
from protocols.machine import Persist, Store, Write


def rows(path: Path) -> list[tuple[bytes, bytes]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT key, value FROM entries ORDER BY key").fetchall()


def set_schema(folder: Path, version: int) -> None:
    for name in schema_copy.DATABASES:
        with contextlib.closing(sqlite3.connect(folder / name)) as connection:
            connection.execute(f"PRAGMA user_version={version}")


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A node's stores of the schema before this one, with a row in each database and a fence."""
    storage = Storage(tmp_path)
    await storage.open()
    for database in (storage.vote, storage.state):
        await database.apply(deque([Persist(Store.VOTE, (Write("t", b"key", database.path.name.encode()),))]))
    await storage.close()
    (tmp_path / "fence").write_bytes(b"the fence of before")
    set_schema(tmp_path, SCHEMA_VERSION - 1)
    return tmp_path


def change(folder: Path) -> None:
    """What a newer release does: another schema, another row, another fence."""
    for name in schema_copy.DATABASES:
        with contextlib.closing(sqlite3.connect(folder / name)) as connection:
            connection.execute("UPDATE entries SET value = x'00'")
            connection.commit()
    set_schema(folder, SCHEMA_VERSION + 1)
    (folder / "fence").write_bytes(b"the fence of later")


def as_before(folder: Path) -> bool:
    held = [rows(folder / name)[0][1] for name in schema_copy.DATABASES]
    return held == [b"state.db", b"vote.db"] and (folder / "fence").read_bytes() == b"the fence of before"


def test_nothing_is_copied_where_the_schema_stays(folder: Path) -> None:
    set_schema(folder, SCHEMA_VERSION)
    assert not copy_before_change(folder)
    assert not copy_folder(folder).exists()
    assert not put_back_if_newer(folder)


def test_the_copy_is_put_back_whole_and_only_if_the_stores_are_newer(folder: Path) -> None:
    assert copy_before_change(folder)
    assert copy_before_change(folder), "the copy is of before the first change, whoever opens the stores again"
    assert not put_back_if_newer(folder), "they are not newer yet"
    change(folder)
    assert put_back_if_newer(folder)
    assert as_before(folder)
    assert [schema_of(folder / name) for name in schema_copy.DATABASES] == [SCHEMA_VERSION - 1] * 2
    forget_copies(folder)
    assert not list(folder.glob("before-*"))


@pytest.mark.parametrize("number", range(1, 7))
def test_killed_at_any_step_it_is_put_back_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    copy_before_change(folder)
    change(folder)
    done = iter(range(1, 100))

    def counted(source: Path, target: Path) -> None:
        if next(done) == (number + 1) // 2:
            if number % 2:
                raise KeyboardInterrupt  # before this file
            replace(source, target)
            raise KeyboardInterrupt  # behind it
        replace(source, target)

    replace = schema_copy._replace
    with monkeypatch.context() as patched:
        patched.setattr(schema_copy, "_replace", counted)
        with pytest.raises(KeyboardInterrupt):
            put_back_if_newer(folder)
    put_back_if_newer(folder)
    assert as_before(folder)


def test_a_copy_that_this_release_cannot_read_is_no_way_back(folder: Path) -> None:
    copy_before_change(folder)
    change(folder)
    set_schema(copy_folder(folder), SCHEMA_VERSION + 1)
    with pytest.raises(FileNotFoundError, match="no copy"):
        put_back_if_newer(folder)


def test_the_copy_is_durable_before_it_has_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda one, to: (steps.append("rename"), rename(one, to))[1])
    copy_before_change(folder)
    before = steps[: steps.index("rename")]
    assert {Path(text).name for text in before} >= {"vote.db", "state.db", "fence"}
    assert steps[-1] == str(folder)


async def test_a_migrated_database_is_one_that_this_release_reads(folder: Path) -> None:
    copy_before_change(folder)
    database = Database(folder / "vote.db")
    with contextlib.closing(sqlite3.connect(folder / "vote.db")) as connection:  # as schema 1 was: without checksums
        connection.execute("ALTER TABLE entries DROP COLUMN checksum")
    await database.open()
    assert (await database.load())["t"] == {b"key": b"vote.db"}
    await database.close()
    assert schema_of(folder / "vote.db") == SCHEMA_VERSION
