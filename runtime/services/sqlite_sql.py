"""The embedded SQL provider: SQLite databases of a project in an environment, shared by all worker processes of the node.

Statements are a guest's own, so each is bound: what it may touch (an authorizer, and SQLite's defensive mode), how long it
runs, what it returns, and how large the database grows. Every commit is durable on return (`synchronous = FULL` in WAL
mode), and none passes while the lane's data is frozen: the commit hook looks for the mark with the write lock held.
Not here: which databases an app may open (the host checks), the guest's interfaces (`runtime/wasi/sql.py`), replication.
Sources: sqlite.org/security.html, sqlite.org/c3ref/set_authorizer.html, sqlite.org/wal.html.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw

from runtime.durable import sync_folder
from runtime.providers import SqlColumn, SqlError, SqlOutcome, SqlValue
from runtime.services import freeze
from runtime.services.sql_rules import DATABASE_NAME, FUNCTIONS, authorize, fits
from runtime.services.sqlite_file import lane_folder

BUSY_WAIT_S: Final = 3.0
STATEMENT_MAX_S: Final = 5.0
PROGRESS_STEPS: Final = 2_000
"""Steps of SQLite's machine between two looks at the clock: about 0.1 ms."""

HEAP_MAX_BYTES: Final = 256 * 1024 * 1024
"""Memory of all SQL of a worker process together: sorting, temporary tables, page caches."""

HEAP_LONG_BYTES: Final = 192 * 1024 * 1024
"""Beyond it whoever runs long is stopped, so that short statements of other apps still find memory."""

CONNECTION_CACHE_KIB: Final = 2_048
LOG_KEPT_BYTES: Final = 64 * 1024 * 1024
LOG_LOOK_EVERY: Final = 50
"""Looks at the clock between two looks at the size of the log, where a transaction under way stands."""

Parameters = Sequence[SqlValue] | Mapping[str, SqlValue]


@dataclass(frozen=True, slots=True)
class SqlCaps:
    """Limits of every database, in bytes, rows and seconds; who asks for more gets an error and nothing is changed."""

    statement_max_bytes: int = 1024 * 1024
    value_max_bytes: int = 1024 * 1024
    result_max_rows: int = 50_000
    result_max_bytes: int = 16 * 1024 * 1024
    database_max_bytes: int = 1024 * 1024 * 1024
    temporary_max_bytes: int = 64 * 1024 * 1024
    statement_max_s: float = STATEMENT_MAX_S
    connections_max: int = 64


class SqliteSql:
    """A `SqlProvider` over the databases in `folder`; safe from any thread and process.

    `owner` is "PROJECT" or "PROJECT/ENVIRONMENT", as in `SqliteKeyValue`.
    """

    def __init__(self, folder: Path, owner: str, caps: SqlCaps | None = None) -> None:
        self.caps = caps or SqlCaps()
        self.lane = lane_folder(folder, owner)
        self._lock = threading.Lock()
        self._open: set[SqliteConnection] = set()
        self._anchors: dict[str, tuple[tuple[int, int], apsw.Connection]] = {}
        """One idle connection of each database: the last one to close would copy the whole log into the file."""
        self._closed = False
        _limit_memory()

    def open(self, name: str) -> SqliteConnection:
        """Open a database, made on first use. Raises `SqlError`."""
        if not DATABASE_NAME.fullmatch(name):
            raise SqlError("SQLITE_CANTOPEN", "a database's name is 1 to 40 of a-z, 0-9 and dash")
        with self._lock:
            if len(self._open) >= self.caps.connections_max:
                raise SqlError("SQLITE_BUSY", f"{self.caps.connections_max} connections of this app's data are open")
        connection = SqliteConnection(self, self.lane / "sql" / f"{name}.db")
        connection.identity, connection.handle = self.connect(connection.path)
        self._anchor(name, connection)
        with self._lock:
            self._open.add(connection)
        return connection

    def close(self) -> None:
        """Close what no statement is running on, for good; every later call is refused."""
        with self._lock:
            self._closed = True
            idle = [handle for _, handle in self._anchors.values()]
            self._anchors.clear()
            held = list(self._open)
        for connection in held:
            connection.close()
        for handle in idle:
            handle.close()

    def forget(self, connection: SqliteConnection) -> None:
        """A connection was closed."""
        with self._lock:
            self._open.discard(connection)

    def connect(self, path: Path) -> tuple[tuple[int, int], apsw.Connection]:
        """Open a file that is there, or make it, unless the data is away. Raises `SqlError`."""
        if self._closed:
            raise SqlError("SQLITE_MISUSE", "the database is closed", retry_after_s=freeze.RETRY_AFTER_S)
        try:
            if not path.exists():
                _patiently(lambda: _make(path, self.lane))
            identity = identity_of(path)
            handle = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        except FileNotFoundError:
            raise SqlError("SQLITE_CANTOPEN", GONE, retry_after_s=freeze.RETRY_AFTER_S) from None
        except OSError as error:
            raise SqlError("SQLITE_CANTOPEN", "the databases' folder cannot be written") from error
        except apsw.Error as error:
            raise failure(error) from error
        try:
            _bind(handle, self.caps)
        except apsw.Error as error:
            handle.close()
            raise failure(error) from error
        return identity, handle

    def _anchor(self, name: str, connection: SqliteConnection) -> None:
        with self._lock:
            held = self._anchors.get(name)
            if held is not None and held[0] == connection.identity:
                return
        identity, handle = self.connect(connection.path)
        handle.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # it holds the log only once it has read
        with self._lock:
            stale = self._anchors.get(name)
            self._anchors[name] = identity, handle
        if stale is not None:
            stale[1].close()


