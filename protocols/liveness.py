"""Liveness: who answers, who is suspected, who is believed down. Advisory only: routing and status, never a quorum.

Every member has up to five observers, chosen by rendezvous hash, so all nodes compute the same ones. An observer pings
over the connection it has; three misses in a row, or a lost connection and a failed redial, make a signed suspicion,
which spreads by gossip. A node believes a member down when a majority of that member's observers suspect the same
incarnation and the suspicion time has passed. The member refutes by signing a higher incarnation; only it can. A
suspicion of itself is a goodbye: whoever hears it believes the member down at once, until that member refutes it.

Sources: SWIM (Das et al., 2002): suspicion, incarnation. Lifeguard (Dadgar et al., arXiv 1707.00788): local health and
a suspicion time that shrinks with confirmations. RFC 6298: round-trip estimates. Unlike SWIM nobody probes strangers,
and nothing here needs a full mesh. Not here: dialling, and what routing does with the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

import msgspec

from protocols.envelope import DecodeError, Signed, open_signed, sign
from protocols.keys import peer_id
from protocols.machine import (
    Broadcast,
    Effect,
    Entropy,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Received,
    Reject,
    Send,
    Signer,
    Tick,
    Verifier,
)
from protocols.observers import Observers

SUSPICION_DOMAIN = "freehold/suspicion/1"
ALIVE_DOMAIN = "freehold/alive/1"
INCARNATION_MAX = 1 << 53
"""Nobody refutes that often; a larger number is nonsense that must not lead to one larger still."""

PINGS_PENDING_MAX = 16
"""Pings to one peer whose fate is open: with a bad local health a timeout spans several intervals."""

OPENED_MAX = 512
"""Verified statements remembered: five observers and a sign of life for each of 32 members, twice over."""


@dataclass(frozen=True, slots=True)
class LivenessConfig:
    """All times in ms. The simulator scales them; the defaults aim at 10 to 25 s from death to belief.

    With N members suspicion lasts between `low = suspicion_ms * log10(max(N, 10))` and `high = suspicion_spread * low`:
    `high - (high - low) * log(c + 1) / log(k)` for c confirmations beyond the first of k observers (Lifeguard, section
    IV-B). With all observers agreeing that is `low`: 5 s for up to ten members, 7.5 s for 32, after 5 to 7 s of missed
    pings. A spread of 4 keeps three of five observers below 25 s in all.

    A ping is missed after `max(ping_timeout_min_ms, 4 * srtt) * (1 + health)`. Local health (Lifeguard, section IV-A)
    is 0 when well and at most `health_max`: a miss of ours or a suspicion of ourselves adds one, an answer takes one
    off. A node that hears from nobody so becomes slow to blame others.
    """

    ping_interval_ms: int = 2_000
    ping_timeout_min_ms: int = 1_000
    misses_max: int = 3
    observers_max: int = 5
    suspicion_ms: int = 5_000
    suspicion_spread: int = 4
    health_max: int = 8
    relay_fanout: int = 3
    """Peers that a statement heard for the first time is passed to: enough to reach all of a partial overlay."""
    repeat_down_every: int = 5
    """Pings between repetitions of a suspicion once its subject is down: newcomers should hear of it too."""


class Belief(Enum):
    """What this node believes about a member."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DOWN = "down"


class LivePing(msgspec.Struct, frozen=True, tag="live_ping"):
    """Are you there?"""

    number: int


class LivePong(msgspec.Struct, frozen=True, tag="live_pong"):
    """Yes."""

    number: int


class Suspicion(msgspec.Struct, frozen=True, tag="suspicion"):
    """The signer does not hear from `node` in this incarnation."""

    node: PeerId
    incarnation: int


class Aliveness(msgspec.Struct, frozen=True, tag="aliveness"):
    """`node`, who signs, lives in this incarnation; it refutes every suspicion of a lower one."""

    node: PeerId
    incarnation: int


class Suspected(msgspec.Struct, frozen=True, tag="suspected"):
    """Carries one signed `Suspicion`."""

    signed: Signed


class StillAlive(msgspec.Struct, frozen=True, tag="still_alive"):
    """Carries one signed `Aliveness`."""

    signed: Signed


