"""One TCP connection: the asyncio side of `protocols.libp2p.connection`.

There is one writer, `_pump`, and it is not a coroutine: a write cannot be cancelled midway. It pulls bytes only while
the socket takes them, so what waits, waits in its own stream's buffer and streams go on taking turns. Streams hang on a
link as sinks. Any broken rule closes this link and no other. Not here: which links there should be (`transport`).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

from node.transport.settings import LINGER_S
from protocols.libp2p import multiaddr
from protocols.libp2p.connection import Connection, ConnectionEvent, Secured, State, StreamOpened
from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError
from protocols.libp2p.multiaddr import Multiaddr
from protocols.libp2p.yamux_frames import NORMAL, PROTOCOL_ERROR, DataReceived, GoneAway, Ponged, StreamFinished
from protocols.machine import PeerId

UNSENT_MAX_BYTES = 256 * 1024
"""What the kernel may hold unsent (TCP_NOTSENT_LOWAT): beyond it a small message would wait behind a large one."""


class Sink(Protocol):
    """Where the events of one stream go. Calls come from the event loop and must not block."""

    def opened(self) -> None:
        """The peer agreed to the protocol."""

    def data_received(self, data: bytes) -> None:
        """Bytes arrived; say `link.consumed` when they are used."""

    def finished(self) -> None:
        """The peer sends no more."""

    def reset(self, reason: str) -> None:
        """The stream is gone in both directions."""

    def room(self) -> None:
        """After `wants_room`: there may be room to send again."""


class LinkOwner(Protocol):
    """Whoever keeps the links."""

    def link_opened(self, link: Link) -> None:
        """TCP is connected."""

    def link_secured(self, link: Link) -> None:
        """`link.peer` is known."""

    def link_closed(self, link: Link, reason: str) -> None:
        """The link is gone; called once, unless TCP never connected."""

    def accept_stream(self, link: Link, stream_id: int, protocol: str) -> Sink | None:
        """Return the sink of a stream the peer opened, or None to refuse it."""


class Link(asyncio.Protocol):
    """One connection and its streams."""

    def __init__(self, number: int, connection: Connection, owner: LinkOwner) -> None:
        self.number = number
        self.connection = connection
        self.address: Multiaddr | None = None
        self.host = ""
        self.closed = False
        self.secured_at = 0.0
        self.bytes_received = 0
        self.bytes_sent = 0
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._sinks: dict[int, Sink] = {}
        self._thirsty: dict[int, Sink] = {}
        self._paused = False
        self._pump_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._secured: asyncio.Future[None] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._pongs: list[asyncio.Future[None]] = []

    @property
    def peer(self) -> PeerId:
        """The authenticated peer; only after `link_secured`."""
        peer = self.connection.peer
        assert peer is not None, "the peer is known once the link is secured"
        return peer

    @property
    def admitted(self) -> bool:
        """Whether we admitted the peer."""
        return self.connection.state is State.ADMITTED

    async def secured(self) -> None:
        """Wait until the peer is known; ConnectionError if the link closes first."""
        await asyncio.shield(self._secured)

    async def wait_closed(self) -> None:
        """Wait until the link is gone."""
        await self._gone.wait()

    async def ponged(self) -> None:
        """Ping and wait for the answer; ConnectionError if the link closes first."""
        if self.closed:
            raise ConnectionResetError("the link is closed")
        pong = self._loop.create_future()
        self._pongs.append(pong)
        self.connection.ping(self._now_ms())
        self.pump_soon()
        await pong

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP is connected: start the upgrade."""
        self._transport = cast(asyncio.Transport, transport)
        if self.closed:
            self._transport.abort()
            return
        end = transport.get_extra_info("peername")
        if end:
            self.host = end[0]
            self.address = multiaddr.from_tcp(end[0].partition("%")[0], end[1])
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_MAX_BYTES)
        self._owner.link_opened(self)
        self._pump()
        self._set_timer()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived: hand what they mean to the sinks, send what they ask for."""
        if self.closed:
            return
        self.bytes_received += len(data)
        try:
            for event in self.connection.receive_data(data, self._now_ms()):
                self._dispatch(event)
        except RemoteProtocolError as error:
            self.close(error.rule, PROTOCOL_ERROR)
            return
        self._pump()

    def eof_received(self) -> bool:
        """The peer closed its half of TCP; yamux has its own half-close, so this is the end."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """TCP is gone."""
        self._end("" if exc is None else "transport.connection-lost")

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        self._paused = False
        self._pump()

    # --- streams ------------------------------------------------------------------------------------------------------

    def open_stream(self, protocol: str, sink: Sink) -> int:
        """Return the id of a new stream; LocalProtocolError over a cap, before `link_secured`, or on a closed link."""
        if self.closed:
            raise LocalProtocolError("transport.closed", "the link is closed")
        stream_id = self.connection.open_stream(protocol, self._now_ms())
        self._sinks[stream_id] = sink
        self.pump_soon()
        return stream_id

    def send(self, stream_id: int, data: bytes) -> None:
        """Queue bytes on a stream that has room; follow it with `pump_soon`."""
        self.connection.send(stream_id, data)

    def send_room(self, stream_id: int) -> int:
        """Return how many bytes `send` takes now."""
        return self.connection.send_room(stream_id)

    def wants_room(self, stream_id: int, sink: Sink) -> None:
        """Call `sink.room` after the next bytes have left."""
        self._thirsty[stream_id] = sink

    def finish(self, stream_id: int) -> None:
        """End our direction of a stream."""
        self.connection.finish(stream_id)
        self.pump_soon()

    def reset(self, stream_id: int) -> None:
        """Drop a stream; its sink hears nothing more."""
        self._forget(stream_id)
        self.connection.reset(stream_id)
        self.pump_soon()

    def release(self, stream_id: int) -> None:
        """Forget the sink of a stream that ended in both directions."""
        self._forget(stream_id)

    def consumed(self, stream_id: int, count: int) -> None:
        """Let the peer send `count` more bytes."""
        self.connection.consumed(stream_id, count, self._now_ms())
        self.pump_soon()

    def admit(self) -> None:
        """Lift the probation."""
        for event in self.connection.admit():
            self._dispatch(event)
        self.pump_soon()

    def pump_soon(self) -> None:
        """Send at the end of this turn of the loop, together with what else is queued in it."""
        if not self._pump_due and not self.closed:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self, reason: str, code: int = NORMAL) -> None:
        """Send what waits and fits, say go-away, close TCP, tell every stream; nothing happens if it is closed."""
        waiting = bool(self._thirsty)
        if not self.closed:
            self._pump()  # a refusal is queued just before the link it refuses is closed
        if self.closed:
            return
        self.connection.close(code)
        if self._transport is not None:
            last_words = self.connection.data_to_send()
            if last_words:
                self._transport.write(last_words)
            if not (waiting and reason != "transport.shutdown" and self._half_closed()):
                self._transport.close()
            if waiting or self._transport.get_write_buffer_size():
                self._loop.call_later(LINGER_S, self._transport.abort)
        self._end(reason)

    def _half_closed(self) -> bool:
        """End our direction alone: closing while bytes come in makes the kernel reset, and loses what was written last."""
        assert self._transport is not None
        try:
            self._transport.write_eof()
        except OSError:  # the peer was quicker
            return False
        return True

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        sinks, self._sinks = self._sinks, {}
        self._thirsty.clear()
        for sink in sinks.values():
            sink.reset(reason or "transport.closed")
        error = ConnectionResetError(reason or "the peer closed the connection")
        for waiter in [self._secured, *self._pongs]:
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()
        self._gone.set()
        self._owner.link_closed(self, reason)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    def _pump(self) -> None:
        self._pump_due = False
        transport = self._transport
        if self.closed or transport is None:
            return
        while not self._paused:
            self._water()
            data = self.connection.data_to_send()
            if not data:
                break
            self.bytes_sent += len(data)
            transport.write(data)

    def _water(self) -> None:
        if self._thirsty:
            thirsty, self._thirsty = self._thirsty, {}
            for sink in thirsty.values():
                sink.room()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due_ms = self.connection.deadline_ms()
        if due_ms is not None and not self.closed:
            self._timer = self._loop.call_at(due_ms / 1000, self._tick)

    def _tick(self) -> None:
        # A deadline only moves later as bytes arrive, so the timer is not moved with each of them: it looks again.
        now_ms = self._now_ms()
        due_ms = self.connection.deadline_ms()
        if due_ms is not None and due_ms <= now_ms:
            try:
                for event in self.connection.tick(now_ms):
                    self._dispatch(event)
            except RemoteProtocolError as error:
                self.close(error.rule)
                return
            self._pump()
        self._set_timer()

    def _dispatch(self, event: ConnectionEvent) -> None:
        if self.closed:
            return
        if isinstance(event, Secured | Ponged | GoneAway):
            self._dispatch_own(event)
            return
        if isinstance(event, StreamOpened) and event.inbound:
            accepted = self._owner.accept_stream(self, event.stream_id, event.protocol)
            if accepted is None:
                self.reset(event.stream_id)
                return
            self._sinks[event.stream_id] = accepted
        sink = self._sinks.get(event.stream_id)
        if sink is None:
            # Released: nobody reads it any more, so what still comes is dropped and the window stays open.
            if isinstance(event, DataReceived):
                self.consumed(event.stream_id, len(event.data))
        elif isinstance(event, DataReceived):
            sink.data_received(event.data)
        elif isinstance(event, StreamOpened):
            sink.opened()
        elif isinstance(event, StreamFinished):
            sink.finished()
        else:
            self._forget(event.stream_id)
            sink.reset(event.reason)

    def _dispatch_own(self, event: Secured | Ponged | GoneAway) -> None:
        if isinstance(event, Secured):
            self._secured.set_result(None)
            self.secured_at = self._loop.time()
            self._owner.link_secured(self)
            self._set_timer()
        elif isinstance(event, Ponged):
            pongs, self._pongs = self._pongs, []
            for pong in pongs:
                if not pong.done():
                    pong.set_result(None)
        else:
            self.close("transport.gone-away" if event.code == NORMAL else "transport.peer-objects")

    def _forget(self, stream_id: int) -> None:
        self._sinks.pop(stream_id, None)
        self._thirsty.pop(stream_id, None)
