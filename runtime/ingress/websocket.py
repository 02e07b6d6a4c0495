"""One WebSocket (RFC 6455): the ingress ends it, and each message is a call of the app, wherever the app runs now.

So a release changes behind an open socket, which stays with the node that the client reached; when that node stops, the
client is told so (1012) and comes to another. Messages of one socket are handed over one after another; while they wait,
no more is read. Frames are read by `websockets`, whose conformance is its own; compression is not offered. A handshake of
a foreign origin, a message too long, text that is no UTF-8, a client that is too slow, silent or gone end the socket with the
code that says so. Not here: what an app hears and says (socket_events.py), and other sockets (topics.py).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import codecs
import secrets
import time
from collections import deque
from dataclasses import replace
from typing import Final

from websockets.exceptions import ProtocolError
from websockets.frames import OP_BINARY, OP_CLOSE, OP_CONT, OP_PING, OP_TEXT, Frame
from websockets.protocol import SERVER, Protocol, State
from websockets.utils import accept_key

from runtime.exchange import Headers, RequestHead
from runtime.ingress.app_call import AppReply, call_app
from runtime.ingress.dispatch import HostedApp
from runtime.ingress.faces import Line
from runtime.ingress.forwarding import PUBLISHED
from runtime.ingress.incoming import Incoming
from runtime.ingress.request_head import GuestRequest, field_name
from runtime.ingress.response_head import IngressProblem
from runtime.ingress.routing import Elsewhere, normal_host
from runtime.ingress.socket_events import (
    MEDIA_TYPE,
    REPLY_MAX_BYTES,
    BadEventsError,
    SocketEvent,
    read_events,
    read_publication,
    read_topic,
    write_events,
)
from runtime.ingress.topics import EVERYWHERE, HERE, Publication

MESSAGE_MAX_BYTES: Final = 256 * 1024
WAITING_MAX: Final = 32
WAITING_MAX_BYTES: Final = 2 * MESSAGE_MAX_BYTES
"""Messages of one socket that its app has not taken; above it the socket is not read."""

UNSENT_MAX_BYTES: Final = 1 << 20
"""What a client may leave unread of what topics say to it; one that leaves more is given up (1013)."""

SOCKETS_MAX: Final = 1024
"""Of one worker: half of its connections stay for requests."""

TOPICS_MAX: Final = 32
"""Of one socket."""

PING_AFTER_S: Final = 25.0
SILENT_MAX_S: Final = 60.0
CLOSING_MAX_S: Final = 5.0

PROTOCOL_ERROR, TOO_BIG, NO_UTF8, POLICY, FAILED, RESTART, TRY_LATER = 1002, 1009, 1007, 1008, 1011, 1012, 1013

NO_SOCKET = IngressProblem(
    404, "no-websocket", "This app takes no WebSocket here.", 'Set websocket = "/PATH" for it in freehold.toml.'
)
BAD_HANDSHAKE = IngressProblem(400, "bad-handshake", "The request is no WebSocket handshake (RFC 6455, 4.2.1).")
BAD_VERSION = IngressProblem(426, "websocket-version", "WebSockets here have version 13.")
FOREIGN_ORIGIN = IngressProblem(
    403, "foreign-origin", "This app takes no WebSocket from pages of that origin.",
    'Add the origin to websocket_origins of the app in freehold.toml.',
)  # fmt: skip
SOCKETS_FULL = IngressProblem(503, "sockets-full", "This node holds as many WebSockets as it may.", "Try again.", 5)
FORGED_EVENTS = IngressProblem(403, "forged-events", "Events of a WebSocket come from the node alone.")


def wants_socket(incoming: Incoming) -> bool:
    """Whether a request asks to become a WebSocket."""
    named = {field_name(name): value.lower() for name, value in incoming.headers if len(name) in {7, 10}}
    return b"websocket" in named.get("upgrade", b"") and b"upgrade" in named.get("connection", b"")


def is_event_call(incoming: Incoming) -> bool:
    """Whether a request says that it carries a WebSocket's events."""
    kinds = [value for name, value in incoming.headers if len(name) == 12 and name.lower() == b"content-type"]
    return any(MEDIA_TYPE.encode() in value.lower() for value in kinds)