T = TypeVar("T", Suspicion, Aliveness)
LivenessMessage = LivePing | LivePong | Suspected | StillAlive


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """Event: the unrevoked members are now these, this node included."""

    members: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class RedialFailed:
    """Event: no address of `peer` answered after its connection was lost."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Leave:
    """Event: this node is about to stop; it says goodbye, and refutes nothing any more."""


@dataclass(frozen=True, slots=True)
class BeliefChanged:
    """`peer` is now believed to be this; `observers` are those whose suspicion counts at the moment.

    Of a member that said goodbye that is the member itself.
    """

    peer: PeerId
    belief: Belief
    incarnation: int
    observers: tuple[PeerId, ...]


LivenessEvent = (
    PeerConnected | PeerDisconnected | Received[LivenessMessage] | MembersChanged | RedialFailed | Leave | Tick
)


@dataclass(slots=True)
class _Member:
    """One other member. Mutable, because pings make it the busiest value of an idle node."""

    belief: Belief = Belief.ALIVE
    incarnation: int = 0
    alive: Signed | None = None
    suspicions: dict[PeerId, tuple[int, Signed]] = field(default_factory=dict)
    suspect_since_ms: int = 0
    believed_since_ms: int = 0
    observers: tuple[PeerId, ...] = ()
    connected: bool = False
    # The rest is used only if we observe it.
    observed: bool = False
    ping_due_ms: int = 0
    pings: dict[int, int] = field(default_factory=dict)
    misses: int = 0
    pings_since_repeat: int = 0
    srtt_ms: float = 0.0
    rttvar_ms: float = 0.0


class LivenessMachine:
    """Pings what this node observes, judges everybody, and answers for itself."""

    def __init__(
        self, mesh: bytes, signer: Signer, verifier: Verifier, entropy: Entropy, config: LivenessConfig | None = None
    ) -> None:
        """Start knowing nobody; members arrive as `MembersChanged`."""
        self._mesh = mesh
        self._signer = signer
        self._verifier = verifier
        self._entropy = entropy
        self._config = config or LivenessConfig()
        self._self = peer_id(signer.public_key)
        self._members: dict[PeerId, _Member] = {}
        self._observers = Observers(self._config.observers_max)
        self._connected: dict[PeerId, None] = {}
        self._number = 0
        self._health = 0
        self._incarnation = 0
        self._leaving = False
        self._opened: dict[Signed, Suspicion | Aliveness] = {}
        self._deadline_ms: int | None = None
        self._deadline_known = True

    # --- the face -----------------------------------------------------------------------------------------------------

    def handle(self, event: LivenessEvent, now: Now) -> Sequence[Effect]:
        """Consume one event; `PeerConnected` means admitted by hello."""
        if not (isinstance(event, Received) and isinstance(event.message, LivePing | LivePong)):
            # Pings never bring a deadline forward by more than the next tick finds out.
            self._deadline_known = False
        match event:
            case Received():
                return self._received(event.peer, event.message, now)
            case Tick():
                return self._tick(now)
            case PeerConnected():
                return self._peer_connected(event.peer)
            case PeerDisconnected():
                self._connected.pop(event.peer, None)
                member = self._members.get(event.peer)
                if member is not None:
                    member.connected = False
                return []
            case RedialFailed():
                return self._redial_failed(event.peer, now)
            case MembersChanged():
                return self._members_changed(event.members, now)
            case Leave():
                return self._leave()

    def deadline_ms(self) -> int | None:
        """When the next ping, miss or end of a suspicion is due."""
        if not self._deadline_known:
            times = [at_ms for member in self._members.values() for at_ms in self._times(member)]
            self._deadline_ms = min(times, default=None)
            self._deadline_known = True
        return self._deadline_ms

    def belief(self, peer: PeerId) -> Belief | None:
        """Return what is believed about a member, None for a non-member; this node is alive."""
        if peer == self._self:
            return Belief.ALIVE
        member = self._members.get(peer)
        return member.belief if member is not None else None

    def said_goodbye(self, peer: PeerId) -> bool:
        """Return whether a member said that it stops, and has not come back since."""
        member = self._members.get(peer)
        return member is not None and _gone(peer, member)

    def believed_since_ms(self, peer: PeerId) -> int:
        """Return when the belief about a member last changed (wall, ms), 0 if it did not since this process started."""
        member = self._members.get(peer)
        return member.believed_since_ms if member is not None else 0

    def incarnation(self, peer: PeerId) -> int:
        """Return the highest incarnation known of a member."""
        return self._incarnation if peer == self._self else self._members[peer].incarnation

    def observing(self) -> tuple[PeerId, ...]:
        """Return whom this node observes, in ascending order: the dialler keeps a connection to each of them."""
        return tuple(peer for peer, member in self._members.items() if member.observed)

    def rtt_ms(self, peer: PeerId) -> float | None:
        """Return the smoothed round trip to a peer this node observes, None before the first answer."""
        member = self._members.get(peer)
        return member.srtt_ms if member is not None and member.srtt_ms else None

    def rtt_high_ms(self) -> float:
        """Return a pessimistic round trip over all observed peers (srtt + 4 rttvar, about p99); 0 before any answer."""
        return max((member.srtt_ms + 4 * member.rttvar_ms for member in self._members.values()), default=0.0)

    @property
    def health(self) -> int:
        """This node's own health: 0 is well, `health_max` hears from nobody."""
        return self._health

    # --- membership and connections -----------------------------------------------------------------------------------

    def _members_changed(self, members: tuple[PeerId, ...], now: Now) -> list[Effect]:
        others = [peer for peer in sorted(members) if peer != self._self]
        self._members = {peer: self._members.get(peer) or _Member() for peer in others}
        self._observers.set(members)
        for peer, member in self._members.items():
            member.connected = peer in self._connected
            member.observers = self._observers.of(peer)
            observed = self._self in member.observers
            if observed and not member.observed:
                # A random phase spreads the pings of a fleet that started together.
                member.ping_due_ms = now.mono_ms + int(self._entropy.uniform(0, self._config.ping_interval_ms))
            if not observed:
                member.pings, member.misses = {}, 0
            member.observed = observed
        effects: list[Effect] = []
        for peer, member in self._members.items():
            effects += self._judge(peer, member, now)
        return effects

    def _peer_connected(self, peer: PeerId) -> list[Effect]:
        self._connected[peer] = None
        effects: list[Effect] = []
        if self._incarnation and not self._leaving:
            effects.append(Send(peer, StillAlive(self._sign_alive())))
        member = self._members.get(peer)
        if member is not None:
            member.connected = True
            member.pings, member.misses = {}, 0  # it has just said hello
            effects += self._tell_suspect(peer, member)
        return effects

    def _redial_failed(self, peer: PeerId, now: Now) -> list[Effect]:
        member = self._members.get(peer)
        if member is None or not member.observed or member.connected:
            return []
        member.misses = max(member.misses, self._config.misses_max)
        return self._suspect(peer, member, now)

    def _tell_suspect(self, peer: PeerId, member: _Member) -> list[Effect]:
        """Show a member the highest suspicion against it, so that it can refute them all."""
        held = [pair for pair in member.suspicions.values() if pair[0] >= member.incarnation]
        if not held:
            return []
        return [Send(peer, Suspected(max(held, key=lambda pair: pair[0])[1]))]

    # --- pings --------------------------------------------------------------------------------------------------------

    def _tick(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for peer, member in self._members.items():
            if member.observed:
                self._count_misses(member, now)
                if now.mono_ms >= member.ping_due_ms:
                    effects += self._ping(peer, member, now)
            if member.suspicions:
                effects += self._judge(peer, member, now)
        return effects

    def _ping(self, peer: PeerId, member: _Member, now: Now) -> list[Effect]:
        member.ping_due_ms = now.mono_ms + self._config.ping_interval_ms
        effects: list[Effect] = []
        if member.misses >= self._config.misses_max:
            member.pings_since_repeat += 1
            every = self._config.repeat_down_every if member.belief is Belief.DOWN else 1
            if member.pings_since_repeat >= every:
                effects += self._suspect(peer, member, now)
        if not member.connected:
            member.misses += 1
            return effects
        self._number += 1
        member.pings[self._number] = now.mono_ms
        if len(member.pings) > PINGS_PENDING_MAX:
            del member.pings[next(iter(member.pings))]
        effects.append(Send(peer, LivePing(self._number)))
        return effects

    def _count_misses(self, member: _Member, now: Now) -> None:
        timeout_ms = self._timeout_ms(member)
        late = [number for number, sent_ms in member.pings.items() if now.mono_ms >= sent_ms + timeout_ms]
        for number in late:
            del member.pings[number]
            member.misses += 1
            self._health = min(self._health + 1, self._config.health_max)

    def _timeout_ms(self, member: _Member) -> int:
        return int(max(self._config.ping_timeout_min_ms, 4 * member.srtt_ms) * (1 + self._health))

    def _times(self, member: _Member) -> list[int]:
        times = []
        if member.observed:
            times.append(member.ping_due_ms)
            if member.pings:
                times.append(next(iter(member.pings.values())) + self._timeout_ms(member))
        if member.belief is Belief.SUSPECT and self._enough(member):
            times.append(member.suspect_since_ms + self._suspicion_ms(member))
        return times

    def _pong(self, peer: PeerId, member: _Member, number: int, now: Now) -> list[Effect]:
        sent_ms = member.pings.pop(number, None)
        if sent_ms is None:
            return []  # answered too late to count; the miss stands
        rtt_ms = float(max(1, now.mono_ms - sent_ms))
        if member.srtt_ms:
            member.rttvar_ms += (abs(rtt_ms - member.srtt_ms) - member.rttvar_ms) / 4
            member.srtt_ms += (rtt_ms - member.srtt_ms) / 8
        else:
            member.srtt_ms, member.rttvar_ms = rtt_ms, rtt_ms / 2
        member.misses = 0
        self._health = max(self._health - 1, 0)
        return self._tell_suspect(peer, member) if member.belief is not Belief.ALIVE else []

    # --- statements ---------------------------------------------------------------------------------------------------

    def _received(self, peer: PeerId, message: object, now: Now) -> list[Effect]:
        match message:
            case LivePing():
                return [Send(peer, LivePong(message.number))]
            case LivePong():
                member = self._members.get(peer)
                return self._pong(peer, member, message.number, now) if member is not None else []
            case Suspected():
                return self._heard_suspicion(peer, message.signed, now)
            case StillAlive():
                return self._heard_alive(peer, message.signed, now)
            case _:
                return [Reject(peer, "liveness.unknown-message")]

    def _open(self, signed: Signed) -> Suspicion | Aliveness | None:
        """Verify and decode a statement once; repetitions are the common case and cost a lookup."""
        statement = self._opened.get(signed)
        if statement is None:
            statement = self._open_as(signed, SUSPICION_DOMAIN, Suspicion) or self._open_as(
                signed, ALIVE_DOMAIN, Aliveness
            )
            if statement is None:
                return None
            self._opened[signed] = statement
            if len(self._opened) > OPENED_MAX:
                del self._opened[next(iter(self._opened))]
        return statement

    def _open_as(self, signed: Signed, domain: str, kind: type[T]) -> T | None:
        try:
            statement: T = open_signed(self._verifier, domain, self._mesh, signed, kind)
        except DecodeError:
            return None
        return statement if 0 <= statement.incarnation < INCARNATION_MAX else None

    def _heard_suspicion(self, peer: PeerId, signed: Signed, now: Now) -> list[Effect]:
        suspicion = self._open(signed)
        if not isinstance(suspicion, Suspicion):
            return [Reject(peer, "liveness.suspicion", "not a signed suspicion of this mesh")]
        observer = peer_id(signed.key)
        if observer != self._self and observer not in self._members:
            return []  # revoked or unknown: its word does not count, and is not passed on
        if suspicion.node == self._self:
            return self._refute(peer, suspicion.incarnation)
        member = self._members.get(suspicion.node)
        if member is None:
            return []
        if suspicion.incarnation < member.incarnation:
            return [Send(peer, StillAlive(member.alive))] if member.alive is not None else []
        known = member.suspicions.get(observer)
        if known is not None and known[0] >= suspicion.incarnation:
            return []
        if observer not in member.observers and observer != suspicion.node:
            return []
        member.suspicions[observer] = (suspicion.incarnation, signed)
        return [*self._relay(Suspected(signed), peer, suspicion.node), *self._judge(suspicion.node, member, now)]

    def _heard_alive(self, peer: PeerId, signed: Signed, now: Now) -> list[Effect]:
        alive = self._open(signed)
        if not isinstance(alive, Aliveness) or peer_id(signed.key) != alive.node:
            return [Reject(peer, "liveness.alive", "not a sign of life of this mesh by its subject")]
        if alive.node == self._self:
            # Our own word from before a restart: take up its count, others still hold it against us.
            return self._refute(peer, alive.incarnation) if alive.incarnation > self._incarnation else []
        member = self._members.get(alive.node)
        if member is None or alive.incarnation <= member.incarnation:
            return []
        member.incarnation, member.alive = alive.incarnation, signed
        if peer == alive.node:
            member.pings, member.misses = {}, 0  # it said so itself, just now
        member.suspicions = {who: held for who, held in member.suspicions.items() if held[0] >= alive.incarnation}
        return [*self._relay(StillAlive(signed), peer, alive.node), *self._judge(alive.node, member, now)]

    def _leave(self) -> list[Effect]:
        """Say goodbye: a suspicion of this very node, which a member of an older release passes over."""
        self._leaving = True
        return self._goodbye()

    def _goodbye(self) -> list[Effect]:
        goodbye = Suspicion(self._self, self._incarnation)
        return [Broadcast(Suspected(sign(self._signer, SUSPICION_DOMAIN, self._mesh, goodbye)))]

    def _refute(self, peer: PeerId, incarnation: int) -> list[Effect]:
        if self._leaving:
            if incarnation <= self._incarnation:
                return []
            self._incarnation = (
                incarnation  # said before a restart that this process forgot; a goodbye below it is void
            )
            return self._goodbye()
        if incarnation < self._incarnation:
            return [Send(peer, StillAlive(self._sign_alive()))]  # said already, but this peer has not heard
        self._incarnation = incarnation + 1
        self._health = min(self._health + 1, self._config.health_max)
        return [Broadcast(StillAlive(self._sign_alive()))]

    def _sign_alive(self) -> Signed:
        return sign(self._signer, ALIVE_DOMAIN, self._mesh, Aliveness(self._self, self._incarnation))

    def _suspect(self, peer: PeerId, member: _Member, now: Now) -> list[Effect]:
        member.pings_since_repeat = 0
        held = member.suspicions.get(self._self)
        if held is None or held[0] < member.incarnation:
            signed = sign(self._signer, SUSPICION_DOMAIN, self._mesh, Suspicion(peer, member.incarnation))
            member.suspicions[self._self] = held = (member.incarnation, signed)
        return [Broadcast(Suspected(held[1])), *self._judge(peer, member, now)]

    def _relay(self, message: LivenessMessage, heard_from: PeerId, subject: PeerId) -> list[Effect]:
        others = [peer for peer in self._connected if peer != heard_from]
        chosen = [subject] if subject in others else []
        while others and len(chosen) < self._config.relay_fanout:
            pick = others.pop(int(self._entropy.uniform(0, len(others))))
            if pick not in chosen:
                chosen.append(pick)
        return [Send(peer, message) for peer in chosen]

    # --- judgement ----------------------------------------------------------------------------------------------------

    def _counted(self, member: _Member) -> tuple[PeerId, ...]:
        return tuple(
            observer
            for observer in member.observers
            if observer in member.suspicions and member.suspicions[observer][0] >= member.incarnation
        )

    def _enough(self, member: _Member) -> bool:
        return len(self._counted(member)) > len(member.observers) // 2

    def _suspicion_ms(self, member: _Member) -> int:
        low_ms = self._config.suspicion_ms * math.log10(max(len(self._members) + 1, 10))
        high_ms = low_ms * self._config.suspicion_spread
        observers, counted = len(member.observers), len(self._counted(member))
        if counted >= observers:
            return int(low_ms)
        return int(high_ms - (high_ms - low_ms) * math.log(counted) / math.log(observers))

    def _judge(self, peer: PeerId, member: _Member, now: Now) -> list[Effect]:
        counted = (peer,) if _gone(peer, member) else self._counted(member)
        if counted == (peer,):
            belief = Belief.DOWN
        elif not counted:
            belief = Belief.ALIVE
        elif member.belief is Belief.ALIVE:
            belief, member.suspect_since_ms = Belief.SUSPECT, now.mono_ms
        elif self._enough(member) and now.mono_ms >= member.suspect_since_ms + self._suspicion_ms(member):
            belief = Belief.DOWN
        else:
            belief = member.belief
        if belief is member.belief:
            return []
        member.belief, member.believed_since_ms = belief, now.wall_ms
        return [Notify(BeliefChanged(peer, belief, member.incarnation, counted))]


def _gone(peer: PeerId, member: _Member) -> bool:
    """Whether the newest that a member said of itself is a goodbye."""
    own = member.suspicions.get(peer)
    return own is not None and own[0] >= member.incarnation
