"""SQL databases: durable, bounded, apart from each other, still while frozen. What guests see of them: e2e/dev/test_sql.py.

The freezing side runs in another process, as it does in a node: two builds of SQLite must not share a file in one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.providers import SqlError, SqlOutcome
from runtime.services import freeze, sqlite_sql
from runtime.services.sqlite_sql import SqlCaps, SqliteConnection, SqliteSql

ENDLESS = "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c) SELECT {} FROM c"


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[SqliteSql]:
    new_sqlite_sql = SqliteSql(tmp_path, "shop/production")
    yield new_sqlite_sql
    new_sqlite_sql.close()


@pytest.fixture
def main(provider: SqliteSql) -> SqliteConnection:
    connection = provider.open("main")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, at TIMESTAMP)")
    return connection


def refused(call: Any, *arguments: Any) -> SqlError:
    with pytest.raises(SqlError) as exception_info:
        call(*arguments)
    return exception_info.value


def frozen_by_the_node(folder: Path) -> None:
    program = "import sys; from pathlib import Path; from runtime.services import freeze; freeze.freeze(Path(sys.argv[1]), b'')"
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, cwd=Path(__file__).parents[4])


def test_rows_come_with_names_and_declared_types(main: SqliteConnection) -> None:
    sql_outcome = main.execute("INSERT INTO t (name) VALUES (?)", ["a"])
    assert (sql_outcome.changes, sql_outcome.last_insert_rowid, sql_outcome.in_transaction) == (1, 1, False)
    sql_outcome = main.execute("SELECT id, name, at, 1.5 AS x, x'00ff' AS y FROM t")
    assert sql_outcome.rows == ((1, "a", None, 1.5, b"\x00\xff"),)
    assert [(column.name, column.declared) for column in sql_outcome.columns] == [
        ("id", "INTEGER"), ("name", "TEXT"), ("at", "TIMESTAMP"), ("x", None), ("y", None),
    ]  # fmt: skip
    assert [column.name for column in main.execute("SELECT name FROM t WHERE id = 9").columns] == ["name"], (
        "also without rows"
    )
    assert main.execute("INSERT INTO t (name) VALUES (:n) RETURNING id", {"n": "b"}).rows == ((2,),)


def test_errors_carry_sqlites_own_names(main: SqliteConnection) -> None:
    main.execute("INSERT INTO t (name) VALUES ('a')")
    assert refused(main.execute, "INSERT INTO t (name) VALUES ('a')").code == "SQLITE_CONSTRAINT_UNIQUE"
    assert "syntax error" in refused(main.execute, "SELEC 1").text
    assert refused(main.execute, "SELECT ?").code == "SQLITE_RANGE"
    assert "'n'" in refused(main.execute, "SELECT :n", {"m": 1}).text


@pytest.mark.parametrize(
    "statement", ["SELECT 1; SELECT 2", "INSERT INTO t (name) VALUES ('--;'); DELETE FROM t", "SELECT ';' ; SELECT 1"]
)
def test_one_call_runs_one_statement_and_nothing_of_two(main: SqliteConnection, statement: str) -> None:
    assert refused(main.execute, statement).code == "SQLITE_MISUSE"
    assert main.execute("SELECT count(*) FROM t").rows == ((0,),)


@pytest.mark.parametrize("statement", ["SELECT ';';", "SELECT 1; -- the end; really", "SELECT 1 /* ; */ ;\n"])
def test_a_semicolon_that_ends_nothing_is_no_second_statement(main: SqliteConnection, statement: str) -> None:
    sql_outcome = main.execute(statement)
    assert len(sql_outcome.rows) == 1
    assert len(sql_outcome.columns) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH '/etc/passwd' AS x",
        "ATTACH '' AS x",
        "VACUUM INTO '/tmp/freehold-sql-escape.db'",
        "PRAGMA writable_schema = 1",
        "PRAGMA max_page_count = 99999999",
        "PRAGMA hard_heap_limit = 0",
        "PRAGMA temp_store_directory = '/tmp'",
        "SELECT load_extension('x')",
        "SELECT * FROM dbstat",
        "SELECT * FROM sqlite_dbpage",
        "CREATE VIRTUAL TABLE x USING dbstat",
        "CREATE VIRTUAL TABLE x USING fts4(a, tokenize=unicode61)",
        "SELECT * FROM carray(1, 2, 'int32')",
        "UPDATE sqlite_schema SET sql = ''",
    ],
)
def test_a_statement_reaches_nothing_but_its_database(main: SqliteConnection, statement: str) -> None:
    assert refused(main.execute, statement).code in {"SQLITE_AUTH", "SQLITE_ERROR"}
    assert main.execute("SELECT 1").rows == ((1,),)
    assert not Path("/tmp/freehold-sql-escape.db").exists()


def test_no_answer_tells_a_path_of_the_node(main: SqliteConnection, tmp_path: Path) -> None:
    for statement in ("PRAGMA database_list", "SELECT * FROM pragma_database_list", "PRAGMA compile_options"):
        assert str(tmp_path) not in str(main.execute(statement).rows)


def test_settings_that_would_lose_writes_have_no_effect(main: SqliteConnection) -> None:
    for statement in ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = MEMORY", "PRAGMA locking_mode = EXCLUSIVE"):
        main.execute(statement)
    assert main.handle.pragma("journal_mode") != "memory"
    assert main.execute("PRAGMA journal_mode").rows == (("wal",),)
    main.handle.authorizer = None
    assert main.handle.pragma("synchronous") == 2


def test_a_statement_that_runs_too_long_is_stopped_and_changes_nothing(tmp_path: Path) -> None:
    provider = SqliteSql(tmp_path, "p", SqlCaps(statement_max_s=0.2))
    connection = provider.open("main")
    connection.execute("CREATE TABLE t (x)")
    began_s = time.monotonic()
    assert refused(connection.execute, ENDLESS.format("count(*)")).code == "SQLITE_INTERRUPT"
    assert refused(connection.execute, "INSERT INTO t " + ENDLESS.format("x")).code == "SQLITE_INTERRUPT"
    assert time.monotonic() - began_s < 2
    assert connection.execute("SELECT count(*) FROM t").rows == ((0,),)


def test_a_call_that_is_over_stops_its_statement(main: SqliteConnection) -> None:
    over = threading.Event()
    threading.Timer(0.1, over.set).start()
    with pytest.raises(SqlError, match="the call is over"):
        main.execute(ENDLESS.format("count(*)"), cancelled=over.is_set)
    with pytest.raises(SqlError, match="may take"):
        main.execute(ENDLESS.format("count(*)"), deadline_s=time.monotonic() + 0.1)


def test_an_answer_has_a_size(main: SqliteConnection) -> None:
    assert refused(main.execute, ENDLESS.format("x")).code == "SQLITE_TOOBIG"
    assert refused(main.execute, "SELECT zeroblob(1048577)").code == "SQLITE_TOOBIG"
    assert len(main.execute("SELECT zeroblob(1048576)").rows[0][0]) == 1048576  # type: ignore[arg-type]
    assert refused(main.execute, "SELECT 1 --" + "x" * 1024 * 1024).code == "SQLITE_TOOBIG"


def test_a_full_database_says_so_and_stays_whole(tmp_path: Path) -> None:
    connection = SqliteSql(tmp_path, "p", SqlCaps(database_max_bytes=256 * 1024)).open("main")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    full = refused(connection.execute, "INSERT INTO t VALUES (zeroblob(500000))")
    assert (full.code, full.text) == ("SQLITE_FULL", "the database, or the disk of its node, is full")
    assert connection.execute("SELECT count(*) FROM t").rows == ((1,),)
    connection.execute("DELETE FROM t")
    connection.execute("INSERT INTO t VALUES (zeroblob(100000))")


def test_sorting_and_temporary_tables_have_a_size(main: SqliteConnection) -> None:
    blobs = "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c LIMIT 900) SELECT randomblob(500000) AS b FROM c"
    assert refused(main.execute, f"{blobs} ORDER BY b").code in {"SQLITE_INTERRUPT", "SQLITE_NOMEM"}
    assert refused(main.execute, f"CREATE TEMP TABLE z AS {blobs}").code == "SQLITE_FULL"
    assert main.execute("SELECT 1").rows == ((1,),)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("instr(zeroblob(1000000), zeroblob(500000) || x'01')", 0),
        ("instr('abc', 'c')", 3),
        ("instr(x'0102', x'02')", 2),
        ("instr(123, 2)", 2),
        ("instr(NULL, 'a')", None),
        ("replace('aXbX', 'X', 'yy')", "ayybyy"),
        ("replace('a', '', 'b')", "a"),
        ("replace(1.0, '.', ',')", "1,0"),
        ("trim('  a ')", "a"),
        ("ltrim('xya', 'yx')", "a"),
        ("rtrim('ax', 'x')", "a"),
    ],
)
def test_functions_that_one_call_could_hang_in_give_sqlites_answers(
    main: SqliteConnection, expression: str, value: object
) -> None:
    began_s = time.monotonic()
    assert main.execute(f"SELECT {expression}").rows == ((value,),)
    assert time.monotonic() - began_s < 1


def test_replace_and_trim_have_bounds(main: SqliteConnection) -> None:
    grown = "replace(replace(hex(zeroblob(250000)), '0', 'aaaa'), 'a', hex(zeroblob(400)))"
    assert refused(main.execute, f"SELECT {grown}").code == "SQLITE_TOOBIG"


def test_many_rows_go_in_together_or_not_at_all(main: SqliteConnection) -> None:
    assert main.execute_many("INSERT INTO t (name) VALUES (?)", [["a"], ["b"]]) == SqlOutcome((), (), 2, 2, 2, False, 1)
    assert (
        refused(main.execute_many, "INSERT INTO t (name) VALUES (?)", [["c"], ["a"]]).code == "SQLITE_CONSTRAINT_UNIQUE"
    )
    assert main.execute("SELECT count(*) FROM t").rows == ((2,),)
    main.execute("BEGIN")
    main.execute("INSERT INTO t (name) VALUES ('d')")
    refused(main.execute_many, "INSERT INTO t (name) VALUES (?)", [["e"], ["a"]])
    main.execute("COMMIT")
    assert main.execute("SELECT name FROM t ORDER BY id").rows == (("a",), ("b",), ("d",))


def test_databases_of_one_project_are_apart(provider: SqliteSql, main: SqliteConnection) -> None:
    assert "no such table" in refused(provider.open("other").execute, "SELECT * FROM t").text


@pytest.mark.parametrize("name", ["../main", "a/b", "", "Main", ".hidden", "x" * 41, "main.db", "a\0"])
def test_a_name_is_a_name_and_never_a_path(provider: SqliteSql, name: str) -> None:
    assert refused(provider.open, name).code == "SQLITE_CANTOPEN"


def test_a_transaction_left_open_is_undone_at_the_end_of_the_call(provider: SqliteSql, main: SqliteConnection) -> None:
    main.execute("BEGIN IMMEDIATE")
    main.execute("INSERT INTO t (name) VALUES ('a')")
    main.rollback()
    other = provider.open("main")
    other.execute("INSERT INTO t (name) VALUES ('b')")
    assert main.execute("SELECT name FROM t").rows == (("b",),)


def test_a_writer_waits_for_the_thaw_and_loses_nothing(main: SqliteConnection, tmp_path: Path) -> None:
    folder = tmp_path / "shop" / "production"
    frozen_by_the_node(folder)
    assert main.execute("SELECT count(*) FROM t").rows == ((0,),), "reads go on"
    threading.Timer(0.3, freeze.thaw, (folder,)).start()
    began_s = time.monotonic()
    main.execute("INSERT INTO t (name) VALUES ('a')")
    assert time.monotonic() - began_s >= 0.25
    assert main.execute("SELECT count(*) FROM t").rows == ((1,),)


def test_no_transaction_commits_behind_the_mark(
    main: SqliteConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "WRITER_WAIT_S", 0.1)
    main.execute("BEGIN")  # deferred: it holds no lock when the freeze comes
    frozen_by_the_node(tmp_path / "shop" / "production")
    main.execute("INSERT INTO t (name) VALUES ('a')")
    away = refused(main.execute, "COMMIT")
    assert (away.retry_after_s, main.in_transaction) == (freeze.RETRY_AFTER_S, False)
    for statement in ("INSERT INTO t (name) VALUES ('b')", "CREATE TABLE u (x)", "PRAGMA user_version = 7"):
        assert refused(main.execute, statement).retry_after_s == freeze.RETRY_AFTER_S
    assert refused(main.execute_many, "INSERT INTO t (name) VALUES (?)", [["c"]]).retry_after_s == freeze.RETRY_AFTER_S
    freeze.thaw(tmp_path / "shop" / "production")
    assert main.execute("SELECT count(*) FROM t").rows == ((0,),)
    main.execute("INSERT INTO t (name) VALUES ('b')")


def test_a_database_is_not_begun_under_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "WRITER_WAIT_S", 0.1)
    folder = tmp_path / "shop" / "production"
    folder.mkdir(parents=True)
    frozen_by_the_node(folder)
    assert refused(SqliteSql(tmp_path, "shop/production").open, "main").retry_after_s is not None
    assert freeze.databases(folder) == []


def test_a_file_put_in_its_place_is_what_is_read_then(
    provider: SqliteSql, main: SqliteConnection, tmp_path: Path
) -> None:
    main.execute("INSERT INTO t (name) VALUES ('a')")
    folder = tmp_path / "shop" / "production" / "sql"
    folder.rename(folder.with_name("kept"))
    assert refused(main.execute, "SELECT 1").retry_after_s is not None, "never as if it were empty"
    other = SqliteSql(tmp_path, "shop/other")
    other.open("main").script("CREATE TABLE t (name); INSERT INTO t VALUES ('new')")
    other.close()
    (tmp_path / "shop" / "other" / "sql").rename(folder)
    assert main.execute("SELECT name FROM t").rows == (("new",),)


def test_a_closed_provider_holds_nothing_open(provider: SqliteSql, main: SqliteConnection, tmp_path: Path) -> None:
    provider.open("main")
    provider.close()
    held = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not [text for text in held if str(tmp_path) in text]
    assert refused(main.execute, "SELECT 1").retry_after_s is not None
    assert refused(provider.open, "main").retry_after_s is not None


def test_connections_have_a_number(tmp_path: Path) -> None:
    provider = SqliteSql(tmp_path, "p", SqlCaps(connections_max=2))
    first, _ = provider.open("main"), provider.open("main")
    assert refused(provider.open, "main").code == "SQLITE_BUSY"
    first.close()
    provider.open("main")


def test_increments_of_many_processes_add_up(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from runtime.services.sqlite_sql import SqliteSql\n"
        "c = SqliteSql(Path(sys.argv[1]), 'p').open('main'); c.execute('CREATE TABLE IF NOT EXISTS n (x)')\n"
        "for n in range(40): c.execute('INSERT INTO n VALUES (1)')\n"
    )
    root = Path(__file__).parents[4]
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=root) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert SqliteSql(tmp_path, "p").open("main").execute("SELECT count(*) FROM n").rows == ((120,),)


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from runtime.services.sqlite_sql import SqliteSql\n"
        "c = SqliteSql(Path(sys.argv[1]), 'p').open('main'); c.execute('CREATE TABLE n (x)')\n"
        "while True: print(c.execute('INSERT INTO n VALUES (1) RETURNING rowid').rows[0][0], flush=True)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4]
    )
    assert running.stdout is not None
    for _ in range(20):
        last = int(running.stdout.readline())
    running.kill()
    told = [int(line) for line in running.communicate()[0].splitlines() if line.endswith("\n") or line]
    last = max([last, *told])
    ((answer,),) = SqliteSql(tmp_path, "p").open("main").execute("SELECT max(rowid) FROM n").rows
    assert answer in {last, last + 1}


def test_the_file_is_synced_before_a_commit_returns(tmp_path: Path) -> None:
    """The recorded syncs of SQL; where strace is not there, the settings that order them."""
    program = (
        "import sys; from pathlib import Path; from runtime.services.sqlite_sql import SqliteSql\n"
        "c = SqliteSql(Path(sys.argv[1]), 'p').open('main'); c.execute('CREATE TABLE n (x)')\n"
        "for n in range(5): c.execute('INSERT INTO n VALUES (1)'); print('acknowledged', flush=True)\n"
        "c.execute('BEGIN'); c.execute('INSERT INTO n VALUES (1)'); c.execute('COMMIT'); print('acknowledged', flush=True)\n"
    )
    strace = next((text for text in ("/usr/bin/strace", "/usr/local/bin/strace") if os.access(text, os.X_OK)), None)
    if strace is None:
        connection = SqliteSql(tmp_path, "p").open("main")
        connection.handle.authorizer = None
        assert (connection.handle.pragma("synchronous"), connection.handle.pragma("journal_mode")) == (2, "wal")
        return
    log = tmp_path / "calls"
    command = [strace, "-f", "-e", "trace=fsync,fdatasync,write", "-o", str(log), sys.executable, "-c", program]
    subprocess.run([*command, str(tmp_path)], check=True, capture_output=True, cwd=Path(__file__).parents[4])
    calls = [line for line in log.read_text().splitlines() if "sync(" in line or "acknowledged" in line]
    ends = [index for index, line in enumerate(calls) if "acknowledged" in line]
    assert len(ends) == 6
    for before, end in zip([-1, *ends], ends, strict=False):
        assert any("sync(" in line for line in calls[before + 1 : end]), "acknowledged without a sync"


def test_memory_of_all_sql_has_a_limit() -> None:
    import apsw

    SqliteSql(Path("/nonexistent"), "p")
    assert apsw.hard_heap_limit(-1) == sqlite_sql.HEAP_MAX_BYTES


def test_what_sqlalchemy_asks_when_it_connects_is_answered(provider: SqliteSql, main: SqliteConnection) -> None:
    other = provider.open("main")
    assert main.execute("PRAGMA read_uncommitted").rows == ((0,),)
    main.execute("CREATE TABLE n (x INTEGER)")
    other.execute("PRAGMA read_uncommitted = 1")
    main.execute("BEGIN IMMEDIATE")
    main.execute("INSERT INTO n VALUES (1)")
    assert other.execute("SELECT count(*) FROM n").rows == ((0,),), "no cache is shared, so nothing uncommitted is read"
