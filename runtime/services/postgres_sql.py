"""SQL databases in a PostgreSQL server: each a database and a role of its own there, reached through a bounded pool.

A guest's connection has a link to the server from its first statement of a call to the call's end; then an open transaction is
undone and the link is as if new. Statements are PostgreSQL's; errors bear the nearest of SQLite's names. Not here: which
database lies in which provider (the effective configuration), the protocol (`postgres_link.py`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from runtime.providers import SqlError, SqlOutcome, SqlValue
from runtime.services import postgres_tenants
from runtime.services.declared_providers import DeclaredProvider, ProviderUnusableError
from runtime.services.postgres_link import (
    ExchangeBounds,
    Login,
    LostError,
    PostgresAnswer,
    PostgresLink,
    ServerRefusedError,
    StoppedError,
)
from runtime.services.postgres_text import first_word, numbered, refusal
from runtime.services.sql_rules import DATABASE_NAME
from runtime.services.sqlite_file import PROJECT_NAME
from runtime.services.sqlite_sql import SqlCaps

LINKS_MAX: Final = 8
"""Of one database and worker process."""

LINK_WAIT_S: Final = 3.0
LINK_MAX_AGE_S: Final = 600.0
"""Then it is made anew, with the credential of then."""

RETRY_AFTER_S: Final = 5
GRACE_S: Final = 0.5
"""How long the server may take to stop a statement itself before we break it off."""

DATABASE_MAX_BYTES: Final = 16 * 1024 * 1024 * 1024
SIZE_LOOK_EVERY_S: Final = 30.0
WIRE_FACTOR: Final = 3
"""Bytes on the wire for one of an answer: bytes are written as two digits, and each value has a length."""

GROWING: Final = frozenset({"INSERT", "UPDATE", "CREATE", "ALTER", "WITH", "MERGE", "COPY", "CALL", "DO", "IMPORT"})
"""First words of what is refused in a database that is full."""

_KEEPING: Final = frozenset({"COMMIT", "END", "PREPARE"})
"""First words of what keeps a transaction: where the server answers ROLLBACK, it kept nothing. Only the first statement of
several meets a transaction that failed."""

_WRITES: Final = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_AWAY: Final = ("57P", "53300", "08")
"""States of a server that takes nobody in now: starting, stopping, or with no room."""

_AS_NEW: Final = (
    "RESET ALL; SET SESSION AUTHORIZATION DEFAULT; CLOSE ALL; UNLISTEN *; SELECT pg_catalog.pg_advisory_unlock_all();"
    " DISCARD PLANS; DISCARD SEQUENCES; DISCARD TEMP; DEALLOCATE ALL"
)

Parameters = Sequence[SqlValue] | Mapping[str, SqlValue]


class PostgresSql:
    """A `SqlProvider` over one server, for one lane; safe from any thread.

    `owner` is whose databases they are: "PROJECT", or "PROJECT/ENVIRONMENT". `restored` hears that the server lost what it
    had acknowledged. What is `thrown_away` is another database each time, and is removed by `close`.
    """

    def __init__(
        self, access: DeclaredProvider, owner: str, restored: Callable[[str], None], caps: SqlCaps | None = None,
        *, thrown_away: bool = False,
    ) -> None:  # fmt: skip
        if not all(PROJECT_NAME.fullmatch(name) for name in owner.split("/")):
            raise SqlError("SQLITE_CANTOPEN", "bad project or environment name")
        self.access = access
        self.owner = owner
        self.caps = caps or SqlCaps(database_max_bytes=DATABASE_MAX_BYTES)
        self.restored = restored
        self._closed = False
        self._thrown_away = thrown_away
        self._lock = threading.Lock()
        self._pools: dict[str, Pool] = {}
        self._open: set[PostgresConnection] = set()

    def open(self, name: str) -> PostgresConnection:
        """Open a database; the server is asked at the first statement. Raises `SqlError`."""
        if not DATABASE_NAME.fullmatch(name):
            raise SqlError("SQLITE_CANTOPEN", "a database's name is 1 to 40 of a-z, 0-9 and dash")
        with self._lock:
            if self._closed:
                raise closed()
            if len(self._open) >= self.caps.connections_max:
                raise SqlError("SQLITE_BUSY", f"{self.caps.connections_max} connections of this app's data are open")
            pool = self._pools.get(name)
            if pool is None:
                place = postgres_tenants.place_of(self.owner, name)
                if self._thrown_away:
                    place = postgres_tenants.thrown_away_place()
                pool = self._pools[name] = Pool(self, name, place)
            connection = PostgresConnection(self, pool)
            self._open.add(connection)
        return connection

    def has_ended(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def forget(self, connection: PostgresConnection) -> None:
        """A connection was closed."""
        with self._lock:
            self._open.discard(connection)

    def close(self) -> None:
        """Close every link, for good; what runs now is broken off."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
            self._pools.clear()
            held = list(self._open)
        for connection in held:
            connection.close()
        for pool in pools:
            pool.close()
            if self._thrown_away and pool.was_used:
                with contextlib.suppress(LostError, StoppedError, ServerRefusedError, ProviderUnusableError):
                    postgres_tenants.throw_away(self.access, pool.place)