GONE: Final = "the database's file is gone: it moved to another node, or was removed"


class SqliteConnection:
    """A guest's connection. Used by one thread at a time, closed by any."""

    def __init__(self, provider: SqliteSql, path: Path) -> None:
        self.path = path
        self.identity = (0, 0)
        self.handle: apsw.Connection
        self._provider = provider
        self._caps = provider.caps
        self._using = threading.Lock()
        self._closed = False
        self._frozen = False
        self._end_s = 0.0
        self._cancelled: Callable[[], bool] = _never
        self._stopped = ""
        self._looks = 0

    @property
    def in_transaction(self) -> bool:
        """Whether the guest began a transaction that has not ended."""
        return not self._closed and self.handle.in_transaction

    def execute(
        self,
        statement: str,
        parameters: Parameters = (),
        *,
        deadline_s: float = float("inf"),
        cancelled: Callable[[], bool] | None = None,
    ) -> SqlOutcome:
        """Run one statement, durable on return if it ended a transaction. Raises `SqlError`; then it changed nothing.

        `deadline_s` is monotonic. While the data is frozen, what writes outside a transaction waits for some seconds.
        """
        return self._run(lambda: self._execute(statement, parameters), deadline_s, cancelled)

    def execute_many(
        self,
        statement: str,
        rows: Sequence[Parameters],
        *,
        deadline_s: float = float("inf"),
        cancelled: Callable[[], bool] | None = None,
    ) -> SqlOutcome:
        """Run one statement once for each of `rows`, in one transaction: the guest's, or one of its own."""

        def many() -> SqlOutcome:
            before = self.handle.total_changes()
            with _savepoint(self.handle):
                for parameters in rows:
                    self._execute(statement, parameters)
            return self._outcome((), (), self.handle.total_changes() - before)

        return self._run(many, deadline_s, cancelled)

    def script(
        self, statements: str, *, deadline_s: float = float("inf"), cancelled: Callable[[], bool] | None = None
    ) -> SqlOutcome:
        """Run statements one after the other, without parameters; what came before one that fails stays done."""

        def all_of_them() -> SqlOutcome:
            self._check_size(statements)
            before = self.handle.total_changes()
            for _ in self.handle.execute(statements):
                pass
            return self._outcome((), (), self.handle.total_changes() - before)

        return self._run(all_of_them, deadline_s, cancelled)

    def rollback(self) -> None:
        """End a transaction that a call left open: the call is over, and others wait for its locks."""
        if self._using.acquire(blocking=False):
            try:
                if not self._closed and self.handle.in_transaction:
                    self._end_s, self._cancelled = float("inf"), _never
                    self.handle.execute("ROLLBACK")
            finally:
                self._using.release()

    def close(self) -> None:
        """Close it; a transaction under way is undone. One that runs a statement now is stopped and closed by its thread."""
        self._closed = True
        if self._using.acquire(blocking=False):
            try:
                self._shut()
            finally:
                self._using.release()
        else:
            self.handle.interrupt()

    def _shut(self) -> None:
        self.handle.close(True)
        self._provider.forget(self)

    def _run(
        self, action: Callable[[], SqlOutcome], deadline_s: float, cancelled: Callable[[], bool] | None
    ) -> SqlOutcome:
        with self._using:
            self._check_open()
            self._cancelled = cancelled or _never
            wait_end_s = min(time.monotonic() + freeze.WRITER_WAIT_S, deadline_s)
            try:
                while True:
                    began_inside = self.handle.in_transaction
                    self._begin(deadline_s)
                    try:
                        return action()
                    except apsw.Error as error:
                        if not self._frozen or began_inside or time.monotonic() >= wait_end_s or self._cancelled():
                            raise self._failure(error) from error
                    time.sleep(freeze.LOOK_EVERY_S)
            finally:
                if self._closed:
                    self._shut()

    def _check_open(self) -> None:
        if self._closed:
            raise SqlError("SQLITE_MISUSE", "the connection is closed", retry_after_s=freeze.RETRY_AFTER_S)
        if not self.handle.in_transaction:
            try:
                current = identity_of(self.path)
            except FileNotFoundError:
                raise SqlError("SQLITE_CANTOPEN", GONE, retry_after_s=freeze.RETRY_AFTER_S) from None
            if current != self.identity:  # a copy put in its place is other data than an open file
                self.handle.close(True)
                self.identity, self.handle = self._provider.connect(self.path)
        self.handle.set_commit_hook(self._refuses_commit)
        self.handle.set_progress_handler(self._should_stop, PROGRESS_STEPS)

    def _begin(self, deadline_s: float) -> None:
        now_s = time.monotonic()
        self._frozen, self._stopped = False, ""
        self._end_s = min(now_s + self._caps.statement_max_s, deadline_s)
        self.handle.set_busy_timeout(int(max(min(BUSY_WAIT_S, self._end_s - now_s), 0.0) * 1000))

    def _execute(self, statement: str, parameters: Parameters) -> SqlOutcome:
        self._check_size(statement)
        before = self.handle.total_changes()
        columns: list[SqlColumn] = []

        def note_columns(asked: Any, _sql: str, _bindings: Any) -> bool:
            if not columns:  # white space after the statement is asked about too
                columns.extend(SqlColumn(name, declared) for name, declared in asked.get_description())
            return True

        cursor = self.handle.cursor()
        cursor.exec_trace = note_columns
        rows: list[tuple[SqlValue, ...]] = []
        size = 0
        try:
            if not _is_one(self.handle, statement, parameters):
                raise SqlError("SQLITE_MISUSE", "one call runs one statement; a script runs several")
            for row in cursor.execute(statement, parameters or None):
                size += fits(row)
                if len(rows) >= self._caps.result_max_rows or size > self._caps.result_max_bytes:
                    cursor.close(True)
                    limit = f"{self._caps.result_max_rows} rows or {self._caps.result_max_bytes} bytes"
                    raise SqlError("SQLITE_TOOBIG", f"the answer has more than {limit}; ask for less with LIMIT")
                rows.append(row)
        except (apsw.BindingsError, KeyError) as error:
            raise SqlError("SQLITE_RANGE", _binding_text(error)) from None
        return self._outcome(columns, rows, self.handle.total_changes() - before)

    def _outcome(self, columns: Sequence[SqlColumn], rows: Sequence[tuple[SqlValue, ...]], changes: int) -> SqlOutcome:
        handle = self.handle
        return SqlOutcome(
            tuple(columns),
            tuple(rows),
            changes,
            handle.total_changes(),
            handle.last_insert_rowid(),
            handle.in_transaction,
            handle.changes(),
        )

    def _check_size(self, statement: str) -> None:
        if len(statement.encode()) > self._caps.statement_max_bytes:
            raise SqlError("SQLITE_TOOBIG", f"a statement has at most {self._caps.statement_max_bytes} bytes")

    def _refuses_commit(self) -> bool:
        """Called with the write lock held, before the commit: true turns it into a rollback."""
        try:
            freeze.check(self._provider.lane)
            self._frozen = identity_of(self.path) != self.identity
        except (freeze.FrozenError, FileNotFoundError):
            self._frozen = True
        return self._frozen

    def _should_stop(self) -> bool:
        if self._closed or self._cancelled():
            self._stopped = "the call is over"
        elif time.monotonic() >= self._end_s:
            self._stopped = f"a statement may take {self._caps.statement_max_s:g} s"
        elif apsw.memory_used() > HEAP_LONG_BYTES:
            self._stopped = "the statement needs more memory than there is"
        self._looks += 1
        if self._looks % LOG_LOOK_EVERY == 0 and self._log_bytes() > self._caps.database_max_bytes:
            self._stopped = f"a transaction may write {self._caps.database_max_bytes} bytes"
        return bool(self._stopped)

    def _log_bytes(self) -> int:
        try:
            return self.path.with_name(self.path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def _failure(self, error: apsw.Error) -> SqlError:
        if self._frozen:
            text = "the data is frozen; try again"
            return SqlError("SQLITE_READONLY", text, retry_after_s=freeze.RETRY_AFTER_S)
        if self._stopped:
            return SqlError("SQLITE_INTERRUPT", self._stopped)
        return failure(error)


class _savepoint:  # noqa: N801 - a context manager, used as one
    """All of what runs inside, or nothing of it."""

    def __init__(self, handle: apsw.Connection) -> None:
        self._handle = handle
        self._own = not handle.in_transaction

    def __enter__(self) -> None:
        self._handle.execute("BEGIN IMMEDIATE" if self._own else "SAVEPOINT many")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._handle.execute("COMMIT" if self._own else "RELEASE many")
        elif self._handle.in_transaction:  # SQLite itself ends a transaction that met some errors
            self._handle.execute("ROLLBACK" if self._own else "ROLLBACK TO many")
            if not self._own:
                self._handle.execute("RELEASE many")


def identity_of(path: Path) -> tuple[int, int]:
    """Device and inode of a database: another file of the same name is other data. Raises FileNotFoundError."""
    pair = path.stat()
    return pair.st_dev, pair.st_ino


def failure(error: apsw.Error) -> SqlError:
    """Return SQLite's own name and words for an error."""
    code = getattr(error, "extendedresult", 0) or getattr(error, "result", 0) or apsw.SQLITE_ERROR
    name = apsw.mapping_extended_result_codes.get(code) or apsw.mapping_result_codes.get(code & 0xFF, "SQLITE_ERROR")
    text = str(error)
    if code & 0xFF == apsw.SQLITE_FULL:
        text = "the database, or the disk of its node, is full"
    elif code & 0xFF == apsw.SQLITE_AUTH:
        text = "the statement is not permitted here: ATTACH, VACUUM, extensions and settings of the file are the node's"
    elif code & 0xFF == apsw.SQLITE_NOMEM:
        text = "the statement needs more memory than there is"
    return SqlError(str(name), text)


def _make(path: Path, lane: Path) -> None:
    """Make an empty database; a lock file keeps processes that start together from racing into WAL mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (path.parent / f"{path.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        freeze.check(lane)
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        handle = apsw.Connection(str(new))
        handle.execute("PRAGMA journal_mode = WAL").fetchall()
        handle.close()
        os.chmod(new, 0o600)
        new.rename(path)
        for folder in (path.parent, lane):
            sync_folder(folder)


def _bind(handle: apsw.Connection, caps: SqlCaps) -> None:
    """Set what no statement of the guest can change, then shut the door: the authorizer comes last."""
    handle.set_busy_timeout(int(BUSY_WAIT_S * 1000))
    handle.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    handle.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    handle.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)
    handle.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 0)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "temp_store = MEMORY", "mmap_size = 0"):
        handle.execute(f"PRAGMA {pragma}").fetchall()
    handle.execute(f"PRAGMA journal_size_limit = {LOG_KEPT_BYTES}").fetchall()
    handle.execute(f"PRAGMA cache_size = -{CONNECTION_CACHE_KIB}").fetchall()
    page_bytes = int(handle.pragma("page_size"))
    handle.execute(f"PRAGMA main.max_page_count = {caps.database_max_bytes // page_bytes}").fetchall()
    handle.execute(f"PRAGMA temp.max_page_count = {caps.temporary_max_bytes // page_bytes}").fetchall()
    for name, limit in (
        ("LENGTH", caps.value_max_bytes),
        ("SQL_LENGTH", caps.statement_max_bytes),
        ("ATTACHED", 0),
        ("LIKE_PATTERN_LENGTH", 1_000),
        ("VDBE_OP", 1_000_000),
        ("TRIGGER_DEPTH", 100),
        ("WORKER_THREADS", 0),
    ):
        handle.limit(getattr(apsw, f"SQLITE_LIMIT_{name}"), limit)
    for name, count, function in FUNCTIONS:
        handle.create_scalar_function(name, function, count, deterministic=True)
    handle.authorizer = authorize


def _is_one(handle: apsw.Connection, statement: str, parameters: Parameters) -> bool:
    """Whether nothing but white space and comments follows the first statement: SQLite itself says where it ends."""
    if ";" not in statement.rstrip("; \t\r\n"):
        return True
    first: list[str] = []

    def look(_cursor: Any, sql: str, _bindings: Any) -> bool:
        first.append(sql)
        return False  # it is not run

    asking = handle.cursor()
    asking.exec_trace = look
    with contextlib.suppress(apsw.ExecTraceAbort):
        asking.execute(statement, parameters or None)
    return not first or not _COMMENTS.sub(" ", statement[len(first[0]) :]).strip("; \t\r\n")


_COMMENTS: Final = re.compile(r"--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$)", re.DOTALL)


def _binding_text(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"the statement names a parameter {error.args[0]!r} that has no value"
    return "the statement has another number of parameters than values were given"


def _patiently(action: Callable[[], None]) -> None:
    end_s = time.monotonic() + freeze.WRITER_WAIT_S
    while True:
        try:
            return action()
        except freeze.FrozenError:
            if time.monotonic() >= end_s:
                text = "the data is frozen; try again"
                raise SqlError("SQLITE_READONLY", text, retry_after_s=freeze.RETRY_AFTER_S) from None
        time.sleep(freeze.LOOK_EVERY_S)


def _never() -> bool:
    return False


def _limit_memory() -> None:
    """Once per process would do, and does no harm each time. SQLite of Python's own `sqlite3` is another one."""
    apsw.hard_heap_limit(HEAP_MAX_BYTES)
