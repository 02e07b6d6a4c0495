"""Each durable write is synced before it is acknowledged: the system calls recorded, the pragmas asserted.

A process that is killed loses nothing of the page cache, so only what was asked of the disk tells. Not here: what a
disk does with it (tests/e2e/durability/test_power_cut.py).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node.journal.audit_backlog import Backlog
from node.keys import sync_tree, write_private
from node.store.artifacts import ArtifactStore
from node.store.storage import FenceFile, Storage, set_aside
from protocols.artifacts import CHUNK_BYTES, offer_of
from protocols.envelope import digest
from protocols.machine import Persist, Store, Write
from protocols.records.audit import AuditEntry
from runtime.services.sqlite_keyvalue import SqliteKeyValue


class Recorder:
    """What was asked of the disk, in order: (call, name of the file or folder)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._of_handle(name, getattr(os, name)))
        replace = os.replace

        def noted(source: Any, target: Any, **rest: Any) -> None:
            replace(source, target, **rest)
            self.calls.append(("rename", Path(target).name))

        monkeypatch.setattr(os, "replace", noted)
        monkeypatch.setattr(Path, "replace", lambda path, target: (noted(path, target), Path(target))[1])

    def _of_handle(self, name: str, call: Callable[[int], None]) -> Callable[[int], None]:
        def noted(handle: int) -> None:
            call(handle)
            self.calls.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))

        return noted

    def take(self) -> list[tuple[str, str]]:
        taken, self.calls[:] = list(self.calls), []
        return taken


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    with monkeypatch.context() as patch:
        yield Recorder(patch)


def test_a_private_file_is_whole_and_named_before_it_counts(tmp_path: Path, recorder: Recorder) -> None:
    write_private(tmp_path / "node.key", b"seed")
    assert recorder.take() == [("sync", "node.key.new"), ("rename", "node.key"), ("sync", tmp_path.name)]


def test_a_tree_is_synced_file_by_file_and_folder_by_folder(tmp_path: Path, recorder: Recorder) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    sync_tree(tmp_path)
    assert set(recorder.take()) == {("sync", name) for name in ("a", "b", "in", tmp_path.name)}


def test_the_fence_is_synced_at_each_write_and_its_file_when_it_is_made(tmp_path: Path, recorder: Recorder) -> None:
    fence = FenceFile(tmp_path / "fence")
    fence.apply((Write("fence", b"0", b"first"),))
    assert recorder.take() == [("sync", "fence"), ("sync", tmp_path.name), ("sync", "fence")]
    fence.apply((Write("fence", b"1", b"second"),))
    assert recorder.take() == [("sync", "fence")]
    assert fence.sync_count == 2
    fence.close()


