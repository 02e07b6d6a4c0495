"""wasi:http/outgoing-handler: requests to the hosts an app lists, and to nothing else.

The request is checked here, on the guest's thread; the connection is made and served by `runtime/outbound/client.py` on the
worker's loop. Source: wasi:http 0.2 WIT. Not here: sockets.
"""

from __future__ import annotations

from typing import Final

from runtime.engine.codecs import Err, Ok
from runtime.engine.guest import Guest, Resource
from runtime.engine.interface import Interface
from runtime.exchange import TRACEPARENT, ErrorCode, Headers
from runtime.outbound.client import OutboundCall, OutboundRequest, Timeouts
from runtime.wasi.http_types import IncomingResponse, OutgoingRequest, RequestOptions, types
from runtime.wasi.poll import Pollable

NS_PER_S: Final = 1_000_000_000


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
    answer = _request(request, options, _fields(guest, request))
    if isinstance(answer, Err):
        return answer
    outbound = guest.services.outbound
    if outbound is None:
        return Err(("HTTP-request-denied", None))
    started = outbound.start(answer, guest.services.spec, guest.wake)
    if not isinstance(started, OutboundCall):
        return Err(started)
    if request.body is None:
        started.writer.finish()
        started.writer.publish()
    else:
        request.body.bind(started.writer)
        started.writer.publish()
    return FutureIncomingResponse(started)


def _fields(guest: Guest, request: OutgoingRequest) -> Headers:
    """The fields that the guest gave, and its place in the trace of the request it answers, unless it says another.

    `tracestate` stays here: it is whatever a visitor wrote, and the other side is not the visitor's.
    """
    own = request.fields.frozen()
    if guest.exchange is None or any(name == TRACEPARENT for name, _ in own):
        return own
    traceparent = guest.exchange.traceparent
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
