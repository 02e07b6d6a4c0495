"""Python's `sqlite3` over the node's databases: connect("main") opens the database that freehold.toml grants as "main".

A file's name stands for the database of the same name: "instance/main.sqlite3" is "main". `:memory:` stays inside the
instance, and so do create_function and its like, which need the engine in the same process. Runs only inside the sandbox.
"""

from __future__ import annotations

import re
import sqlite3
import sqlite3.dbapi2
import urllib.parse

LEGACY = sqlite3.LEGACY_TRANSACTION_CONTROL
DML = re.compile(r"\s*(?:--[^\n]*\n\s*|/\*.*?\*/\s*)*(INSERT|UPDATE|DELETE|REPLACE)\b", re.I | re.S)
SUFFIXES = (".sqlite3", ".sqlite", ".db")
MANY_ROWS = 5_000

_connect_locally = sqlite3.connect
_binding = None


def _name_of(database) -> str | None:
    """Return which database of the node is meant; None for one in memory."""
    text = database.decode() if isinstance(database, bytes) else str(database)
    path, _, query = text.removeprefix("file:").partition("?") if text.startswith("file:") else (text, "", "")
    if path in {"", ":memory:"} or urllib.parse.parse_qs(query).get("mode") == ["memory"]:
        return None
    name = path.rstrip("/").rpartition("/")[2]
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _error(code: str, message: str) -> Exception:
    family = "_".join(code.split("_")[:2])
    kinds = {
        "SQLITE_CONSTRAINT": sqlite3.IntegrityError, "SQLITE_MISMATCH": sqlite3.IntegrityError,
        "SQLITE_TOOBIG": sqlite3.DataError, "SQLITE_RANGE": sqlite3.ProgrammingError,
        "SQLITE_MISUSE": sqlite3.ProgrammingError, "SQLITE_CORRUPT": sqlite3.DatabaseError,
        "SQLITE_NOTADB": sqlite3.DatabaseError, "SQLITE_INTERNAL": sqlite3.InternalError,
    }  # fmt: skip
    made = kinds.get(family, sqlite3.OperationalError)(message)
    made.sqlite_errorname = code
    made.sqlite_errorcode = getattr(sqlite3, code, getattr(sqlite3, family, sqlite3.SQLITE_ERROR))
    return made


