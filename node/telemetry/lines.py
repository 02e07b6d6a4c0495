"""Lines of the log as log records, and those of answered requests as spans too.

A request costs nothing more for being traced: its line in the log is written anyway and says all that a span says, so
spans are made here, from lines, beside the workers. Attributes have the names of OpenTelemetry's semantic conventions
where there are any. What a line says is a guest's or a client's in part: only values of the right type and form are used.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from node.telemetry.otlp import LogRecord, moment_ns
from runtime.services.spans import SERVER, Span, Value

REQUEST_EVENT = "request"
_TRACE = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN = re.compile(r"(?!0{16})[0-9a-f]{16}")
_OWN_NAMES = {
    "method": "http.request.method", "path": "url.path", "status": "http.response.status_code",
    "bytes_in": "http.request.body.size", "bytes_out": "http.response.body.size", "client": "client.address",
    "project": "freehold.project", "environment": "deployment.environment.name", "app": "freehold.app",
    "release": "freehold.release", "request_id": "freehold.request_id", "outcome": "freehold.outcome",
    "forwarded": "freehold.forwarded", "event": "event.name", "traceback": "exception.stacktrace",
}  # fmt: skip
_APART = frozenset({"time", "level", "node", "message", "trace_id", "span_id", "parent_id", "duration_ms", "recorded"})
"""Fields that are no attributes."""


def fields_of(line: bytes) -> dict[str, Any] | None:
    """Return what a line says, or None if it is no JSON object."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def is_span(fields: dict[str, Any]) -> bool:
    """Whether a line tells of an answered request whose trace is recorded; only the node's own words count."""
    return (
        fields.get("event") == REQUEST_EVENT
        and fields.get("stream") == "host"
        and fields.get("recorded") is not False
        and bool(_id(fields, "trace_id", _TRACE) and _id(fields, "span_id", _SPAN))
    )


def span_of(fields: dict[str, Any]) -> Span | None:
    """Return the span of an answered request; None for a line that is not well formed."""
    ended_ns, spent_ms, status = _at_ns(fields), fields.get("duration_ms"), fields.get("status")
    if ended_ns is None or not isinstance(spent_ms, int | float) or not isinstance(status, int):
        return None
    method = str(fields.get("method", ""))[:16]
    where = "/".join(str(fields[name]) for name in ("project", "app") if fields.get(name))
    return Span(
        trace_id=_id(fields, "trace_id", _TRACE), span_id=_id(fields, "span_id", _SPAN),
        parent_id=_id(fields, "parent_id", _SPAN), name=f"{method} {where}".strip(), kind=SERVER,
        began_ns=ended_ns - max(0, int(spent_ms * 1_000_000)), ended_ns=ended_ns, attributes=_attributes(fields),
        failed=str(fields.get("outcome", "")) or f"status {status}" if status >= 500 else "",
    )  # fmt: skip


def record_of(fields: dict[str, Any]) -> LogRecord | None:
    """Return the log record of a line; None for one that is not well formed."""
    at_ns = _at_ns(fields)
    if at_ns is None:
        return None
    body = fields.get("message")
    if not isinstance(body, str):
        body = str(fields.get("event", ""))
    severity = str(fields.get("level", "info")).lower()
    return LogRecord(
        at_ns, severity, body, _attributes(fields), _id(fields, "trace_id", _TRACE), _id(fields, "span_id", _SPAN)
    )


def _at_ns(fields: dict[str, Any]) -> int | None:
    try:
        return moment_ns(str(fields["time"]))
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def _id(fields: dict[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) and form.fullmatch(value) else ""


def _attributes(fields: dict[str, Any]) -> dict[str, Value]:
    table: dict[str, Value] = {}
    for name, value in fields.items():
        if name not in _APART and isinstance(value, str | int | float):
            table[_OWN_NAMES.get(name, f"freehold.{name}")] = value
    return table
