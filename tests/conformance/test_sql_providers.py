"""Every provider of SQL databases against one suite, and attempts to reach another tenant through PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.providers import SqlError, SqlProvider
from runtime.services import postgres_tenants
from runtime.services.declared_providers import DeclaredProvider
from runtime.services.postgres_sql import PostgresConnection, PostgresSql
from runtime.services.sqlite_sql import SqlCaps, SqliteSql
from tests.conformance import sql_providers
from tests.conformance.judging import judge_capability
from tests.conformance.keyvalue_providers import NEAR
from tests.conformance.sql_providers import CAPABILITIES, LACKS, PROVIDERS, Make
from tests.support.runtime.postgres_server import PostgresServer, needs_postgres, running_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as postgres:
        yield postgres


@pytest.fixture
def access(server: PostgresServer, tmp_path: Path) -> DeclaredProvider:
    (tmp_path / "password").write_text("first")
    (tmp_path / "password").chmod(0o600)
    return server.declared(tmp_path / "password")


def maker(provider: str, folder: Path, request: pytest.FixtureRequest, made: list[SqlProvider]) -> Make:
    if provider == "embedded":

        def embedded(owner: str, caps: SqlCaps | None) -> SqlProvider:
            made.append(SqliteSql(folder, owner, caps))
            return made[-1]

        return embedded
    access: DeclaredProvider = request.getfixturevalue("access")
    server: PostgresServer = request.getfixturevalue("server")
    place = postgres_tenants.place_of("shop/production", "main")
    server.say(f'DROP DATABASE IF EXISTS "{place}" WITH (FORCE)')

    def declared(owner: str, caps: SqlCaps | None) -> SqlProvider:
        made.append(PostgresSql(access, owner, pytest.fail, caps))
        return made[-1]

    return declared


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_provider_does_what_the_page_says(
    provider: str, capability: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_providers, "BYTES", ["BYTEA" if provider == "postgres" else "BLOB"])
    providers: list[SqlProvider] = []
    make = maker(provider, tmp_path, request, providers)
    judge_capability(CAPABILITIES[capability], make, providers, lacks=(provider, capability) in LACKS)


WORD = "kept-from-others"
ATTEMPTS = (
    "SELECT word FROM secret", "SELECT word FROM public.secret", 'SELECT word FROM "{place}".public.secret',
    'SET search_path = "{place}", public', 'SET ROLE "{place}"', "SET ROLE apps", "SET ROLE owner", "SET ROLE postgres",
    'SET SESSION AUTHORIZATION "{place}"', "RESET SESSION AUTHORIZATION", "SELECT set_config('role', '{place}', false)",
    "SELECT set_config('session_authorization', 'owner', false)", "CREATE EXTENSION dblink",
    "CREATE EXTENSION postgres_fdw", "CREATE EXTENSION file_fdw", "CREATE EXTENSION adminpack",
    "SELECT * FROM dblink('dbname={place}', 'SELECT word FROM secret') AS t (word text)",
    "SELECT pg_read_file('postgresql.conf')", "SELECT pg_read_binary_file('PG_VERSION')", "SELECT pg_ls_dir('.')",
    "SELECT pg_stat_file('.')", "SELECT lo_import('/etc/passwd')", "COPY secret FROM '/etc/passwd'",
    "COPY (SELECT 1) TO '/tmp/freehold-copied'", "COPY (SELECT 1) TO PROGRAM 'id'", "COPY secret TO STDOUT",
    "COPY secret FROM STDIN", "ALTER SYSTEM SET log_statement = 'all'", "ALTER ROLE \"{place}\" PASSWORD 'x'",
    "ALTER ROLE CURRENT_USER SUPERUSER", "ALTER ROLE CURRENT_USER CREATEROLE", 'DROP DATABASE "{place}"',
    'DROP DATABASE "{place}" WITH (FORCE)', 'DROP ROLE "{place}"', 'GRANT "{place}" TO CURRENT_USER',
    "GRANT pg_read_server_files TO CURRENT_USER", "CREATE ROLE freehold_other", "CREATE DATABASE freehold_other",
    'ALTER DATABASE "{place}" RENAME TO other', 'ALTER DATABASE "{place}" OWNER TO CURRENT_USER',
    'REASSIGN OWNED BY "{place}" TO CURRENT_USER', 'DROP OWNED BY "{place}"',
    "SELECT query FROM pg_stat_activity WHERE query LIKE '%kept-from%'", "SELECT rolpassword FROM pg_authid",
    "SELECT passwd FROM pg_shadow", "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = '{place}'",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{place}'", "LOAD '$libdir/dblink'",
    "CREATE FUNCTION f() RETURNS int AS '/lib/x.so', 'f' LANGUAGE C", "CREATE LANGUAGE plpython3u",
    "CREATE SUBSCRIPTION s CONNECTION 'dbname={place}' PUBLICATION p", "CREATE TABLESPACE t LOCATION '/tmp'",
    "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION f()", "SELECT pg_reload_conf()", "CHECKPOINT",
    "SELECT pg_switch_wal()", "SELECT pg_export_snapshot()", "SELECT pg_create_physical_replication_slot('s')",
    "SELECT * FROM pg_logical_slot_get_changes('s', NULL, NULL)", "LISTEN kept", "TABLE secret; --", "\\connect {place}",
)  # fmt: skip


def outcome_of(database: PostgresConnection, statement: str) -> str:
    try:
        return repr(database.execute(statement))
    except SqlError as error:
        return f"refused: {error.text}"


@needs_postgres
def test_no_statement_reaches_another_project_environment_or_database(access: DeclaredProvider) -> None:
    near = [(owner, name.lower()) for owner, name in NEAR if owner != "shop/production"]
    near += [("shop/production", "main2"), ("shop/production", "mai")]
    assert len(near) * len(ATTEMPTS) >= 200
    place = postgres_tenants.place_of("shop/production", "main")
    provider = PostgresSql(access, "shop/production", pytest.fail)
    own = provider.open("main")
    own.execute("CREATE TABLE IF NOT EXISTS secret (word TEXT)")
    own.execute("DELETE FROM secret")
    own.execute("INSERT INTO secret VALUES (?)", [WORD])
    done: set[str] = set()
    for owner, name in near:
        assert postgres_tenants.place_of(owner, name) != place
        other = PostgresSql(access, owner, pytest.fail)
        try:
            database = other.open(name)
            for attempt in ATTEMPTS:
                said = outcome_of(database, attempt.format(place=place))
                assert WORD not in said, attempt
                if not said.startswith("refused"):
                    done.add(attempt)
                assert database.execute("SELECT current_user = current_database()").rows == ((1,),), attempt
        finally:
            other.close()
    assert own.execute("SELECT word FROM secret").rows == ((WORD,),), "its link was cut, or its data changed"
    provider.close()
    assert done <= HARMLESS, done - HARMLESS


HARMLESS = {
    'SET search_path = "{place}", public', "RESET SESSION AUTHORIZATION", "LISTEN kept",
    "SELECT query FROM pg_stat_activity WHERE query LIKE '%kept-from%'", "SELECT pg_export_snapshot()",
}  # fmt: skip
"""What is done, and reaches nothing: a snapshot is of its own database."""
