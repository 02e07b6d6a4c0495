"""One request whose app runs on another node: carried whole to the daemon, which knows that node, and its answer back.

Per request the worker connects to `forward.sock` in its runtime folder, names the lane in one line, and waits for one
line: `go` means that a node took the connection, so from here bytes flow to it and are never sent twice; anything else
means that no byte left this node. Both directions stream with back-pressure. The request says `freehold-forwarded`, a
field that no client's request brings this far, so a request travels one hop at most. Not here: which node
(node/mesh/request_relay.py), or what the client is told when there is none (`connection.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.exchange import BodyFailure, Headers
from runtime.ingress.dispatch import HostedApp
from runtime.ingress.faces import Line
from runtime.ingress.incoming import CLIENT_GONE, Incoming
from runtime.ingress.request_head import UNIX, GuestRequest, field_name
from runtime.ingress.response_head import (
    BadResponseError,
    Framing,
    IngressProblem,
    frame_chunks,
    frame_end,
    frame_head,
)
from runtime.ingress.routing import Elsewhere
from runtime.messages import FORWARD_SOCKET
from runtime.outbound.response_reader import ResponseFailed, ResponseReader

MARK: Final = "freehold-forwarded"

TELLS_ITSELF: Final = "freehold-topics"
"""Beside an event of a WebSocket: the node whose socket it is, which tells its own workers what the app publishes."""

PUBLISHED: Final = "freehold-published"
"""Beside the answer to such an event: all other nodes were told."""

GO: Final = b"go\n"
"""A node took the connection."""
HERE: Final = b"here\n"
"""The app has come to this node meanwhile: look at the routes again."""
BUSY_THERE: Final = b"busy\n"
"""As many requests as may be are under way between the nodes."""
NOWHERE: Final = b"nowhere\n"
"""No connected node runs the app."""

OPEN_TIMEOUT_S: Final = 30.0
"""The daemon gives up searching long before; this is for one that hangs."""

DAEMON_AWAITED_S: Final = 15.0
DAEMON_ASKED_EVERY_S: Final = 0.1
"""Workers outlive their daemon, by 15 s at least; a new one is back within seconds, on a busy machine in more than
three. Until then no byte has left this node."""

ANSWER_MAX_BYTES: Final = 64 * 1024
"""Held of a response at once, per forwarded request."""

BODY_MAX_BYTES: Final = 1 << 62
"""The node that runs the app holds the body to the app's own limit."""

NOT_HERE = IngressProblem(
    503,
    "not-placed",
    "No reachable node runs this app now.",
    "Try again later; freehold status shows where it runs.",
    2,
)
BETWEEN_BUSY = IngressProblem(
    503, "node-busy", "Too many requests are on their way to other nodes.", "Try again later.", 1
)
BROKEN_OFF = IngressProblem(502, "node-lost", "The node that runs this app was lost before it answered.", "Try again.")


@dataclass(frozen=True, slots=True)
class Relayed:
    """Another node answered; `keep_alive` says whether the client's connection may go on."""

    keep_alive: bool


def has_been_forwarded(incoming: Incoming, client: str) -> bool:
    """Whether another node sent this request; only the daemon, on the Unix socket, is believed."""
    return client == UNIX and any(field_name(name) == MARK for name, _ in incoming.headers)


async def forward(
    connection: Line, incoming: Incoming, request: GuestRequest, target: Elsewhere, address: tuple[str, str]
) -> Relayed | HostedApp | IngressProblem:
    """Have another node answer. Else return what to tell the client, or the app if it has come to this node."""
    ingress = connection.ingress
    authority, path = address
    if has_been_forwarded(incoming, connection.client.address):
        return NOT_HERE  # the app left this node while the request was on its way; one hop is all there is
    forwarded = connection.forwarded = Forwarded(connection, incoming, request, target.lane)
    feeding: asyncio.Task[None] | None = None
    try:
        word = await forwarded.open(ingress.runtime_folder)
        if word == HERE:
            app = ingress.routes.find(authority, path.partition("?")[0])
            return app if isinstance(app, HostedApp) else NOT_HERE
        if word != GO:
            return BETWEEN_BUSY if word == BUSY_THERE else NOT_HERE
        connection.tell_continue(incoming)
        feeding = ingress.tasks.create_task(connection.feed(incoming, forwarded, BODY_MAX_BYTES))
        keep_alive = await forwarded.relay(authority, path)
    finally:
        connection.forwarded = None
        if feeding is not None:
            feeding.cancel()
    ingress.access(
        incoming, request, None, path, status=forwarded.status, bytes_out=forwarded.bytes_out, outcome=None,
        forwarded=target.lane,
    )  # fmt: skip
    return Relayed(keep_alive)


