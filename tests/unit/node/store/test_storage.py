"""What was acknowledged is on disk; what is damaged is noticed and set aside, never deleted."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from node.errors import ConfigError, CorruptStoreError, StorageError
from node.keys import SystemEntropy, load_or_create_key
from node.store.storage import Storage
from protocols.machine import Persist, Store, Write


async def test_what_was_persisted_is_there_after_reopening(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert await storage.open() == ({}, {}, {})
    await storage.apply(Persist(Store.VOTE, (Write("chain", b"1", b"one"), Write("chain", b"2", b"two"))))
    await storage.apply(Persist(Store.VOTE, (Write("chain", b"1", None),)))
    await storage.apply(Persist(Store.FENCE, (Write("fence", b"1", b"slot"),)))
    await storage.close()
    again = Storage(tmp_path)
    vote, state, fence = await again.open()
    assert vote == {"chain": {b"2": b"two"}}
    assert state == {}
    assert fence == {b"0": b"", b"1": b"slot"}
    await again.close()


async def test_a_fence_slot_is_written_in_place_and_leaves_the_other_alone(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    await storage.open()
    await storage.apply(Persist(Store.FENCE, (Write("fence", b"0", b"older"),)))
    await storage.apply(Persist(Store.FENCE, (Write("fence", b"1", b"newer"),)))
    await storage.apply(Persist(Store.FENCE, (Write("fence", b"0", b"new"),)))
    assert storage.fence.load() == {b"0": b"new", b"1": b"newer"}
    await storage.close()


async def test_a_damaged_state_database_is_set_aside_and_an_empty_one_opened(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    await storage.open()
    await storage.apply(Persist(Store.STATE, tuple(Write("t", b"%d" % n, b"x" * 500) for n in range(100))))
    await storage.close()
    damaged = bytearray((tmp_path / "state.db").read_bytes())
    damaged[100:2000] = b"\xff" * 1900
    (tmp_path / "state.db").write_bytes(damaged)
    again = Storage(tmp_path)
    vote, state, _ = await again.open()
    assert vote == {}
    assert state is None
    assert (tmp_path / "state.db.damaged-1").read_bytes() == bytes(damaged)
    await again.apply(Persist(Store.STATE, (Write("t", b"k", b"v"),)))
    await again.close()


async def test_a_bit_that_flips_inside_a_value_costs_that_row_alone(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    await storage.open()
    await storage.apply(Persist(Store.STATE, (Write("t", b"good", b"x" * 50), Write("t", b"bad", b"needle" * 9))))
    await storage.close()
    path = tmp_path / "state.db"
    path.write_bytes(path.read_bytes().replace(b"needleneedle", b"needleneedlf", 1))
    again = Storage(tmp_path)
    _, state, _ = await again.open()
    assert state == {"t": {b"good": b"x" * 50}}
    assert again.state.damaged_rows == 1
    await again.apply(Persist(Store.STATE, (Write("t", b"bad", b"again"),)))
    await again.close()
    _, state, _ = await (once_more := Storage(tmp_path)).open()
    assert state == {"t": {b"good": b"x" * 50, b"bad": b"again"}}
    await once_more.close()


async def test_a_database_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute(
        "CREATE TABLE entries (table_name TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, "
        "PRIMARY KEY (table_name, key)) STRICT, WITHOUT ROWID"
    )
    connection.execute("INSERT INTO entries VALUES ('t', x'01', x'02')")
    connection.execute("PRAGMA user_version=1")
    connection.commit()
    connection.close()
    for expected in ({b"\x01": b"\x02"}, {b"\x01": b"\x02", b"k": b"v"}):
        storage = Storage(tmp_path)
        _, state, _ = await storage.open()
        assert state == {"t": expected}
        await storage.apply(Persist(Store.STATE, (Write("t", b"k", b"v"),)))
        await storage.close()


async def test_a_disk_that_fails_at_the_start_is_not_taken_for_a_damaged_database(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    await storage.open()
    await storage.apply(Persist(Store.STATE, (Write("t", b"k", b"v"),)))
    await storage.close()
    (tmp_path / "state.db-wal").mkdir()  # nobody can open that as a log, root neither
    with pytest.raises(StorageError, match=r"state\.db"):
        await Storage(tmp_path).open()
    assert not (tmp_path / "state.db.damaged-1").exists()


async def test_a_database_of_a_newer_version_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "vote.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(CorruptStoreError, match="schema 99"):
        await Storage(tmp_path).open()
    assert not (tmp_path / "vote.db.damaged-1").exists()


async def test_a_write_that_does_not_fit_is_a_storage_error_and_none_of_it_applies(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    await storage.open()
    connection = storage.state._connection
    assert connection is not None
    await connection.execute("PRAGMA max_page_count=8")
    with pytest.raises(StorageError, match=r"state\.db"):
        await storage.apply(Persist(Store.STATE, tuple(Write("t", b"%d" % n, b"x" * 4000) for n in range(50))))
    assert await storage.state.load() == {}
    await storage.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from node.store.storage import Storage
from protocols.machine import Persist, Store, Write

async def main():
    storage = Storage(Path(sys.argv[1]))
    await storage.open()
    for number in range(100_000):
        await storage.apply(Persist(Store.VOTE, (Write("n", b"%08d" % number, b"x" * 300),)))
        print(number, flush=True)

asyncio.run(main())
"""


def test_no_acknowledged_write_is_lost_to_kill_nine(tmp_path: Path) -> None:
    acknowledged = -1
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = max(acknowledged, int(line))
            if int(line) >= 40:
                process.send_signal(signal.SIGKILL)
                break
        acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
        process.wait()
        process.stdout.close()
        assert asyncio.run(numbers_stored(tmp_path)) >= set(range(acknowledged + 1))


async def numbers_stored(folder: Path) -> set[int]:
    storage = Storage(folder)
    vote, _, _ = await storage.open()
    await storage.close()
    assert vote is not None
    return {int(key) for key in vote["n"]}


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    first = load_or_create_key(path, SystemEntropy())
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_key(path, SystemEntropy()).public_key == first.public_key
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="read by other users"):
        load_or_create_key(path, SystemEntropy())
    path.chmod(0o600)
    path.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        load_or_create_key(path, SystemEntropy())