def event_problem(
    app: HostedApp, headers: Headers, authority: str, path: str, *, secure: bool
) -> IngressProblem | None:
    """Why an app hears nothing of a socket that a page opened at `path`, or None; `secure` is whether it came over TLS."""
    if not app.spec.websocket or app.spec.websocket != path.partition("?")[0]:
        return NO_SOCKET
    origin = next((value.decode("latin-1") for name, value in headers if name == "origin"), "")
    if not origin or origin in app.spec.websocket_origins or "*" in app.spec.websocket_origins:
        return None
    return None if _is_same_origin(origin, authority, secure=secure) else FOREIGN_ORIGIN


def _is_same_origin(origin: str, authority: str, *, secure: bool) -> bool:
    """Whether a page is of the origin that it calls (RFC 6454, 5): its scheme, host and port.

    What did not come over TLS may have until a proxy in front, which is not listed, ended it; over TLS no page of plain
    HTTP is the app's own, for whoever is on the way can write one.
    """
    scheme, separator, host = origin.partition("://")
    default = {"https": "443", "http": "80"}.get(scheme)
    if not separator or not host or default is None or (secure and scheme != "https"):
        return False
    return (normal_host(host), _port(host) or default) == (normal_host(authority), _port(authority) or default)


def _port(authority: str) -> str:
    return authority[authority.find("]") + 1 :].partition(":")[2]


def handshake_problem(incoming: Incoming, fields: Headers) -> IngressProblem | None:
    """What is wrong with a handshake, or None."""
    keys = [value for name, value in fields if name == "sec-websocket-key"]
    versions = [value.strip() for name, value in fields if name == "sec-websocket-version"]
    if incoming.method != "GET" or incoming.http_1_0 or incoming.length or incoming.chunked or len(keys) != 1:
        return BAD_HANDSHAKE
    try:
        key = base64.b64decode(keys[0].strip(), validate=True)
    except binascii.Error:
        return BAD_HANDSHAKE
    if len(key) != 16:
        return BAD_HANDSHAKE
    return None if versions == [b"13"] else BAD_VERSION