class Forwarded:
    """The request's way to another node and back: `open`, then `relay`, with `body` fed meanwhile."""

    def __init__(self, connection: Line, incoming: Incoming, request: GuestRequest, lane: str) -> None:
        self._connection = connection
        self._incoming = incoming
        self._request = request
        self._lane = lane
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._gone = False
        self.status = 0
        self.bytes_out = 0

    async def open(self, folder: Path) -> bytes:
        """Ask the daemon for a node; return its word, `NOWHERE` if there is no daemon."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                self._reader, self._writer = await self._connected(folder / FORWARD_SOCKET)
                self._writer.write(self._lane.encode() + b"\n")
                word = await self._reader.readline()
        except (OSError, TimeoutError, ValueError):
            word = NOWHERE
        if word != GO or self._gone:
            self.cancel()
        return word if not self._gone else NOWHERE

    async def _connected(self, path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the daemon, waiting a moment for one that is being restarted. Raises OSError."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + DAEMON_AWAITED_S
        while True:
            try:
                return await asyncio.open_unix_connection(str(path), limit=ANSWER_MAX_BYTES)
            except OSError:
                if self._gone or loop.time() >= end_s:
                    raise
            await asyncio.sleep(DAEMON_ASKED_EVERY_S)

    def cancel(self) -> None:
        """Give the request up on both nodes: the client left, or what it sends is broken."""
        self._gone = True
        if self._writer is not None:
            self._writer.transport.abort()

    async def relay(self, authority: str, path: str) -> bool:
        """Send the head, then pass the answer on; return whether the client's connection may go on."""
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write(self._head(authority, path))
        answer = ResponseReader(self._reader, self._incoming.method)
        framing: Framing | None = None
        try:
            framing = await self._pass_on_head(answer)
            while (piece := await answer.read_piece()) is not None:
                await self._write(frame_chunks(framing, (piece,)))
                self.bytes_out = framing.sent
            await self._write(frame_end(framing, answer.trailers if self._request.wants_trailers else ()))
        except (ResponseFailed, BadResponseError):
            return self._fail(framing)
        finally:
            self._writer.transport.abort()
        return framing.keep_alive

    async def _pass_on_head(self, answer: ResponseReader) -> Framing:
        head = await answer.read_head()
        connection, incoming = self._connection, self._incoming
        release = next((value.decode("latin-1") for name, value in head.headers if name == "freehold-release"), None)
        data, framing = frame_head(
            head,
            connection.ingress.own_fields(self._request.request_id, release),
            method=incoming.method,
            http_1_0=incoming.http_1_0,
            keep_alive=incoming.keep_alive and not connection.ingress.draining and not connection.closing,
            whole_bytes=None,
            trailers=False,
        )
        self.status = head.status
        await self._write(data)
        return framing

    async def _write(self, data: bytes) -> None:
        connection = self._connection
        if data and not connection.transport.is_closing():
            connection.transport.write(data)
            if connection.drained is not None:
                await connection.drained

    def _head(self, authority: str, path: str) -> bytes:
        """The request as the other node gets it: the fields a guest would get, and how the body is framed here."""
        incoming = self._incoming
        lines = [f"{incoming.method} {path} HTTP/1.1\r\nhost: {authority}\r\n".encode("latin-1")]
        for name, value in self._request.headers:
            if name != "content-length":
                lines.append(b"%b: %b\r\n" % (name.encode("latin-1"), value))
        if incoming.length is not None:
            lines.append(b"content-length: %d\r\n" % incoming.length)
        elif self.chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"%b: 1\r\nconnection: close\r\n\r\n" % MARK.encode())
        return b"".join(lines)

    @property
    def chunked(self) -> bool:
        """Whether the body goes out in chunks: it came so, and its length is not known."""
        return self._incoming.chunked

    def _fail(self, framing: Framing | None) -> bool:
        """The answer broke off: say so if nothing was sent, else break the client's connection off as well."""
        connection, incoming = self._connection, self._incoming
        if connection.transport.is_closing():
            self.status = self.status or CLIENT_GONE
            return False
        if framing is not None:
            connection.closing = True
            if framing.chunked or framing.length is not None:
                connection.transport.close()
            else:
                connection.transport.abort()  # the end of the connection would be the end of the body
            return False
        problem = incoming.problem or BROKEN_OFF
        self.status = problem.status
        keep_alive = incoming.keep_alive and incoming.complete and not connection.ingress.draining
        self.bytes_out = connection.send_problem(
            problem, self._request.request_id, keep_alive=keep_alive, method=incoming.method,
            http_1_0=incoming.http_1_0,
        )  # fmt: skip
        return keep_alive

    # --- the body, as `Connection` feeds it ---------------------------------------------------------------------------

    async def feed(self, data: bytes) -> bool:
        """Send one piece, waiting while the way is full; False when the other side wants no more."""
        assert self._writer is not None
        if self._writer.transport.is_closing():
            return False
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)
        with contextlib.suppress(OSError):
            await self._writer.drain()
        return not self._writer.transport.is_closing()

    def feed_end(self, trailers: Headers = ()) -> None:
        """The body is whole."""
        assert self._writer is not None
        if self.chunked and not self._writer.transport.is_closing():
            lines = [b"%b: %b\r\n" % (name.encode("latin-1"), value) for name, value in trailers]
            self._writer.write(b"0\r\n" + b"".join(lines) + b"\r\n")

    def feed_failure(self, failure: BodyFailure) -> None:
        """The body will never be whole: the other node must not take it for one that is."""
        self.cancel()
