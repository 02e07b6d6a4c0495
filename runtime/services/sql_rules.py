"""What a guest's SQL may touch: SQLite's authorizer as a table, and stand-ins for functions that one call could hang in.

Deny by default: a new kind of action of a later SQLite is refused until it is listed. Not here: limits of size and time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import apsw

from runtime.providers import SqlValue

DATABASE_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")

VALUE_BYTES: Final = 16
"""What a value is counted as beside its text or bytes, so that a flood of small ones has a size too."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALLOWED: Final = frozenset(
    getattr(apsw, f"SQLITE_{name}")
    for name in _words("""
        SELECT READ INSERT UPDATE DELETE TRANSACTION SAVEPOINT ANALYZE REINDEX RECURSIVE ALTER_TABLE
        CREATE_INDEX CREATE_TABLE CREATE_TEMP_INDEX CREATE_TEMP_TABLE CREATE_TEMP_TRIGGER CREATE_TEMP_VIEW
        CREATE_TRIGGER CREATE_VIEW DROP_INDEX DROP_TABLE DROP_TEMP_INDEX DROP_TEMP_TABLE DROP_TEMP_TRIGGER
        DROP_TEMP_VIEW DROP_TRIGGER DROP_VIEW DROP_VTABLE
    """)
)
_MODULES: Final = _words("fts5 fts5vocab rtree")
_TABLES_DENIED: Final = _words("sqlite_dbpage dbstat carray fts3tokenize sqlite_stmt bytecode tables_used")
_FUNCTIONS_DENIED: Final = _words("load_extension fts3_tokenizer carray")
_PRAGMAS_READ: Final = _words("""
    table_info table_xinfo table_list index_list index_info index_xinfo foreign_key_list foreign_key_check
    integrity_check quick_check page_count page_size freelist_count encoding compile_options collation_list
    function_list module_list pragma_list data_version schema_version
""")
_PRAGMAS_SET: Final = _words("""
    foreign_keys defer_foreign_keys user_version application_id legacy_alter_table recursive_triggers
    case_sensitive_like ignore_check_constraints reverse_unordered_selects query_only read_uncommitted
""")
_PRAGMAS_WITHOUT_EFFECT: Final = _words("""
    synchronous journal_mode busy_timeout cache_size cache_spill temp_store mmap_size locking_mode optimize
    wal_autocheckpoint wal_checkpoint journal_size_limit auto_vacuum incremental_vacuum secure_delete
    automatic_index analysis_limit threads shrink_memory trusted_schema cell_size_check database_list
""")
"""Settings that libraries make when they connect; the node's own hold, and the statement goes on.

`database_list` would tell a path of the node.
"""


def authorize(action: int, first: str | None, second: str | None, database: str | None, _trigger: str | None) -> int:
    """SQLite asks this of every part of a statement as it is prepared."""
    if action == apsw.SQLITE_READ:
        return apsw.SQLITE_DENY if (first or "").lower() in _TABLES_DENIED else apsw.SQLITE_OK
    if action in _ALLOWED:
        return apsw.SQLITE_OK
    if action == apsw.SQLITE_FUNCTION:
        return apsw.SQLITE_DENY if (second or "").lower() in _FUNCTIONS_DENIED else apsw.SQLITE_OK
    if action == apsw.SQLITE_PRAGMA:
        return _pragma((first or "").lower(), second)
    if action == apsw.SQLITE_CREATE_VTABLE:
        return apsw.SQLITE_OK if (second or "").lower() in _MODULES else apsw.SQLITE_DENY
    return apsw.SQLITE_DENY


def _pragma(name: str, argument: str | None) -> int:
    if name in _PRAGMAS_SET or (name in _PRAGMAS_READ and (name not in _READ_ONLY_VALUES or argument is None)):
        return apsw.SQLITE_OK
    if name == "journal_mode" and argument is None:
        return apsw.SQLITE_OK
    return apsw.SQLITE_IGNORE if name in _PRAGMAS_WITHOUT_EFFECT else apsw.SQLITE_DENY


_READ_ONLY_VALUES: Final = frozenset({"page_size", "schema_version", "encoding", "page_count", "data_version"})


def fits(row: Sequence[SqlValue]) -> int:
    """The bytes a row of an answer is counted as."""
    return sum(VALUE_BYTES + (len(value) if isinstance(value, str | bytes) else 0) for value in row)


def _instr(text: SqlValue, part: SqlValue) -> int | None:
    """SQLite's own compares at each place: a text of zeroes in a text of zeroes takes minutes, and nothing stops it."""
    if text is None or part is None:
        return None
    if isinstance(text, bytes) and isinstance(part, bytes):
        return text.find(part) + 1
    return _text(text).find(_text(part)) + 1


def _replace(text: SqlValue, old: SqlValue, new: SqlValue) -> SqlValue:
    if text is None or old is None or new is None:
        return None
    whole, part, instead = _text(text), _text(old), _text(new)
    if not part:
        return whole
    number = whole.count(part)
    if len(whole) + number * (len(instead) - len(part)) > RESULT_MAX_CHARS:
        raise _too_big()
    return whole.replace(part, instead)


def _too_big() -> apsw.Error:
    entry: Any = apsw.TooBigError("string or blob too big")
    entry.result = entry.extendedresult = apsw.SQLITE_TOOBIG
    error: apsw.Error = entry
    return error


RESULT_MAX_CHARS: Final = 1024 * 1024
TRIM_MAX_CHARS: Final = 1_000


def _trim(strip: Callable[[str, str], str]) -> Callable[..., SqlValue]:
    def trim(text: SqlValue, characters: SqlValue = " ") -> SqlValue:
        if text is None or characters is None:
            return None
        unwanted = "".join(set(_text(characters)))
        if len(unwanted) > TRIM_MAX_CHARS:  # each is looked for at each place
            raise _too_big()
        return strip(_text(text), unwanted)

    return trim


def _text(value: SqlValue) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return f"{value:.15g}" if "." in f"{value:.15g}" or "e" in f"{value:.15g}" else f"{value:.15g}.0"
    return str(value)


FUNCTIONS: Final[tuple[tuple[str, int, Callable[..., SqlValue]], ...]] = (
    ("instr", 2, _instr),
    ("replace", 3, _replace),
    *((name, count, _trim(strip)) for name, strip in (("trim", str.strip), ("ltrim", str.lstrip), ("rtrim", str.rstrip))
      for count in (1, 2)),
)  # fmt: skip
"""By name, number of arguments and what it does."""
