"""A guest's SQL text as PostgreSQL takes it: places for values, and what only looks like one."""

from __future__ import annotations

import time

import pytest

from runtime.providers import SqlError
from runtime.services.postgres_text import first_word, numbered, refusal


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("SELECT ?, ?", "SELECT $1, $2"),
        ("SELECT '?', ?, \"?\", ?", "SELECT '?', $1, \"?\", $2"),
        ("SELECT ? -- ?\n, ?", "SELECT $1 -- ?\n, $2"),
        ("SELECT ? /* ? /* ? */ ? */, ?", "SELECT $1 /* ? /* ? */ ? */, $2"),
        ("SELECT 'it''s ?', ?, ?", "SELECT 'it''s ?', $1, $2"),
        (r"SELECT E'\'?', ?, ?", r"SELECT E'\'?', $1, $2"),
        (r"SELECT '\', ?, ?", r"SELECT '\', $1, $2"),
        (r"SELECT CASE WHEN a THEN ? ELSE'\' END, ?", r"SELECT CASE WHEN a THEN $1 ELSE'\' END, $2"),
        ("SELECT ? -- ?\r, ?", "SELECT $1 -- ?\r, $2"),
        ("SELECT \u00e9$a$ ?, ? -- $a$", "SELECT \u00e9$a$ $1, $2 -- $a$"),
        ("SELECT $$ ? $$, $a$ $$ ? $a$, ?, ?", "SELECT $$ ? $$, $a$ $$ ? $a$, $1, $2"),
        ("SELECT data ?? ?, ?", "SELECT data ? $1, $2"),
        ("SELECT ?::jsonb ??| ?", "SELECT $1::jsonb ?| $2"),
        ("SELECT $2, $1", "SELECT $2, $1"),
    ],
    ids=[
        "two",
        "quotes",
        "line",
        "nested",
        "doubled",
        "escaped",
        "plain backslash",
        "a word that ends in e",
        "line of an old Macintosh",
        "name with dollars",
        "dollars",
        "operator",
        "cast",
        "own",
    ],
)
def test_values_in_order(given: str, made: str) -> None:
    assert numbered(given, ["a", 1]) == (made, ["a", "1"])


@pytest.mark.parametrize(
    ("given", "made", "order"),
    [
        ("SELECT :a, @b, :a", "SELECT $1, $2, $1", ["1", "2"]),
        ("SELECT :b::text, ':a', x[1:2], y[1:a]", "SELECT $1::text, ':a', x[1:2], y[1:a]", ["2"]),
        ("SELECT a := 1, :a /* :b */", "SELECT a := 1, $1 /* :b */", ["1"]),
    ],
    ids=["twice", "cast", "named argument"],
)
def test_values_by_name(given: str, made: str, order: list[str]) -> None:
    assert numbered(given, {"a": 1, "b": 2}) == (made, order)


def test_a_statement_without_values_is_as_it_is() -> None:
    assert numbered("SELECT data ? 'key', ':a'", ()) == ("SELECT data ? 'key', ':a'", [])


def test_values_as_text() -> None:
    assert numbered("?,?,?,?,?", [None, b"\0\xff", 0.1, -(2**63), "\N{EURO SIGN}"])[1] == [
        None, r"\x00ff", "0.1", "-9223372036854775808", "\N{EURO SIGN}",
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["SELECT ?", "SELECT ?, ?, ?"], ids=["fewer", "more"])
def test_another_number_of_values_is_refused(given: str) -> None:
    with pytest.raises(SqlError) as refused:
        numbered(given, [1, 2])
    assert refused.value.code == "SQLITE_RANGE"
    with pytest.raises(SqlError):
        numbered("SELECT '\0'", ())
    with pytest.raises(SqlError):
        numbered("SELECT 1", [1] * 65_536)


def test_the_first_word_is_behind_comments() -> None:
    for statement, word in (
        ("/* SELECT */ -- x\n insert into n", "INSERT"), ("(SELECT 1)", "SELECT"), ("", ""), ("'COMMIT'", ""),
        ("/* /* */ COMMIT */ WITH a", "WITH"), ("  commit;", "COMMIT"),
        ("-- x\rCOMMIT", "COMMIT"), ("-- x\vCOMMIT", ""),
    ):  # fmt: skip
        assert first_word(statement) == word, statement


@pytest.mark.parametrize(
    "hostile",
    ["".join(f" $a{number:x}$" for number in range(120_000)), "E'\\" * 300_000, "'" * 999_999, "/*" * 500_000],
    ids=["dollars", "escapes", "quotes", "comments"],
)
def test_what_never_ends_is_looked_through_once(hostile: str) -> None:
    """In the worker's one interpreter: whoever holds it for minutes holds up every app."""
    began_s = time.process_time()
    numbered(f"SELECT ?, {hostile}", ["a"])
    first_word(hostile)
    assert time.process_time() - began_s < 5


def test_a_text_in_dollars_without_an_end_is_the_rest() -> None:
    assert numbered("SELECT ?, $a$ ? $b$ ? $a", ["a"])[0] == "SELECT $1, $a$ ? $b$ ? $a"
    assert numbered("SELECT ?, $a$ ? $b$ ? $a$, ?", ["a", "b"])[0] == "SELECT $1, $a$ ? $b$ ? $a$, $2"


def test_a_refusal_has_the_nearest_name() -> None:
    for state, code in (
        ("23505", "SQLITE_CONSTRAINT_UNIQUE"),
        ("23P01", "SQLITE_CONSTRAINT"),
        ("42601", "SQLITE_ERROR"),
        ("", "SQLITE_ERROR"),
    ):
        assert refusal({"C": state, "M": "x" * 1_000}).code == code
    assert len(refusal({"C": "42601", "M": "x" * 10_000}).text) < 600
