"""No guest reaches another project's, environment's or store's data: by any name, query or key, near misses first.

Every tenant has data under the same names as every other one, so that a way through would find something. The attempts
are made as a guest makes them: through the grants of an app, then through the provider. Over HTTP: tests/conformance.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.engine.guest import GuestServices
from runtime.providers import BlobProvider, ProviderError, Providers, SqlError
from runtime.services.file_blobs import FileBlobs
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from runtime.services.sqlite_sql import SqliteSql
from tests.support.runtime.wasm_parts import SilentLog, a_spec

TENANTS = ("shop/production", "shop/staging", "shop2/production", "sho/production", "production/shop", "shop")
"""The one that attempts comes first; then the same project elsewhere, and names that begin, end or turn it around."""

NAME = "main"
SECRET = "secret of {}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("data")
    for tenant in TENANTS:
        keyvalue, sql, blobs = SqliteKeyValue(place, tenant), SqliteSql(place, tenant), FileBlobs(place, tenant)
        for name in (NAME, "other"):
            mark = SECRET.format(f"{tenant} {name}")
            keyvalue.open(name).set("k", mark.encode())
            connection = sql.open(name)
            connection.execute("CREATE TABLE t (x)")
            connection.execute("INSERT INTO t VALUES (?)", [mark])
            writer = blobs.put()
            writer.write(mark.encode())
            writer.commit([(name, "o")])
        for provider in (keyvalue, sql, blobs):
            provider.close()
    return place  # type: ignore[return-value]


def services(folder: Path, tenant: str = TENANTS[0], **grants: Any) -> GuestServices:
    providers = Providers(SqliteKeyValue(folder, tenant), SqliteSql(folder, tenant), FileBlobs(folder, tenant))
    granted = {"keyvalue": (NAME,), "sql": (NAME,), "blobs": (NAME,), **grants}
    return GuestServices(a_spec(**granted), SilentLog(), providers, None)


def read(blobs: BlobProvider, container: str, name: str) -> bytes:
    with contextlib.closing(blobs.get(container, name)) as reader:
        return reader.read(1000)


def foreign(seen: object, tenant: str = TENANTS[0]) -> bool:
    """Whether what was seen holds a secret that is not the tenant's own of the granted name."""
    return "secret of" in str(seen).replace(SECRET.format(f"{tenant} {NAME}"), "")


@pytest.mark.parametrize("tenant", TENANTS)
def test_each_tenant_finds_its_own_under_the_name_that_all_use(folder: Path, tenant: str) -> None:
    mine = SECRET.format(f"{tenant} {NAME}")
    guest_services = services(folder, tenant)
    assert guest_services.open_bucket(NAME).get("k") == mine.encode()
    assert guest_services.open_database(NAME).execute("SELECT x FROM t").rows == ((mine,),)
    assert read(guest_services.open_container(NAME), NAME, "o") == mine.encode()


NEAR = [
    "other", "Main", "MAIN", "main ", " main", "main\0", "main.db", "mai", "main2", "mаin", "", ".", "..", "main/", "./main",
    "../main", "../staging/main", "../../staging/main", "../../shop2/production/main", "../../../shop/staging/keyvalue",
    "staging/main", "shop/staging/main", "shop2/production/main", "production/main", "%2e%2e/main", "main%00", "*", "ma%n",
    "main' OR '1'='1", 'main"; ATTACH', "main?mode=ro", "file:main", "keyvalue", "blobs", "sql/main", "{main}", "default",
]  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_a_name_that_was_not_granted_opens_nothing(folder: Path, name: str) -> None:
    guest_services = services(folder)
    with pytest.raises(ProviderError):
        guest_services.open_bucket(name)
    with pytest.raises(SqlError):
        guest_services.open_database(name)
    with pytest.raises(ProviderError):
        guest_services.open_container(name)


