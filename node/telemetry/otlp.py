"""Spans and log records as OTLP over HTTP carries them, in its JSON encoding (opentelemetry-proto 1.x).

Ids are lower-case hex, 64-bit integers are text, enums are numbers, as the specification says. Pure: no clock, no socket.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from runtime.services.spans import Span, Value

Signal = Literal["traces", "logs"]
SCOPE = "freehold"
FAILED = 2
"""A span's status where it went wrong; one without a status is not judged."""
SEVERITIES = {"debug": 5, "info": 9, "warning": 13, "warn": 13, "error": 17, "critical": 21}
_NOT_FINITE = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}
"""As protobuf's JSON writes what JSON has no number for."""
ATTRIBUTES_MAX = 64
TEXT_MAX_CHARS = 8_192
"""Of one attribute or body; a collector refuses whole batches for one that is too long for it."""


class LogRecord(msgspec.Struct, frozen=True):
    """One line of the log; `severity` is a word of the log's own."""

    at_ns: int
    severity: str
    body: str
    attributes: dict[str, Value]
    trace_id: str = ""
    span_id: str = ""


def body_of(resource: Mapping[str, Value], version: str, signal: Signal, items: Iterable[Span | LogRecord]) -> bytes:
    """Return the request that exports these items of one signal."""
    scope = {"name": SCOPE, "version": version}
    rows = [_span(item) if isinstance(item, Span) else _record(item) for item in items]
    names = (
        ("resourceSpans", "scopeSpans", "spans") if signal == "traces" else ("resourceLogs", "scopeLogs", "logRecords")
    )
    return msgspec.json.encode(
        {names[0]: [{"resource": {"attributes": _attributes(resource)}, names[1]: [{"scope": scope, names[2]: rows}]}]}
    )


def moment_ns(text: str) -> int:
    """Return an ISO time of a log line in ns. Raises ValueError."""
    when = datetime.fromisoformat(text)
    since = when - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000


def _span(span: Span) -> dict[str, Any]:
    document: dict[str, Any] = {
        "traceId": span.trace_id, "spanId": span.span_id, "name": span.name, "kind": span.kind,
        "startTimeUnixNano": str(span.began_ns), "endTimeUnixNano": str(max(span.began_ns, span.ended_ns)),
        "attributes": _attributes(span.attributes),
    }  # fmt: skip
    if span.parent_id:
        document["parentSpanId"] = span.parent_id
    if span.failed:
        document["status"] = {"code": FAILED, "message": span.failed[:TEXT_MAX_CHARS]}
    return document


def _record(record: LogRecord) -> dict[str, Any]:
    document: dict[str, Any] = {
        "timeUnixNano": str(record.at_ns), "severityText": record.severity.upper(),
        "severityNumber": SEVERITIES.get(record.severity, 0), "body": {"stringValue": record.body[:TEXT_MAX_CHARS]},
        "attributes": _attributes(record.attributes),
    }  # fmt: skip
    if record.trace_id:
        document["traceId"] = record.trace_id
    if record.span_id:
        document["spanId"] = record.span_id
    return document


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in list(values.items())[:ATTRIBUTES_MAX]]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int) and abs(value) < 1 << 63:
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _NOT_FINITE[str(value)]}
    return {"stringValue": str(value)[:TEXT_MAX_CHARS]}
