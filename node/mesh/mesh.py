"""The node's place in the mesh: one NodeCore, driven by a Pump, talking through the Transport.

Links become peers here: a core knows peers, a transport knows links, and a peer may have several links for a moment.
Hello messages travel on a link's hello channel, everything else on the control channel of the admitted link. What the
core notifies is handed to listeners in order. Not here: what a notice makes the node do (workloads.py, api/), and
what the machines decide (protocols/).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node.loop_time import LoopTime
from node.mesh.pump import Persisting, Pump, system_now
from node.transport import ChannelName, FramesReceived, LinkDown, LinkUp, Transport
from node.transport.events import LinkReady
from protocols.chain.messages import Booted
from protocols.core import CoreSetup, CoreStored, NodeCore, decode_message
from protocols.envelope import MESSAGE_MAX_BYTES, DecodeError, encode
from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import Now, PeerConnected, PeerDisconnected, PeerId, Received
from protocols.trust.hello import Admitted, Challenge, HelloMessage

ALIVE_TIMEOUT_S = 2.0
"""An admitted link that does not answer a ping for this long gives way to a new link of the same peer."""

MALFORMED_MAX = 8
"""Frames of one connection that are no message: a newer release may send a few that this one does not know."""

REJECTS_SAID_EVERY_MS = 60_000
REJECTS_SAID_MAX = 1_024
"""Kinds of misbehaviour remembered, by peer and rule; each is one line a minute, however often it happens."""

_log = logging.getLogger("freehold.mesh")

Listener = Callable[[Any], None]


REJECTED_PEERS_MAX = 64
DETAIL_KEPT_MAX = 200


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that was refused: by which rule, why, and when (monotonic ms)."""

    rule: str
    detail: str
    at_ms: int


