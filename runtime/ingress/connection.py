"""One client connection: HTTP/1.1 in and out (RFC 9112), streaming both ways between the socket and guests.

This adds the time limits that keep one client from costing more than its share, and carries body bytes without ever
holding a whole body. One task per connection answers its requests in order. A client that half closes is answered what
it asked for whole; one that is gone has its guest cancelled. Not here: what the bytes say (`request_parser.py`),
accepting, or sweeping for overdue connections (`front.py`); which guest runs (`dispatch.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from enum import Enum
from typing import Final, assert_never, cast

from runtime.exchange import BodyFailure, BodyTaker, Exchange, Headers, RequestHead, ResponseHead
from runtime.ingress.answer import GuestAnswer
from runtime.ingress.dispatch import HostedApp, Ticket
from runtime.ingress.event_answer import answer_of
from runtime.ingress.faces import Carried, Front, Socket
from runtime.ingress.forwarding import Relayed, forward, has_been_forwarded
from runtime.ingress.incoming import Incoming
from runtime.ingress.proofs import ALPN, HTTP_PREFIX
from runtime.ingress.request_head import Client, GuestRequest, client_of, field_name, guest_request
from runtime.ingress.request_parser import RequestParser, StopParsing
from runtime.ingress.response_head import (
    BODY_TOO_LARGE,
    BUSY,
    FOREIGN_HOST,
    MALFORMED,
    NO_ROUTE,
    TIMED_OUT,
    IngressProblem,
    frame_chunks,
    frame_head,
    problem_response,
)
from runtime.ingress.routing import Elsewhere
from runtime.ingress.target import address_of, is_from_here
from runtime.ingress.websocket import FORGED_EVENTS, event_problem, is_event_call, serve_socket, wants_socket
from runtime.outcome import Cancelled, DeadlineExceeded

BODY_HELD_MAX_BYTES: Final = 128 * 1024
"""Parsed body bytes waiting for the exchange; above it the socket is not read, and the client's window closes."""

TOLD_AFTER_S: Final = 1.0
"""The epoch ends a guest within a tick of its deadline; this much later something else holds it."""

ABANDONED_AFTER_S: Final = 3.0
"""A guest that holds its thread this far past its deadline is answered for; the daemon replaces the worker."""


