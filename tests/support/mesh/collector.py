"""A collector of OpenTelemetry on loopback: reads what comes with OpenTelemetry's own messages. Not here: any test."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.mesh.receiver import Received, a_receiver

GZIP = b"\x1f\x8b"
_IDS = frozenset({"traceId", "spanId", "parentSpanId"})


@dataclass
class Collector:
    """What came so far, and where it comes to."""

    url: str
    came: list[Received] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        entries = []
        for received in self.came:
            if received.path == "/v1/traces":
                request = read(received.body, ExportTraceServiceRequest())
                entries += [
                    span for part in request.resource_spans for scope in part.scope_spans for span in scope.spans
                ]
        return entries

    @property
    def records(self) -> list[LogRecord]:
        entries = []
        for received in self.came:
            if received.path == "/v1/logs":
                request = read(received.body, ExportLogsServiceRequest())
                entries += [
                    record
                    for part in request.resource_logs
                    for scope in part.scope_logs
                    for record in scope.log_records
                ]
        return entries


def read(body: bytes, message: Any) -> Any:
    """One exported request, by protobuf's own reader of JSON; a field that it does not know fails the test.

    OTLP writes ids as hex where protobuf's JSON has base64 (OTLP specification, JSON Protobuf encoding).
    """
    text = gzip.decompress(body) if body.startswith(GZIP) else body  # a server may have unpacked it by its field
    return json_format.ParseDict(_with_base64(json.loads(text)), message)


def _with_base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_base64(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(entry)).decode() if key in _IDS else _with_base64(entry)
        for key, entry in value.items()
    }


def attributes(of: Span | LogRecord) -> dict[str, Any]:
    return {attribute.key: plain(attribute.value) for attribute in of.attributes}


def plain(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value"))


@asynccontextmanager
async def a_collector(
    answer: Callable[[Received], tuple[int, dict[str, str]]] = lambda _one: (200, {}),
) -> AsyncIterator[Collector]:
    """Serve one until the test leaves; what it refuses did not come."""
    collector = Collector("")

    def take(one: Received) -> tuple[int, dict[str, str]]:
        status, fields = answer(one)
        if status == 200:
            collector.came.append(one)
        return status, fields

    async with a_receiver(take) as receiver:
        collector.url = receiver.url.removesuffix("/hook")
        yield collector
