"""A PostgreSQL server that fails: away and back, killed under load, old, forgetful, full, put back, with new credentials."""

from __future__ import annotations

import resource
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.providers import SqlError
from runtime.services import postgres_sql, postgres_tenants
from runtime.services.declared_providers import DeclaredProvider, provider_problem
from runtime.services.postgres_sql import LINKS_MAX, PostgresConnection, PostgresSql
from runtime.services.sqlite_sql import SqlCaps
from tests.support.runtime.postgres_server import PostgresServer, needs_postgres, running_postgres

OWNER = "shop/production"
pytestmark = needs_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as postgres:
        yield postgres


@pytest.fixture
def password(tmp_path: Path, server: PostgresServer) -> Path:
    file = tmp_path / "password"
    file.write_text(server.password + "\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def restored() -> list[str]:
    return []


@pytest.fixture
def provider(server: PostgresServer, password: Path, restored: list[str]) -> Iterator[PostgresSql]:
    provider = PostgresSql(server.declared(password), OWNER, restored.append)
    yield provider
    provider.close()


def failure(call: Callable[[], object]) -> SqlError:
    with pytest.raises(SqlError) as refused:
        call()
    return refused.value


def table(database: PostgresConnection, name: str) -> None:
    database.execute(f"DROP TABLE IF EXISTS {name}")
    database.execute(f"CREATE TABLE {name} (x INTEGER)")
    database.execute(f"INSERT INTO {name} VALUES (0)")
    database.rollback()


def test_it_is_away_and_back_by_itself(server: PostgresServer, provider: PostgresSql, restored: list[str]) -> None:
    database = provider.open("main")
    table(database, "away")
    server.kill()
    end_s = time.monotonic() + 2
    while time.monotonic() < end_s:  # 60 s in production: nothing of it depends on how long
        began_s = time.monotonic()
        error = failure(lambda: database.execute("SELECT 1"))
        database.rollback()
        assert (error.text, error.retry_after_s) == ("the provider main is away", 5)
        assert time.monotonic() - began_s < 3
    server.start()
    assert database.execute("SELECT x FROM away").rows == ((0,),)
    assert restored == []


def test_one_that_says_nothing_is_given_up_in_time(server: PostgresServer, provider: PostgresSql) -> None:
    database = provider.open("main")
    database.execute("SELECT 1")
    database.rollback()
    server.pause()
    try:
        began_s = time.monotonic()
        error = failure(lambda: database.execute("SELECT 1", deadline_s=began_s + 1))
        assert error.code == "SQLITE_INTERRUPT"
        assert time.monotonic() - began_s < 4
        assert failure(lambda: database.execute("SELECT 1")).text == "the provider main is away"
    finally:
        server.go_on()
    database.rollback()
    assert database.execute("SELECT 1").rows == ((1,),)


def test_no_acknowledged_increment_is_lost_when_it_is_killed(server: PostgresServer, password: Path) -> None:
    first = PostgresSql(server.declared(password), OWNER, pytest.fail)
    table(first.open("main"), "counted")
    done = threading.Event()
    acknowledged, in_doubt = [0] * 3, [0] * 3

    def add(number: int) -> None:
        own = PostgresSql(server.declared(password), OWNER, pytest.fail)
        database = own.open("main")
        while not done.is_set():
            try:
                database.execute("BEGIN")
                database.execute("UPDATE counted SET x = x + 1")
                database.execute("COMMIT")
                acknowledged[number] += 1
            except SqlError as error:
                in_doubt[number] += error.code in {"SQLITE_IOERR", "SQLITE_INTERRUPT"}
            database.rollback()
        own.close()

    threads = [threading.Thread(target=add, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.5)
        server.kill()
        server.start()
    time.sleep(0.5)
    done.set()
    for thread in threads:
        thread.join()
    ((total,),) = first.open("main").execute("SELECT x FROM counted").rows
    first.close()
    assert sum(acknowledged) > 50
    assert sum(acknowledged) <= int(str(total)) <= sum(acknowledged) + sum(in_doubt), (acknowledged, in_doubt, total)


def test_a_credential_is_rotated_under_load(server: PostgresServer, provider: PostgresSql, password: Path) -> None:
    database = provider.open("main")
    table(database, "rotated")
    done = threading.Event()
    counts, failures = [0], list[str]()

    def add() -> None:
        own = provider.open("main")
        while not done.is_set():
            try:
                own.execute("UPDATE rotated SET x = x + 1")
                counts[0] += 1
            except SqlError as error:
                failures.append(error.text)
            own.rollback()

    thread = threading.Thread(target=add)
    thread.start()
    time.sleep(0.3)
    server.say("ALTER ROLE apps PASSWORD 'second'")
    server.password = "second"
    password.write_text("second")
    place = postgres_tenants.place_of(OWNER, "main")
    server.say(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{place}'")
    before = counts[0]
    end_s = time.monotonic() + 10
    while counts[0] < before + 20:
        assert time.monotonic() < end_s, failures
        time.sleep(0.01)
    done.set()
    thread.join()
    assert len(failures) <= 1, failures  # the statement that was under way when its link was cut
    ((total,),) = database.execute("SELECT x FROM rotated").rows
    database.rollback()
    assert counts[0] <= int(str(total)) <= counts[0] + len(failures)
    password.write_text("wrong")
    server.say(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{place}'")
    error = failure(lambda: database.execute("SELECT 1"))
    assert (error.text, error.retry_after_s) == ("the provider main refused this node's credential", 5)
    password.write_text("second")
    assert database.execute("SELECT 1").rows == ((1,),)


def test_one_that_was_put_back_from_an_old_copy_is_noticed(
    server: PostgresServer, provider: PostgresSql, restored: list[str]
) -> None:
    database = provider.open("main")
    table(database, "kept")
    server.stop()
    copy = server.keep()
    server.start()
    for number in range(5):
        database.execute("UPDATE kept SET x = ?", [number])
        database.rollback()
    server.kill()
    server.start()
    database.execute("UPDATE kept SET x = 9")  # a mere restart is none
    database.rollback()
    assert restored == []
    server.kill()
    server.put_back(copy)
    server.start()
    assert database.execute("SELECT x FROM kept").rows == ((0,),)
    assert len(restored) == 1
    assert "put back from an older copy" in restored[0]
    database.rollback()
    database.execute("UPDATE kept SET x = 1")
    database.rollback()
    assert len(restored) == 1


def test_a_database_that_vanished_is_noticed(
    server: PostgresServer, provider: PostgresSql, restored: list[str]
) -> None:
    database = provider.open("gone")
    database.execute("CREATE TABLE n (x INTEGER)")
    database.rollback()
    place = postgres_tenants.place_of(OWNER, "gone")
    server.say(f'DROP DATABASE "{place}" WITH (FORCE)')
    assert failure(lambda: database.execute("SELECT x FROM n")).code == "SQLITE_ERROR"
    assert restored == [f"the provider main has no database {place} any more, and had it"]


def test_one_that_may_lose_what_it_acknowledged_is_refused(server: PostgresServer, password: Path) -> None:
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        server.say(f"ALTER SYSTEM SET {setting} = off")
        server.say("SELECT pg_reload_conf()")
        strict, loose = (
            PostgresSql(server.declared(password, may_lose=allowed), OWNER, pytest.fail) for allowed in (False, True)
        )
        try:
            end_s = time.monotonic() + 5
            while "may_lose = true" not in (said := _text(strict)):
                assert time.monotonic() < end_s, said
            assert loose.open("main").execute("SELECT 1").rows == ((1,),)
        finally:
            strict.close()
            loose.close()
            server.say(f"ALTER SYSTEM RESET {setting}")
            server.say("SELECT pg_reload_conf()")


def _text(provider: PostgresSql) -> str:
    try:
        database = provider.open("main")
        try:
            database.execute("SELECT 1")
        finally:
            database.close()
            for pool in provider._pools.values():
                pool.close()
    except SqlError as error:
        return error.text
    return ""


@pytest.mark.parametrize("version", ["9.6.24", "14.20 (Debian 14.20-1)", "", "new"])
def test_an_old_server_is_refused(version: str, password: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_as, args=(listener, version))
        thread.start()
        url = f"postgres://apps@127.0.0.1:{listener.getsockname()[1]}"
        provider = PostgresSql(DeclaredProvider("main", "postgres", url, str(password)), OWNER, pytest.fail)
        database = provider.open("main")
        assert "15 or newer is needed" in failure(lambda: database.execute("SELECT 1")).text
        provider.close()
        thread.join()


def answer_as(listener: socket.socket, version: str) -> None:
    """A server so old that no package of it is left: it lets one in, and says its version."""
    link, _ = listener.accept()
    with link:
        link.recv(4096)
        said = b"server_version\0" + version.encode() + b"\0"
        link.sendall(b"R" + struct.pack("!ii", 8, 0) + b"S" + struct.pack("!i", len(said) + 4) + said)
        link.sendall(b"Z" + struct.pack("!i", 5) + b"I")
        link.recv(4096)


def test_one_that_is_no_server_of_its_kind_is_away(password: Path) -> None:
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"R\x7f\xff\xff\xff", b"R\0\0\0\0", b"", b"\0" * 100):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"postgres://apps@127.0.0.1:{listener.getsockname()[1]}"
            provider = PostgresSql(DeclaredProvider("main", "postgres", url, str(password)), OWNER, pytest.fail)
            database = provider.open("main")
            thread = threading.Thread(target=_answer, args=(listener, answer))
            thread.start()
            assert failure(lambda database=database: database.execute("SELECT 1")).text == "the provider main is away"
            thread.join()
            provider.close()


def _answer(listener: socket.socket, answer: bytes) -> None:
    link, _ = listener.accept()
    with link:
        link.recv(4096)
        link.sendall(answer)


def test_a_full_database_takes_deletes(server: PostgresServer, password: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_sql, "SIZE_LOOK_EVERY_S", 0.0)
    provider = PostgresSql(server.declared(password), OWNER, pytest.fail, SqlCaps(database_max_bytes=9 << 20))
    database = provider.open("full")
    database.execute("CREATE TABLE n (x TEXT)")
    for _ in range(3):
        database.execute("INSERT INTO n SELECT repeat(md5(n::text), 20) FROM generate_series(1, 2000) AS n")
    database.rollback()
    for statement in ("INSERT INTO n VALUES ('x')", "/* SELECT */ WITH a AS (SELECT 1) INSERT INTO n SELECT * FROM a"):
        assert failure(lambda statement=statement: database.execute(statement)).code == "SQLITE_FULL"
    assert database.execute("SELECT count(*) FROM n").rows == ((6000,),)
    database.execute("TRUNCATE n")
    database.rollback()
    database.execute("INSERT INTO n VALUES ('x')")
    provider.close()


def test_nothing_of_a_call_is_there_in_the_next(provider: PostgresSql) -> None:
    database = provider.open("main")
    database.script(
        "SET search_path = pg_catalog; CREATE TEMP TABLE mine (x int); SELECT pg_advisory_lock(7);"
        " PREPARE p AS SELECT 1; SET statement_timeout = 0; SET client_encoding = 'LATIN1'"
    )
    database.execute("BEGIN")
    database.rollback()
    other = provider.open("main")
    asked = "SELECT current_setting('search_path'), to_regclass('pg_temp.mine'), current_setting('statement_timeout')"
    assert other.execute(asked).rows == (('"$user", public', None, "5s"),)
    assert other.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").rows == ((0,),)
    assert other.execute("SELECT ?::text", ["\N{EURO SIGN}"]).rows == (("\N{EURO SIGN}",),)
    assert failure(lambda: other.execute("EXECUTE p")).code == "SQLITE_ERROR"


def test_a_failed_transaction_is_never_taken_as_committed(server: PostgresServer, provider: PostgresSql) -> None:
    database = provider.open("main")
    table(database, "failed")
    for commit in ("COMMIT", "-- the end\nCOMMIT", "END"):
        database.execute("BEGIN")
        database.execute("INSERT INTO failed VALUES (1)")
        failure(lambda: database.execute("SELECT 1 / 0"))
        assert failure(lambda: database.execute("SELECT 1")).code == "SQLITE_ABORT"
        assert failure(lambda commit=commit: database.execute(commit)).code == "SQLITE_ABORT"
    assert database.execute("SELECT count(*) FROM failed").rows == ((1,),)
    database.execute("BEGIN")
    server.kill()
    server.start()
    assert failure(lambda: database.execute("INSERT INTO failed VALUES (2)")).code == "SQLITE_IOERR"
    assert failure(lambda: database.execute("INSERT INTO failed VALUES (3)")).code == "SQLITE_ABORT"
    assert not database.execute("ROLLBACK").in_transaction
    database.execute("INSERT INTO failed VALUES (4)")
    assert database.execute("SELECT sum(x) FROM failed").rows == ((4,),)


def test_an_answer_is_bounded_before_it_is_read(provider: PostgresSql) -> None:
    database = provider.open("main")
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = failure(lambda: database.execute("SELECT repeat('x', 200000000)"))
    assert error.code in {"SQLITE_TOOBIG", "SQLITE_INTERRUPT"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 * 1024
    assert database.execute("SELECT 1").rows == ((1,),)


def test_a_call_that_is_over_stops_its_statement(server: PostgresServer, provider: PostgresSql) -> None:
    database = provider.open("main")
    over = threading.Event()
    threading.Timer(0.3, over.set).start()
    began_s = time.monotonic()
    error = failure(lambda: database.execute("SELECT pg_sleep(4), 'mine'", cancelled=over.is_set))
    assert (error.code, error.text) == ("SQLITE_INTERRUPT", "the call is over")
    assert time.monotonic() - began_s < 2
    end_s = time.monotonic() + 3
    while (
        server.say("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)%' AND pid <> pg_backend_pid()")
        != "0"
    ):
        assert time.monotonic() < end_s, "it runs on in the server"


def test_links_are_bounded_and_end_with_the_provider(
    server: PostgresServer, provider: PostgresSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_sql, "LINK_WAIT_S", 0.5)
    many = [provider.open("links") for _ in range(LINKS_MAX)]
    for database in many:
        database.execute("BEGIN")
    late = provider.open("links")
    error = failure(lambda: late.execute("SELECT 1"))
    assert (error.code, error.retry_after_s) == ("SQLITE_BUSY", 5)
    threading.Timer(0.2, many[0].rollback).start()
    assert late.execute("SELECT 1").rows == ((1,),)
    place = postgres_tenants.place_of(OWNER, "links")
    there = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{place}'"
    assert server.say(there) == str(LINKS_MAX)
    caught: list[SqlError] = []
    thread = threading.Thread(target=lambda: caught.append(failure(lambda: late.execute("SELECT pg_sleep(4)"))))
    thread.start()
    time.sleep(0.3)
    provider.close()
    thread.join(3)
    assert not thread.is_alive(), "what runs outlives the decision that gave it"
    for database in (*many, late):
        assert failure(lambda database=database: database.execute("SELECT 1")).text == "the database is closed"
    assert failure(lambda: provider.open("links")).text == "the database is closed"
    end_s = time.monotonic() + 5
    while server.say(there) != "0":
        assert time.monotonic() < end_s, "a link outlives its provider"


def test_what_is_thrown_away_is_gone_at_the_end(server: PostgresServer, password: Path) -> None:
    old = f"{postgres_tenants.THROWN_AWAY}{int(time.time()) - postgres_tenants.KEPT_S - 60:x}_00"
    server.say(f'CREATE ROLE "{old}"')
    server.say(f'GRANT "{old}" TO apps')
    server.say(f'CREATE DATABASE "{old}" OWNER "{old}"')
    listed = f"SELECT datname FROM pg_database WHERE datname LIKE '{postgres_tenants.THROWN_AWAY}%'"
    provider = PostgresSql(server.declared(password), OWNER, pytest.fail, thrown_away=True)
    provider.open("main").execute("CREATE TABLE n (x INTEGER)")
    assert server.say(listed) not in {"", old}
    provider.close()
    assert server.say(listed) == ""


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://apps@host", "is not postgres://"),
        ("postgres://host", "is not postgres://"),
        ("postgres://apps@", "is not postgres://"),
        ("postgres://apps@host:port", "is not postgres://"),
        ("postgres://apps@host/a/b", "is not postgres://"),
        ("postgres://apps@host?sslmode=prefer", "is not postgres://"),
        ("postgres://apps:secret@host", "holds a password"),
    ],
    ids=["scheme", "no user", "no host", "no port", "two databases", "half safe", "a password"],
)
def test_an_address_that_cannot_be_is_refused_at_the_start(url: str, said: str) -> None:
    problem = provider_problem(DeclaredProvider("main", "postgres", url, "file"))
    assert said in problem
    assert "secret" not in problem
    for good, tls in (
        ("postgres://apps@db.example.com", True), ("postgresql://apps@[::1]:5433/admin", False),
        ("postgres://apps@10.0.0.5?sslmode=disable", False), ("postgres://apps@127.0.0.1?sslmode=verify-full", True),
    ):  # fmt: skip
        declared = DeclaredProvider("main", "postgres", good, "file")
        assert provider_problem(declared) == ""
        assert declared.tls == tls
    assert "no password_file" in provider_problem(DeclaredProvider("main", "postgres", "postgres://apps@host"))


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    folder.mkdir()
    key, cert = folder / "server.key", folder / "server.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", key, "-out", cert, "-subj", "/CN=test", "-addext", f"subjectAltName={name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on this machine")
def test_over_tls_the_server_is_known_or_nothing_is_said(
    server: PostgresServer, password: Path, tmp_path: Path
) -> None:
    def failed(url: str, ca: Path) -> str:
        provider = PostgresSql(DeclaredProvider("main", "postgres", url, str(password), str(ca)), OWNER, pytest.fail)
        try:
            return failure(lambda: provider.open("main").execute("SELECT 1")).text
        finally:
            provider.close()

    good, key = certificate(tmp_path / "good", "IP:127.0.0.1")
    stranger, _ = certificate(tmp_path / "stranger", "IP:127.0.0.1")
    safe = f"{server.url}?sslmode=verify-full"
    assert "has no TLS" in failed(safe, good)
    server.give_certificate(good, key)
    assert "cannot be trusted" in failed(safe, stranger)
    assert "cannot be trusted" in failed(safe.replace("127.0.0.1", "localhost"), good), "another name"
    provider = PostgresSql(DeclaredProvider("main", "postgres", safe, str(password), str(good)), OWNER, pytest.fail)
    database = provider.open("main")
    asked = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert database.execute(asked).rows == ((1,),)
    database.rollback()
    assert database.execute("SELECT length(repeat('x', 500000)), repeat('x', 500000)").rows[0][0] == 500_000
    began_s = time.monotonic()
    assert failure(lambda: database.execute("SELECT pg_sleep(4)", deadline_s=began_s + 0.5)).code == "SQLITE_INTERRUPT"
    provider.close()
