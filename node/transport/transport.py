"""The transport service: it listens, dials, keeps the registry of links and applies the limits over all of them.

See the package's docstring for the API and the order of events. Not here: bytes (`link`), streams (`stream`), frames
(`channel`), spacing of dials (`dialler`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from node.transport.builtin import IdentifySink, PingSink
from node.transport.channel import Channel
from node.transport.dialler import Backoff, race
from node.transport.events import ChannelName, FramesReceived, LinkDown, LinkReady, LinkUp, TransportEvent
from node.transport.half_open import HalfOpen
from node.transport.link import Link, Sink
from node.transport.settings import (
    ADDRESSES_MAX,
    CONTROL_PROTOCOL,
    DIAL_TIMEOUT_S,
    HALF_OPEN_MAX,
    HALF_OPEN_PER_ADDRESS_MAX,
    HELLO_PROTOCOL,
    PROTOCOL_VERSION,
    STABLE_S,
    TransportSettings,
)
from node.transport.stream import Stream, StreamError
from protocols import keys
from protocols.libp2p import identify, multiaddr, ping
from protocols.libp2p.connection import Connection, OpenableProtocols
from protocols.libp2p.errors import LocalProtocolError
from protocols.libp2p.identify import Identify
from protocols.libp2p.multiaddr import Multiaddr
from protocols.libp2p.noise_payload import make_identity
from protocols.libp2p.upgrade import MUXERS
from protocols.machine import Entropy, PeerId, Signer, Verifier

StreamHandler = Callable[[Stream], Awaitable[None]]

EVENTS_MAX = 1024
"""Events the daemon has not taken; beyond it strangers are turned away, so their comings and goings cannot pile up."""

_log = logging.getLogger("freehold.transport")


@dataclass(slots=True)
class _Peering:
    """One link and its channels."""

    link: Link
    channels: dict[ChannelName, Channel] = field(default_factory=dict)


@dataclass(slots=True)
class _Member:
    """A peer that is dialled until it is no member any more."""

    addresses: tuple[Multiaddr, ...]
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Transport:
    """All links of one node."""

    def __init__(self, settings: TransportSettings, *, signer: Signer, verifier: Verifier, entropy: Entropy) -> None:
        """Prepare; nothing listens or dials before `run`."""
        self.peer = keys.peer_id(signer.public_key)
        self.listening: list[Multiaddr] = []
        self.started = asyncio.Event()
        self._settings = settings
        self._public_key = signer.public_key
        self._verifier = verifier
        self._entropy = entropy
        self._identity = make_identity(signer, entropy, MUXERS)
        self._handlers: dict[str, StreamHandler] = {}
        self._peerings: dict[int, _Peering] = {}
        self._admitted: dict[PeerId, Link] = {}
        self._half_open = HalfOpen(HALF_OPEN_MAX, HALF_OPEN_PER_ADDRESS_MAX)
        self._members: dict[PeerId, _Member] = {}
        self._events: asyncio.Queue[tuple[TransportEvent, Channel | None]] = asyncio.Queue()
        self._told: tuple[tuple[bytes, ...], Channel] | None = None
        """The frames of the event that came last, and whose they are; None once somebody answers for them."""
        self._group: asyncio.TaskGroup | None = None
        self._last_number = 0

    # --- the daemon's face --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Listen and dial until cancelled; then say goodbye on every link. OSError if an address cannot be bound."""
        loop = asyncio.get_running_loop()
        servers: list[asyncio.Server] = []
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for address in self._settings.listen:
                    server = await loop.create_server(self._inbound_link, *_endpoint(address), backlog=512)
                    servers.append(server)
                    for sock in server.sockets:
                        host, port = sock.getsockname()[:2]
                        self.listening.append(multiaddr.from_tcp(host, port))
                for peer, member in self._members.items():
                    member.task = group.create_task(self._keep_dialled(peer, member))
                self.started.set()
                try:
                    await loop.create_future()
                finally:
                    # A group that is ending takes no tasks; streams that arrive from now on are refused.
                    self._group = None
        finally:
            for server in servers:
                server.close()
            for peering in list(self._peerings.values()):
                peering.link.close("transport.shutdown")

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Answer streams of `protocol` from admitted peers; call it before `run`."""
        self._handlers[protocol] = handler

    def set_members(self, members: Mapping[PeerId, Sequence[Multiaddr]]) -> None:
        """Keep these peers dialled, and no others; those without an address are only waited for."""
        for peer in [known for known in self._members if known not in members]:
            task = self._members.pop(peer).task
            if task is not None:
                task.cancel()
        for peer, addresses in members.items():
            self._want(peer, tuple(addresses)[:ADDRESSES_MAX])

    async def events(self) -> AsyncIterator[TransportEvent]:
        """Yield what happens, for ever, to one consumer; asking for the next event says the last one is dealt with."""
        while True:
            event, channel = await self._events.get()
            self._told = (event.frames, channel) if channel and isinstance(event, FramesReceived) else None
            yield event
            if self._told is not None:
                self.hold()()

    def hold(self) -> Callable[[], None]:
        """Have the frames of the event that came last count against their peer until what this returns is called."""
        assert self._told is not None, "the last event brought no frames, or they are held already"
        (frames, channel), self._told = self._told, None
        return lambda: channel.taken(frames)

    def admit(self, link: int) -> bool:
        """Lift the probation of a link; False if it is gone or gave way to another link of the same peer."""
        peering = self._peerings.get(link)
        if peering is None:
            return False
        admitted = peering.link
        rival = self._admitted.get(admitted.peer)
        if rival is not None and rival is not admitted:
            if self._keeps(rival, over=admitted):
                admitted.close("transport.duplicate")
                return False
            rival.close("transport.duplicate")
        self._half_open.remove(admitted)
        self._admitted[admitted.peer] = admitted
        if ChannelName.CONTROL not in peering.channels:
            self._add_channel(peering, ChannelName.CONTROL, CONTROL_PROTOCOL)
            admitted.admit()
        return True

    def close(self, link: int, reason: str) -> None:
        """Close a link; LinkDown follows."""
        peering = self._peerings.get(link)
        if peering is not None:
            peering.link.close(reason)

    def link_to(self, peer: PeerId) -> int | None:
        """Return the admitted link to `peer`, if there is one."""
        link = self._admitted.get(peer)
        return None if link is None else link.number

    def send(self, link: int, channel: ChannelName, frame: bytes) -> bool:
        """Queue one frame; False if it was dropped. ValueError if it is empty or over the channel's cap."""
        peering = self._peerings.get(link)
        sink = peering.channels.get(channel) if peering is not None else None
        return sink is not None and sink.send(frame)

    def send_to(self, peer: PeerId, frame: bytes) -> bool:
        """Queue one control frame to an admitted peer; False if it was dropped."""
        link = self._admitted.get(peer)
        return link is not None and self.send(link.number, ChannelName.CONTROL, frame)

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        """Return a new stream to an admitted peer; StreamError if there is no link or it has too many streams."""
        link = self._admitted.get(peer)
        if link is None:
            raise StreamError("transport.not-connected")
        return self._open_stream(link, protocol)

    async def dial(self, addresses: Sequence[Multiaddr], expected: PeerId | None = None) -> int:
        """Try every address once; return the link, which is up and not admitted. DialError if none answers."""

        async def one(address: Multiaddr) -> Link:
            return await self._dial(address, expected or address.peer())

        return (await race(tuple(addresses)[:ADDRESSES_MAX], one)).number

    async def identify(self, link: int) -> Identify:
        """Ask the peer who it is and where it sees us; StreamError or RemoteProtocolError if it does not say."""
        peering = self._peerings.get(link)
        if peering is None:
            raise StreamError("transport.not-connected")
        reader = identify.IdentifyReader()
        async with self._open_stream(peering.link, identify.PROTOCOL) as stream:
            while data := await stream.read():
                message = reader.receive_data(data, peering.link.peer)
                if message is not None:
                    return message
        raise StreamError("transport.ended-early")

    async def is_alive(self, link: int, timeout_s: float) -> bool:
        """Return whether the peer answers a ping on this link in time."""
        peering = self._peerings.get(link)
        if peering is None:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                await peering.link.ponged()
        except (OSError, TimeoutError):
            return False
        return True

    def counts(self) -> dict[str, int]:
        """Return gauges for metrics: links, admitted links, half-open links, frames dropped on open links."""
        return {
            "links": len(self._peerings),
            "admitted": len(self._admitted),
            "half_open": len(self._half_open),
            "dropped_frames": sum(
                channel.dropped_frames for peering in self._peerings.values() for channel in peering.channels.values()
            ),
        }

    # --- links: LinkOwner ---------------------------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """An inbound link takes a half-open slot, if need be the oldest one's."""
        if not link.connection.initiator:
            if self._events.qsize() > EVENTS_MAX:
                link.close("transport.busy")
                return
            self._half_open.add(link)

    def link_secured(self, link: Link) -> None:
        """Announce the peer; the dialler opens the hello stream."""
        if link.peer == self.peer:
            link.close("transport.self")
            return
        peering = _Peering(link)
        self._peerings[link.number] = peering
        self._put(LinkUp(link.number, link.peer, not link.connection.initiator, link.address))
        self._add_channel(peering, ChannelName.HELLO, HELLO_PROTOCOL)

    def link_closed(self, link: Link, reason: str) -> None:
        """Forget the link; announce it if it was announced before."""
        self._half_open.remove(link)
        if self._peerings.pop(link.number, None) is None:
            return
        if self._admitted.get(link.peer) is link:
            del self._admitted[link.peer]
        _log.debug("link %d to %s down: %s", link.number, link.peer, reason or "closed by the peer")
        self._put(LinkDown(link.number, link.peer, reason))

    def accept_stream(self, link: Link, stream_id: int, protocol: str) -> Sink | None:
        """Return what answers a stream the peer opened, or None to refuse it."""
        if protocol == ping.PROTOCOL:
            return PingSink(link, stream_id)
        if protocol == identify.PROTOCOL:
            return IdentifySink(link, stream_id, self._describe(link))
        for name, wanted in ((ChannelName.HELLO, HELLO_PROTOCOL), (ChannelName.CONTROL, CONTROL_PROTOCOL)):
            if protocol == wanted:
                channel = self._peerings[link.number].channels[name]
                return channel if channel.attach(stream_id) else None
        if self._group is None:
            return None
        stream = Stream(link, protocol)
        stream.stream_id = stream_id
        self._group.create_task(self._handle(stream, self._handlers[protocol]))
        return stream

    # --- inside -------------------------------------------------------------------------------------------------------

    def _make_link(self, *, initiator: bool, expected: PeerId | None = None) -> Link:
        self._last_number += 1
        early = (HELLO_PROTOCOL, identify.PROTOCOL, ping.PROTOCOL)
        connection = Connection(
            initiator=initiator,
            identity=self._identity,
            entropy=self._entropy,
            verifier=self._verifier,
            services=OpenableProtocols(early, (*early, CONTROL_PROTOCOL, *self._handlers), held=(CONTROL_PROTOCOL,)),
            now_ms=int(asyncio.get_running_loop().time() * 1000),
            expected=expected,
        )
        return Link(self._last_number, connection, self)

    def _inbound_link(self) -> Link:
        return self._make_link(initiator=False)

    async def _dial(self, address: Multiaddr, expected: PeerId | None) -> Link:
        link = self._make_link(initiator=True, expected=expected)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                host, port = _endpoint(address)
                await asyncio.get_running_loop().create_connection(lambda: link, host, port)
                await link.secured()
        except BaseException:
            link.close("transport.dial-failed")
            raise
        return link

    def _want(self, peer: PeerId, addresses: tuple[Multiaddr, ...]) -> None:
        member = self._members.get(peer)
        if member is None:
            if peer == self.peer:
                return
            member = self._members[peer] = _Member(addresses)
            if self._group is not None:
                member.task = self._group.create_task(self._keep_dialled(peer, member))
        elif member.addresses != addresses:
            member.addresses = addresses
            member.changed.set()

    async def _keep_dialled(self, peer: PeerId, member: _Member) -> None:
        backoff = Backoff(self._entropy)
        loop = asyncio.get_running_loop()
        if peer < self.peer:
            # Both sides dial. The link of the lower id would win, so it gets a head start and most pairs dial once.
            await asyncio.sleep(self._entropy.uniform(0.1, 0.4))
        while True:
            member.changed.clear()
            link = self._link_with(peer) or await self._dial_member(peer, member)
            if link is not None:
                await link.wait_closed()
                if loop.time() - link.secured_at >= STABLE_S:
                    backoff.reset()
            try:
                async with asyncio.timeout(backoff.next_s()):
                    await member.changed.wait()
                backoff.reset()
            except TimeoutError:
                pass

    async def _dial_member(self, peer: PeerId, member: _Member) -> Link | None:
        async def one(address: Multiaddr) -> Link:
            return await self._dial(address, peer)

        try:
            return await race(member.addresses, one)
        except ConnectionError as error:
            _log.debug("dialling %s: %s", peer, error)
            return None

    def _link_with(self, peer: PeerId) -> Link | None:
        """Return a link to the peer, admitted or on its way to it."""
        admitted = self._admitted.get(peer)
        if admitted is not None:
            return admitted
        return next((p.link for p in self._peerings.values() if p.link.peer == peer), None)

    def _keeps(self, rival: Link, *, over: Link) -> bool:
        """Return whether the older `rival` stays: both sides must choose alike, so the lower dialler's link does."""
        old = self.peer if rival.connection.initiator else rival.peer
        new = self.peer if over.connection.initiator else over.peer
        return old < new

    def _add_channel(self, peering: _Peering, name: ChannelName, protocol: str) -> None:
        channel = Channel(peering.link, name, on_open=self._channel_open, on_frames=self._frames_received)
        peering.channels[name] = channel
        if peering.link.connection.initiator:
            channel.attach(peering.link.open_stream(protocol, channel))

    def _channel_open(self, channel: Channel) -> None:
        if channel.name is ChannelName.CONTROL:
            self._put(LinkReady(channel.link.number, channel.link.peer))

    def _frames_received(self, channel: Channel, frames: tuple[bytes, ...]) -> None:
        self._put(FramesReceived(channel.link.number, channel.link.peer, channel.name, frames), channel)

    def _put(self, event: TransportEvent, channel: Channel | None = None) -> None:
        self._events.put_nowait((event, channel))

    def _describe(self, link: Link) -> Identify:
        return Identify(
            public_key=self._public_key,
            listen=self._settings.advertise or tuple(self.listening),
            protocols=link.connection.served,
            observed=link.address,
            protocol_version=PROTOCOL_VERSION,
            agent_version=self._settings.agent_version,
        )

    def _open_stream(self, link: Link, protocol: str) -> Stream:
        stream = Stream(link, protocol)
        try:
            stream.stream_id = link.open_stream(protocol, stream)
        except LocalProtocolError as error:
            raise StreamError(error.rule) from error
        return stream

    async def _handle(self, stream: Stream, handler: StreamHandler) -> None:
        try:
            async with stream:
                await handler(stream)
        except StreamError as error:
            _log.debug("stream %s of %s ended: %s", stream.protocol, stream.peer, error)
        except Exception:
            # A handler's mistake costs its stream and a line in the log, never the link or the node.
            _log.exception("the handler of %s failed", stream.protocol)


def _endpoint(address: Multiaddr) -> tuple[str, int]:
    end = address.tcp()
    if end is None:
        raise OSError(f"{address} is not a TCP address")
    return end
