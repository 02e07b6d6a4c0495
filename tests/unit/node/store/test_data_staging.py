"""Data that comes from outside: what is refused, and that a kill or an error at each step leaves the old or the new."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.errors import ConfigError
from node.store.data_folders import DataFolders, Mark
from node.store.data_staging import Part, Staging, check_listing, settle_imports
from protocols.api_data import ListedFile
from protocols.envelope import decode, digest
from runtime.providers import ProviderError
from runtime.services import freeze
from runtime.services.file_blobs import FileBlobs
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from tests.support.mesh.killed_at import run_killed

LANE = ("site", "production")
OWNER = "site/production"


def fill(folder: Path, text: bytes) -> None:
    """Make a lane's data with this text in a store, in a database and in an object."""
    keyvalue = SqliteKeyValue(folder, OWNER)
    keyvalue.open("visits").set("text", text)
    keyvalue.close()
    (folder / OWNER / "sql").mkdir()
    with contextlib.closing(sqlite3.connect(folder / OWNER / "sql" / "main.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (?)", (text,))
    blobs = FileBlobs(folder, OWNER)
    writer = blobs.put()
    writer.write(text)
    writer.commit([("uploads", "text")])
    blobs.close()


def texts(folder: Path) -> set[bytes]:
    """What a lane's data says, in each of its kinds."""
    keyvalue = SqliteKeyValue(folder, OWNER)
    blobs = FileBlobs(folder, OWNER)
    stored = {keyvalue.open("visits").get("text") or b""}
    with contextlib.closing(sqlite3.connect(folder / OWNER / "sql" / "main.db")) as database:
        stored |= {row[0] for row in database.execute("SELECT x FROM t")}
    reader = blobs.get("uploads", "text")
    stored.add(reader.read(100))
    reader.close()
    keyvalue.close()
    blobs.close()
    return stored


def files_of(folder: Path) -> dict[str, bytes]:
    for path in folder.rglob("*.db"):
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def listing(files: dict[str, bytes]) -> tuple[ListedFile, ...]:
    return tuple(ListedFile(name, len(data), digest(data).hex()) for name, data in files.items())


def staged(place: DataFolders, files: dict[str, bytes]) -> Staging:
    staging = Staging(place, LANE)
    staging.open()
    for listed_file in listing(files):
        part = staging.begin_part(listed_file)
        part.write(files[listed_file.name])
        part.finish()
        part.close()
    return staging


@pytest.fixture
def new(tmp_path: Path) -> dict[str, bytes]:
    fill(tmp_path / "elsewhere", b"new")
    return files_of(tmp_path / "elsewhere" / OWNER)


def node(folder: Path) -> DataFolders:
    fill(folder / "data", b"old")
    return DataFolders(folder)


def install(place: DataFolders, files: dict[str, bytes], *, stays_frozen: bool = False) -> None:
    staging = staged(place, files)
    staging.assemble(listing(files))
    staging.install(7, stays_frozen=stays_frozen)


def test_an_import_replaces_all_and_keeps_the_old_unwritable(tmp_path: Path, new: dict[str, bytes]) -> None:
    place = node(tmp_path / "n")
    install(place, new)
    assert texts(place.folder / "data") == {b"new"}
    assert freeze.note_of(place.stores(LANE)) is None
    assert not place.importing(LANE).exists()
    assert place.kept(LANE) == (7,)
    old = place.folder / "kept" / "site" / "production" / "7"
    assert (old / "keyvalue.db").stat().st_mode & 0o222 == 0


def test_data_that_was_frozen_is_frozen_behind_an_import(tmp_path: Path, new: dict[str, bytes]) -> None:
    place = node(tmp_path / "n")
    install(place, new, stays_frozen=True)
    mark: Mark = decode(freeze.note_of(place.stores(LANE)) or b"", Mark)
    assert (mark.ticket, mark.left) == (None, False)


def test_a_kill_before_each_file_operation_leaves_the_old_or_the_new(tmp_path: Path, new: dict[str, bytes]) -> None:
    def begin(folder: Path) -> DataFolders:
        place = node(folder)
        staged(place, new).assemble(listing(new))
        return place

    def swap(place: DataFolders) -> Callable[[], int]:
        def run() -> int:
            Staging(place, LANE).install(7, stays_frozen=False)
            return 0

        return run

    whole = begin(tmp_path / "whole")
    counted = run_killed(swap(whole), os.environ, "")
    assert counted.code == 0, counted
    assert texts(whole.folder / "data") == {b"new"}
    seen = set()
    for before in range(counted.operations):
        place = begin(tmp_path / f"m{before}")
        killed = run_killed(swap(place), os.environ, "", before)
        assert killed.code is None, (before, killed)
        if freeze.note_of(place.stores(LANE)) is None and not Staging(place, LANE).begun:
            assert texts(place.folder / "data") in ({b"old"}, {b"new"}), before
        settle_imports(place)
        assert freeze.note_of(place.stores(LANE)) is None, f"frozen for ever after {before}"
        stored = texts(place.folder / "data")
        assert stored in ({b"old"}, {b"new"}), (before, stored)
        assert (stored == {b"old"}) == (place.kept(LANE) == ()), "the old copy is kept"
        assert not place.importing(LANE).exists()
        seen |= stored
    assert seen == {b"old", b"new"}, "every kill came too early, or too late"


def test_an_error_of_the_disk_at_each_step_leaves_the_old_or_goes_on_later(
    tmp_path: Path, new: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk that is full answers: each sync and each rename in turn fails once."""
    seen = set()
    for step in range(100):
        place = node(tmp_path / f"n{step}")
        staging = staged(place, new)
        staging.assemble(listing(new))
        with monkeypatch.context() as patch:
            left = _failing_at(patch, step)
            try:
                staging.install(7, stays_frozen=False)
            except OSError:
                pass
            else:
                if left():
                    break
        begun = staging.begun
        if begun is None and freeze.note_of(place.stores(LANE)) is None:
            assert texts(place.folder / "data") in ({b"old"}, {b"new"})
        settle_imports(place)
        stored = texts(place.folder / "data")
        assert stored in ({b"old"}, {b"new"}), (step, stored)
        assert freeze.note_of(place.stores(LANE)) is None
        seen |= stored
    else:
        raise AssertionError("an install of a hundred steps")
    assert seen == {b"old", b"new"}


def _failing_at(patch: pytest.MonkeyPatch, step: int) -> Callable[[], bool]:
    left = [step]

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*arguments)

        return run

    patch.setattr(os, "fsync", failing(os.fsync))
    patch.setattr(Path, "rename", failing(Path.rename))
    patch.setattr(Path, "replace", failing(Path.replace))
    return lambda: left[0] >= 0


def test_a_writer_waits_while_files_change_places_and_then_writes_the_new(
    tmp_path: Path, new: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = node(tmp_path / "n")
    provider = SqliteKeyValue(place.folder / "data", OWNER)
    bucket = provider.open("visits")
    staging = staged(place, new)
    staging.assemble(listing(new))
    seen: list[bool] = []
    keep = DataFolders.keep

    def keeping(self: DataFolders, lane: tuple[str, str], at_ms: int) -> None:
        monkeypatch.setattr(freeze, "WRITER_WAIT_S", 0.1)
        with pytest.raises(ProviderError, match="frozen"):
            bucket.set("late", b"1")
        seen.append(True)
        keep(self, lane, at_ms)

    monkeypatch.setattr(DataFolders, "keep", keeping)
    staging.install(7, stays_frozen=False)
    assert seen == [True]
    bucket.set("late", b"2")
    assert bucket.get("text") == b"new"
    assert texts(place.folder / "data") == {b"new"}
    provider.close()


@pytest.mark.parametrize(
    "name",
    ["../up.db", "/etc/passwd", "sql/../keyvalue.db", "sql/Main.db", "sql/main.db-wal", "frozen", "keyvalue.db.new",
     "blobs/aa/" + "b" * 64, "blobs/bb/" + "b" * 63, "sql/main.sqlite", "other.db", "sql/" + "a" * 41 + ".db", ""],
)  # fmt: skip
def test_a_file_that_is_no_apps_data_is_refused(name: str) -> None:
    check_listing((ListedFile("sql/" + "a" * 40 + ".db", 1, "b" * 64), ListedFile("blobs/bb/" + "b" * 64, 1, "b" * 64)))
    with pytest.raises(ConfigError, match="is no file of an app's data"):
        check_listing((ListedFile(name, 1, "b" * 64),))


def test_a_listing_with_a_name_twice_too_much_or_another_digest_is_refused() -> None:
    listed_file = ListedFile("keyvalue.db", 1, "b" * 64)
    for wrong in (
        (listed_file, listed_file),
        (msgspec.structs.replace(listed_file, size_bytes=(64 << 30) + 1),),
        (msgspec.structs.replace(listed_file, size_bytes=-1),),
        (msgspec.structs.replace(listed_file, sha256="B" * 64),),
        (ListedFile("blobs/bb/" + "b" * 64, 1, "b" * 63 + "c"),),
    ):
        with pytest.raises(ConfigError):
            check_listing(wrong)


def test_bytes_that_were_not_listed_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    staging = Staging(DataFolders(tmp_path), LANE)
    staging.open()
    listed_file = ListedFile("keyvalue.db", 3, digest(b"abc").hex())
    for data in (b"abcd", b"ab", b"abd"):
        part = staging.begin_part(listed_file)
        with pytest.raises(ConfigError):
            _written(part, data)
        part.close()
        assert not staging.has(listed_file.sha256)
    assert list((staging.folder / "parts").iterdir()) == []


def _written(part: Part, data: bytes) -> None:
    part.write(data)
    part.finish()


def changed(new: dict[str, bytes], tmp_path: Path, name: str, statement: str) -> dict[str, bytes]:
    path = tmp_path / "changed.db"
    path.write_bytes(new[name])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute(statement)
    return {**new, name: path.read_bytes()}


@pytest.mark.parametrize(
    ("name", "statement", "said"),
    [
        ("keyvalue.db", "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM stores; END", "other tables"),
        ("keyvalue.db", "PRAGMA user_version = 9", "other tables"),
        ("blobs.db", "DROP INDEX objects_by_digest", "other tables"),
        ("blobs.db", "UPDATE contents SET size = size + 1", "did not come"),
    ],
)
def test_a_database_with_other_tables_than_the_nodes_is_refused(
    tmp_path: Path, new: dict[str, bytes], name: str, statement: str, said: str
) -> None:
    files = changed(new, tmp_path, name, statement)
    staging = staged(DataFolders(tmp_path / "n"), files)
    with pytest.raises(ConfigError, match=said):
        staging.assemble(listing(files))


def test_a_damaged_database_and_an_object_that_did_not_come_are_refused(tmp_path: Path, new: dict[str, bytes]) -> None:
    blob = next(name for name in new if name.startswith("blobs/"))
    damaged = bytearray(new["sql/main.db"])
    damaged[4096:4200] = b"\xff" * 104
    for files, said in (
        ({**new, "sql/main.db": bytes(damaged)}, "damaged"),
        ({**new, "sql/main.db": b"no database at all, of any kind"}, "damaged"),
        ({name: data for name, data in new.items() if name != blob}, "did not come"),
        ({name: data for name, data in new.items() if name != "blobs.db"}, "without blobs.db"),
    ):
        staging = staged(DataFolders(tmp_path / "n"), files)
        with pytest.raises(ConfigError, match=said):
            staging.assemble(listing(files))
        staging.clear()
