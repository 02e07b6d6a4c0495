"""The embedded key-value provider: what it keeps, what it refuses, and that processes lose nothing to each other."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.providers import ProviderError
from runtime.services.sqlite_keyvalue import SqliteBucket, SqliteKeyValue, StoreCaps

SMALL = StoreCaps(key_max_bytes=8, value_max_bytes=16, store_max_bytes=64, page_max_keys=3, batch_max_keys=4)


@pytest.fixture
def bucket(tmp_path: Path) -> SqliteBucket:
    return SqliteKeyValue(tmp_path, "guestbook").open("visitors")


@pytest.fixture
def small(tmp_path: Path) -> SqliteBucket:
    return SqliteKeyValue(tmp_path, "guestbook", SMALL).open("visitors")


def test_a_value_is_kept_until_it_is_deleted(bucket: SqliteBucket) -> None:
    assert bucket.get("a") is None
    bucket.set("a", b"\0\xff")
    assert bucket.get("a") == b"\0\xff"
    assert bucket.exists("a")
    bucket.set("a", b"")
    assert bucket.get("a") == b""
    bucket.delete("a")
    bucket.delete("a")
    assert not bucket.exists("a")


def test_stores_and_projects_do_not_see_each_other(tmp_path: Path) -> None:
    provider = SqliteKeyValue(tmp_path, "one")
    provider.open("a").set("key", b"1")
    assert provider.open("b").get("key") is None
    assert SqliteKeyValue(tmp_path, "two").open("a").get("key") is None
    assert SqliteKeyValue(tmp_path, "one").open("a").get("key") == b"1"


def test_environments_of_one_project_do_not_see_each_other(tmp_path: Path) -> None:
    SqliteKeyValue(tmp_path, "shop/staging").open("carts").set("key", b"1")
    assert SqliteKeyValue(tmp_path, "shop/production").open("carts").get("key") is None
    assert SqliteKeyValue(tmp_path, "shop").open("carts").get("key") is None
    assert SqliteKeyValue(tmp_path, "shop/staging").open("carts").get("key") == b"1"


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a" * 64, ".hidden", "x\0"])
def test_a_name_that_could_leave_its_place_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProviderError) as refused:
        SqliteKeyValue(tmp_path, "p").open(name)
    assert refused.value.kind == "no-such-store"
    with pytest.raises(ProviderError):
        SqliteKeyValue(tmp_path, f"p/{name}")


def test_keys_come_in_pages_each_once_and_in_order(small: SqliteBucket) -> None:
    names = ["é", "a", "b", "d", "c", "a\0b", "z"]
    for name in names:
        small.set(name, b"")
    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        page, cursor = small.list_keys(cursor)
        seen += page
        pages += 1
        if cursor is None:
            break
    assert seen == sorted(names, key=str.encode)
    assert pages == 3


def test_a_page_that_ends_exactly_at_the_last_key_has_no_cursor(small: SqliteBucket) -> None:
    small.set_many([("a", b""), ("b", b""), ("c", b"")])
    assert small.list_keys(None) == (["a", "b", "c"], None)


def test_many_are_read_in_the_order_asked_and_written_whole_or_not_at_all(small: SqliteBucket) -> None:
    small.set_many([("a", b"1"), ("b", b"2")])
    assert small.get_many(["b", "x", "a", "b"]) == [b"2", None, b"1", b"2"]
    with pytest.raises(ProviderError, match="more than 16 bytes"):
        small.set_many([("a", b"new"), ("b", b"x" * 17)])
    assert small.get_many(["a", "b"]) == [b"1", b"2"]
    small.delete_many(["a", "b", "x"])
    assert small.get_many(["a", "b"]) == [None, None]
    with pytest.raises(ProviderError, match="more than 4 keys"):
        small.get_many(["a"] * 5)


def test_each_cap_is_named_when_it_is_met(small: SqliteBucket) -> None:
    with pytest.raises(ProviderError, match="a key has more than 8 bytes"):
        small.set("ééééé", b"")
    with pytest.raises(ProviderError, match="a value has more than 16 bytes"):
        small.set("a", b"x" * 17)


def test_a_full_store_takes_no_more_until_something_is_deleted(small: SqliteBucket) -> None:
    for name in ("a", "b", "c"):
        small.set(name, b"x" * 16)
    with pytest.raises(ProviderError, match="exceed 64 bytes"):
        small.set("d", b"x" * 16)
    small.set("a", b"y" * 16)  # no growth
    small.delete("b")
    small.set("d", b"x" * 16)
    assert small.exists("d")


def test_increment_counts_from_nothing_and_refuses_what_is_no_integer(bucket: SqliteBucket) -> None:
    assert bucket.increment("n", 5) == 5
    assert bucket.increment("n", -7) == -2
    assert bucket.get("n") == b"-2"
    bucket.set("n", b"seven")
    with pytest.raises(ProviderError, match="not a decimal integer"):
        bucket.increment("n", 1)
    bucket.set("n", b"9223372036854775807")
    with pytest.raises(ProviderError, match="64 bits"):
        bucket.increment("n", 1)
    assert bucket.get("n") == b"9223372036854775807"


def test_swap_stores_only_over_the_expected_value(bucket: SqliteBucket) -> None:
    assert bucket.swap("a", None, b"1")
    assert not bucket.swap("a", None, b"2")
    assert not bucket.swap("a", b"x", b"2")
    assert bucket.swap("a", b"1", b"2")
    assert bucket.get("a") == b"2"


def test_threads_of_one_process_lose_no_increment(bucket: SqliteBucket) -> None:
    threads = [threading.Thread(target=lambda: [bucket.increment("n", 1) for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.get("n") == b"100"


CONTENDER = """
import sys
from pathlib import Path
from runtime.services.sqlite_keyvalue import SqliteKeyValue
bucket = SqliteKeyValue(Path(sys.argv[1]), "p").open("s")
for _ in range(30):
    bucket.increment("count", 1)
    while True:
        present = bucket.get("swapped")
        if bucket.swap("swapped", present, b"%d" % (int(present or 0) + 1)):
            break
"""


def test_processes_lose_neither_increments_nor_swaps(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", CONTENDER, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    bucket = SqliteKeyValue(tmp_path, "p").open("s")
    assert bucket.get("count") == b"120"
    assert bucket.get("swapped") == b"120"


def test_a_store_written_by_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    provider = SqliteKeyValue(tmp_path, "p")
    provider.open("s").set("a", b"1")
    provider.close()
    with sqlite3.connect(tmp_path / "p" / "keyvalue.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ProviderError, match="newer version"):
        SqliteKeyValue(tmp_path, "p").open("s")


def test_a_damaged_database_is_an_error_of_the_store_and_names_no_path(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "keyvalue.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ProviderError) as failed:
        SqliteKeyValue(tmp_path, "p").open("s")
    assert str(tmp_path) not in failed.value.text
