"""What an app of another project or environment tries on somebody's databases, objects and queues, by name or by statement.

The attempts are made at the providers themselves, so they hold whatever a guest's language adds. Those on key-value stores
are keyvalue_providers.py's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from runtime.providers import ProviderError, SqlError
from runtime.services.file_blobs import FileBlobs
from runtime.services.sqlite_queue import SqliteQueue
from runtime.services.sqlite_sql import SqliteSql

OWNER = "shop/production"
NEAR = (
    "shop/staging",
    "shop",
    "other/production",
    "shop-a/production",
    "shop/production-b",
    "production/shop",
    "s/hop",
)
"""Others, the near ones first: the right project in the wrong environment, and names that begin alike."""

SECRET = "5f2d-the-owners-own"
PATHS = (
    "{lane}/sql/main.db", "file:{lane}/sql/main.db", "file:{lane}/sql/main.db?mode=ro&immutable=1",
    "../../{owner}/sql/main.db", "../../../data/{owner}/sql/main.db", "file:../../{owner}/sql/main.db",
    "{lane}/sql/../sql/main.db", "{lane}/queue.db", "{lane}/blobs.db",
)  # fmt: skip
STATEMENTS = (
    "ATTACH '{path}' AS a", "ATTACH DATABASE '{path}' AS a KEY ''", "VACUUM INTO '{path}'", "VACUUM main INTO '{path}'",
    "SELECT load_extension('{path}')", "SELECT readfile('{path}')", "SELECT writefile('{path}', 'x')",
    "CREATE VIRTUAL TABLE v USING csv(filename='{path}')", "CREATE VIRTUAL TABLE v USING zipfile('{path}')",
    "SELECT * FROM fsdir('{path}')", "PRAGMA temp_store_directory = '{path}'", "PRAGMA data_store_directory = '{path}'",
    "SELECT * FROM pragma_database_list WHERE file = '{path}'", "CREATE VIRTUAL TABLE v USING sqlite_dbpage('{path}')",
)  # fmt: skip
NAMES = (
    "../{owner}/main", "../../{owner}/sql/main", "..", ".", "", "/", "{lane}/sql/main", "main.db", "main/../main", "MAIN",
    "main\0", "main%00", "a/b", "\\..\\main", "file:main", "main?mode=rwc", "~", "*", "ma in", "m\n", "main" * 11,
)  # fmt: skip


def filled(text: str, folder: Path) -> str:
    return text.replace("{lane}", str(folder / OWNER)).replace("{owner}", OWNER)


def state_of(folder: Path) -> dict[str, str]:
    """Every file of the owner's by its digest."""
    paths = sorted(path for path in (folder / OWNER).rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def outside(folder: Path, owner: str) -> set[Path]:
    """What lies in the data folder or beside it, but for two lanes' own."""
    mine = (folder / OWNER, folder / owner)
    return {
        path
        for path in folder.parent.rglob("*")
        if path.is_file() and not any(path.is_relative_to(entry) for entry in mine)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A node's data with the owner's secret in each kind of it."""
    path = tmp_path / "node" / "data"
    with closing(SqliteSql(path, OWNER)) as sql, closing(sql.open("main")) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (?)", (SECRET,))
    with closing(FileBlobs(path, OWNER)) as blobs, closing(blobs.put()) as writer:
        writer.write(SECRET.encode())
        writer.commit([("uploads", "one")])
    with closing(SqliteQueue(path, OWNER)) as queue:
        queue.publish("jobs", SECRET.encode(), 1)
    before = state_of(path)
    yield path
    assert state_of(path) == before, "somebody wrote into the owner's data"


def test_there_are_at_least_two_hundred_attempts_of_each_kind() -> None:
    assert len(NEAR) * len(STATEMENTS) * len(PATHS) >= 200
    assert len(NEAR) * len(NAMES) * 2 >= 200


@pytest.mark.parametrize("owner", NEAR)
def test_no_statement_reaches_another_tenants_database(folder: Path, owner: str) -> None:
    before = outside(folder, owner)
    with closing(SqliteSql(folder, owner)) as sql, closing(sql.open("main")) as database:
        assert database.execute("SELECT name FROM sqlite_schema").rows == ()
        database.execute("CREATE TABLE own (x)")
        for path in PATHS:
            for statement in STATEMENTS:
                text = statement.replace("{path}", filled(path, folder))
                with suppress(SqlError):
                    said = database.execute(text, (), deadline_s=time.monotonic() + 5)
                    assert SECRET not in repr(said.rows), text
                    assert str(folder) not in repr(said.rows), f"{text}: where data lies is nobody's business"
                with suppress(SqlError):
                    database.execute("DROP TABLE IF EXISTS v", (), deadline_s=time.monotonic() + 5)
        with pytest.raises(SqlError):
            database.execute("SELECT * FROM a.t", (), deadline_s=time.monotonic() + 5)
    assert outside(folder, owner) == before, "a statement made a file elsewhere"


@pytest.mark.parametrize("owner", NEAR)
def test_no_name_of_a_database_leads_to_another_tenants(folder: Path, owner: str) -> None:
    before = outside(folder, owner)
    with closing(SqliteSql(folder, owner)) as sql:
        for name in NAMES:
            with pytest.raises(SqlError):
                sql.open(filled(name, folder))
    assert outside(folder, owner) == before


@pytest.mark.parametrize("owner", NEAR)
def test_no_name_or_digest_of_an_object_leads_to_another_tenants(folder: Path, owner: str) -> None:
    before = outside(folder, owner)
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    wanted = ("one", digest, f"blobs/{digest[:2]}/{digest}", f"../../{OWNER}/blobs/{digest[:2]}/{digest}")
    with closing(FileBlobs(folder, owner)) as blobs:
        for container in ("uploads", "blobs", f"../{OWNER}/uploads", *(filled(name, folder) for name in NAMES)):
            for name in (*wanted, *(filled(name, folder) for name in NAMES)):
                with suppress(ProviderError), closing(blobs.get(container, name)) as reader:
                    raise AssertionError((container, name, reader.read(100)))
                with suppress(ProviderError):
                    assert blobs.info(container, name) is None, (container, name)
                with suppress(ProviderError):
                    blobs.copy((container, name), ("mine", "stolen"))
            with suppress(ProviderError):
                assert list(blobs.names(container, None, 10)) == [], container
                blobs.delete(container, None)
        assert blobs.info("mine", "stolen") is None
        with closing(blobs.put()) as writer:  # the same bytes, said by somebody who knows them, are their own object
            writer.write(SECRET.encode())
            writer.commit([("uploads", wanted[-1])])
        blobs.delete("uploads", None)
    assert outside(folder, owner) == before


@pytest.mark.parametrize("owner", NEAR)
def test_no_subject_of_a_queue_leads_to_another_tenants(folder: Path, owner: str) -> None:
    before = outside(folder, owner)
    with closing(SqliteQueue(folder, owner)) as queue:
        for subject in ("jobs", "jobs.dead", f"{OWNER}.jobs", *(filled(name, folder) for name in NAMES)):
            with suppress(ProviderError):
                assert list(queue.take(subject, 10, 1_000, 10**13)) == [], subject
            with suppress(ProviderError):
                queue.publish(subject, b"forged", 1)
            with suppress(ProviderError):
                assert {queued_message.body for queued_message in queue.take(subject, 10, 1_000, 10**13)} <= {
                    b"forged"
                }, subject
    with closing(SqliteQueue(folder, OWNER)) as own:
        assert own.next_due_ms(["jobs"], 10**13) is not None, "the owner's message waits still"
    assert outside(folder, owner) == before


@pytest.mark.parametrize(
    "owner", ["", "..", "../shop", "shop/../shop/production", "/shop", "shop/production/x", "Shop", "a\0"]
)
def test_no_owner_leads_out_of_the_folder(folder: Path, owner: str) -> None:
    for kind in (SqliteSql, FileBlobs, SqliteQueue):
        with pytest.raises(ProviderError):
            kind(folder, owner)