class Pool:
    """The links to one database."""

    def __init__(self, provider: PostgresSql, name: str, place: str) -> None:
        self.place = place
        self.was_used = False
        self.is_full = False
        self._provider = provider
        self._name = name
        self._turn = threading.Condition()
        self._idle: list[PostgresLink] = []
        self._out: set[PostgresLink] = set()
        self._making = 0
        self._position = 0
        self._looked_s = float("-inf")

    def take(self, bounds: ExchangeBounds) -> PostgresLink:
        """Return a link that nobody else has. Raises `SqlError`."""
        end_s = min(bounds.end_s, time.monotonic() + LINK_WAIT_S)
        with self._turn:
            while True:
                if self._provider.has_ended():
                    raise closed()
                while self._idle:
                    link = self._idle.pop()
                    if link.wire.is_quiet and time.monotonic() - link.opened_s < LINK_MAX_AGE_S:
                        self._out.add(link)
                        return link
                    link.shut()
                if len(self._out) + self._making < LINKS_MAX:
                    self._making += 1
                    break
                if not self._turn.wait(max(end_s - time.monotonic(), 0)) and time.monotonic() >= end_s:
                    said = f"all {LINKS_MAX} links of the provider {self._provider.access.name} are in use"
                    raise SqlError("SQLITE_BUSY", said, retry_after_s=RETRY_AFTER_S)
            known = self._position
        try:
            link = self._made(known)
        except BaseException:
            with self._turn:
                self._making -= 1
                self._turn.notify()
            raise
        with self._turn:
            self._making -= 1
            self._out.add(link)
            if not self._provider.has_ended():
                return link
        self.drop(link)
        raise closed()

    def give_back(self, link: PostgresLink) -> None:
        """Take a link back, as if new: what a call set, locked, listened to or made for itself is gone."""
        if self._provider.has_ended():
            self.drop(link)
            return
        undo = "ROLLBACK; " if link.in_transaction else ""
        look = time.monotonic() - self._looked_s > SIZE_LOOK_EVERY_S
        size = "pg_catalog.pg_database_size(pg_catalog.current_database())" if look else "0"
        asked = f"{undo}{_AS_NEW}; SELECT {postgres_tenants.LOG_POSITION}, {size}"
        try:
            row = link.script(asked, ExchangeBounds(time.monotonic() + LINK_WAIT_S)).rows[-1]
            position, size_bytes = postgres_tenants.log_position(row[0]), int(str(row[1]))
        except (LostError, StoppedError, ServerRefusedError, ValueError, IndexError):
            self.drop(link)
            return
        with self._turn:
            self._position = max(self._position, position)
            if look:
                self._looked_s, self.is_full = time.monotonic(), size_bytes > self._provider.caps.database_max_bytes
            self._out.discard(link)
            if self._provider.has_ended():
                link.shut()
            else:
                self._idle.append(link)
            self._turn.notify()

    def drop(self, link: PostgresLink) -> None:
        """A link is broken."""
        link.shut()
        with self._turn:
            self._out.discard(link)
            self._turn.notify()

    def close(self) -> None:
        """Close what is idle, and break off the rest."""
        with self._turn:
            idle, self._idle = self._idle, []
            out = list(self._out)
            self._turn.notify_all()
        for link in idle:
            link.shut()
        for link in out:
            link.wire.hang_up()

    def _made(self, known: int) -> PostgresLink:
        """Log in, and make the database and its role if the server does not know them. Raises `SqlError`."""
        access = self._provider.access
        with provider_errors(access.name):
            try:
                link = self._logged_in()
            except ServerRefusedError as error:
                if error.state not in postgres_tenants.LOGIN_REFUSED:
                    raise
                if known and error.state == "3D000":
                    self._provider.restored(
                        f"the provider {access.name} has no database {self.place} any more, and had it"
                    )
                postgres_tenants.make(access, self.place)
                link = self._logged_in()
            try:
                position = postgres_tenants.check_server(link)
            except BaseException:
                link.shut()
                raise
        self.was_used = True
        with self._turn:
            was_restored = position < known <= self._position
            self._position = position if was_restored else max(self._position, position)
        if was_restored:
            self._provider.restored(
                f"the provider {access.name} is behind where it was for {self._provider.owner}: it was put back from an older"
                " copy, and what was written after that is gone"
            )
        return link

    def _logged_in(self) -> PostgresLink:
        access = self._provider.access
        password = postgres_tenants.role_password(postgres_tenants.credential(access), self.place)
        limit_ms = int(self._provider.caps.statement_max_s * 1000)
        settings = {
            "client_encoding": "UTF8", "statement_timeout": str(limit_ms), "lock_timeout": "3s",
            "idle_in_transaction_session_timeout": "60s", "client_connection_check_interval": "1s", "DateStyle": "ISO",
            "bytea_output": "hex", "standard_conforming_strings": "on",
        }  # fmt: skip
        end_s = time.monotonic() + LINK_WAIT_S
        return PostgresLink(access, Login(self.place, password, self.place, settings), ExchangeBounds(end_s))


