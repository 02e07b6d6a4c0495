"""A migration's steps: the data is the old or the new whoever ends it where, and nothing else may touch it meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.errors import ConfigError
from node.mesh.pump import system_now
from node.serving.migrations import Migrations, UnwantedError
from node.serving.releases import LaterError, PreparationError, PreparedRelease
from node.store import data_staging
from node.store.data_folders import DataFolders
from node.store.data_staging import Staging, settle_imports
from node.store.migrated import MIGRATED, MIGRATED_MAX, migrated_by, note_migrated
from protocols.changes.effective import Effective, EffectiveApp
from protocols.machine import Digest
from runtime.messages import AppLoad, Migrated, ReleaseLoad
from runtime.services import freeze
from runtime.services.file_blobs import FileBlobs
from runtime.spec import AppSpec

LANE = ("shop", "production")
RELEASE = Digest(b"r" * 32)
STEPS_MAX = 200


def prepared(release: Digest = RELEASE) -> PreparedRelease:
    app = EffectiveApp("web", b"c" * 32, "http", 10_000, 1 << 26, "fresh", sql=("main",), migrate=True)
    load = AppLoad(AppSpec("shop", "web", "r", Path("unused"), "d"))
    return PreparedRelease("key", release, Effective(*LANE, (app,)), ReleaseLoad("key", "r", "shop", (load,)))


class Benches:
    """What runs a release on a copy: here it does to the copy what `act` says."""

    def __init__(self, act: Callable[[Path], Any]) -> None:
        self.act = act

    @contextlib.asynccontextmanager
    async def over(self, data: Path, *_: Any) -> AsyncIterator[Any]:
        async def migrate(_key: str, _app: str, *, timeout_ms: int) -> Migrated:
            assert timeout_ms >= 600_000, "a migration has more time than a visitor's request"
            said = self.act(data.joinpath(*LANE))
            return await said if asyncio.iscoroutine(said) else said or Migrated(1, 204, "")

        yield SimpleNamespace(pool=SimpleNamespace(migrate=migrate))


def count_up(copy: Path) -> None:
    with contextlib.closing(sqlite3.connect(copy / "sql" / "main.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("UPDATE t SET runs = runs + 1")
        database.commit()


def migrations(folder: Path, act: Callable[[Path], Any] = count_up, *, holder: str = "me") -> Migrations:
    lane = SimpleNamespace(data_node=holder)
    core: Any = SimpleNamespace(node="me", state=SimpleNamespace(lane=lambda *_: lane))
    benches: Any = Benches(act)
    return Migrations(core, DataFolders(folder), asyncio.Lock(), benches, folder / "none", system_now)


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    path = tmp_path / "data" / LANE[0] / LANE[1]
    (path / "sql").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path / "sql" / "main.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (runs INTEGER)")
        database.execute("INSERT INTO t VALUES (0)")
        database.commit()
    blobs = FileBlobs(tmp_path / "data", "/".join(LANE))
    writer = blobs.put()
    writer.write(b"an object")
    writer.commit([("uploads", "one")])
    blobs.close()
    return path


def runs(stores: Path) -> int:
    with contextlib.closing(sqlite3.connect(stores / "sql" / "main.db")) as database:
        number: int = database.execute("SELECT runs FROM t").fetchone()[0]
    return number


def settle(folder: Path) -> None:
    """What a start does, before any worker."""
    settle_imports(DataFolders(folder))
    migrations(folder).settle()


def copies(folder: Path) -> list[Path]:
    return list(folder.glob("migrating/*/*/*"))


def always() -> bool:
    return True


async def test_a_release_migrates_once_and_another_again(tmp_path: Path, stores: Path) -> None:
    new_migrations = migrations(tmp_path)
    assert new_migrations.is_due(LANE, prepared())
    await new_migrations.run(LANE, prepared(), always)
    assert (runs(stores), new_migrations.is_due(LANE, prepared())) == (1, False)
    assert new_migrations.is_due(LANE, prepared(Digest(b"s" * 32)))
    assert not (stores / freeze.FROZEN).exists()
    assert not copies(tmp_path)
    blobs = FileBlobs(tmp_path / "data", "/".join(LANE))
    reader = blobs.get("uploads", "one")
    assert reader.read(100) == b"an object"
    reader.close()
    blobs.close()
    numbers = DataFolders(tmp_path).kept(LANE)
    assert len(numbers) == 1, "what it was is kept for some days"


def test_killed_at_any_moment_the_data_is_the_old_or_the_new_and_the_next_life_migrates_once(
    tmp_path: Path, stores: Path
) -> None:
    ended = 0
    for step in range(1, STEPS_MAX):
        before = runs(stores)
        release = Digest(step.to_bytes(32, "big"))
        if _child(tmp_path, release, step) == 0:
            ended = step
            break
        settle(tmp_path)
        assert not (stores / freeze.FROZEN).exists(), step
        done = release.hex() in migrated_by(stores)
        assert runs(stores) == before + done, (step, done)
        if not done:
            asyncio.run(migrations(tmp_path).run(LANE, prepared(release), always))
            assert runs(stores) == before + 1, step
        assert not copies(tmp_path), step
    assert ended > 10, "it was not killed at every step"


def _child(folder: Path, release: Digest, step: int) -> int:
    """Migrate in a process that ends at its step-th sync; return 0 if it came to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process hold nothing it needs
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [step]
    sync = os.fsync

    def counted(handle: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            os._exit(9)
        sync(handle)

    os.fsync = counted  # type: ignore[assignment]
    try:
        asyncio.run(migrations(folder).run(LANE, prepared(release), always))
        os._exit(0)
    finally:
        os._exit(1)


async def test_what_fails_leaves_the_data_as_it_was_and_says_why(tmp_path: Path, stores: Path) -> None:
    def fail(copy: Path) -> Migrated:
        count_up(copy)
        assert freeze.note_of(stores) is not None, "visitors write into what is thrown away"
        return Migrated(1, 500, "ValueError: half way\n")

    with pytest.raises(PreparationError, match="did not migrate its data, it answered 500:\nValueError: half way"):
        await migrations(tmp_path, fail).run(LANE, prepared(), always)
    assert (runs(stores), migrated_by(stores), freeze.note_of(stores)) == (0, (), None)
    assert not copies(tmp_path)


async def test_what_is_wanted_no_more_ends_and_changes_nothing(tmp_path: Path, stores: Path) -> None:
    begun = asyncio.Event()

    async def linger(copy: Path) -> Migrated:
        count_up(copy)
        begun.set()
        await asyncio.sleep(60)
        raise AssertionError

    with pytest.raises(UnwantedError):
        await migrations(tmp_path, linger).run(LANE, prepared(), lambda: not begun.is_set())
    left = iter([True, False])
    with pytest.raises(UnwantedError):  # it ended, and an abort came before the swap
        await migrations(tmp_path).run(LANE, prepared(), lambda: next(left, False) and not begun.is_set())
    assert (runs(stores), migrated_by(stores), freeze.note_of(stores)) == (0, (), None)


async def test_data_that_is_held_or_elsewhere_is_waited_for(tmp_path: Path, stores: Path) -> None:
    with pytest.raises(LaterError, match="not on this node yet"):
        await migrations(tmp_path, holder="other").run(LANE, prepared(), always)
    freeze.freeze(stores, b"held by an admin")
    with pytest.raises(LaterError, match="frozen"):
        await migrations(tmp_path).run(LANE, prepared(), always)
    assert freeze.note_of(stores) == b"held by an admin"
    assert runs(stores) == 0


async def test_a_full_disk_leaves_the_data_as_it_was(
    tmp_path: Path, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(data_staging, "write_private", full)
    with pytest.raises(LaterError, match="no space left"):
        await migrations(tmp_path).run(LANE, prepared(), always)
    assert (runs(stores), freeze.note_of(stores), Staging(DataFolders(tmp_path), LANE).begun) == (0, None, None)


def test_the_note_of_releases_is_bounded_and_checked(tmp_path: Path) -> None:
    (tmp_path / MIGRATED).write_text(json.dumps([f"{number:064x}" for number in range(MIGRATED_MAX)]))
    note_migrated(tmp_path, "f" * 64)
    migrated = migrated_by(tmp_path)
    assert (len(migrated), migrated[0], migrated[-1]) == (MIGRATED_MAX, f"{1:064x}", "f" * 64)
    note_migrated(tmp_path, f"{7:064x}")
    assert migrated_by(tmp_path).count(f"{7:064x}") == 1
    for wrong in ('["../x"]', "{", json.dumps(["0" * 64] * (MIGRATED_MAX + 1))):
        (tmp_path / MIGRATED).write_text(wrong)
        with pytest.raises(ConfigError):
            migrated_by(tmp_path)
