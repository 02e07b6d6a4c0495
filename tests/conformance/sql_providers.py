"""What every provider of SQL databases is held to; a table in docs/reference/providers.md is made from this.

A capability is a check over providers that share their data as workers do. `LACKS` says what one declares not to have; the
check must then fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

import pytest

from runtime.providers import SqlError, SqlProvider
from runtime.services.sqlite_sql import SqlCaps

SMALL: Final = SqlCaps(
    statement_max_bytes=2_000, value_max_bytes=64, result_max_rows=5, result_max_bytes=1_000, statement_max_s=0.3,
    connections_max=2,
)  # fmt: skip

Make = Callable[[str, SqlCaps | None], SqlProvider]
"""Makes a provider for the databases of an owner; each call stands for another worker process."""


def refused(call: Callable[[], object], code: str) -> SqlError:
    """Hold that a call is refused under this name."""
    with pytest.raises(SqlError) as refused:
        call()
    assert refused.value.code == code, (refused.value.code, refused.value.text)
    return refused.value


def keeps_values(make: Make) -> None:
    """NULL, integers of 64 bits, reals, text and bytes as they were given"""
    database = make("shop/production", None).open("main")
    database.execute(
        "CREATE TABLE kept (n BIGINT, x DOUBLE PRECISION, words TEXT, bytes BLOB)".replace("BLOB", BYTES[0])
    )
    rows = [(None, None, None, None), (-(2**63), 0.1, "\N{EURO SIGN}'?\n", b"\0\xff"), (2**63 - 1, -1e300, "", b"")]
    for row in rows:
        database.execute("INSERT INTO kept VALUES (?, ?, ?, ?)", row)
    assert database.execute("SELECT * FROM kept ORDER BY n IS NOT NULL, n").rows == tuple(rows)


BYTES: list[str] = ["BLOB"]
"""What the provider under test calls a column of bytes."""


def reads_writes(make: Make) -> None:
    """a committed write is seen at once, by every process"""
    first, two = (make("shop/production", None).open("main") for _ in range(2))
    first.execute("CREATE TABLE n (x INTEGER)")
    for number in range(10):
        first.execute("INSERT INTO n VALUES (?)", [number])
        for database in (first, two):
            assert database.execute("SELECT max(x) FROM n").rows == ((number,),)


def binds(make: Make) -> None:
    """values by `?` and by `:name`, and never inside of quotes and comments"""
    database = make("shop/production", None).open("main")
    database.execute("CREATE TABLE n (x TEXT, y TEXT)")
    database.execute("INSERT INTO n VALUES (?, '?') /* ? */ -- ?", ["'); DROP TABLE n; --"])
    database.execute("INSERT INTO n VALUES (:x, ':x') /* :y */", {"x": "two"})
    assert set(database.execute("SELECT x, y FROM n").rows) == {("'); DROP TABLE n; --", "?"), ("two", ":x")}
    refused(lambda: database.execute("SELECT ?, ?", ["one"]), "SQLITE_RANGE")
    refused(lambda: database.execute("SELECT :y", {"x": "one"}), "SQLITE_RANGE")


def undoes(make: Make) -> None:
    """a transaction is whole or not at all, and undone when the call ends in it"""
    provider = make("shop/production", None)
    database, other = provider.open("main"), provider.open("main")
    database.execute("CREATE TABLE n (x INTEGER)")
    for end in ("ROLLBACK", ""):
        database.execute("BEGIN")
        assert database.execute("INSERT INTO n VALUES (1)").in_transaction
        assert other.execute("SELECT count(*) FROM n").rows == ((0,),)
        database.execute(end) if end else database.rollback()
        assert database.execute("SELECT count(*) FROM n").rows == ((0,),)
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO n VALUES (1)")
    assert not database.execute("COMMIT").in_transaction
    assert other.execute("SELECT count(*) FROM n").rows == ((1,),)


def writes_many_whole(make: Make) -> None:
    """many rows of one statement are written whole or not at all"""
    database = make("shop/production", None).open("main")
    database.execute("CREATE TABLE n (x INTEGER UNIQUE)")
    assert database.execute_many("INSERT INTO n VALUES (?)", [[1], [2]]).changes == 2
    refused(lambda: database.execute_many("INSERT INTO n VALUES (?)", [[3], [1]]), UNIQUE)
    database.execute("BEGIN")
    database.execute("INSERT INTO n VALUES (7)")
    refused(lambda: database.execute_many("INSERT INTO n VALUES (?)", [[4], [2]]), UNIQUE)
    database.execute("COMMIT")
    assert database.execute("SELECT x FROM n ORDER BY x").rows == ((1,), (2,), (7,))


UNIQUE: Final = "SQLITE_CONSTRAINT_UNIQUE"


def names_refusals(make: Make) -> None:
    """what a constraint refuses bears the constraint's kind as its name"""
    database = make("shop/production", None).open("main")
    database.execute("CREATE TABLE n (x INTEGER NOT NULL UNIQUE CHECK (x < 9))")
    database.execute("INSERT INTO n VALUES (1)")
    for value, kind in ((1, "UNIQUE"), (None, "NOTNULL"), (10, "CHECK")):
        refused(lambda value=value: database.execute("INSERT INTO n VALUES (?)", [value]), f"SQLITE_CONSTRAINT_{kind}")
    refused(lambda: database.execute("SELEC 1"), "SQLITE_ERROR")


