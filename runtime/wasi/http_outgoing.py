"""wasi:http/outgoing-handler: requests to the hosts an app lists, and to nothing else.

The request is checked here, on the guest's thread; the connection is made and served by `runtime/outbound/client.py` on the
worker's loop. Source: wasi:http 0.2 WIT. Not here: sockets.
"""

from __future__ import annotations

import time
from typing import Final

from runtime.engine.codecs import Err, Ok
from runtime.engine.guest import Guest, Resource
from runtime.engine.interface import Interface
from runtime.engine.spanned import NAME_MAX_CHARS
from runtime.exchange import TRACEPARENT, ErrorCode, Headers, ResponseHead
from runtime.outbound.client import OutboundCall, OutboundRequest, Settled, Timeouts
from runtime.services.spans import CLIENT, CallSpans, TracePlace, Value, new_span_id
from runtime.wasi.http_types import IncomingResponse, OutgoingRequest, RequestOptions, types
from runtime.wasi.poll import Pollable

NS_PER_S: Final = 1_000_000_000
METHOD_TOLD_MAX_CHARS: Final = 16
"""Of a method in a span: a guest wrote it."""


class FutureIncomingResponse(Resource, wit="future-incoming-response"):
    """An answer that may come."""

    __slots__ = ("call", "taken")

    def __init__(self, call: OutboundCall) -> None:
        super().__init__()
        self.call = call
        self.taken = False

    def dropped(self, guest: Guest) -> None:
        """Nobody waits for the answer; once it was taken, its body lives on by itself."""
        if not self.taken:
            self.call.cancel()


class ResponseReady(Pollable):
    """The answer, or its failure, is here."""

    __slots__ = ()
    parent: FutureIncomingResponse

    def ready(self) -> bool:
        """Whether `get` gives something."""
        return self.parent.call.settled


outgoing_handler: Final = Interface("wasi:http/outgoing-handler")


@outgoing_handler.function("handle")
def _handle(guest: Guest, request: OutgoingRequest, options: RequestOptions | None) -> FutureIncomingResponse | Err:
    spans = guest.services.spans
    place = guest.place() if spans is not None else None
    span_id = new_span_id() if place is not None else ""
    answer = _request(request, options, _fields(guest, request, place, span_id))
    if isinstance(answer, Err):
        return answer
    outbound = guest.services.outbound
    if outbound is None:
        return Err(("HTTP-request-denied", None))
    tell = _teller(spans, place, span_id, answer) if spans is not None and place is not None else None
    started = outbound.start(answer, guest.services.spec, guest.wake, tell)
    if not isinstance(started, OutboundCall):
        if tell is not None:
            tell(None, started)
        return Err(started)
    if request.body is None:
        started.writer.finish()
        started.writer.publish()
    else:
        request.body.bind(started.writer)
        started.writer.publish()
    return FutureIncomingResponse(started)


def _teller(spans: CallSpans, place: TracePlace, span_id: str, request: OutboundRequest) -> Settled:
    """Return what tells of a call once its answer began or failed; any thread calls it."""
    began_ns = time.time_ns()

    def tell(head: ResponseHead | None, failure: ErrorCode | None) -> None:
        method, host = request.method[:METHOD_TOLD_MAX_CHARS], request.authority[:NAME_MAX_CHARS]
        attributes: dict[str, Value] = {"http.request.method": method, "server.address": host}
        if head is not None:
            attributes["http.response.status_code"] = head.status
        failed = failure[0] if failure is not None else f"status {head.status}" if head and head.status >= 400 else ""
        spans.add(place, span_id, f"{method} {host}", CLIENT, began_ns, attributes, failed)

    return tell


def _fields(guest: Guest, request: OutgoingRequest, place: TracePlace | None, span_id: str) -> Headers:
    """The fields that the guest gave, and its place in the trace of the request it answers, unless it says another.

    Where the call has a span, that is its place.

    `tracestate` stays here: it is whatever a visitor wrote, and the other side is not the visitor's.
    """
    own = request.fields.frozen()
    if guest.exchange is None or any(name == TRACEPARENT for name, _ in own):
        return own
    traceparent = f"00-{place.trace_id}-{span_id}-01".encode() if place is not None else guest.exchange.traceparent
    return (*own, (TRACEPARENT, traceparent)) if traceparent else own


def _request(request: OutgoingRequest, options: RequestOptions | None, fields: Headers) -> OutboundRequest | Err:
    scheme = request.scheme[0] if request.scheme is not None else "HTTPS"
    if scheme not in {"HTTP", "HTTPS"}:
        return Err(("HTTP-protocol-error", None))
    if not request.authority:
        return Err(("HTTP-request-URI-invalid", None))
    method = request.method[1] if request.method[0] == "other" else request.method[0].upper()
    timeouts = options or RequestOptions()
    return OutboundRequest(
        method=method,
        tls=scheme == "HTTPS",
        authority=request.authority,
        target=request.path_with_query or "/",
        headers=fields,
        content_length=request.body.expected if request.body is not None else 0,
        timeouts=Timeouts(
            _seconds(timeouts.connect_ns), _seconds(timeouts.first_byte_ns), _seconds(timeouts.between_bytes_ns)
        ),
    )


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / NS_PER_S


@types.function("[method]future-incoming-response.subscribe")
def _subscribe(guest: Guest, this: FutureIncomingResponse) -> Pollable:
    return ResponseReady(this)


@types.function("[method]future-incoming-response.get")
def _get(guest: Guest, this: FutureIncomingResponse) -> Ok | Err | None:
    if not this.call.settled:
        return None
    if this.taken:
        return Err()
    this.taken = True
    failure: ErrorCode | None = this.call.failure
    if failure is not None:
        return Ok(Err(failure))
    assert this.call.head is not None
    return Ok(Ok(IncomingResponse(this.call.head.status, this.call.head.headers, this.call.body)))
