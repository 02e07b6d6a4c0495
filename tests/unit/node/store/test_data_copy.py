"""Copies of data as blocks: what is sent again, what is refused, and that the copy is the data."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from node.errors import ConfigError
from node.store.data_copy import (
    BLOCK_BYTES,
    DataCopy,
    FileCopy,
    check_copy,
    complete,
    missing,
    read_block,
    take_copy,
    write_block,
)


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    folder = tmp_path / "stores"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "a").write_bytes(b"picture")
    (folder / "keyvalue.lock").touch()
    with sqlite3.connect(folder / "keyvalue.db", isolation_level=None) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, value BLOB)")
        database.executemany("INSERT INTO t (value) VALUES (?)", [(bytes(4_000),) for _ in range(200)])
    return folder


def carry(copy: DataCopy, source: Path, target: Path) -> int:
    """Bring `target` up to `copy`; return how many blocks that took."""
    target.mkdir(exist_ok=True)
    wanted = missing(copy, target)
    for name, numbers in wanted.items():
        for number in numbers:
            write_block(target, name, number, read_block(source, name, number))
    complete(copy, target)
    return sum(map(len, wanted.values()))


def test_a_copy_is_the_data_without_what_belongs_to_the_place(stores: Path, tmp_path: Path) -> None:
    copy = take_copy(stores, tmp_path / "out")
    assert [file.name for file in copy.files] == ["blobs/a", "keyvalue.db"]
    carry(copy, tmp_path / "out", tmp_path / "in")
    assert (tmp_path / "in" / "blobs" / "a").read_bytes() == b"picture"
    with sqlite3.connect(tmp_path / "in" / "keyvalue.db") as database:
        assert database.execute("SELECT count(*) FROM t").fetchone() == (200,)


def test_the_second_copy_sends_what_changed_and_drops_what_is_gone(stores: Path, tmp_path: Path) -> None:
    whole = carry(take_copy(stores, tmp_path / "out"), tmp_path / "out", tmp_path / "in")
    with sqlite3.connect(stores / "keyvalue.db") as database:
        database.execute("UPDATE t SET value = 'x' WHERE n = 7")
    (stores / "blobs" / "a").unlink()
    tail = carry(take_copy(stores, tmp_path / "out"), tmp_path / "out", tmp_path / "in")
    assert 0 < tail <= 3 < whole
    assert not (tmp_path / "in" / "blobs" / "a").exists()
    with sqlite3.connect(tmp_path / "in" / "keyvalue.db") as database:
        assert database.execute("SELECT value FROM t WHERE n = 7").fetchone() == ("x",)


def test_a_file_that_shrank_is_cut(stores: Path, tmp_path: Path) -> None:
    (stores / "blobs" / "a").write_bytes(bytes(3 * BLOCK_BYTES + 1))
    carry(take_copy(stores, tmp_path / "out"), tmp_path / "out", tmp_path / "in")
    (stores / "blobs" / "a").write_bytes(bytes(BLOCK_BYTES))
    carry(take_copy(stores, tmp_path / "out"), tmp_path / "out", tmp_path / "in")
    assert (tmp_path / "in" / "blobs" / "a").stat().st_size == BLOCK_BYTES


def test_bytes_that_are_not_what_the_source_said_are_refused(stores: Path, tmp_path: Path) -> None:
    copy = take_copy(stores, tmp_path / "out")
    carry(copy, tmp_path / "out", tmp_path / "in")
    write_block(tmp_path / "in", "blobs/a", 0, b"Picture")
    with pytest.raises(ConfigError):
        complete(copy, tmp_path / "in")


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "a/../../b", "", "frozen", "x.db-wal", "a\0b", "n" * 300, "sub/frozen"]
)
def test_a_name_that_would_leave_its_place_or_freeze_it_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        check_copy(DataCopy((FileCopy(name, 0, b"", ()),)))


def test_a_copy_with_a_block_too_few_or_a_name_twice_is_refused() -> None:
    file_copy = FileCopy("a.db", 10, b"", (b"1",))
    check_copy(DataCopy((file_copy,)))
    for wrong in (DataCopy((file_copy, file_copy)), DataCopy((msgspec.structs.replace(file_copy, blocks=()),))):
        with pytest.raises(ConfigError):
            check_copy(wrong)
