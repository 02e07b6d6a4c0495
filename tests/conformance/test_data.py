"""The node's data as compiled guests reach it, through our own interfaces and through Spin's.

No peer here, as in test_services.py. What is expected of Spin's is what the comments of its WIT say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conformance.ours import serve_ours
from tests.conformance.wire import Ask, exchange
from tests.support.runtime.served import ENGINES

Do = Callable[..., Any]


GRANTS: Final[dict[str, Any]] = {
    "sql": ("main", "default"), "keyvalue": ("visits",), "blobs": ("uploads", "other"), "timeout_ms": 30_000,
}  # fmt: skip


@pytest.fixture(scope="module", params=ENGINES)
def port(request: pytest.FixtureRequest, component: Callable[[str], Path]) -> Iterator[int]:
    with serve_ours(component("data"), engine=request.param, **GRANTS) as server:
        assert server.engine == request.param
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
    entry = json.loads(exchange(port, Ask(f"/spin{version}?default")).body)
    kinds = [["Value_Integer"], ["Value_Real"], ["Value_Text"], ["Value_Blob"], ["Value_Null"]]
    more = [1, 5] if version == "3" else []
    assert entry == [["value"], kinds, "00ff", more, 'near "SELEC": syntax error (SQLITE_ERROR)']


@pytest.mark.parametrize("version", ["2", "3"])
def test_spins_error_says_that_access_is_denied(port: int, version: str) -> None:
    answer = exchange(port, Ask(f"/spin{version}?elsewhere"))
    assert answer.status == 500
    assert "AccessDenied" in answer.body


def blob(port: int, do: str, key: str = "", **more: Any) -> Any:
    return ask(port, **{"kind": "blob", "name": "uploads", "do": do, "object": key, **more})


def test_an_object_comes_back_whole_in_part_and_as_a_stream(port: int) -> None:
    blob(port, "put", "a/é.txt", data="0123456789")
    assert blob(port, "get", "a/é.txt") == "0123456789"
    assert blob(port, "range", "a/é.txt", range=[2, 4]) == [3, "234"]
    assert blob(port, "range", "a/é.txt", range=[8]) == [2, "89"]
    assert blob(port, "range", "a/é.txt", range=[20, 30]) == [0, ""]
    name, size, created_s = blob(port, "info", "a/é.txt")
    assert (name, size, created_s > 1_700_000_000) == ("a/é.txt", 10, True)
    large = bytes(range(256)) * 1024 * 40
    blob(port, "put-large", "large", pieces=40)
    assert blob(port, "digest", "large") == [len(large), hashlib.sha256(large).hexdigest()]


def test_an_object_is_there_whole_or_not_at_all(port: int) -> None:
    blob(port, "put", "kept", data="before")
    assert "broke off" in blob(port, "put-broken", "kept")["error"]
    assert blob(port, "get", "kept") == "before"
    blob(port, "put", "kept", data="after")
    assert blob(port, "get", "kept") == "after"
    blob(port, "delete", "kept")
    assert blob(port, "get", "kept") is None
    assert "no object" in blob(port, "range", "kept", range=[0])["error"]


def test_names_are_listed_by_container(port: int) -> None:
    for number in (2, 0, 1):
        blob(port, "put", f"n{number}", data="x", name="other")
    assert blob(port, "names", name="other") == ["n0", "n1", "n2"]
    assert blob(port, "get", "n0") is None, "containers are apart"


def test_a_container_that_was_not_granted_is_refused(port: int) -> None:
    assert "may not open the container 'secret'" in blob(port, "names", name="secret")["error"]