class WebSocket:
    """One socket; `open`, then `run` until it has ended. All methods belong to the loop."""

    def __init__(self, line: Line, request: GuestRequest, lane: str, address: tuple[str, str]) -> None:
        self._line = line
        self._ingress = line.ingress
        self._request = request
        self._lane = lane
        self._authority, self._path = address
        self._id = secrets.token_hex(16)
        self._frames = Protocol(SERVER, state=State.OPEN, max_size=MESSAGE_MAX_BYTES)
        self._waiting: deque[SocketEvent] = deque()
        self._held = 0
        self._wake: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._kind = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._topics: dict[str, None] = {}
        self._heard_s = self._pinged_s = time.monotonic()
        self._closing_s = 0.0
        self._told = False
        self._opened = False
        self._over = False
        self.bytes_in = self.bytes_out = 0

    @property
    def id(self) -> str:
        """What an app calls the socket by: nobody can guess it."""
        return self._id

    # --- what the connection tells ------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes from the client."""
        self._heard_s = time.monotonic()
        self.bytes_in += len(data)
        if not self._over:
            self._frames.receive_data(data)
            self._take_frames()

    def lost(self) -> None:
        """The client is gone."""
        if not self._over:
            self._over = True
            if not self._told:
                self._tell_end(SocketEvent("DISCONNECT"))
            self._rouse()

    def tick(self, now_s: float) -> None:
        """Ask a silent client whether it is there; give up one that says nothing, or does not close."""
        if (self._closing_s and now_s - self._closing_s > CLOSING_MAX_S) or now_s - self._heard_s > SILENT_MAX_S:
            self._line.transport.abort()
        elif now_s - max(self._heard_s, self._pinged_s) > PING_AFTER_S and self._frames.state is State.OPEN:
            self._pinged_s = now_s
            self._frames.send_ping(b"")
            self._flush()

    def restart(self) -> None:
        """The node stops: the client is told to come to another one."""
        self._close(RESTART, "the node stops")

    # --- the app ------------------------------------------------------------------------------------------------------

    async def open(self) -> AppReply | IngressProblem:
        """Ask the app whether it takes the socket; return its whole answer, taken if `takes` says so."""
        return await self._call(SocketEvent("OPEN"))

    def begin(self, reply: AppReply) -> None:
        """The client has its 101: do what the app said beside taking the socket."""
        self._opened = True
        self._subscribe(f"socket:{self._id}")
        self._obey(reply)

    async def run(self) -> None:
        """Hand the client's messages to the app, one after another, until the socket has ended."""
        try:
            while (event := await self._next()) is not None:
                reply = await self._call(event)
                if event.name in {"CLOSE", "DISCONNECT"}:
                    self._obey(reply, leaving=True)
                    return
                if isinstance(reply, IngressProblem) or reply.status != 200:
                    self._close(RESTART if _is_away(reply) else FAILED, "the app did not answer")
                else:
                    self._obey(reply)
                if self._line.drained is not None:
                    await self._line.drained
        finally:
            for topic in tuple(self._topics):
                self._ingress.topics.unsubscribe(self._lane, topic, self)

    def deliver(self, event: SocketEvent) -> None:
        """What a topic says; a client that does not read is given up."""
        if self._frames.state is not State.OPEN:
            return
        if self._line.transport.get_write_buffer_size() > UNSENT_MAX_BYTES:
            self._close(TRY_LATER, "too slow")
            return
        self._say(event)
        self._flush()

    async def _next(self) -> SocketEvent | None:
        while not self._waiting:
            if self._over:
                return None
            self._wake = self._ingress.loop.create_future()
            await self._wake
            self._wake = None
        event = self._waiting.popleft()
        self._held -= len(event.data)
        if self._held <= WAITING_MAX_BYTES // 2 and len(self._waiting) <= WAITING_MAX // 2:
            self._line.read_more()
        return event

    async def _call(self, event: SocketEvent) -> AppReply | IngressProblem:
        ingress = self._ingress
        answer = ingress.routes.find(self._authority, self._path.partition("?")[0])
        if answer is None:
            return NO_SOCKET
        if isinstance(answer, HostedApp) and (problem := self._problem(answer)):
            return problem
        span_id, flags = ingress.identifiers.span_id(), "01" if self._request.recorded else "00"
        traced = f"00-{self._request.trace_id}-{span_id}-{flags}"
        own: Headers = (
            ("content-type", MEDIA_TYPE.encode()), ("connection-id", self._id.encode()), ("traceparent", traced.encode()),
        )  # fmt: skip
        headers = tuple(header for header in self._request.headers if header[0] not in _REPLACED)
        head = RequestHead("POST", self._request.scheme, self._authority, self._path, (*headers, *own))
        incoming = Incoming("POST", self._path.encode("latin-1"), [])
        ids = (ingress.identifiers.request_id(), self._request.trace_id)
        reply = await call_app(ingress, answer, head, write_events(event), ids, REPLY_MAX_BYTES)
        incoming.bytes_in = len(event.data)
        request = replace(
            self._request, headers=head.headers, request_id=ids[0], wants_trailers=False,
            span_id=span_id, parent_id=self._request.span_id,
        )  # fmt: skip
        ingress.access(
            incoming, request, reply.app, self._path, status=reply.status or 502, bytes_out=len(reply.body),
            outcome=reply.outcome, closed_s=reply.closed_s, forwarded=answer.lane if isinstance(answer, Elsewhere) else "",
        )  # fmt: skip
        return reply

    def _problem(self, app: HostedApp) -> IngressProblem | None:
        secure = self._request.scheme == "https"
        return event_problem(app, self._request.headers, self._authority, self._path, secure=secure)

    def _obey(self, reply: AppReply | IngressProblem, *, leaving: bool = False) -> None:
        """Do what an app said. One that says what is no event has failed."""
        if isinstance(reply, IngressProblem) or not is_events(reply.status, reply.headers):
            if not leaving and (isinstance(reply, IngressProblem) or reply.body):
                self._close(FAILED, "the app answered with what is no event")
            return
        told = reply.app is None and any(name == PUBLISHED for name, _ in reply.headers)
        try:
            for event in read_events(reply.body):
                self._do(event, HERE if told else EVERYWHERE)
        except BadEventsError as error:
            if reply.app is not None:
                reply.app.log.write("error", "app.bad-events", "host", {"reason": str(error)})
            self._close(FAILED, "the app answered with what is no event")
        self._flush()

    def _do(self, event: SocketEvent, reach: str) -> None:
        match event.name:
            case "TEXT" | "BINARY" | "PING" | "PONG":
                if self._frames.state is State.OPEN:
                    self._say(event)
            case "CLOSE":
                code = int.from_bytes(event.data[:2]) if len(event.data) >= 2 else 1000
                known = code in {1000, 1001, 1008, 1011, 1012, 1013} or 3000 <= code <= 4999
                self._close(code if known else 1000, event.data[2:125].decode("utf-8", "ignore"))
            case "SUBSCRIBE":
                self._subscribe(read_topic(event.data))
            case "UNSUBSCRIBE":
                topic = read_topic(event.data)
                self._topics.pop(topic, None)
                self._ingress.topics.unsubscribe(self._lane, topic, self)
            case "PUBLISH":
                self._ingress.topics.publish(publication_of(self._lane, event, reach))
            case _:
                pass

    def _subscribe(self, topic: str) -> None:
        if self._over or (topic not in self._topics and len(self._topics) >= TOPICS_MAX):
            return
        self._topics[topic] = None
        self._ingress.topics.subscribe(self._lane, topic, self)

    # --- frames -------------------------------------------------------------------------------------------------------

    def _take_frames(self) -> None:
        try:
            for frame in self._frames.events_received():
                if isinstance(frame, Frame):
                    self._take_frame(frame)
        except UnicodeDecodeError:
            self._frames.fail(NO_UTF8, "no UTF-8")
        self._flush()
        error = self._frames.parser_exc
        if self._frames.close_expected() and not self._closing_s:
            self._closing_s = time.monotonic()
        if (error is not None or self._frames.eof_sent) and not self._told:
            self._tell_end(SocketEvent("DISCONNECT"))
        if self._frames.eof_sent:
            self._line.transport.close()

    def _take_frame(self, frame: Frame) -> None:
        match frame.opcode:
            case _ if frame.opcode in {OP_TEXT, OP_BINARY, OP_CONT}:
                if frame.opcode is not OP_CONT:
                    self._kind = "TEXT" if frame.opcode is OP_TEXT else "BINARY"
                    self._decoder.reset()
                data = bytes(frame.data)
                if self._kind == "TEXT":
                    self._decoder.decode(data, final=frame.fin)
                self._parts.append(data)
                if frame.fin:
                    whole, self._parts = b"".join(self._parts), []
                    self._queue(SocketEvent(self._kind, whole))
            case _ if frame.opcode is OP_CLOSE:
                received = self._frames.close_rcvd
                code = received.code if received is not None else 1005
                if received is not None:
                    received.reason.encode()
                self._tell_end(SocketEvent("CLOSE", code.to_bytes(2)))
            case _ if frame.opcode is OP_PING:
                pass  # answered already
            case _:
                pass

    def _queue(self, event: SocketEvent) -> None:
        self._waiting.append(event)
        self._held += len(event.data)
        if self._held > WAITING_MAX_BYTES or len(self._waiting) >= WAITING_MAX:
            self._line.read_no_more()
        self._rouse()

    def _tell_end(self, event: SocketEvent) -> None:
        """Have the app hear once that the socket has ended, behind what came before."""
        if not self._told:
            self._told = True
            if self._opened:
                self._waiting.append(event)
            self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _say(self, event: SocketEvent) -> None:
        match event.name:
            case "TEXT":
                self._frames.send_text(event.data)
            case "BINARY":
                self._frames.send_binary(event.data)
            case "PING":
                self._frames.send_ping(event.data[:125])
            case _:
                self._frames.send_pong(event.data[:125])
        self.bytes_out += len(event.data)

    def _close(self, code: int, reason: str) -> None:
        if self._frames.state is State.OPEN:
            try:
                self._frames.send_close(code, reason.encode()[:120].decode("utf-8", "ignore"))
            except ProtocolError:
                self._frames.fail(FAILED)
            self._closing_s = time.monotonic()
            self._flush()

    def _flush(self) -> None:
        transport = self._line.transport
        for data in self._frames.data_to_send():
            if data and not transport.is_closing():
                transport.write(data)


