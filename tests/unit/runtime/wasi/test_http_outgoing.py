"""wasi:http/outgoing-handler as a guest meets it, over a real connection: what goes out beside what the guest wrote."""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec
import pytest

from runtime.call import GuestCall
from runtime.engine.guest import Guest, GuestServices
from runtime.outbound.client import Outbound
from runtime.providers import Providers
from runtime.services.log_sink import AppLog, LogBuffer, LogOrigin
from runtime.services.spans import CLIENT, SPAN_MARK, CallSpans, Span
from runtime.wasi.http_fields import Fields
from runtime.wasi.http_outgoing import FutureIncomingResponse, outgoing_handler
from runtime.wasi.http_types import OutgoingRequest
from tests.support.runtime.wasm_parts import SilentLog, a_spec, an_exchange
from tests.unit.runtime.outbound.test_outbound import outbound, reading_to_the_end, serve

__all__ = ["outbound", "serve"]
OURS = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
THEIRS = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


@pytest.mark.parametrize(
    ("given", "traces"),
    [((), [OURS]), ((("traceparent", THEIRS),), [THEIRS]), ((("x-traceparent", THEIRS),), [OURS])],
    ids=["continued", "the guest's own", "another field"],
)
def test_a_request_goes_on_with_the_trace_of_the_one_that_is_answered(
    given: tuple[tuple[str, bytes], ...], traces: list[bytes], outbound: Outbound, serve: Any
) -> None:
    came = (("traceparent", OURS), ("tracestate", b"a=b"), ("x-request-id", b"1"), ("cookie", b"secret"))
    assert sent(outbound, serve, given, came) == [b"traceparent: " + trace for trace in traces]


def test_a_request_of_no_trace_begins_none(outbound: Outbound, serve: Any) -> None:
    assert sent(outbound, serve, (), None) == sent(outbound, serve, (), ()) == []


def sent(outbound: Outbound, serve: Any, given: Any, came: Any) -> list[bytes]:
    """The lines about traces and visitors of a request with fields `given`, made while one with fields `came` is answered."""
    seen: list[bytes] = []
    server = serve(reading_to_the_end(seen, b"\r\n\r\n"))
    host = f"up.example:{server.port}"
    spec = a_spec(allow_hosts=(host,), allow_loopback=True, timeout_ms=3000)
    guest = Guest(GuestServices(spec, SilentLog(), Providers(), outbound))
    guest.begin(GuestCall(math.inf), an_exchange(headers=came) if came is not None else None)
    request = OutgoingRequest(Fields(list(given)))
    request.scheme, request.authority = ("HTTP", None), host
    answer = outgoing_handler.functions["handle"](guest, request, None)
    settled(answer)
    names = (b"traceparent:", b"tracestate:", b"x-request-id:", b"cookie:")
    return [line for line in seen[0].split(b"\r\n") if line.lower().startswith(names)]


@pytest.mark.parametrize(
    ("path", "failed"), [(b"200 OK", ""), (b"404 Nothing", "status 404"), (None, "connection-refused")]
)
def test_a_call_to_another_host_has_a_span_that_the_host_goes_on_from(
    path: bytes | None, failed: str, outbound: Outbound, serve: Any
) -> None:
    heard: list[bytes] = []
    server = serve(reading_to_the_end(heard, b"\r\n\r\n", b"HTTP/1.1 " + (path or b"") + b"\r\n\r\n"))
    host = f"up.example:{server.port if path is not None else 1}"
    buffer = LogBuffer()
    spans = CallSpans(AppLog(buffer, LogOrigin("n", "p", "a", "r")))
    spec = a_spec(allow_hosts=(host,), allow_loopback=True, timeout_ms=3000)
    guest = Guest(GuestServices(spec, SilentLog(), Providers(), outbound, spans))
    for came in (OURS, THEIRS):  # the second is not recorded
        guest.begin(GuestCall(math.inf), an_exchange(headers=(("traceparent", came),)))
        request = OutgoingRequest(Fields([]))
        request.scheme, request.authority, request.path_with_query = ("HTTP", None), host, "/secret?token=1"
        settled(outgoing_handler.functions["handle"](guest, request, None))
    (line,), _ = buffer.take(1 << 20)
    span = msgspec.json.decode(line[len(SPAN_MARK) :], type=Span)
    assert (f"00-{span.trace_id}-{span.parent_id}-01".encode(), span.kind, span.name) == (OURS, CLIENT, f"GET {host}")
    assert span.failed == failed
    assert span.attributes.get("http.response.status_code") == (int(path[:3]) if path else None)
    assert b"secret" not in line
    if path is not None:
        assert f"traceparent: 00-{span.trace_id}-{span.span_id}-01\r\n".encode() in heard[0]


def settled(answer: Any) -> None:
    """Wait for what became of a call."""
    assert isinstance(answer, FutureIncomingResponse)
    end_s = time.monotonic() + 5
    while not answer.call.settled:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    time.sleep(0.01)  # it is told of after it is settled