class Mesh:
    """Runs one core over one transport."""

    def __init__(
        self,
        setup: CoreSetup,
        stored: CoreStored,
        transport: Transport,
        persist: Persisting,
        clock: Callable[[], Now] = system_now,
    ) -> None:
        """Load the core from what was stored; nothing is sent before `run`."""
        self.core = NodeCore(setup, stored, clock())
        self.transport = transport
        self.listeners: list[Listener] = []
        self.loop_time = LoopTime()
        """The event loop's time as members and principals share it."""
        self.rejects: Counter[str] = Counter()
        self.rejected: dict[PeerId, Rejected] = {}
        """What was refused of each peer last; a diagnosis begins there."""
        self._malformed: Counter[PeerId] = Counter()
        self._said: dict[tuple[PeerId, str], tuple[int, int]] = {}
        """When a line of that peer and rule is due again (mono ms), and how many were not said since the last."""
        self._clock = clock
        self._pump = Pump(self.core, self, persist, self._notified, clock, self.loop_time)
        self._links: dict[PeerId, list[int]] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Run until cancelled. Raises StorageError if a durable write fails."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._pump.post(Booted())
            group.create_task(self._pump.run())
            group.create_task(self.transport.run())
            group.create_task(self._take_events())

    def post(self, event: Any) -> bool:
        """Hand one of the core's events to it; False if it is too busy and the event was dropped."""
        return self._pump.post(event)

    async def performed(self) -> None:
        """Return when what the core believes is durable and told; it may be read until the next await."""
        await self._pump.performed()

    def set_addresses(self, addresses: Mapping[PeerId, Sequence[Multiaddr]]) -> None:
        """Keep these peers dialled, for ever."""
        self.transport.set_members(addresses)

    # --- Outlet: what effects do ----------------------------------------------------------------------------------

    def send(self, peer: PeerId, message: Any) -> None:
        """Queue one message to a connected peer; lost if it is not, as the machines expect."""
        frame = encode(message)
        assert len(frame) <= MESSAGE_MAX_BYTES, f"a {type(message).__name__} of {len(frame)} bytes"
        if not isinstance(message, HelloMessage):
            self.transport.send_to(peer, frame)
            return
        for link in reversed(self._links.get(peer, ())):
            # A challenge asks every living process of the peer: two that answer are a machine and its clone.
            if self.transport.send(link, ChannelName.HELLO, frame) and not isinstance(message, Challenge):
                return

    def broadcast(self, message: Any, exclude: tuple[PeerId, ...]) -> None:
        """Never happens: the core turns broadcasts into sends to those who may read them."""
        raise AssertionError(f"a broadcast of {type(message).__name__} left the core")

    def disconnect(self, peer: PeerId, reason: str) -> None:
        """Close every link to a peer."""
        for link in tuple(self._links.get(peer, ())):
            self.transport.close(link, reason)

    def reject(self, peer: PeerId, rule: str, detail: str) -> None:
        """Count a peer's misbehaviour, and log it once a minute for each rule: a peer must not wash away this node's log."""
        self.rejects[rule] += 1
        now_ms = self._clock().mono_ms
        if peer in self.rejected or len(self.rejected) < REJECTED_PEERS_MAX:
            self.rejected[peer] = Rejected(rule, detail[:DETAIL_KEPT_MAX], now_ms)
        due_ms, unsaid = self._said.get((peer, rule), (now_ms, 0))
        if now_ms < due_ms:
            self._said[peer, rule] = (due_ms, unsaid + 1)
            return
        if len(self._said) >= REJECTS_SAID_MAX:
            del self._said[next(iter(self._said))]
        self._said[peer, rule] = (now_ms + REJECTS_SAID_EVERY_MS, 0)
        what = {"event": "reject", "peer": peer, "rule": rule, "detail": detail, "count": unsaid + 1}
        _log.warning("rejected a message", extra=what)

    def _notified(self, event: Any) -> None:
        if isinstance(event, Admitted):
            for link in tuple(self._links.get(event.peer, ())):
                self.transport.admit(link)
        for listener in self.listeners:
            listener(event)

    # --- what the transport says ------------------------------------------------------------------------------------

    async def _take_events(self) -> None:
        async for event in self.transport.events():
            match event:
                case LinkUp(link, peer, inbound, _):
                    self._question_rivals(peer)
                    self._links.setdefault(peer, []).append(link)
                    self._pump.put_for(peer, PeerConnected(peer, inbound))
                case FramesReceived(_, peer, channel, frames):
                    self._take_frames(peer, channel, frames)
                case LinkDown(link, peer, reason):
                    links = self._links.get(peer, [])
                    if link in links:
                        links.remove(link)
                    if not links and self._links.pop(peer, None) is not None:
                        self._malformed.pop(peer, None)
                        self._pump.put_for(peer, PeerDisconnected(peer, reason))
                case LinkReady():
                    pass

    def _take_frames(self, peer: PeerId, channel: ChannelName, frames: Sequence[bytes]) -> None:
        """Queue what frames say; until all of it was handled they count against their peer."""
        read = (self._message_in(peer, channel, frame) for frame in frames)
        messages = [message for message in read if message is not None]
        taken = self.transport.hold() if messages else None
        for number, message in enumerate(messages, 1):
            self._pump.put_for(peer, Received(peer, message), taken if number == len(messages) else None)

    def _message_in(self, peer: PeerId, channel: ChannelName, frame: bytes) -> Any:
        """The message of a frame; None if there is none, or the peer sent too much that was none."""
        if self._malformed[peer] >= MALFORMED_MAX:
            return None
        try:
            message = decode_message(frame)
        except DecodeError as error:
            self._count_malformed(peer, str(error))
            return None
        if channel is ChannelName.HELLO and not isinstance(message, HelloMessage):
            self.reject(peer, "core.wrong-channel", f"a {type(message).__name__} on the hello channel")
            return None
        return message

    def _count_malformed(self, peer: PeerId, detail: str) -> None:
        """Count a frame that is no message; a peer that goes on loses its connection, and that is one line."""
        self.rejects["core.malformed"] += 1
        self._malformed[peer] += 1
        if self._malformed[peer] == MALFORMED_MAX:
            what = {"event": "malformed", "peer": peer, "count": MALFORMED_MAX, "detail": detail}
            _log.warning("a peer sends what is no message; its connection ends", extra=what)
            self.disconnect(peer, "core.malformed")

    def _question_rivals(self, peer: PeerId) -> None:
        """A new link of a peer that has one: the peer restarted, or both dialled. A dead one must give way."""
        old = self.transport.link_to(peer)
        if old is not None and self._group is not None:
            self._group.create_task(self._close_if_dead(old))

    async def _close_if_dead(self, link: int) -> None:
        if not await self.transport.is_alive(link, ALIVE_TIMEOUT_S):
            self.transport.close(link, "mesh.gave-way")