_REPLACED: Final = frozenset({
    "content-type", "content-length", "connection-id", "sec-websocket-key", "sec-websocket-version",
    "sec-websocket-extensions", "traceparent",
})  # fmt: skip


def is_events(status: int, headers: Headers) -> bool:
    """Whether an app's answer is events."""
    kind = next((value for name, value in headers if name == "content-type"), b"")
    return status == 200 and kind.lower().startswith(MEDIA_TYPE.encode())


def _is_away(reply: AppReply | IngressProblem) -> bool:
    return isinstance(reply, AppReply) and reply.status in {0, 502, 503}


def takes(reply: AppReply) -> bool:
    """Whether an app's answer takes the socket."""
    try:
        return is_events(reply.status, reply.headers) and any(event.name == "OPEN" for event in read_events(reply.body))
    except BadEventsError:
        return False


def switching_head(reply: AppReply, offered: Headers, own_fields: bytes) -> bytes:
    """Return the head that makes a connection a WebSocket (RFC 6455, 4.2.2)."""
    key = next(value for name, value in offered if name == "sec-websocket-key").strip().decode("ascii")
    protocols = [
        part.strip() for name, value in offered if name == "sec-websocket-protocol" for part in value.split(b",")
    ]
    chosen = next((value for name, value in reply.headers if name == "sec-websocket-protocol"), b"")
    lines = [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"]
    lines.append(b"sec-websocket-accept: %b\r\n" % accept_key(key).encode())
    if chosen and chosen in protocols:
        lines.append(b"sec-websocket-protocol: %b\r\n" % chosen)
    return b"".join([*lines, own_fields, b"\r\n"])


def publication_of(lane: str, event: SocketEvent, reach: str) -> Publication:
    """What an app's PUBLISH says. Raises BadEventsError."""
    topic, said = read_publication(event.data)
    if len(said.data) > MESSAGE_MAX_BYTES:
        raise BadEventsError(f"a message has at most {MESSAGE_MAX_BYTES} bytes")
    return Publication(lane, topic, said.name, said.data, reach)


def lane_of(found: HostedApp | Elsewhere) -> str:
    """The project and environment that a route leads to, as topics are kept apart by."""
    if isinstance(found, HostedApp):
        return (found.spec.stores or found.spec.project).replace("/", " ")
    return " ".join(found.lane.split(" ")[:2])


async def serve_socket(
    line: Line, incoming: Incoming, request: GuestRequest, found: HostedApp | Elsewhere, address: tuple[str, str]
) -> IngressProblem | None:
    """Make a connection a WebSocket and serve it to its end; or return why it is none, with nothing sent yet."""
    ingress = line.ingress
    problem = handshake_problem(incoming, request.headers)
    if problem is None and ingress.sockets >= SOCKETS_MAX:
        problem = SOCKETS_FULL
    if problem is not None:
        return problem
    socket = WebSocket(line, request, lane_of(found), address)
    reply = await socket.open()
    if isinstance(reply, IngressProblem):
        return reply
    if not takes(reply):
        status = reply.status if 400 <= reply.status <= 599 else 502
        return IngressProblem(status, "websocket-refused", "The app did not take the WebSocket.")
    if not line.quiet:
        return BAD_HANDSHAKE  # a client may not speak before it is answered
    ingress.access(
        incoming, request, None, address[1], status=101, bytes_out=0, outcome=None, forwarded=f"websocket {socket.id}"
    )
    ingress.sockets += 1
    try:
        line.transport.write(switching_head(reply, request.headers, ingress.own_fields(request.request_id, None)))
        line.socket = socket
        socket.begin(reply)
        await socket.run()
    finally:
        ingress.sockets -= 1
        if not line.transport.is_closing():
            line.transport.close()
    return None
