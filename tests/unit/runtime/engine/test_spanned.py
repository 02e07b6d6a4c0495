"""Spans of what a guest asks its node for: every kind of store, only where a trace is recorded, bounded, and cheap."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.call import GuestCall
from runtime.engine.codecs import Err
from runtime.engine.guest import Guest, GuestServices
from runtime.providers import Providers
from runtime.services.file_blobs import FileBlobs
from runtime.services.log_sink import AppLog, LogBuffer, LogOrigin
from runtime.services.spans import CLIENT, PRODUCER, SPAN_MARK, SPANS_BURST, SPANS_OF_CALL_MAX, CallSpans, Span
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from runtime.services.sqlite_queue import SqliteQueue
from runtime.services.sqlite_sql import SqliteSql
from runtime.wasi import blobs, messaging, services, sql
from tests.support.runtime.wasm_parts import SilentLog, a_spec, an_exchange

TRACE, REQUEST = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
COST_MAX_S = 5e-6


class Traced:
    """A guest with every kind of store, and the spans that were told."""

    def __init__(self, folder: Path, *, told: bool = True) -> None:
        self.buffer = LogBuffer()
        log = AppLog(self.buffer, LogOrigin("node", "shop", "web", "r1", "production"))
        self.stores = (
            SqliteKeyValue(folder, "t"),
            SqliteSql(folder, "t"),
            FileBlobs(folder, "t"),
            SqliteQueue(folder, "t"),
        )
        spec = a_spec(keyvalue=("visits",), sql=("main",), blobs=("uploads",), publish=("orders",))
        self.guest = Guest(
            GuestServices(spec, SilentLog(), Providers(*self.stores), None, CallSpans(log) if told else None)
        )
        self.begin("01")

    def begin(self, flags: str | None) -> None:
        """Serve the next request; one of no trace where `flags` is None."""
        fields = (("traceparent", f"00-{TRACE}-{REQUEST}-{flags}".encode()),) if flags is not None else ()
        self.guest.begin(GuestCall(math.inf), an_exchange(headers=fields))

    def do(self, interface: Any, item: str, *arguments: Any) -> Any:
        return interface.find(item)(self.guest, *arguments)

    def spans(self) -> list[Span]:
        lines, _ = self.buffer.take(1 << 30)
        assert all(line.startswith(SPAN_MARK) for line in lines)
        return [msgspec.json.decode(line[1:], type=Span) for line in lines]


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    traced = Traced(tmp_path)
    yield traced
    for store in traced.stores:
        store.close()


def test_a_call_of_each_kind_of_store_hangs_below_its_request(traced: Traced) -> None:
    began_ns = time.time_ns()
    bucket = traced.do(services.store2, "open", "visits")
    traced.do(services.store2, "[method]bucket.set", bucket, "k", b"secret value")
    database = traced.do(sql.databases, "[static]database.open", "main")
    traced.do(sql.databases, "[method]database.execute", database, "SELECT 'secret'", ("positional", []))
    container = traced.do(blobs.blobstore, "get-container", "uploads")
    traced.do(blobs.container, "[method]container.has-object", container, "o")
    traced.do(messaging.consumer, "publish", ("orders", b"secret body", None))
    spans = traced.spans()
    assert [(span.name, span.kind) for span in spans] == [
        ("open visits", CLIENT), ("set visits", CLIENT), ("open main", CLIENT), ("execute main", CLIENT),
        ("has-object uploads", CLIENT), ("publish orders", PRODUCER),
    ]  # fmt: skip
    assert {(span.trace_id, span.parent_id, span.failed) for span in spans} == {(TRACE, REQUEST, "")}
    assert len({span.span_id for span in spans} | {REQUEST}) == len(spans) + 1
    assert all(began_ns <= span.began_ns <= span.ended_ns <= time.time_ns() for span in spans)
    assert spans[1].attributes == {
        "db.system.name": "freehold.keyvalue", "db.operation.name": "set", "db.namespace": "visits",
        "freehold.project": "shop", "deployment.environment.name": "production", "freehold.app": "web",
    }  # fmt: skip
    assert spans[5].attributes["messaging.destination.name"] == "orders"
    assert b"secret" not in msgspec.json.encode(spans), "what a guest stores is nobody's to see"


def test_what_a_store_refuses_says_of_which_kind_and_nothing_of_the_guest(traced: Traced) -> None:
    assert isinstance(traced.do(services.store2, "open", "other"), Err)
    assert isinstance(traced.do(sql.databases, "[static]database.open", "x" * 1000), Err)
    assert isinstance(traced.do(messaging.consumer, "publish", ("payments", b"", None)), Err)
    store, database, subject = traced.spans()
    assert (store.failed, database.failed, subject.failed) == ("access-denied", "SQLITE_AUTH", "refused")
    assert database.attributes["db.namespace"] == "x" * 64


@pytest.mark.parametrize("flags", ["00", "02", None], ids=["not recorded", "random alone", "of no trace"])
def test_a_request_that_is_not_recorded_leaves_none(traced: Traced, flags: str | None) -> None:
    traced.begin(flags)
    traced.do(services.store2, "open", "visits")
    traced.guest.begin(GuestCall(math.inf), None)
    traced.do(services.store2, "open", "visits")
    assert traced.spans() == []
    traced.begin("03")
    traced.do(services.store2, "open", "visits")
    assert len(traced.spans()) == 1, "the one beside it is recorded"


def test_without_a_collector_nothing_is_made(tmp_path: Path) -> None:
    silent = Traced(tmp_path, told=False)
    assert not isinstance(silent.do(services.store2, "open", "visits"), Err)
    assert silent.spans() == []


def test_a_request_has_so_many_and_an_app_so_many_a_second_and_the_next_says_what_is_missing(traced: Traced) -> None:
    for _ in range(SPANS_OF_CALL_MAX + 5):
        traced.do(services.store2, "open", "visits")
    assert len(traced.spans()) == SPANS_OF_CALL_MAX
    while traced.do(services.store2, "open", "visits") and traced.guest.services.spans.dropped < 3:  # type: ignore[union-attr]
        traced.begin("01")
    assert len(traced.spans()) < 2 * SPANS_BURST
    time.sleep(0.5)  # a burst's tenth is back
    traced.begin("01")
    traced.do(services.store2, "open", "visits")
    (span,) = traced.spans()
    assert span.attributes["freehold.spans_dropped"] == 3


def test_a_span_costs_a_request_at_most_five_microseconds(traced: Traced) -> None:
    function, plain = services.store2.find("[method]bucket.exists"), services.store2.functions["[method]bucket.exists"]
    assert function is not None

    class Bucket:
        store = "visits"
        bucket = type("", (), {"exists": staticmethod(lambda key: True)})

    def round_s(run: Any) -> float:
        traced.begin("01")
        began_s = time.thread_time()
        for _ in range(100):
            run(traced.guest, Bucket, "k")
        return (time.thread_time() - began_s) / 100

    plain_s = min(round_s(plain) for _ in range(15))
    assert min(round_s(function) for _ in range(15)) - plain_s < COST_MAX_S
