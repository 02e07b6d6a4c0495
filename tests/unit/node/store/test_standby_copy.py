"""A second copy: what is asked for again, what is refused, and that a kill leaves the copy before or the one behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from node.errors import ConfigError
from node.store.data_copy import DataCopy, FileCopy, read_block, take_copy
from node.store.data_folders import DataFolders, Mark
from node.store.data_staging import settle_imports
from node.store.standby_copy import StandbyCopy
from protocols.envelope import encode
from protocols.machine import PeerId
from runtime.services import freeze
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from tests.support.mesh.killed_at import run_killed

LANE = ("site", "production")
HOLDER = PeerId("12D3KooWHolder")


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    provider = SqliteKeyValue(tmp_path / "holder", "site/production")
    provider.open("visits").set_many([(f"k{number}", bytes(2_000)) for number in range(200)])
    provider.open("visits").set("n", b"1")
    provider.close()
    return tmp_path / "holder" / "site" / "production"


def change(stores: Path, value: bytes) -> None:
    provider = SqliteKeyValue(stores.parents[1], "site/production")
    provider.open("visits").set("n", value)
    provider.close()


def come(standby: StandbyCopy, copy: DataCopy, source: Path) -> int:
    """Bring what is wanted; return how many blocks that was."""
    wanted = standby.wanted(copy)
    standby.begin()
    blocks = {file.name: file.blocks for file in copy.files}
    for name, number in wanted:
        standby.add(read_block(source, name, number), blocks[name][number])
    return len(wanted)


def shipped(standby: StandbyCopy, stores: Path, out: Path, at_ms: int) -> int:
    copy = take_copy(stores, out)
    count = come(standby, copy, out)
    standby.finish(HOLDER, at_ms, copy)
    return count


def value(folder: Path) -> bytes:
    with contextlib.closing(
        sqlite3.connect(f"file:{folder / 'keyvalue.db'}?mode=ro&immutable=1", uri=True)
    ) as database:
        (entry,) = database.execute("SELECT value FROM entries WHERE key = 'n'").fetchone()
    return bytes(entry)


def held(place: DataFolders) -> None:
    """As a node holds the place still that it is to take."""
    place.stores(LANE).mkdir(parents=True, exist_ok=True)
    freeze.freeze(place.stores(LANE), encode(Mark(None, 1, fenced=True)))


def test_what_changed_comes_and_nothing_else(stores: Path, tmp_path: Path) -> None:
    standby = StandbyCopy(DataFolders(tmp_path / "n"), LANE)
    whole = shipped(standby, stores, tmp_path / "out", 5)
    assert standby.note is not None
    assert (standby.note.holder, standby.note.at_ms) == (HOLDER, 5)
    change(stores, b"2")
    assert 0 < shipped(standby, stores, tmp_path / "out", 6) <= 2 < whole
    assert shipped(standby, stores, tmp_path / "out", 7) == 0
    assert standby.note.at_ms == 7
    assert value(standby.folder / "files") == b"2"
    assert [path.name for path in standby.folder.iterdir() if path.name == "delta"] == []


def test_a_file_that_is_gone_or_shrank_is_so_in_the_copy(stores: Path, tmp_path: Path) -> None:
    standby = StandbyCopy(DataFolders(tmp_path / "n"), LANE)
    (stores / "blobs" / "ab").mkdir(parents=True)
    (stores / "blobs" / "ab" / "gone").write_bytes(b"x")
    (stores / "blobs" / "ab" / "cut").write_bytes(bytes(200_000))
    shipped(standby, stores, tmp_path / "out", 5)
    (stores / "blobs" / "ab" / "gone").unlink()
    (stores / "blobs" / "ab" / "cut").write_bytes(bytes(70_000))
    assert shipped(standby, stores, tmp_path / "out", 6) == 1
    files = standby.folder / "files" / "blobs" / "ab"
    assert [(path.name, path.stat().st_size) for path in files.iterdir()] == [("cut", 70_000)]


def test_a_block_of_other_bytes_and_a_name_outside_are_refused(stores: Path, tmp_path: Path) -> None:
    standby = StandbyCopy(DataFolders(tmp_path / "n"), LANE)
    copy = take_copy(stores, tmp_path / "out")
    standby.begin()
    with pytest.raises(ConfigError, match="is not what its holder said"):
        standby.add(b"other bytes", copy.files[0].blocks[0])
    for name in ("../up.db", "/etc/passwd", "frozen"):
        with pytest.raises(ConfigError):
            standby.wanted(DataCopy((FileCopy(name, 0, b"", ()),)))


def test_a_kill_while_a_copy_is_applied_leaves_the_one_before_or_behind(stores: Path, tmp_path: Path) -> None:
    def ready(name: str) -> tuple[StandbyCopy, Callable[[], int]]:
        """A copy of 1, and the blocks of 2 that came for it."""
        change(stores, b"1")
        standby = StandbyCopy(DataFolders(tmp_path / name), LANE)
        shipped(standby, stores, tmp_path / "out", 5)
        change(stores, b"2")
        copy = take_copy(stores, tmp_path / "out")
        come(standby, copy, tmp_path / "out")

        def finish() -> int:
            standby.finish(HOLDER, 6, copy)
            return 0

        return standby, finish

    standby, finish = ready("whole")
    counted = run_killed(finish, os.environ, "")
    assert counted.code == 0, counted
    seen = set()
    for before in range(counted.operations):
        standby, finish = ready(f"m{before}")
        assert run_killed(finish, os.environ, "", before).code is None
        standby.settle()
        assert standby.note is not None
        content = value(standby.folder / "files")
        assert (content, standby.note.at_ms) in {(b"1", 5), (b"2", 6)}, before
        held(DataFolders(tmp_path / f"m{before}"))
        assert standby.promote(9), "what is applied is not what was said"
        seen.add(content)
        shutil.rmtree(tmp_path / f"m{before}")
    assert seen == {b"1", b"2"}


def test_a_kill_while_a_copy_takes_the_place_is_ended_by_the_next_start(stores: Path, tmp_path: Path) -> None:
    def ready(name: str) -> tuple[DataFolders, Callable[[], int]]:
        place = DataFolders(tmp_path / name)
        standby = StandbyCopy(place, LANE)
        shipped(standby, stores, tmp_path / "out", 5)
        held(place)
        return place, lambda: int(not standby.promote(9))

    place, promote = ready("whole")
    counted = run_killed(promote, os.environ, "")
    assert counted.code == 0, counted
    for before in range(counted.operations):
        place, promote = ready(f"m{before}")
        assert run_killed(promote, os.environ, "", before).code is None
        settle_imports(place)
        standby = StandbyCopy(place, LANE)
        standby.settle()
        if standby.note is not None:
            assert standby.promote(9)
        assert value(place.stores(LANE)) == b"1", before
        assert freeze.note_of(place.stores(LANE)) is None, before
        assert standby.note is None


def test_a_damaged_copy_takes_no_place(stores: Path, tmp_path: Path) -> None:
    place = DataFolders(tmp_path / "n")
    standby = StandbyCopy(place, LANE)
    shipped(standby, stores, tmp_path / "out", 5)
    held(place)
    with (standby.folder / "files" / "keyvalue.db").open("r+b") as file:
        file.seek(5_000)
        file.write(b"\xff" * 10)
    with pytest.raises(ConfigError):
        standby.promote(9)
    assert freeze.note_of(place.stores(LANE)) is not None
    assert [path.name for path in place.stores(LANE).iterdir()] == ["frozen"]
