"""The node's data as compiled guests reach it, through our own interfaces and through Spin's.

No peer here, as in test_services.py. What is expected of Spin's is what the comments of its WIT say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.ours import serve_ours
from tests.conformance.wire import Ask, exchange

Do = Callable[..., Any]


@pytest.fixture(scope="module")
def port(component: Callable[[str], Path]) -> Iterator[int]:
    with serve_ours(component("data"), sql=("main", "default"), keyvalue=("visits",)) as server:
        yield server.port


def ask(port: int, **operation: Any) -> Any:
    body = json.dumps(operation)
    return json.loads(exchange(port, Ask("/", "POST", pieces=(body.encode(),))).body)


def test_rows_of_every_kind_come_back_as_they_went(port: int) -> None:
    ask(port, kind="sql", name="main", sql="CREATE TABLE t (x)")
    for value in (1, -(2**63), 0.5, "é\0x", None):
        ask(port, kind="sql", name="main", sql="INSERT INTO t VALUES (?)", parameters=[value])
    ask(port, kind="sql", name="main", sql="INSERT INTO t VALUES (x'00ff')")
    rows = ask(port, kind="sql", name="main", sql="SELECT x FROM t ORDER BY rowid")
    assert rows == [[1], [-(2**63)], [0.5], ["é\0x"], [None], ["00ff"]]


def test_what_was_committed_is_there_for_the_next_instance(port: int) -> None:
    ask(port, kind="sql", name="main", sql="CREATE TABLE n (x)")
    for _ in range(3):
        ask(port, kind="sql", name="main", sql="INSERT INTO n VALUES (1)")
    assert ask(port, kind="sql", name="main", sql="SELECT count(*) FROM n") == [[3]]


def test_a_database_that_was_not_granted_is_refused(port: int) -> None:
    assert "may not open the database 'other'" in ask(port, kind="sql", name="other", sql="SELECT 1")["error"]


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_component_made_for_spin_finds_its_sqlite(port: int, version: str) -> None:
    found = json.loads(exchange(port, Ask(f"/spin{version}?default")).body)
    kinds = [["Value_Integer"], ["Value_Real"], ["Value_Text"], ["Value_Blob"], ["Value_Null"]]
    more = [1, 5] if version == "3" else []
    assert found == [["value"], kinds, "00ff", more, 'near "SELEC": syntax error (SQLITE_ERROR)']


@pytest.mark.parametrize("version", ["2", "3"])
def test_spins_error_says_that_access_is_denied(port: int, version: str) -> None:
    answer = exchange(port, Ask(f"/spin{version}?elsewhere"))
    assert answer.status == 500
    assert "AccessDenied" in answer.body
