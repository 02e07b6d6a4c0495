"""Spans: what a trace says of one piece of work; and those of what a guest has its node do, calls of stores and of hosts.

A worker encodes a span once and puts it beside its log lines, marked by a first byte that no line has; the daemon hands
it on to its collector and keeps none. Nothing is made for a request whose trace is not recorded, or on a node without a
collector. Not here: the wire format of collectors (`node/telemetry/otlp.py`).
"""

from __future__ import annotations

import random
import threading
import time
from typing import Final

import msgspec

from runtime.services.log_sink import Allowance, AppLog

Value = str | int | float | bool
INTERNAL: Final = 1
SERVER: Final = 2
CLIENT: Final = 3
PRODUCER: Final = 4
"""Kinds of spans."""

SPAN_MARK: Final = b"\0"
"""Begins a span among log lines, which are JSON objects."""

SPANS_OF_CALL_MAX: Final = 128
"""Spans of one request: a guest that reads a thousand keys shows how it begins."""

SPANS_PER_S: Final = 500.0
SPANS_BURST: Final = 2000.0
_BYTES_PER_S: Final = 256 * 1024.0
_BYTES_BURST: Final = 1024 * 1024.0


class Span(msgspec.Struct, frozen=True):
    """One span; times in ns since the Unix epoch, `parent_id` "" at the head of a trace, `failed` says why or ""."""

    trace_id: str
    span_id: str
    name: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Value]
    parent_id: str = ""
    kind: int = INTERNAL
    failed: str = ""


class TracePlace(msgspec.Struct, frozen=True):
    """Where work hangs in a recorded trace; ids as hex."""

    trace_id: str
    span_id: str


def place_of(traceparent: bytes) -> TracePlace | None:
    """Return the place that the host gave a request; None if there is none or its trace is not recorded."""
    parts = traceparent.decode("ascii", "replace").split("-")
    if len(parts) != 4 or not int(parts[3] or "0", 16) & 1:
        return None
    return TracePlace(parts[1], parts[2])


def new_span_id() -> str:
    """Return a random id of a span."""
    return f"{random.getrandbits(64) or 1:016x}"


class CallSpans:
    """The spans of one app on their way out, bounded in rate; any thread puts."""

    def __init__(self, log: AppLog) -> None:
        """Take the app's log: its spans go the same way."""
        self._put, origin = log.append_span, log.origin
        self._whose: dict[str, Value] = {
            "freehold.project": origin.project, "deployment.environment.name": origin.environment,
            "freehold.app": origin.app,
        }  # fmt: skip
        self._lock = threading.Lock()
        self._allowance = Allowance(SPANS_PER_S, SPANS_BURST, _BYTES_PER_S, _BYTES_BURST)
        self.dropped = 0
        """Beyond the rate since the last that was told."""
        self._encode = msgspec.json.Encoder().encode

    def add(
        self,
        place: TracePlace,
        span_id: str,
        name: str,
        kind: int,
        began_ns: int,
        attributes: dict[str, Value],
        failed: str,
    ) -> None:
        """Tell of work that ends now; what is beyond the app's rate is counted in the next span that is told."""
        ended_ns = time.time_ns()
        with self._lock:
            if not self._allowance.admit(time.monotonic()):
                self.dropped += 1
                return
            attributes |= self._whose
            if self.dropped:
                attributes["freehold.spans_dropped"], self.dropped = self.dropped, 0
            line = SPAN_MARK + self._encode(
                Span(place.trace_id, span_id, name, began_ns, ended_ns, attributes, place.span_id, kind, failed)
            )
            self._allowance.charge(len(line))
        self._put(line)
