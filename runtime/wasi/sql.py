"""SQL for guests: `freehold:sql` with all that a database library needs, and Spin's `sqlite` for components made for it.

Spin's: `fermyon:spin/sqlite@2.0.0` and `spin:sqlite/sqlite@3.0.0`, from the WIT of spinframework/spin.
Not here: databases and their limits (`runtime/services/sqlite_sql.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from runtime.engine.codecs import Err
from runtime.engine.guest import Guest, Resource
from runtime.engine.interface import Interface
from runtime.providers import SqlConnection, SqlError, SqlOutcome, SqlValue

CONNECTIONS_MAX: Final = 8
"""Open connections of one instance."""

MANY_MAX: Final = 10_000
"""Rows of parameters in one call."""

WireValue = tuple[str, Any]


class GuestDatabase(Resource, wit="database", aliases=("connection",)):
    """A connection the guest opened, by whichever interface."""

    __slots__ = ("connection", "last", "store")

    def __init__(self, connection: SqlConnection, store: str) -> None:
        super().__init__()
        self.store = store
        self.connection = connection
        self.last: SqlOutcome | None = None

    def dropped(self, guest: Guest) -> None:
        """Close it; a transaction under way is undone."""
        self.connection.close()

    def call_ended(self) -> None:
        """Undo a transaction the call left open: its locks hold up every other call."""
        self.connection.rollback()


SQL: Final = "sqlite"
"""What spans call it."""

databases: Final = Interface("freehold:sql/databases", re.compile(r"0\.1\.0"), system=SQL)
spin2: Final = Interface("fermyon:spin/sqlite", re.compile(r"2\.0\.0"), system=SQL)
spin3: Final = Interface(
    "spin:sqlite/sqlite", re.compile(r"3\.0\.0"), system=SQL,
    quiet=frozenset({"[method]connection.last-insert-rowid", "[method]connection.changes"}),
)  # fmt: skip

INTERFACES: Final = (databases, spin2, spin3)


def _open_database(guest: Guest, name: str) -> GuestDatabase:
    if sum(isinstance(held, GuestDatabase) for held in guest.table.values()) >= CONNECTIONS_MAX:
        raise SqlError("SQLITE_BUSY", f"an instance holds at most {CONNECTIONS_MAX} connections; close one")
    return GuestDatabase(guest.services.open_database(name), name)


def _lower(value: SqlValue) -> WireValue:
    if value is None:
        return "null", None
    if isinstance(value, int):
        return "integer", value
    if isinstance(value, float):
        return "real", value
    return ("text", value) if isinstance(value, str) else ("blob", value)


def _lift(value: WireValue) -> SqlValue:
    answer: SqlValue = value[1]
    return answer


def _parameters(given: tuple[str, Any]) -> Any:
    kind, values = given
    return (
        [_lift(value) for value in values] if kind == "positional" else {name: _lift(entry) for name, entry in values}
    )


def _away(guest: Guest, error: SqlError) -> None:
    if error.retry_after_s is not None and guest.exchange is not None:
        guest.exchange.retry_after_s = error.retry_after_s


def _bounds(guest: Guest) -> dict[str, Any]:
    call = guest.call
    return {"deadline_s": call.deadline_s, "cancelled": lambda: call.cancelled}


def _run(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a database refused into the interface's error, and its outcome into the interface's record."""

    def serve(guest: Guest, *arguments: Any) -> Any:
        try:
            entry = function(guest, *arguments)
        except SqlError as error:
            _away(guest, error)
            return Err((error.code, error.text))
        return _outcome(entry) if isinstance(entry, SqlOutcome) else entry

    return serve


def _outcome(found: SqlOutcome) -> tuple[Any, ...]:
    return (
        [(column.name, column.declared) for column in found.columns],
        [[_lower(value) for value in row] for row in found.rows],
        found.changes,
        found.total_changes,
        found.last_insert_rowid,
        found.in_transaction,
    )


@databases.function("[static]database.open")
@_run
def _open(guest: Guest, name: str) -> GuestDatabase:
    return _open_database(guest, name)


@databases.function("[method]database.execute")
@_run
def _execute(guest: Guest, this: GuestDatabase, statement: str, parameters: tuple[str, Any]) -> SqlOutcome:
    return this.connection.execute(statement, _parameters(parameters), **_bounds(guest))


@databases.function("[method]database.execute-many")
@_run
def _execute_many(guest: Guest, this: GuestDatabase, statement: str, rows: list[tuple[str, Any]]) -> SqlOutcome:
    if len(rows) > MANY_MAX:
        raise SqlError("SQLITE_TOOBIG", f"one call takes at most {MANY_MAX} rows")
    return this.connection.execute_many(statement, [_parameters(row) for row in rows], **_bounds(guest))


@databases.function("[method]database.script")
@_run
def _script(guest: Guest, this: GuestDatabase, statements: str) -> SqlOutcome:
    return this.connection.script(statements, **_bounds(guest))


def _spin_error(error: SqlError) -> Err:
    if error.code == "SQLITE_AUTH" and "may not open" in error.text:
        return Err(("access-denied", None))
    if error.code == "SQLITE_FULL":
        return Err(("database-full", None))
    return Err(("io", f"{error.text} ({error.code})"))


@spin2.function("[static]connection.open")
@spin3.function("[static]connection.open")
def _spin_open(guest: Guest, name: str) -> GuestDatabase | Err:
    try:
        return _open_database(guest, name)
    except SqlError as error:
        _away(guest, error)
        return _spin_error(error)


@spin2.function("[method]connection.execute")
@spin3.function("[method]connection.execute")
def _spin_execute(guest: Guest, this: GuestDatabase, statement: str, parameters: list[WireValue]) -> Any:
    try:
        sql_outcome = this.connection.execute(
            statement, [_lift(parameter) for parameter in parameters], **_bounds(guest)
        )
    except SqlError as error:
        _away(guest, error)
        return _spin_error(error)
    this.last = sql_outcome
    columns = [column.name for column in sql_outcome.columns]
    return columns, [([_lower(value) for value in row],) for row in sql_outcome.rows]


@spin3.function("[method]connection.last-insert-rowid")
def _last_insert_rowid(guest: Guest, this: GuestDatabase) -> int:
    return this.last.last_insert_rowid if this.last is not None else 0


@spin3.function("[method]connection.changes")
def _changes(guest: Guest, this: GuestDatabase) -> int:
    return this.last.last_changes if this.last is not None else 0