class Phase(Enum):
    """What the connection waits for; the ingress holds each against its own limit."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"
    LINGER = "linger"


class ClientConnection(asyncio.Protocol):
    """See the module. The ingress makes one per accepted socket and runs `serve` as its task."""

    __slots__ = (
        "_answering",
        "_broken",
        "_current",
        "_early",
        "_ended_s",
        "_exchange",
        "_next",
        "_parser",
        "_parsing",
        "_pending",
        "_ticket",
        "_waited_s",
        "blocked_since_s",
        "client",
        "closing",
        "drained",
        "forwarded",
        "ingress",
        "phase",
        "phase_since_s",
        "reading",
        "socket",
        "transport",
    )  # fmt: skip

    def __init__(self, ingress: Front, early: bytes = b"", waited_s: float = 0.0) -> None:
        """Take the front door, and for a connection that another engine began: what it read, and how long that took."""
        self.ingress = ingress
        self._early = early
        self._waited_s = waited_s
        self._parser = RequestParser(self, ingress.settings)
        self._pending: deque[Incoming | IngressProblem] = deque()
        self._parsing: Incoming | None = None
        self._current: Incoming | None = None
        self._exchange: Exchange | None = None
        self._answering: GuestAnswer | None = None
        self._ticket: Ticket | None = None
        self.forwarded: Carried | None = None
        self.socket: Socket | None = None
        self._next: asyncio.Future[None] | None = None
        self.drained: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._broken = False
        self._ended_s = 0.0
        self.reading = True
        self.closing = False
        self.client = Client("", False)
        self.blocked_since_s = 0.0
        self.phase = Phase.IDLE
        self.phase_since_s = time.monotonic()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember who it is; the ingress starts `serve`."""
        self.transport = cast(asyncio.Transport, transport)
        secure = transport.get_extra_info("sslcontext") is not None
        self.client = client_of(transport.get_extra_info("peername"), self.ingress.proxies, secure=secure)
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)
            self.phase_since_s -= self._waited_s

    def data_received(self, data: bytes) -> None:
        """Parse what came; stop at the first fault and answer it."""
        if self.socket is not None:
            self.socket.feed(data)
            return
        if self.closing or self._broken or self.phase is Phase.LINGER:
            return
        if self.phase is Phase.IDLE:
            self._enter(Phase.HEAD)
        elif self.phase is Phase.BODY:  # the idle limit begins anew; the limit on a head does not
            self._enter(Phase.BODY)
        try:
            self._parser.feed(data)
        except StopParsing as refusal:
            self._refuse(refusal.problem)
        else:
            if len(self._pending) > 1 or (self._parsing is not None and self._parsing.held > BODY_HELD_MAX_BYTES):
                self.read_no_more()

    def eof_received(self) -> bool:
        """The client sends no more: what it asked for whole is answered all the same. With TLS it is gone."""
        if self.client.secure or self.closing or self.phase is Phase.LINGER or self.socket is not None:
            return False
        if self._parsing is not None or self._parser.in_head:
            self._refuse(MALFORMED)
        self._ended_s = time.monotonic()
        return self.busy

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone: its guest stops, unless it has answered, and `serve` comes to its end."""
        self.closing = True
        if self.socket is not None:
            self.socket.lost()
        if self._answering is None or not self._answering.whole:
            self._cancel_current()  # who left with a whole answer takes nothing from the work that goes on behind it
        parsing = self._parsing
        if parsing is not None and not parsing.complete:
            parsing.failure = BodyFailure.CONNECTION_LOST
            parsing.wake()
        for waiter in (self._next, self.drained):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self.drained = self.ingress.loop.create_future()
        self.blocked_since_s = time.monotonic()

    def resume_writing(self) -> None:
        """The socket takes more."""
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)
        self.drained = None

    # --- what the parser tells ----------------------------------------------------------------------------------------

    def on_request(self, incoming: Incoming) -> None:
        """The head is whole: queue the request."""
        self._parsing = incoming
        self._pending.append(incoming)
        if self.phase is Phase.HEAD:
            self._enter(Phase.ANSWER)
        if self._next is not None and not self._next.done():
            self._next.set_result(None)

    def on_data(self, data: bytes) -> None:
        """A piece of the body."""
        incoming = self._parsing
        assert incoming is not None
        incoming.bytes_in += len(data)
        if not incoming.discard:
            incoming.chunks.append(data)
            incoming.held += len(data)
            incoming.wake()

    def on_end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        """The body ended."""
        incoming, self._parsing = self._parsing, None
        assert incoming is not None
        incoming.trailers = trailers
        incoming.complete = True
        incoming.wake()
        if self.phase is Phase.BODY:
            self._enter(Phase.ANSWER)

    # --- what the ingress calls ---------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Answer requests one after another until the connection ends; never raises but on cancellation."""
        try:
            while await self._serve_next():
                pass
        except Exception:  # a defect of ours must not end the worker, which serves others
            self.ingress.log_defect("connection")
            self.transport.abort()
        finally:
            if not self.transport.is_closing():
                self.transport.close()

    async def _serve_next(self) -> bool:
        incoming = await self._take()
        if incoming is None:
            return False
        if isinstance(incoming, IngressProblem):
            self.ingress.count_refused(incoming)
            self.send_problem(incoming, "-", keep_alive=False, method="GET", http_1_0=False)
            await self._linger(goes_on=True)
            return False
        self._current = incoming
        goes_on = incoming.keep_alive
        keep_alive = await self._answer(incoming)
        self._current = None
        if not incoming.complete:
            incoming.discard = True
            incoming.wake()
            keep_alive = False
        if not keep_alive:
            await self._linger(goes_on=goes_on)
            return False
        if not self._pending:
            if self.ingress.draining or self._ended_s:
                return False
            self._enter(Phase.HEAD if self._parser.in_head else Phase.IDLE)
        self.read_more()
        return True

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._current is not None or bool(self._pending)

    def expire(self) -> None:
        """The current phase took too long: answer if an answer is still possible, else break the connection."""
        match self.phase:
            case Phase.IDLE:
                self.closing = True
                self.transport.close()
            case Phase.HEAD:
                self._refuse(TIMED_OUT)
            case Phase.BODY:
                incoming = self._parsing
                self._enter(Phase.ANSWER)
                if incoming is not None and not incoming.discard:
                    incoming.failure = BodyFailure.TIMED_OUT
                    incoming.problem = TIMED_OUT
                    incoming.wake()
                    self._cancel_current()
            case Phase.ANSWER | Phase.LINGER:
                self.closing = True
                self.transport.abort()

    def check_overdue(self, now_s: float) -> None:
        """End a guest that outlives its deadline: it is told once more, then answered without it.

        A client that half closed is believed to wait for a while; after that it has left, for the two look alike.
        """
        if self.socket is not None:
            self.socket.tick(now_s)
        answering = self._answering
        waited_s = now_s - self._ended_s if self._ended_s else 0.0
        if answering is not None and not answering.begun and waited_s > self.ingress.settings.half_closed_s:
            self.transport.abort()
        exchange = self._exchange
        if exchange is None or now_s < exchange.call.deadline_s + TOLD_AFTER_S:
            return
        exchange.cancel()
        if now_s > exchange.call.deadline_s + ABANDONED_AFTER_S and self._ticket is not None:
            exchange.close(DeadlineExceeded(self._ticket.app.spec.timeout_ms))

    def close_idle(self) -> None:
        """Draining: close if nothing is under way; else the connection closes after its answer."""
        if self.socket is not None:
            self.socket.restart()
        if not self.busy and self.phase in {Phase.IDLE, Phase.LINGER}:
            self.closing = True
            self.transport.close()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _take(self) -> Incoming | IngressProblem | None:
        while not self._pending:
            if self.closing:
                return None
            self._next = self.ingress.loop.create_future()
            await self._next
            self._next = None
        return self._pending.popleft()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.phase_since_s = self.ingress.loop.time()

    def _refuse(self, problem: IngressProblem) -> None:
        """A fault in the bytes: no more is parsed, and the answer comes after those of earlier requests."""
        self._broken = True
        self._stop_parsing(problem)
        self.read_no_more()

    def _stop_parsing(self, problem: IngressProblem) -> None:
        parsing = self._parsing
        if parsing is not None and not parsing.complete:
            parsing.keep_alive = False
            parsing.problem = parsing.problem or problem
            parsing.failure = BodyFailure.MALFORMED
            parsing.wake()
            if parsing is self._current:
                self._cancel_current()
        else:
            self._pending.append(problem)
            if self._next is not None and not self._next.done():
                self._next.set_result(None)
        self._parsing = None
        self._enter(Phase.ANSWER)

    def read_no_more(self) -> None:
        """Leave what the client sends to its own buffers."""
        if self.reading and not self._ended_s and not self.transport.is_closing():
            self.reading = False
            self.transport.pause_reading()

    def read_more(self) -> None:
        """Read the client again."""
        if not self.reading and not self._ended_s and not self.transport.is_closing():
            self.reading = True
            self.transport.resume_reading()

    async def _linger(self, *, goes_on: bool) -> None:
        """Half close, then read and drop what still comes, so that a reset does not overtake the answer.

        Nothing comes from a client that has sent a whole request and asked to close; one that `goes_on` may be sending.
        """
        self._enter(Phase.LINGER)
        if not goes_on and self._parsing is None and not self._pending and self.reading:
            return
        if self.transport.is_closing() or self._ended_s:
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.read_more()
        self._next = self.ingress.loop.create_future()
        await self._next  # until connection_lost; the ingress expires the phase

    # --- answering ----------------------------------------------------------------------------------------------------

    async def _answer(self, incoming: Incoming) -> bool:
        """Answer one request; return whether the connection may go on."""
        ingress = self.ingress
        self._enter(Phase.BODY if not incoming.complete else Phase.ANSWER)
        incoming.since_s = time.monotonic()  # a request sent ahead does not pay for those before it
        request = guest_request(incoming.headers, self.client, ingress.identifiers)
        authority, path, problem = address_of(incoming)
        if problem is None and path.startswith(HTTP_PREFIX) and self._prove(incoming, request, path):
            return incoming.keep_alive and incoming.complete and not ingress.draining
        outcome = ingress.routes.find(authority, path.partition("?")[0]) if problem is None else None
        if problem is not None:
            incoming.keep_alive = False  # who cannot say where to may be taken otherwise by what stands between
        elif ingress.settings.local_only and not is_from_here(incoming, self.client, authority, ingress.routes.claims):
            problem, outcome = FOREIGN_HOST, None
        problem = incoming.problem or problem or self._of_socket(incoming, request, outcome, (authority, path))
        if problem is None and outcome is not None and wants_socket(incoming) and _may_be_socket(outcome):
            problem = await serve_socket(self, incoming, request, outcome, (authority, path))
            if problem is None:
                return False
        app = outcome if isinstance(outcome, HostedApp) else None
        if isinstance(outcome, Elsewhere):
            ended = problem or await forward(self, incoming, request, outcome, (authority, path))
            match ended:
                case Relayed(keep_alive):
                    return keep_alive
                case IngressProblem():
                    return self._refuse_request(incoming, request, None, ended, path)
                case HostedApp():
                    app = ended
                case _:
                    assert_never(ended)
        if app is not None and problem is None and _too_large(incoming, app):
            problem = BODY_TOO_LARGE
        if app is None or problem is not None:
            return self._refuse_request(incoming, request, app, problem or NO_ROUTE, path)
        head = RequestHead(incoming.method, request.scheme, authority, path, request.headers)
        exchange = Exchange(head, deadline_s=incoming.since_s + app.timeout_s, loop=ingress.loop)
        ticket = Ticket(app, exchange, incoming.since_s, request.request_id, request.trace_id)
        self._exchange, self._ticket = exchange, ticket
        feeding = await self._feed_first(incoming, exchange)
        if not ingress.dispatcher.submit(ticket):
            self._exchange = self._ticket = None
            exchange.body.close()
            return self._refuse_request(incoming, request, app, BUSY, path)
        if feeding:
            self.tell_continue(incoming)
            ingress.tasks.create_task(self.feed(incoming, exchange.body, app.limits.request_body_max_bytes))
        answer = self._answering = answer_of(self, incoming, request, app)
        try:
            keep_alive = await answer.relay(exchange)
        finally:
            self._exchange = self._ticket = self._answering = None
        ingress.access(
            incoming, request, app, path, status=answer.status, bytes_out=answer.bytes_out, outcome=answer.outcome,
            closed_s=exchange.closed_s,
        )  # fmt: skip
        return keep_alive

    def _of_socket(
        self, incoming: Incoming, request: GuestRequest, found: HostedApp | Elsewhere | None, address: tuple[str, str]
    ) -> IngressProblem | None:
        """Events of a WebSocket are a node's word: from another node an app hears what it may, from a client nothing."""
        if found is None or not is_event_call(incoming) or not _may_be_socket(found):
            return None
        if isinstance(found, HostedApp) and has_been_forwarded(incoming, self.client.address):
            return event_problem(found, request.headers, *address, secure=request.scheme == "https")
        return FORGED_EVENTS

    @property
    def quiet(self) -> bool:
        """Whether nothing came behind the request that is answered."""
        return not self._pending and not self._parser.in_head

    def _prove(self, incoming: Incoming, request: GuestRequest, path: str) -> bool:
        """Answer a certificate authority, if it asks for a challenge that is open; else it is a visitor's request."""
        body = self.ingress.proofs.answer(path.partition("?")[0])
        if body is None or incoming.problem is not None:
            return False
        keep_alive = incoming.keep_alive and incoming.complete and not self.ingress.draining
        head = ResponseHead(200, (("content-type", b"application/octet-stream"),))
        own = self.ingress.own_fields(request.request_id, None)
        self._send_own(head, body, own, keep_alive=keep_alive, method=incoming.method, http_1_0=incoming.http_1_0)
        self.ingress.access(
            incoming, request, None, path, status=200, bytes_out=len(body), outcome=None, forwarded="challenge"
        )
        return True

    async def _feed_first(self, incoming: Incoming, exchange: Exchange) -> bool:
        """Give the guest what is already here, before it starts; return whether more is to come."""
        if incoming.complete and incoming.held <= BODY_HELD_MAX_BYTES:
            for chunk in incoming.chunks:
                await exchange.body.feed(chunk)
            incoming.chunks.clear()
            exchange.body.feed_end(_trailers(incoming))
            return False
        return True

    def tell_continue(self, incoming: Incoming) -> None:
        """Have a client that asked first send its body (RFC 9110, 10.1.1)."""
        if incoming.expects and not incoming.http_1_0 and not incoming.bytes_in:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def feed(self, incoming: Incoming, body: BodyTaker, max_bytes: int) -> None:
        """Carry the body to whoever answers, as it comes."""
        try:
            await self._carry(incoming, body, max_bytes)
        except Exception:  # a defect of ours must not end the worker, which serves others
            self.ingress.log_defect("body")
            self.transport.abort()

    async def _carry(self, incoming: Incoming, body: BodyTaker, max_bytes: int) -> None:
        """Carry the body to the guest until it ends, fails, or the guest wants no more."""
        while True:
            while incoming.chunks:
                chunk = incoming.chunks.popleft()
                incoming.held -= len(chunk)
                if incoming.held <= BODY_HELD_MAX_BYTES // 2 and len(self._pending) <= 1 and not incoming.problem:
                    self.read_more()
                if not await body.feed(chunk):
                    incoming.discard = True
                    incoming.chunks.clear()
                    return
                if incoming.bytes_in > max_bytes:
                    incoming.problem = BODY_TOO_LARGE
                    body.feed_failure(BodyFailure.TOO_LARGE)
                    self._cancel_current()
                    return
            if incoming.failure is not None:
                body.feed_failure(incoming.failure)
                return
            if incoming.complete:
                body.feed_end(_trailers(incoming))
                return
            if incoming.discard:
                return
            incoming.waiter = self.ingress.loop.create_future()
            await incoming.waiter
            incoming.waiter = None

    def _cancel_current(self) -> None:
        """Stop the guest, or close the exchange for it if it never began; give up what another node answers."""
        if self.forwarded is not None:
            self.forwarded.cancel()
        exchange = self._exchange
        if exchange is None:
            return
        exchange.cancel()
        if self._ticket is not None and self.ingress.dispatcher.withdraw(self._ticket, "cancelled"):
            exchange.close(Cancelled())

    def _refuse_request(
        self, incoming: Incoming, request: GuestRequest, app: HostedApp | None, problem: IngressProblem, path: str
    ) -> bool:
        keep_alive = incoming.keep_alive and incoming.complete and not self.ingress.draining
        size = self.send_problem(
            problem,
            request.request_id,
            keep_alive=keep_alive,
            method=incoming.method,
            http_1_0=incoming.http_1_0,
            release=app.digest if app is not None else None,
        )
        self.ingress.access(incoming, request, app, path, status=problem.status, bytes_out=size, outcome=None)
        return keep_alive

    def send_problem(
        self,
        problem: IngressProblem,
        request_id: str,
        *,
        keep_alive: bool,
        method: str,
        http_1_0: bool,
        release: str | None = None,
    ) -> int:
        """Write one of the node's own answers; return its body's size."""
        head, body = problem_response(problem, request_id)
        own = self.ingress.own_fields(request_id, release)
        self._send_own(head, body, own, keep_alive=keep_alive, method=method, http_1_0=http_1_0)
        return len(body)

    def _send_own(
        self, head: ResponseHead, body: bytes, own: bytes, *, keep_alive: bool, method: str, http_1_0: bool
    ) -> None:
        data, framing = frame_head(
            head, own, method=method, http_1_0=http_1_0, keep_alive=keep_alive, whole_bytes=len(body), trailers=False
        )
        if not self.transport.is_closing():
            self.transport.write(data + frame_chunks(framing, (body,)))

    @property
    def proves(self) -> bool:
        """Whether the client is a certificate authority that has seen what it asked for over TLS (RFC 8737)."""
        tls = self.transport.get_extra_info("ssl_object")
        return tls is not None and tls.selected_alpn_protocol() == ALPN


def _trailers(incoming: Incoming) -> Headers:
    if not incoming.trailers:
        return ()
    return tuple((field_name(name), value) for name, value in incoming.trailers)


def _may_be_socket(found: HostedApp | Elsewhere) -> bool:
    return isinstance(found, Elsewhere) or bool(found.spec.websocket)


def _too_large(incoming: Incoming, app: HostedApp) -> bool:
    return max(incoming.length or 0, incoming.bytes_in) > app.limits.request_body_max_bytes
