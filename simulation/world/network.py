"""A simulated network of connections: delay, loss, duplication, reordering, cuts one way or both, clogged paths.

Messages ride on connections between hosts that are both up, in order unless reordering is asked for. A cut drops
messages at once and, when it lasts, the connection; harsher than TCP, which would retry. Links are made and lost by a
periodic sweep, as diallers and keep-alives would. Not here: when faults happen (faults.py), and what a message means.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from protocols.envelope import encode
from protocols.machine import PeerConnected, PeerDisconnected, PeerId, Received

SWEEP_MS = 500
"""How often links are made and lost: a dialler's pace, scaled."""

CUT_NOTICED_MS = 3_000
"""A path cut for longer than this loses its connection, as keep-alive pings would notice."""

Link = tuple[PeerId, PeerId]


class End(Protocol):
    """A host, as the network sees it."""

    peer: PeerId
    up: bool
    boot_count: int
    boot_nonce: bytes

    def receive(self, event: Any, boot_count: int) -> None:
        """Take an event, if the process is still the one that it was meant for."""
        ...


class Surroundings(Protocol):
    """The world, as the network sees it: its time, and its hosts."""

    @property
    def now_ms(self) -> int:
        """The true time."""
        ...

    @property
    def hosts(self) -> Sequence[End]:
        """Every host."""
        ...

    @property
    def may_connect(self) -> Callable[[Any, Any], bool]:
        """Whether two hosts may have a connection."""
        ...

    def host_of(self, peer: PeerId) -> End:
        """The host of a peer."""
        ...

    def at(self, at_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        """Have something happen at a moment."""
        ...

    def after(self, delay_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        """Have something happen in a while."""
        ...


@dataclass
class LinkFaults:
    """How the whole network misbehaves; probabilities are per message."""

    delay_min_ms: int = 5
    delay_max_ms: int = 30
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0


class Network:
    """Carries messages between the hosts of one world."""

    def __init__(self, world: Surroundings, source: random.Random, faults: LinkFaults) -> None:
        self._world = world
        self._source = source
        self.faults = faults
        self.cut: dict[Link, int] = {}
        """Directed links that carry nothing, and since when."""
        self.clogged_until_ms: dict[Link, int] = {}
        self._connected: dict[Link, int] = {}
        self._last_arrival_ms: dict[Link, int] = {}
        self.counts: Counter[str] = Counter()
        self.bytes_sent: Counter[PeerId] = Counter()
        self.measure_bytes = False
        self.codec: Callable[[bytes], Any] | None = None
        """When set, every message is encoded and decoded by it on the way, as on a real wire."""
        self.link_delay_ms: dict[Link, int] = {}
        """Links that take the same time for every message, so that one message more shifts nothing else."""
        self.lingers = False
        """Whether a connection that a host closes still delivers what that host sent, as TCP would."""
        self.send_watchers: list[Callable[[PeerId, PeerId, Any], None]] = []
        """Called with sender, receiver and message at the moment a host sends, whatever becomes of the message."""

    # --- what hosts do ------------------------------------------------------------------------------------------------

    def connected(self, near: PeerId) -> list[PeerId]:
        """The peers that `near` has a connection to, in the order they connected."""
        return [far for here, far in self._connected if here == near]

    def is_connected(self, near: PeerId, far: PeerId) -> bool:
        """Whether `near` has a connection to `far`."""
        return (near, far) in self._connected

    def send(self, near: PeerId, far: PeerId, message: Any) -> None:
        """Carry one message, or lose it; a message to a peer without a connection is lost silently."""
        link = (near, far)
        self.counts["sent"] += 1
        for watch in self.send_watchers:
            watch(near, far, message)
        connected_ms = self._connected.get(link)
        if connected_ms is None:
            self.counts["unconnected"] += 1
            return
        if self.measure_bytes or self.codec is not None:
            data = encode(message)
            self.bytes_sent[near] += len(data)
            if self.codec is not None:
                message = self.codec(data)
        if link in self.cut:
            self.counts["cut"] += 1
            return
        faults, draw = self.faults, self._source.random
        if faults.loss and draw() < faults.loss:
            self.counts["lost"] += 1
            return
        copies = 1
        if faults.duplication and draw() < faults.duplication:
            self.counts["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            fixed_ms = self.link_delay_ms.get(link)
            span_ms = faults.delay_max_ms + 1 - faults.delay_min_ms
            delay_ms = faults.delay_min_ms + int(draw() * span_ms) if fixed_ms is None else fixed_ms
            at_ms = self._world.now_ms + delay_ms
            at_ms = max(at_ms, self.clogged_until_ms.get(link, 0))
            if faults.reordering and draw() < faults.reordering:
                self.counts["reordered"] += 1
            else:
                at_ms = max(at_ms, self._last_arrival_ms.get(link, 0))
                self._last_arrival_ms[link] = at_ms
            self._world.at(at_ms, self._arrive, near, far, message, connected_ms)

    def disconnect(self, near: PeerId, far: PeerId, reason: str) -> None:
        """Close the connection between two hosts, after what `near` sent if `lingers`; each that is up hears of it."""
        connected_ms = self._connected.get((near, far))
        if self.lingers and connected_ms is not None:
            at_ms = max(self._world.now_ms, self._last_arrival_ms.get((near, far), 0))
            self._world.at(at_ms, self._close, near, far, reason, connected_ms)
        else:
            self._close(near, far, reason, connected_ms)

    def _close(self, near: PeerId, far: PeerId, reason: str, connected_ms: int | None) -> None:
        if connected_ms is None or self._connected.get((near, far)) != connected_ms:
            return
        del self._connected[near, far]
        self._connected.pop((far, near), None)
        for here, there in ((near, far), (far, near)):
            host = self._world.host_of(here)
            if host.up:
                self._world.after(1, host.receive, PeerDisconnected(there, reason), host.boot_count)

    # --- what the world does ------------------------------------------------------------------------------------------

    def host_down(self, peer: PeerId) -> None:
        """A host went down: its connections reset."""
        for far in self.connected(peer):
            self._close(peer, far, "reset", self._connected[peer, far])

    def sweep(self) -> None:
        """Make the connections that can be made and lose those cut for too long; called every SWEEP_MS."""
        now_ms = self._world.now_ms
        hosts = self._world.hosts
        for index, near in enumerate(hosts):
            for far in hosts[index + 1 :]:
                self._sweep_pair(now_ms, near, far)

    def _sweep_pair(self, now_ms: int, near: End, far: End) -> None:
        link, back = (near.peer, far.peer), (far.peer, near.peer)
        if link in self._connected:
            cut_since_ms = min(self.cut.get(link, now_ms), self.cut.get(back, now_ms))
            if now_ms - cut_since_ms > CUT_NOTICED_MS:
                self.disconnect(near.peer, far.peer, "no answer")
        elif (
            near.up and far.up and link not in self.cut and back not in self.cut and self._world.may_connect(near, far)
        ):
            self._connected[link] = self._connected[back] = now_ms
            near_dialled = self._source.random() < 0.5
            near.receive(PeerConnected(far.peer, not near_dialled, far.boot_nonce), near.boot_count)
            far.receive(PeerConnected(near.peer, near_dialled, near.boot_nonce), far.boot_count)

    def _arrive(self, near: PeerId, far: PeerId, message: Any, connected_ms: int) -> None:
        link = (near, far)
        if self._connected.get(link) != connected_ms or link in self.cut:
            self.counts["cut"] += 1
            return
        self.counts["arrived"] += 1
        host = self._world.host_of(far)
        host.receive(Received(near, message), host.boot_count)