def loses_no_increment(make: Make) -> None:
    """what four processes add at once is the sum"""
    databases = [make("shop/production", None).open("main") for _ in range(4)]
    databases[0].execute("CREATE TABLE n (x INTEGER)")
    databases[0].execute("INSERT INTO n VALUES (0)")

    def add(number: int) -> None:
        for _ in range(25):
            databases[number].execute("UPDATE n SET x = x + 1")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert databases[0].execute("SELECT x FROM n").rows == ((100,),)


def bounds(make: Make) -> None:
    """limits of time, of a statement, of a value, of an answer and of connections; one statement in a call"""
    provider = make("shop/production", SMALL)
    database = provider.open("main")
    count = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {}) SELECT {} FROM n"
    refused(lambda: database.execute(count.format(10**9, "count(*)")), "SQLITE_INTERRUPT")
    refused(lambda: database.execute(count.format(6, "x")), "SQLITE_TOOBIG")
    refused(lambda: database.execute(count.format(5, f"'{'x' * 300}'")), "SQLITE_TOOBIG")
    refused(lambda: database.execute("SELECT '" + "x" * 2_000 + "'"), "SQLITE_TOOBIG")
    refused(lambda: database.execute("SELECT ?", ["x" * 65]), "SQLITE_TOOBIG")
    with pytest.raises(SqlError):
        database.execute("SELECT 1; SELECT 2")
    database.execute("SELECT 1;  -- the end")
    provider.open("main")
    refused(lambda: provider.open("main"), "SQLITE_BUSY")


def goes_on(make: Make) -> None:
    """a transaction goes on after a statement of it was refused"""
    database = make("shop/production", None).open("main")
    database.execute("CREATE TABLE n (x INTEGER UNIQUE)")
    database.execute("BEGIN")
    database.execute("INSERT INTO n VALUES (1)")
    refused(lambda: database.execute("INSERT INTO n VALUES (1)"), UNIQUE)
    try:
        database.execute("INSERT INTO n VALUES (2)")
        database.execute("COMMIT")
    except SqlError as error:
        raise AssertionError(error.text) from error
    assert database.execute("SELECT count(*) FROM n").rows == ((2,),)


def tells_rowid(make: Make) -> None:
    """the row number of what was inserted last"""
    database = make("shop/production", None).open("main")
    database.execute("CREATE TABLE n (x INTEGER)")
    assert [database.execute("INSERT INTO n VALUES (5)").last_insert_rowid for _ in range(2)] == [1, 2]


def returns(make: Make) -> None:
    """RETURNING, upserts, common tables and window functions"""
    database = make("shop/production", None).open("main")
    database.execute("CREATE TABLE n (x INTEGER PRIMARY KEY, y INTEGER)")
    put = "INSERT INTO n VALUES (?, ?) ON CONFLICT (x) DO UPDATE SET y = n.y + excluded.y RETURNING y"
    assert [database.execute(put, [1, 5]).rows, database.execute(put, [1, 2]).rows] == [((5,),), ((7,),)]
    assert database.execute("WITH a AS (SELECT y FROM n) SELECT rank() OVER (ORDER BY y) FROM a").rows == ((1,),)


def names_databases(make: Make) -> None:
    """a name is a name, and never a path or a statement"""
    provider = make("shop/production", None)
    for name in ("", "../up", "a/b", "a" * 41, ".hidden", "x\0", 'main"; DROP', "Main", "a b", "main.db"):
        refused(lambda name=name: provider.open(name), "SQLITE_CANTOPEN")


CAPABILITIES: Final[Mapping[str, Callable[[Make], None]]] = {
    check.__name__: check
    for check in (
        keeps_values, reads_writes, binds, undoes, writes_many_whole, names_refusals, loses_no_increment, returns, bounds,
        names_databases, goes_on, tells_rowid,
    )
}  # fmt: skip
PROVIDERS: Final = {"embedded": "embedded (SQLite)", "postgres": "PostgreSQL (15 or newer)"}
LACKS: Final[frozenset[tuple[str, str]]] = frozenset({("postgres", "goes_on"), ("postgres", "tells_rowid")})
"""Pairs of provider and capability that are declared not to be there."""