def test_the_volatile_copy_of_the_fence_comes_after_the_sync(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence = FenceFile(tmp_path / "fence", tmp_path / "copy")
    fence.apply((Write("fence", b"0", b"first"),))
    recorder.take()
    write = FenceFile._write_copy
    monkeypatch.setattr(
        FenceFile, "_write_copy", lambda *args: (recorder.calls.append(("copy", "copy")), write(*args))[1]
    )
    fence.apply((Write("fence", b"1", b"second"),))
    assert recorder.take() == [("sync", "fence"), ("copy", "copy")]
    fence.close()


def test_a_fence_that_cannot_be_synced_is_no_fence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from node.errors import StorageError

    fence = FenceFile(tmp_path / "fence", tmp_path / "copy")
    fence.apply((Write("fence", b"0", b"first"),))
    held = (tmp_path / "copy").read_bytes()

    def fails(_handle: int) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(StorageError, match="durable write failed"):
        fence.apply((Write("fence", b"1", b"second"),))
    assert (tmp_path / "copy").read_bytes() == held, "nothing says that it was written"
    assert fence.sync_count == 1


async def test_an_artifact_has_its_name_only_once_its_bytes_are_durable(tmp_path: Path, recorder: Recorder) -> None:
    store = ArtifactStore(tmp_path)
    recorder.take()

    async def pieces() -> Any:
        yield b"the "
        yield b"bytes"

    named = digest(b"the bytes")
    await store.receive(named, pieces())
    calls = recorder.take()
    assert [call for call, _ in calls] == ["sync", "rename", "sync"]
    assert calls[0][1].startswith(f"{named.hex()}.")
    assert calls[0][1].endswith(".part")
    assert calls[1:] == [("rename", named.hex()), ("sync", store.path(named).parent.name)]


def test_a_fetched_artifact_has_its_name_only_once_its_bytes_are_durable(tmp_path: Path, recorder: Recorder) -> None:
    store, data = ArtifactStore(tmp_path), bytes(CHUNK_BYTES + 5)
    named = digest(data)
    store.begin(offer_of(data))
    store.write_chunks(named, [(1, data[CHUNK_BYTES:]), (0, data[:CHUNK_BYTES])])
    recorder.take()
    assert store.complete(named)
    assert recorder.take() == [("sync", f"{named.hex()}.fetch"), ("rename", named.hex()), ("sync", tmp_path.name)]


def test_the_audit_backlog_syncs_each_entry_its_file_and_its_end(tmp_path: Path, recorder: Recorder) -> None:
    backlog = Backlog(tmp_path)
    backlog.begin()
    assert recorder.take() == [("sync", "audit-backlog"), ("sync", tmp_path.name)]
    for number in (1, 2):
        backlog.append(AuditEntry(0, number, b"", "local", (), (), "upload", "t", b"d" * 32, "done", "r"))
        assert recorder.take() == [("sync", "audit-backlog")]
    backlog.end()
    assert recorder.take() == [("sync", tmp_path.name)]


def test_a_database_set_aside_stays_aside(tmp_path: Path, recorder: Recorder) -> None:
    (tmp_path / "state.db").write_bytes(b"damaged")
    set_aside(tmp_path / "state.db")
    assert recorder.take() == [("sync", tmp_path.name)]


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "trusted_schema": 0, "mmap_size": 0}
"""2 is FULL: in WAL mode each commit waits for the disk."""


async def test_votes_and_records_are_kept_under_these_pragmas(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    await storage.open()
    try:
        for database in (storage.vote, storage.state):
            assert database._connection is not None
            for pragma, expected in PRAGMAS.items():
                row = await (await database._connection.execute(f"PRAGMA {pragma}")).fetchone()
                assert row is not None
                assert row[0] == expected, (database.path.name, pragma)
        before = storage.sync_count
        await storage.apply(
            Persist(Store.VOTE, (Write("t", b"k", b"v"),)), Persist(Store.STATE, (Write("t", b"k", b"v"),)),
            Persist(Store.FENCE, (Write("fence", b"0", b"v"),)),
        )  # fmt: skip
        assert storage.sync_count == before + 3
    finally:  # a thread of an open database keeps the process from ending
        await storage.close()


def test_each_connection_to_an_apps_data_syncs_its_commits(tmp_path: Path) -> None:
    provider = SqliteKeyValue(tmp_path, "shop")
    bucket = provider.open("carts")
    bucket.set("k", b"v")
    database = bucket._database
    for _ in range(3):  # one that waited, and new ones
        with database._connection() as (_, connection):
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            with database._connection() as (_, second):
                assert second is not connection
                assert second.execute("PRAGMA synchronous").fetchone() == (2,)


OPENERS = ("sqlite3.connect(", "aiosqlite.connect(", "apsw.Connection(")


def test_no_connection_of_ours_to_a_database_is_opened_elsewhere() -> None:
    """Whoever adds one adds its pragmas to a test."""
    root = Path(__file__).parents[4]
    openers = {
        str(path.relative_to(root))
        for block in ("node", "runtime", "protocols")
        for path in (root / block).rglob("*.py")
        if any(opens in path.read_text() for opens in OPENERS)
    }
    assert openers <= {
        "node/store/storage.py", "runtime/services/sqlite_file.py", "runtime/services/sqlite_sql.py", "node/store/data_copy.py",
        "node/membership/backup.py", "runtime/services/freeze.py", "node/store/data_staging.py",
        "node/store/schema_copy.py",
    }, openers  # fmt: skip
    assert sqlite3.sqlite_version_info >= (3, 37), "STRICT tables"