def _plain(value):
    """Return a value as SQLite keeps it, adapted as the app registered."""
    if value is None or type(value) in (int, float, str, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    adapted = sqlite3.adapt(value, sqlite3.PrepareProtocol, None)
    if adapted is not None and adapted is not value:
        return _plain(adapted)
    for base in (int, float, str, bytes):
        if isinstance(value, base):
            return base(value)
    raise sqlite3.ProgrammingError(f"Error binding parameter: type '{type(value).__name__}' is not supported")


def _plain_all(parameters):
    if isinstance(parameters, dict) or (hasattr(parameters, "keys") and not hasattr(parameters, "index")):
        return {key: _plain(parameters[key]) for key in parameters.keys()}
    return [_plain(value) for value in parameters]


class _Answer:
    """What a statement gave, from whichever engine."""

    __slots__ = ("changes", "columns", "declared", "rows", "rowid")

    def __init__(self, columns, declared, rows, changes, rowid):
        self.columns, self.declared, self.rows, self.changes, self.rowid = columns, declared, rows, changes, rowid


class _Remote:
    """A database of the node; opened on first use, for at build time there is no node."""

    local = None

    def __init__(self, name):
        self.name = name
        self.in_transaction = False
        self.total_changes = 0
        self._database = None

    def _asked(self, call):
        from componentize_py_types import Err

        try:
            if self._database is None:
                self._database = _binding.Database.open(self.name)
            found = call(self._database)
        except Err as error:
            if self.in_transaction:  # some failures end it: a full disk, data that is frozen
                self._ask_where_it_stands()
            raise _error(error.value.code, error.value.message) from None
        self.in_transaction, self.total_changes = found.in_transaction, found.total_changes
        return found

    def _ask_where_it_stands(self):
        from componentize_py_types import Err

        try:
            self.in_transaction = self._database.execute("SELECT 1", _binding.Parameters_Positional([])).in_transaction
        except Err as error:
            self.in_transaction = error.value.code == "SQLITE_ABORT"  # it waits for its ROLLBACK

    def _parameters(self, parameters):
        if isinstance(parameters, dict):
            return _binding.Parameters_Named([(key, self._wire(value)) for key, value in parameters.items()])
        return _binding.Parameters_Positional([self._wire(value) for value in parameters])

    def _wire(self, value):
        if value is None:
            return _binding.Value_Null()
        if isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise OverflowError("Python int too large to convert to SQLite INTEGER")
            return _binding.Value_Integer(value)
        if isinstance(value, float):
            return _binding.Value_Real(value)
        return _binding.Value_Text(value) if isinstance(value, str) else _binding.Value_Blob(value)

    def execute(self, sql, parameters):
        found = self._asked(lambda database: database.execute(sql, self._parameters(parameters)))
        null = _binding.Value_Null
        rows = [tuple([None if type(one) is null else one.value for one in row]) for row in found.rows]
        columns = [column.name for column in found.columns]
        declared = [column.declared_type for column in found.columns]
        return _Answer(columns, declared, rows, found.changes, found.last_insert_rowid)

    def many(self, sql, rows):
        changes = 0
        for start in range(0, len(rows), MANY_ROWS):
            part = [self._parameters(row) for row in rows[start : start + MANY_ROWS]]
            changes += self._asked(lambda database, part=part: database.execute_many(sql, part)).changes
        return changes

    def script(self, sql):
        self._asked(lambda database: database.script(sql))

    def close(self):
        if self._database is not None:
            self._database.__exit__(None, None, None)
            self._database = None


class _Local:
    """A database in memory."""

    def __init__(self, path, uri):
        self.local = _connect_locally(path, isolation_level=None, check_same_thread=False, uri=uri)

    in_transaction = property(lambda self: self.local.in_transaction)
    total_changes = property(lambda self: self.local.total_changes)

    def execute(self, sql, parameters):
        before = self.local.total_changes
        cursor = self.local.execute(sql, parameters)
        columns = [entry[0] for entry in cursor.description] if cursor.description else []
        rows = cursor.fetchall() if columns else []
        return _Answer(columns, [None] * len(columns), rows, self.local.total_changes - before, cursor.lastrowid)

    def many(self, sql, rows):
        return self.local.executemany(sql, rows).rowcount

    def script(self, sql):
        self.local.executescript(sql)

    def close(self):
        self.local.close()


class Row:
    """As sqlite3.Row: by index, by name, iterable, comparable."""

    __slots__ = ("_names", "_values")

    def __init__(self, cursor, values):
        self._names, self._values = [entry[0] for entry in cursor.description], tuple(values)

    def keys(self):
        return list(self._names)

    def __getitem__(self, key):
        if not isinstance(key, str):
            return self._values[key]
        for index, name in enumerate(self._names):
            if name.lower() == key.lower():
                return self._values[index]
        raise IndexError("No item with that key")

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return iter(self._values)

    def __eq__(self, other):
        return isinstance(other, Row) and (self._names, self._values) == (other._names, other._values)

    def __hash__(self):
        return hash((tuple(self._names), self._values))


class Cursor:
    """As sqlite3.Cursor; the rows of an answer are here once `execute` returns."""

    def __init__(self, connection):
        self.connection, self.row_factory, self.arraysize = connection, connection.row_factory, 1
        self.description, self.rowcount, self.lastrowid = None, -1, None
        self._rows, self._convert = iter(()), None

    def execute(self, sql, parameters=(), /):
        connection = self.connection
        connection._prepare(sql)
        is_dml = bool(DML.match(sql))
        found = connection._engine.execute(sql, _plain_all(parameters))
        self.rowcount = found.changes if is_dml else -1
        if is_dml:
            self.lastrowid = found.rowid
        self._describe(found)
        self._rows = iter(found.rows)
        return self

    def _describe(self, found):
        detect, names = self.connection._detect, found.columns
        self._convert = None
        if names and detect:
            chosen = []
            for name, declared in zip(names, found.declared, strict=True):
                key = re.search(r"\[(\S+)\]", name) if detect & sqlite3.PARSE_COLNAMES else None
                kind = key[1] if key else re.split(r"[ (]", declared)[0] if declared and detect & sqlite3.PARSE_DECLTYPES else ""
                chosen.append(sqlite3.converters.get(kind.upper()))
            self._convert = chosen
            if detect & sqlite3.PARSE_COLNAMES:
                names = [name.split(" [")[0] for name in names]
        self.description = tuple((name, None, None, None, None, None, None) for name in names) if names else None

    def executemany(self, sql, rows, /):
        self.connection._prepare(sql)
        self.rowcount = self.connection._engine.many(sql, [_plain_all(row) for row in rows])
        self.description, self._rows = None, iter(())
        return self

    def executescript(self, sql, /):
        if self.connection.in_transaction:
            self.connection.commit()
        self.connection._check()
        self.connection._engine.script(sql)
        return self

    def _made(self, values):
        if self._convert:
            values = tuple(
                convert(value if isinstance(value, bytes) else str(value).encode()) if convert and value is not None else value
                for convert, value in zip(self._convert, values, strict=True)
            )
        text = self.connection.text_factory
        if text is not str:
            values = tuple(text(value.encode()) if isinstance(value, str) else value for value in values)
        return values if self.row_factory is None else self.row_factory(self, values)

    def fetchone(self):
        values = next(self._rows, None)
        return None if values is None else self._made(values)

    def fetchmany(self, size=None):
        found = []
        while len(found) < (self.arraysize if size is None else size) and (row := self.fetchone()) is not None:
            found.append(row)
        return found

    def fetchall(self):
        return [self._made(values) for values in self._rows]

    def __iter__(self):
        return self

    def __next__(self):
        return self._made(next(self._rows))

    def close(self):
        self._rows = iter(())

    def setinputsizes(self, sizes, /):
        return None

    def setoutputsize(self, size, column=None, /):
        return None


def _in_process(name):
    def call(self, *arguments, **options):
        if self._engine.local is None:
            if name in {"create_function", "create_aggregate", "create_collation", "create_window_function"}:
                return None  # frameworks register theirs on every connection; a statement that needs one says so
            if name in {"set_trace_callback", "set_progress_handler", "interrupt"}:
                return None
            raise sqlite3.NotSupportedError(f"{name}: the database is not in this process")
        return getattr(self._engine.local, name)(*arguments, **options)

    return call


class Connection:
    """As sqlite3.Connection."""

    Warning, Error, InterfaceError = sqlite3.Warning, sqlite3.Error, sqlite3.InterfaceError
    DatabaseError, DataError, OperationalError = sqlite3.DatabaseError, sqlite3.DataError, sqlite3.OperationalError
    IntegrityError, InternalError = sqlite3.IntegrityError, sqlite3.InternalError
    ProgrammingError, NotSupportedError = sqlite3.ProgrammingError, sqlite3.NotSupportedError

    def __init__(self, database, timeout=5.0, detect_types=0, isolation_level="", check_same_thread=True,
                 factory=None, cached_statements=128, uri=False, *, autocommit=LEGACY):  # fmt: skip
        name = _name_of(database)
        if name is not None and _binding is None:
            raise _error("SQLITE_CANTOPEN", f'unable to open {name!r}: grant it in freehold.toml: sql = ["{name}"]')
        self._engine = _Remote(name) if name is not None else _Local(database, uri)
        self._detect, self._level, self.autocommit = detect_types, isolation_level, autocommit
        self.row_factory, self.text_factory = None, str

    in_transaction = property(lambda self: self._engine is not None and self._engine.in_transaction)
    total_changes = property(lambda self: self._engine.total_changes)

    @property
    def isolation_level(self):
        return self._level

    @isolation_level.setter
    def isolation_level(self, level):
        if level is None and self.in_transaction:
            self.commit()
        self._level = level

    def _check(self):
        if self._engine is None:
            raise sqlite3.ProgrammingError("Cannot operate on a closed database.")

    def _prepare(self, sql):
        """Begin the transaction that Python's rules begin before this statement."""
        self._check()
        if self._engine.in_transaction:
            return
        if self.autocommit is False:
            self._engine.execute("BEGIN", [])
        elif self.autocommit == LEGACY and self._level is not None and DML.match(sql):
            self._engine.execute(f"BEGIN {self._level}", [])

    def cursor(self, factory=None):
        self._check()
        return (factory or Cursor)(self)

    def execute(self, *arguments):
        return self.cursor().execute(*arguments)

    def executemany(self, *arguments):
        return self.cursor().executemany(*arguments)

    def executescript(self, *arguments):
        return self.cursor().executescript(*arguments)

    def commit(self):
        self._check()
        if self._engine.in_transaction:
            self._engine.execute("COMMIT", [])

    def rollback(self):
        self._check()
        if self._engine.in_transaction:
            try:
                self._engine.execute("ROLLBACK", [])
            except sqlite3.OperationalError:  # the node ended it, with the call that began it or with a failure
                if self._engine.in_transaction:
                    raise

    def close(self):
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def iterdump(self, *, filter=None):
        from sqlite3.dump import _iterdump

        return _iterdump(self, filter=filter)

    create_function, create_aggregate = _in_process("create_function"), _in_process("create_aggregate")
    create_collation, create_window_function = _in_process("create_collation"), _in_process("create_window_function")
    set_trace_callback, set_progress_handler = _in_process("set_trace_callback"), _in_process("set_progress_handler")
    interrupt, backup, blobopen = _in_process("interrupt"), _in_process("backup"), _in_process("blobopen")
    serialize, deserialize, set_authorizer = _in_process("serialize"), _in_process("deserialize"), _in_process("set_authorizer")
    enable_load_extension, load_extension = _in_process("enable_load_extension"), _in_process("load_extension")
    getlimit, setlimit = _in_process("getlimit"), _in_process("setlimit")
    getconfig, setconfig = _in_process("getconfig"), _in_process("setconfig")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.rollback() if kind else self.commit()
        return False


def connect(database, *arguments, factory=None, **options):
    """As sqlite3.connect."""
    return (factory or Connection)(database, *arguments, **options)


def install(binding) -> None:
    """Put these in the place of the interpreter's own; `binding` is the app's SQL interface, None without a grant."""
    global _binding
    _binding = binding
    for module in (sqlite3, sqlite3.dbapi2):
        module.connect, module.Connection, module.Cursor, module.Row = connect, Connection, Cursor, Row
