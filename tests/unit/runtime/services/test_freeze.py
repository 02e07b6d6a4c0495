"""Frozen data: no write is acknowledged behind the mark, writers wait, and what waits too long says when to try again."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runtime.providers import ProviderError, SqlError
from runtime.services import freeze
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from runtime.services.sqlite_sql import SqliteSql

WRITER = """
import sys
from pathlib import Path
from runtime.services.sqlite_keyvalue import SqliteKeyValue
bucket = SqliteKeyValue(Path(sys.argv[1]), "shop/production").open("carts")
while True:
    print(bucket.increment("n", 1), flush=True)
"""


@pytest.fixture
def provider(tmp_path: Path) -> SqliteKeyValue:
    return SqliteKeyValue(tmp_path, "shop/production")


def test_what_is_read_under_the_mark_holds_every_write_that_was_acknowledged(tmp_path: Path) -> None:
    folder = tmp_path / "shop" / "production"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        time.sleep(1.0)
        freeze.freeze(folder, b"a move")
        with sqlite3.connect(folder / "keyvalue.db") as database:
            (frozen,) = database.execute("SELECT value FROM entries").fetchone()
        time.sleep(0.5)
        with sqlite3.connect(folder / "keyvalue.db") as database:
            assert database.execute("SELECT value FROM entries").fetchone() == (frozen,), "a write passed the mark"
    finally:
        for writer in writers:
            writer.kill()
    acknowledged = [int(line) for writer in writers for line in (writer.communicate()[0] or "").splitlines() if line]
    assert len(acknowledged) > 1
    assert int(frozen) >= max(acknowledged)
    assert freeze.note_of(folder) == b"a move"


def test_a_writer_waits_for_the_thaw_and_loses_nothing(provider: SqliteKeyValue, tmp_path: Path) -> None:
    bucket = provider.open("carts")
    bucket.increment("n", 1)
    folder = tmp_path / "shop" / "production"
    freeze.freeze(folder, b"")
    assert bucket.get("n") == b"1", "reads go on"
    threading.Timer(0.3, freeze.thaw, (folder,)).start()
    began_s = time.monotonic()
    assert bucket.increment("n", 1) == 2
    assert time.monotonic() - began_s >= 0.25


def test_a_writer_that_waited_long_enough_is_told_when_to_try_again(
    provider: SqliteKeyValue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "WRITER_WAIT_S", 0.2)
    bucket = provider.open("carts")
    freeze.freeze(tmp_path / "shop" / "production", b"")
    with pytest.raises(ProviderError) as refused:
        bucket.set("n", b"1")
    assert refused.value.retry_after_s == freeze.RETRY_AFTER_S
    assert bucket.get("n") is None


def test_a_store_that_is_not_there_yet_is_not_begun_under_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "WRITER_WAIT_S", 0.1)
    folder = tmp_path / "shop" / "production"
    folder.mkdir(parents=True)
    freeze.freeze(folder, b"")
    with pytest.raises(ProviderError) as refused:
        SqliteKeyValue(tmp_path, "shop/production").open("carts")
    assert refused.value.retry_after_s is not None
    assert freeze.databases(folder) == []


def test_another_environment_is_written_meanwhile(provider: SqliteKeyValue, tmp_path: Path) -> None:
    provider.open("carts").set("n", b"1")
    freeze.freeze(tmp_path / "shop" / "production", b"")
    SqliteKeyValue(tmp_path, "shop/staging").open("carts").set("n", b"1")


def test_the_mark_is_synced_before_the_write_locks_are_let_go(
    provider: SqliteKeyValue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.open("carts").set("n", b"1")
    folder = tmp_path / "shop" / "production"
    seen: list[str] = []
    sync = os.fsync

    def record(handle: int) -> None:
        with sqlite3.connect(folder / "keyvalue.db", 0, isolation_level=None) as probe:
            try:
                probe.execute("BEGIN IMMEDIATE")
                locked = "open"
            except sqlite3.OperationalError:
                locked = "locked"
        seen.append(f"{Path(os.readlink(f'/proc/self/fd/{handle}')).name} {locked}")
        sync(handle)

    monkeypatch.setattr(os, "fsync", record)
    freeze.freeze(folder, b"note")
    assert seen == ["frozen.new locked", "production locked"]


def test_every_write_is_synced_before_it_is_acknowledged(tmp_path: Path) -> None:
    """The recorded syncs of the embedded store: each call that returned was followed on disk by its own fsync."""
    program = (
        "import sys; from pathlib import Path; from runtime.services.sqlite_keyvalue import SqliteKeyValue\n"
        "bucket = SqliteKeyValue(Path(sys.argv[1]), 'p').open('s')\n"
        "for n in range(5): bucket.set(str(n), b'x'); print('acknowledged', flush=True)\n"
    )
    probe = subprocess.run(["strace", "-V"], capture_output=True, check=False) if _has("strace") else None
    if probe is None:
        with SqliteKeyValue(tmp_path, "p").file._connection() as (_, connection):
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: WAL is synced at each commit"
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        return
    log = tmp_path / "calls"
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", str(log), sys.executable, "-c", program]
    subprocess.run([*command, str(tmp_path)], check=True, capture_output=True)
    calls = [line for line in log.read_text().splitlines() if "sync(" in line or "acknowledged" in line]
    ends = [index for index, line in enumerate(calls) if "acknowledged" in line]
    assert len(ends) == 5
    for before, end in zip([-1, *ends], ends, strict=False):
        assert any("sync(" in line for line in calls[before + 1 : end]), "acknowledged without a sync"


def _has(tool: str) -> bool:
    return any(os.access(Path(folder) / tool, os.X_OK) for folder in os.environ.get("PATH", "").split(":"))


def test_where_there_is_a_lease_nothing_is_written_beyond_it(
    provider: SqliteKeyValue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends by itself, at a restart of the machine too, and what cannot be read is none."""
    bucket = provider.open("carts")
    folder = tmp_path / "shop" / "production"
    monkeypatch.setattr(freeze, "WRITER_WAIT_S", 0.2)
    freeze.lease(folder, time.monotonic() + 3_600)
    assert bucket.increment("n", 1) == 1
    whole = (folder / freeze.LEASE).read_text()
    for ended in (
        lambda: freeze.lease(folder, time.monotonic() - 0.001),
        lambda: (folder / freeze.LEASE).write_text(whole.replace(whole[:8], "00000000")),
        lambda: (folder / freeze.LEASE).write_text("nonsense"),
        lambda: (folder / freeze.LEASE).write_text(""),
    ):
        ended()
        with pytest.raises(ProviderError, match="frozen") as refused:
            bucket.increment("n", 1)
        assert refused.value.retry_after_s
        assert bucket.get("n") == b"1", "what is there is read"
    freeze.lease(folder, time.monotonic() + 3_600)
    assert bucket.increment("n", 1) == 2
    freeze.end_lease(folder)
    assert bucket.increment("n", 1) == 3


def test_rows_are_not_committed_beyond_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = SqliteSql(tmp_path, "shop/production")
    connection = sql.open("main")
    connection.execute("CREATE TABLE t (x)")
    monkeypatch.setattr(freeze, "WRITER_WAIT_S", 0.2)
    freeze.lease(tmp_path / "shop" / "production", time.monotonic() - 0.001)
    with pytest.raises(SqlError, match="frozen"):
        connection.execute("INSERT INTO t VALUES (1)")
    freeze.end_lease(tmp_path / "shop" / "production")
    assert connection.execute("SELECT count(*) FROM t").rows == ((0,),)
    sql.close()
