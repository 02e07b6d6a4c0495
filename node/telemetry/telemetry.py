"""The telemetry of one node: its log and the spans of requests, decisions and rollouts, to the collector it is told of.

Off unless `[telemetry]` in node.toml names a collector. What is sent was written into the log or the chain before, so
that a visitor's request waits for nothing here.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from node.config import TelemetrySettings
from node.reaching import Reaching, Sending
from node.telemetry.exporter import Exporter
from node.telemetry.lines import fields_of, is_span, record_of, span_of
from node.telemetry.otlp import LogRecord, Signal, body_of
from node.telemetry.rollouts import RolloutSpans
from protocols.core import NodeCore
from protocols.machine import Now
from runtime.services.spans import SPAN_MARK, Span, Value

FLUSH_S = 2.0
"""For what is left when the node ends."""

SPAN_MAX_BYTES = 4_096
"""Of one span that a worker made."""

_spans = msgspec.json.Decoder(Span)


class Telemetry:
    """See the module. Its parts are made in any case; nothing is kept or sent by a node without settings."""

    def __init__(
        self, settings: TelemetrySettings | None, fields: Mapping[str, str], core: NodeCore, clock: Callable[[], Now],
        *, name: str, version: str,
    ) -> None:  # fmt: skip
        """Take the settings, the HTTP fields that the collector asks for, what is read, and what the node calls itself."""
        self._clock, self._rollouts = clock, RolloutSpans(core)
        self._reaching: Reaching | None = None
        self._resource: dict[str, Value] = {
            "service.name": "freehold", "service.instance.id": core.node, "service.version": version,
            "host.name": name, "freehold.mesh": core.trust.mesh.hex(),
        }  # fmt: skip
        self._version = version
        self.traces = self._exporter(settings, fields, "traces") if settings and settings.traces > 0 else None
        self.logs = self._exporter(settings, fields, "logs") if settings and settings.logs else None

    def _exporter(self, settings: TelemetrySettings, fields: Mapping[str, str], signal: Signal) -> Exporter:
        url = f"{settings.otlp.rstrip('/')}/v1/{signal}"
        return Exporter(signal, url, fields, functools.partial(self._body, signal), self._post)

    @property
    def exporters(self) -> tuple[Exporter, ...]:
        """One for each signal that is sent."""
        return tuple(exporter for exporter in (self.traces, self.logs) if exporter is not None)

    def problems(self) -> list[str]:
        """What an operator should look at, each with what to do."""
        return [
            f"the collector does not take {exporter.name} ({exporter.problem}): {exporter.waiting} wait, "
            f"{exporter.dropped} were dropped; compare [telemetry] in node.toml with the collector's settings"
            for exporter in self.exporters
            if exporter.problem
        ]

    def take_line(self, line: bytes) -> None:
        """Take one line of the log."""
        if self.logs is not None:
            self.logs.put(line)
        if self.traces is not None and b'"span_id":' in line and b'"recorded":false' not in line:
            self.traces.put(line)

    def take_span(self, marked: bytes) -> None:
        """Take one span of a worker."""
        if self.traces is not None and len(marked) <= SPAN_MAX_BYTES:
            self.traces.put(marked)

    def hear(self, event: Any) -> None:
        """Take one of the core's notices."""
        if self.traces is not None:
            for span in self._rollouts.hear(event, self._clock().wall_ms):
                self.traces.put(SPAN_MARK + msgspec.json.encode(span))

    async def run(self) -> None:
        """Send what comes until cancelled; what is left then is sent for a moment more."""
        if not self.exporters:
            return
        self._rollouts.begin()
        self._reaching = Reaching()
        try:
            async with asyncio.TaskGroup() as group:
                for exporter in self.exporters:
                    group.create_task(exporter.run())
        finally:
            await asyncio.gather(*(exporter.flush(FLUSH_S) for exporter in self.exporters))
            await self._reaching.close()

    def _body(self, signal: Signal, items: Sequence[bytes]) -> bytes:
        entries: list[Span | LogRecord] = []
        for item in items:
            answer = _span(item) if signal == "traces" else _record(item)
            if answer is not None:
                entries.append(answer)
        return body_of(self._resource, self._version, signal, entries) if entries else b""

    async def _post(self, url: str, body: bytes, fields: Mapping[str, str]) -> Sending:
        assert self._reaching is not None, "it is sent while it runs"
        return await self._reaching.post(url, body, dict(fields), private=True)


def _span(item: bytes) -> Span | None:
    if item.startswith(SPAN_MARK):
        return _decoded(item[len(SPAN_MARK) :])
    fields = fields_of(item)
    return span_of(fields) if fields is not None and is_span(fields) else None


def _decoded(data: bytes) -> Span | None:
    try:
        return _spans.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _record(item: bytes) -> LogRecord | None:
    fields = fields_of(item)
    return record_of(fields) if fields is not None else None
