"""What is exported, read by OpenTelemetry's own messages: ids, times, kinds, statuses and values come out as they went in."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Read
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from node.telemetry.lines import fields_of, is_span, record_of, span_of
from node.telemetry.otlp import LogRecord, body_of, moment_ns
from runtime.services.spans import SERVER, Span
from tests.support.mesh.collector import attributes, plain, read

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
LINE = {
    "time": "2026-11-30T15:00:01.250Z", "level": "info", "event": "request", "node": "n0", "project": "", "app": "web",
    "request_id": "r-1", "trace_id": TRACE, "span_id": SPAN, "client": "10.0.0.1", "method": "GET", "path": "/a",
    "status": 200, "bytes_in": 0, "bytes_out": 11, "duration_ms": 12.5, "stream": "host",
}  # fmt: skip
VALUES = st.one_of(st.text(), st.booleans(), st.floats(allow_nan=False), st.integers(-(2**63) + 1, 2**63 - 1))


def test_a_span_comes_out_as_it_went_in() -> None:
    span = Span(TRACE, SPAN, "GET site/web", 5_000_000_001, 5_012_500_001, {"a": 1, "b": True, "c": 0.5, "d": "x"},
                parent_id="00f067aa0ba902b7", kind=SERVER, failed="trapped")  # fmt: skip
    body = gzip.compress(body_of({"service.name": "freehold"}, "1", "traces", [span]))
    request = read(body, ExportTraceServiceRequest())
    (part,) = request.resource_spans
    assert {attribute.key: plain(attribute.value) for attribute in part.resource.attributes} == {
        "service.name": "freehold"
    }
    (entry,) = part.scope_spans[0].spans
    assert (entry.trace_id.hex(), entry.span_id.hex(), entry.parent_span_id.hex()) == (TRACE, SPAN, span.parent_id)
    assert (entry.start_time_unix_nano, entry.end_time_unix_nano) == (5_000_000_001, 5_012_500_001)
    assert (entry.kind, entry.name) == (Read.SPAN_KIND_SERVER, "GET site/web")
    assert (entry.status.code, entry.status.message) == (Status.STATUS_CODE_ERROR, "trapped")
    assert attributes(entry) == span.attributes


@given(st.dictionaries(st.text(), VALUES, max_size=8), st.text())
def test_any_value_comes_out_as_it_went_in(values: dict[str, str | int | float | bool], text: str) -> None:
    record = LogRecord(7, "warning", text, values, TRACE)
    request = read(gzip.compress(body_of({}, "1", "logs", [record])), ExportLogsServiceRequest())
    (entry,) = request.resource_logs[0].scope_logs[0].log_records
    assert (entry.time_unix_nano, entry.severity_number, entry.body.string_value) == (7, 13, text)
    assert attributes(entry) == values


def test_the_line_of_a_request_is_a_span_that_ended_when_it_was_written() -> None:
    assert is_span(LINE)
    span = span_of(LINE)
    assert span is not None
    ended_ns = moment_ns("2026-11-30T15:00:01.250Z")
    assert (span.ended_ns, span.began_ns) == (ended_ns, ended_ns - 12_500_000)
    assert (span.trace_id, span.span_id, span.parent_id, span.failed) == (TRACE, SPAN, "", "")
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["url.path"] == "/a"
    failed = span_of(LINE | {"status": 502, "outcome": "trapped", "parent_id": "00f067aa0ba902b7"})
    assert failed is not None
    assert (failed.failed, failed.parent_id) == ("trapped", "00f067aa0ba902b7")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"stream": "guest"}, id="a guest's words"),
        pytest.param({"event": "requests"}, id="another event"),
        pytest.param({"recorded": False}, id="not recorded"),
        pytest.param({"trace_id": "0" * 32}, id="no trace"),
        pytest.param({"span_id": SPAN[:-1]}, id="a short id"),
        pytest.param({"trace_id": TRACE.upper()}, id="not lower case"),
    ],
)
def test_no_other_line_is_a_span(other: dict[str, object]) -> None:
    assert not is_span(LINE | other)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{", b"\xff", b"[" * 3_000, b'{"time":1}', b'{"time":"soon"}', b'{"a":"b"}']
)
def test_a_line_that_is_none_is_left_out(line: bytes) -> None:
    fields = fields_of(line)
    assert fields is None or (record_of(fields) is None and span_of(fields) is None)