@pytest.mark.parametrize("name", [name for name in NEAR if name not in {"other", "default", "keyvalue", "blobs"}])
def test_a_provider_that_is_given_a_bad_name_reaches_no_other_tenant(folder: Path, name: str) -> None:
    """Had a grant itself an evil name: what opens then, if anything, is the tenant's own."""
    guest_services = services(folder, keyvalue=(name,), sql=(name,), blobs=(name,))
    seen: list[object] = []
    for attempt in (
        lambda: [guest_services.open_bucket(name).get(key) for key in ("k", "../k")],
        lambda: guest_services.open_database(name).execute("SELECT * FROM t").rows,
        lambda: [
            guest_services.open_container(name).names(name, None, 10),
            read(guest_services.open_container(name), name, "o"),
        ],
    ):
        try:
            seen.append(attempt())
        except (ProviderError, SqlError) as error:
            seen.append(error.text)
    assert not foreign(seen)


def paths(folder: Path) -> list[str]:
    files = [str(path) for path in sorted(folder.rglob("*.db"))]
    near = [
        "../../staging/sql/main.db",
        "../../../shop2/production/sql/main.db",
        "other.db",
        "../keyvalue.db",
        "../blobs.db",
    ]
    return [*files, *near]


QUERIES = (
    "ATTACH '{}' AS y",
    "ATTACH DATABASE 'file:{}?mode=ro' AS y",
    "VACUUM INTO '{}'",
    "SELECT load_extension('{}')",
    "SELECT readfile('{}')",
    "SELECT * FROM pragma_table_info('t', '{}')",
    "CREATE VIRTUAL TABLE v USING csv(filename='{}')",
    "PRAGMA temp_store_directory = '{}'",
)


def test_no_statement_reads_another_file(folder: Path) -> None:
    connection = services(folder).open_database(NAME)
    attempts = 0
    for query, path in itertools.product(QUERIES, paths(folder)):
        try:
            seen: object = connection.execute(query.format(path)).rows
        except SqlError as error:
            seen = error.text
        attempts += 1
        assert not foreign(seen), query
    assert attempts >= 150
    for schema in ("main", "temp", "y", "other"):
        try:
            rows = connection.execute(f"SELECT * FROM {schema}.t").rows
        except SqlError:
            continue
        assert not foreign(rows)


KEYS = [
    "k",
    "../k",
    "other/k",
    "other\0k",
    "%",
    "*",
    "",
    "1",
    "stores",
    "' OR 1=1 --",
    "k\udc80".encode("utf-8", "replace").decode(),
]


@pytest.mark.parametrize("key", KEYS)
def test_no_key_or_object_name_leads_out_of_its_store(folder: Path, key: str) -> None:
    guest_services = services(folder)
    bucket = guest_services.open_bucket(NAME)
    assert not foreign([bucket.get(key), list(bucket.list_keys(None)[0]), bucket.get_many([key, "k"])])
    blobs = guest_services.open_container(NAME)
    seen: list[object] = [blobs.names(NAME, None, 100), blobs.info(NAME, key)]
    try:
        seen.append(read(blobs, NAME, key))
    except ProviderError as error:
        seen.append(error.text)
    assert not foreign(seen)
    assert list(blobs.names(NAME, None, 100)) == ["o"]


def test_what_one_tenant_deletes_stays_with_all_others(folder: Path, tmp_path: Path) -> None:
    """Equal bytes lie in one file of a lane, and never in one of two lanes."""
    file_blobs, two = FileBlobs(tmp_path, "shop/production"), FileBlobs(tmp_path, "shop/staging")
    for blobs in (file_blobs, two):
        writer = blobs.put()
        writer.write(b"same")
        writer.commit([(NAME, "o")])
    file_blobs.delete(NAME, None)
    assert read(two, NAME, "o") == b"same"


@pytest.mark.parametrize(
    "owner", ["..", "../shop", "shop/../other", "shop/a/b", "/etc", "Shop", "", "shop/", ".hidden", "shop\0"]
)
def test_an_owner_is_a_name_and_never_a_path(tmp_path: Path, owner: str) -> None:
    for make in (SqliteKeyValue, SqliteSql, FileBlobs):
        with pytest.raises(ProviderError):
            make(tmp_path, owner)