class PostgresConnection:
    """A guest's connection. Used by one thread at a time, closed by any."""

    def __init__(self, provider: PostgresSql, pool: Pool) -> None:
        self._provider = provider
        self._caps = provider.caps
        self._pool = pool
        self._using = threading.Lock()
        self._link: PostgresLink | None = None
        self._is_lost = False
        self._closed = False
        self._total = 0
        self._last = 0

    def execute(
        self, statement: str, parameters: Parameters = (), *, deadline_s: float = float("inf"),
        cancelled: Callable[[], bool] | None = None,
    ) -> SqlOutcome:  # fmt: skip
        """Run one statement, durable on return if it ended a transaction. Raises `SqlError`."""
        with self._used(deadline_s, cancelled) as bounds:
            return self._execute(statement, parameters, bounds)

    def execute_many(
        self, statement: str, rows: Sequence[Parameters], *, deadline_s: float = float("inf"),
        cancelled: Callable[[], bool] | None = None,
    ) -> SqlOutcome:  # fmt: skip
        """Run one statement once for each of `rows`, in one transaction: the guest's, or one of its own."""
        with self._used(deadline_s, cancelled) as bounds:
            link = self._linked(bounds)
            is_own = not link.in_transaction
            before = self._total
            self._asked(link, "BEGIN" if is_own else "SAVEPOINT freehold_many", bounds)
            try:
                for parameters in rows:
                    self._execute(statement, parameters, bounds)
                outcome = self._asked(link, "COMMIT" if is_own else "RELEASE SAVEPOINT freehold_many", bounds)
            except SqlError:
                if self._link is link:  # else it is gone, and the transaction with it
                    undo = "ROLLBACK" if is_own else "ROLLBACK TO SAVEPOINT freehold_many"
                    self._total = before
                    self._asked(link, undo, bounds)
                raise
            return self._outcome(outcome, link, self._total - before, is_counted=True)

    def script(
        self, statements: str, *, deadline_s: float = float("inf"), cancelled: Callable[[], bool] | None = None
    ) -> SqlOutcome:
        """Run statements one after the other, without parameters; they are one transaction, unless they say other."""
        with self._used(deadline_s, cancelled) as bounds:
            self._check(statements)
            numbered(statements, ())
            link = self._linked(bounds)
            results = self._done(link, statements, lambda: link.script(_plain_begin(statements), bounds))
            return self._outcome(PostgresAnswer((), [], results.tag, 0), link, 0)

    def rollback(self) -> None:
        """The call is over: undo a transaction that it left open, and let go of the link."""
        if self._using.acquire(blocking=False):
            try:
                self._is_lost = False
                self._release()
            finally:
                self._using.release()

    def close(self) -> None:
        """Close it; a transaction under way is undone. A statement that runs now is broken off."""
        if self._closed:
            return
        self._closed = True
        link = self._link
        if self._using.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._using.release()
        elif link is not None:
            link.wire.hang_up()
        self._provider.forget(self)

    def _release(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._pool.give_back(link)

    @contextlib.contextmanager
    def _used(self, deadline_s: float, cancelled: Callable[[], bool] | None) -> Iterator[ExchangeBounds]:
        end_s = min(time.monotonic() + self._caps.statement_max_s + GRACE_S, deadline_s)
        with self._using:
            if self._has_ended():
                raise closed()
            try:
                yield ExchangeBounds(end_s, self._caps.result_max_bytes * WIRE_FACTOR, cancelled or (lambda: False))
            finally:
                if self._has_ended():
                    self._release()

    def _has_ended(self) -> bool:
        return self._closed or self._provider.has_ended()

    def _linked(self, bounds: ExchangeBounds) -> PostgresLink:
        if self._link is None:
            self._link = self._pool.take(bounds)
        return self._link

    def _execute(self, statement: str, parameters: Parameters, bounds: ExchangeBounds) -> SqlOutcome:
        self._check(statement)
        for value in parameters.values() if isinstance(parameters, Mapping) else parameters:
            if isinstance(value, str | bytes) and len(value) > self._caps.value_max_bytes:
                raise SqlError("SQLITE_TOOBIG", f"a value has at most {self._caps.value_max_bytes} bytes")
        text, values = numbered(_plain_begin(statement), parameters)
        link = self._linked(bounds)
        bounds.max_bytes = self._caps.result_max_bytes * WIRE_FACTOR
        bounds.max_rows, bounds.max_row_bytes = self._caps.result_max_rows, self._caps.result_max_bytes
        result = self._done(link, statement, lambda: link.ask(text, values, bounds))
        if bounds.is_over:
            limit = f"{self._caps.result_max_rows} rows or {self._caps.result_max_bytes} bytes"
            raise SqlError("SQLITE_TOOBIG", f"the answer has more than {limit}; ask for less with LIMIT")
        return self._outcome(result, link, result.count if result.tag in _WRITES else 0)

    def _asked(self, link: PostgresLink, statement: str, bounds: ExchangeBounds) -> PostgresAnswer:
        return self._done(link, statement, lambda: link.ask(statement, (), bounds))

    def _done(self, link: PostgresLink, statement: str, call: Callable[[], PostgresAnswer]) -> PostgresAnswer:
        """Turn what came of a statement into an answer or a `SqlError`; after a broken link the call's transaction is gone."""
        began_inside = link.in_transaction
        try:
            answer = call()
        except ServerRefusedError as error:
            raise refusal(error.fields) from error
        except StoppedError as error:
            self._lose(began_inside)
            link.cancel()
            self._pool.drop(link)
            raise SqlError(error.code, str(error)) from error
        except LostError as error:
            self._lose(began_inside)
            self._pool.drop(link)
            said = f"the provider {self._provider.access.name} was lost; whether this statement was done is not known"
            raise SqlError("SQLITE_IOERR", said, retry_after_s=RETRY_AFTER_S) from error
        if answer.first_tag == "ROLLBACK" and first_word(statement) in _KEEPING:
            raise SqlError("SQLITE_ABORT", "a statement of the transaction had failed, so all of it was undone")
        return answer

    def _lose(self, began_inside: bool) -> None:
        self._link = None
        self._is_lost = began_inside

    def _check(self, statement: str) -> None:
        if len(statement.encode()) > self._caps.statement_max_bytes:
            raise SqlError("SQLITE_TOOBIG", f"a statement has at most {self._caps.statement_max_bytes} bytes")
        if self._is_lost:
            if first_word(statement) != "ROLLBACK":
                raise SqlError("SQLITE_ABORT", "the transaction was lost with its link; ROLLBACK, and begin it again")
            self._is_lost = False
        if self._pool.is_full and first_word(statement) in GROWING:
            said = f"the database has more than {self._caps.database_max_bytes} bytes; delete, or drop"
            raise SqlError("SQLITE_FULL", said)

    def _outcome(
        self, found: PostgresAnswer, link: PostgresLink, changes: int, *, is_counted: bool = False
    ) -> SqlOutcome:
        self._total += 0 if is_counted else changes
        if found.tag in _WRITES:
            self._last = changes
        rows = tuple(tuple(row) for row in found.rows)
        return SqlOutcome(found.columns, rows, changes, self._total, 0, link.in_transaction, self._last)


def _plain_begin(statement: str) -> str:
    """PostgreSQL has no kinds of locks at the begin of a transaction; libraries for SQLite say one."""
    words = statement.rstrip("; \t\r\n").upper().split()
    return "BEGIN" if words in (["BEGIN", "IMMEDIATE"], ["BEGIN", "DEFERRED"], ["BEGIN", "EXCLUSIVE"]) else statement


def closed() -> SqlError:
    """What a call hears once the lane is gone from here."""
    return SqlError("SQLITE_MISUSE", "the database is closed", retry_after_s=RETRY_AFTER_S)


@contextlib.contextmanager
def provider_errors(name: str) -> Iterator[None]:
    """What keeps a node from a server, as a guest hears of it. A server's own words may name what is of others."""
    try:
        yield
    except ProviderUnusableError as error:
        raise SqlError("SQLITE_CANTOPEN", str(error), retry_after_s=RETRY_AFTER_S) from error
    except (LostError, StoppedError) as error:
        raise SqlError("SQLITE_CANTOPEN", f"the provider {name} is away", retry_after_s=RETRY_AFTER_S) from error
    except ServerRefusedError as error:
        is_away = error.state.startswith(_AWAY)
        said = f"the provider {name} is away" if is_away else f"the provider {name} refused ({error.state})"
        raise SqlError("SQLITE_CANTOPEN", said, retry_after_s=RETRY_AFTER_S) from error
