"""What a guest's SQL text means to PostgreSQL: placeholders as it numbers them, a statement's first word, words for errors.

`?` and `:name` are what the guest's interfaces have; PostgreSQL has `$1`. Not here: who runs it (`postgres_sql.py`).
Source: postgresql.org/docs/current/sql-syntax-lexical.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from runtime.providers import SqlError, SqlValue

PARAMETERS_MAX: Final = 65_535
TEXT_MAX_CHARS: Final = 500

_TOKEN: Final = re.compile(
    r"""(?P<quoted>
        (?<![A-Za-z0-9_$\x80-\U0010ffff])[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n\r]*
    )
    | (?P<tag>(?<![A-Za-z0-9_$\x80-\U0010ffff])\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$)
    | (?P<comment>/\*)
    | (?P<cast>::|:=)
    | (?P<twice>\?\?)
    | (?P<mark>\?)
    | (?<![A-Za-z0-9_$:\[])(?P<named>[:@][A-Za-z_][A-Za-z0-9_]*)""",
    re.VERBOSE | re.DOTALL,
)


def numbered(statement: str, parameters: Sequence[SqlValue] | Mapping[str, SqlValue]) -> tuple[str, list[str | None]]:
    """Return a statement with `$1`, `$2` in place of the guest's placeholders, and the values as PostgreSQL reads them.

    A statement without values is as it is. With values in order, each `?` is the next one, `??` is the operator `?`, and a
    statement with `$1` needs none. With named ones, `:name` and `@name` are theirs. Raises SqlError.
    """
    if "\0" in statement:
        raise SqlError("SQLITE_ERROR", "a statement holds no NUL")
    if len(parameters) > PARAMETERS_MAX:
        raise SqlError("SQLITE_RANGE", f"a statement takes at most {PARAMETERS_MAX} values")
    if not parameters:
        return statement, []
    if isinstance(parameters, Mapping):
        return _named(statement, parameters)
    pieces: list[str] = []
    marks = 0
    for kind, text in _tokens(statement):
        if kind == "mark":
            marks += 1
            pieces.append(f"${marks}")
        else:
            pieces.append("?" if kind == "twice" else text)
    if marks and marks != len(parameters):
        raise SqlError("SQLITE_RANGE", f"the statement has {marks} places for values, and {len(parameters)} were given")
    return "".join(pieces), [written(value) for value in parameters]


def _named(statement: str, parameters: Mapping[str, SqlValue]) -> tuple[str, list[str | None]]:
    pieces: list[str] = []
    order: dict[str, int] = {}
    for kind, text in _tokens(statement):
        if kind != "named":
            pieces.append(text)
            continue
        name = next((key for key in (text[1:], text) if key in parameters), None)
        if name is None:
            raise SqlError("SQLITE_RANGE", f"the statement names a parameter {text[1:]!r} that has no value")
        pieces.append(f"${order.setdefault(name, len(order) + 1)}")
    return "".join(pieces), [written(parameters[name]) for name in order]


def _tokens(statement: str) -> Iterator[tuple[str, str]]:
    """Cut a statement into pieces that are no text of it and pieces that are; together they are the statement."""
    offset = 0
    while token := _TOKEN.search(statement, offset):
        if token.start() > offset:
            yield "text", statement[offset : token.start()]
        kind, end = token.lastgroup or "", token.end()
        if kind == "comment":
            end = _comment_end(statement, end)
        elif kind == "tag":
            kind, end = "quoted", _dollars_end(statement, token[0], end)
        yield kind, statement[token.start() : end]
        offset = end
    yield "text", statement[offset:]


def _comment_end(statement: str, at: int) -> int:
    """Where a comment ends; in PostgreSQL they hold each other."""
    depth = 1
    for mark in re.compile(r"/\*|\*/").finditer(statement, at):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(statement)


def _dollars_end(statement: str, tag: str, at: int) -> int:
    """Where a text ends that begins with a tag; one without an end is the rest, else each of many would be looked for there."""
    end = statement.find(tag, at)
    return len(statement) if end < 0 else end + len(tag)


def first_word(statement: str) -> str:
    """The statement's first word in capitals, behind comments."""
    for kind, text in _tokens(statement):
        if kind == "text" and (word := re.search(r"[A-Za-z]+", text)):
            return word[0].upper()
    return ""


def written(value: SqlValue) -> str | None:
    """A value as text. Its type is what its place in the statement asks for."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return repr(value)


_CODES: Final[Mapping[str, str]] = {
    "23505": "SQLITE_CONSTRAINT_UNIQUE", "23503": "SQLITE_CONSTRAINT_FOREIGNKEY", "23502": "SQLITE_CONSTRAINT_NOTNULL",
    "23514": "SQLITE_CONSTRAINT_CHECK", "57014": "SQLITE_INTERRUPT", "40001": "SQLITE_BUSY", "40P01": "SQLITE_BUSY",
    "55P03": "SQLITE_BUSY", "53100": "SQLITE_FULL", "22001": "SQLITE_TOOBIG", "22003": "SQLITE_TOOBIG",
    "25006": "SQLITE_READONLY", "42501": "SQLITE_AUTH", "25P02": "SQLITE_ABORT",
}  # fmt: skip
_CLASSES: Final[Mapping[str, str]] = {"23": "SQLITE_CONSTRAINT", "54": "SQLITE_TOOBIG"}


def refusal(fields: Mapping[str, str]) -> SqlError:
    """What the server's refusal of a statement is to a guest: the nearest of SQLite's names, and the server's own words."""
    state = fields.get("C", "")
    code = _CODES.get(state) or _CLASSES.get(state[:2], "SQLITE_ERROR")
    return SqlError(code, f"{fields.get('M', 'the statement failed')[:TEXT_MAX_CHARS]} ({state})")
