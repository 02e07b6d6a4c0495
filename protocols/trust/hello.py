"""`/freehold/hello/1`: what two authenticated peers tell each other before anything else is allowed.

Noise has proven who the peer is; hello finds out whether it belongs here. Both sides send `Hello` at once and answer
the other's challenge with `Echo`; with both the peer is admitted at its standing. Before that nothing else is accepted,
for 5 s and 64 KiB. An invited newcomer puts its join request into its `Hello` and gets a `Welcome`. A refusal names its
rule and closes. The echo proves that this very process is alive now: when an older process of the same peer id answers
a challenge made after a newer one appeared, two machines share one key, and both are quarantined.

One machine per node; it sees connections by peer. Not here: Noise and streams (libp2p/), the newcomer's side of an
invite (joining.py), what a standing allows elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from protocols.envelope import Signed, encode
from protocols.keys import peer_id, public_key_of
from protocols.machine import (
    Disconnect,
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
from protocols.refusal import Refusal
from protocols.trust.admission import JoinPapers, admit, certify
from protocols.trust.invites import Bundle
from protocols.trust.store import CREDENTIALS_MAX, Credentials, Standing, TrustChanged, TrustStore

HELLO_TIMEOUT_MS = 5_000
HELLO_BYTES_MAX = 64 * 1024
"""What one peer may send before it is admitted; the transport holds the same limit before it decodes."""

VERSION_MIN = 1
VERSION_MAX = 1
NONCE_BYTES = 16
BOOT_NONCE_BYTES = 8
"""New at every start of the process; the same value orders the node's ballots."""

JUDGE_EVERY_MS = 3_600_000
"""How long a certificate that ran out may go unnoticed on a connection that stays up; its last fortnight was for renewal."""

CHALLENGES_MAX = 8
"""Challenges kept per peer, answered or not; a peer that reconnects faster than it answers loses the oldest."""

PEERS_MAX = 256
"""Connections that hello follows at once: 32 members, newcomers, and a crowd that will be refused."""

NONCES_MAX = 16
"""Boot nonces remembered per peer; a clone is noticed while its nonce is among them."""

QUARANTINE_MS = 600_000
"""How long a cloned peer id stays out after it was last seen double: long enough for a person to act on the alert."""

Family = Literal["hello", "renewal", "sync", "records", "chain"]
ALLOWED: dict[Standing, tuple[Family, ...]] = {
    Standing.REVOKED: (),
    Standing.STRANGER: (),
    Standing.EXPIRED: ("hello", "renewal"),
    Standing.LIMITED: ("hello", "sync"),
    Standing.JOINED: ("hello", "renewal", "sync", "records"),
    Standing.MEMBER: ("hello", "renewal", "sync", "records", "chain"),
}
"""Which families of messages a peer may send at each standing, once admitted. `sync` reads, `records` also writes."""


class ChainHead(msgspec.Struct, frozen=True, array_like=True):
    """Where a node's decision chain ends: (era, slot, digest of the head decision or empty)."""

    era: int = 0
    slot: int = 0
    digest: bytes = b""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first message of each side; `boot_nonce` is new at every start of the process, `challenge` at every hello."""

    mesh: bytes
    version_min: int
    version_max: int
    boot_nonce: bytes
    challenge: bytes
    head: ChainHead
    credentials: Credentials
    papers: JoinPapers | None = None


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    """A further proof of life asked of a peer that is already known."""

    challenge: bytes


class Echo(msgspec.Struct, frozen=True, tag="echo"):
    """The answer to a challenge, by the process with this boot nonce."""

    challenge: bytes
    boot_nonce: bytes


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """What a newcomer needs to know the mesh: genesis bytes, its own credentials and those of the admitting member."""

    genesis: bytes
    credentials: Credentials
    admitted_by: Credentials


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Why the connection is about to be closed; `rule` is stable, `detail` is for a person."""

    rule: str
    detail: str


HelloMessage = Hello | Challenge | Echo | Welcome | Refused


@dataclass(frozen=True, slots=True)
class Admitted:
    """`peer` may now do what its standing allows, speaking `version`; its chain ended at `head`."""

    peer: PeerId
    standing: Standing
    version: int
    boot_nonce: bytes
    head: ChainHead


@dataclass(frozen=True, slots=True)
class Invited:
    """This node admitted a newcomer: publish both as records before the effects that follow."""

    peer: PeerId
    certificate: Signed
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class RefusedBy:
    """A peer refused this node, for `rule`; "hello.cloned" means this node's key is in use elsewhere."""

    peer: PeerId
    rule: str
    detail: str


@dataclass(frozen=True, slots=True)
class PeerCloned:
    """Two living processes use `peer`'s key; the boot nonces of both."""

    peer: PeerId
    boot_nonces: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Peer:
    """One followed peer.

    `nonces` are the boot nonces it has shown, in order of first appearance; `challenges` pairs what we asked with the
    newest of them at that moment.
    """

    since_ms: int
    connected: bool = True
    bytes_used: int = 0
    hello: Hello | None = None
    version: int = 0
    standing: Standing | None = None
    nonces: tuple[bytes, ...] = ()
    challenges: tuple[tuple[bytes, bytes], ...] = ()


HelloEvent = PeerConnected | PeerDisconnected | Received[HelloMessage] | TrustChanged | Tick


class HelloMachine:
    """Admits, refuses and watches the peers of one node."""

    def __init__(
        self, trust: TrustStore, signer: Signer, verifier: Verifier, entropy: Entropy, *, boot_nonce: bytes
    ) -> None:
        """Take the node's trust store and key; `boot_nonce` is 8 fresh random bytes, shared by all machines."""
        assert len(boot_nonce) == BOOT_NONCE_BYTES
        self.head = ChainHead()
        """Where our chain ends; the composer keeps it current."""
        self._trust = trust
        self._signer = signer
        self._verifier = verifier
        self._entropy = entropy
        self._boot_nonce = boot_nonce
        self._self = peer_id(signer.public_key)
        self._peers: dict[PeerId, _Peer] = {}
        self._quarantined_until_ms: dict[PeerId, int] = {}
        self._judged_version = trust.version
        self._judged_ms = 0
        self._deadline_ms: int | None = None
        self._deadline_known = False

    def handle(self, event: HelloEvent, now: Now) -> Sequence[Effect]:
        """Consume one event; any message that is no hello message, from a peer not admitted, is refused."""
        self._deadline_known = False
        match event:
            case PeerConnected():
                return self._connected(event.peer, now)
            case PeerDisconnected():
                state = self._peers.get(event.peer)
                if state is not None:
                    # Nonces stay: a clone that takes turns with its original must still be noticed.
                    self._peers[event.peer] = replace(state, connected=False, standing=None, hello=None)
                return []
            case Received():
                return self._received(event.peer, event.message, now)
            case TrustChanged() | Tick():
                return [*self._time_out(now), *self._judge_again(now)]

    def deadline_ms(self) -> int | None:
        """When the slowest unfinished hello runs out, or the admitted peers' certificates are looked at again."""
        if not self._deadline_known:
            waiting = [state.since_ms for state in self._peers.values() if state.connected and state.standing is None]
            due = [since_ms + HELLO_TIMEOUT_MS for since_ms in waiting]
            if any(state.standing is not None for state in self._peers.values()):
                due.append(self._judged_ms + JUDGE_EVERY_MS)
            self._deadline_ms = min(due, default=None)
            self._deadline_known = True
        return self._deadline_ms

    def standing(self, peer: PeerId) -> Standing | None:
        """Return the standing at which `peer` is admitted on a live connection, None before that."""
        state = self._peers.get(peer)
        return state.standing if state is not None else None

    def admitted(self) -> tuple[PeerId, ...]:
        """Return the admitted peers that are at least LIMITED, in ascending order."""
        return tuple(
            sorted(peer for peer, state in self._peers.items() if state.standing not in {None, Standing.EXPIRED})
        )

    # --- events -------------------------------------------------------------------------------------------------------

    def _connected(self, peer: PeerId, now: Now) -> list[Effect]:
        if peer not in self._peers and len(self._peers) >= PEERS_MAX and not self._forget_one():
            return [Disconnect(peer, "too many connections")]
        until_ms = self._quarantined_until_ms.get(peer)
        if until_ms is not None and now.mono_ms < until_ms:
            return self._refuse(peer, Refusal("hello.cloned", "two machines use this node's key; see the operator"))
        challenge = self._entropy.random_bytes(NONCE_BYTES)
        old = self._peers.get(peer)
        if old is None:
            state = _Peer(now.mono_ms)
        elif old.connected and old.standing is not None:
            state = old  # a second connection of a living peer: ask who it is, keep what the first one has
        else:
            state = replace(old, since_ms=now.mono_ms, connected=True, bytes_used=0, hello=None, standing=None)
        self._peers[peer] = _ask(state, challenge)
        mine = self._trust.credentials(self._self)
        hello = Hello(self._trust.mesh, VERSION_MIN, VERSION_MAX, self._boot_nonce, challenge, self.head, mine)
        return [Send(peer, hello)]

    def _received(self, peer: PeerId, message: object, now: Now) -> list[Effect]:
        state = self._peers.get(peer)
        if state is None or not state.connected:
            return [Reject(peer, "hello.not-connected")]
        if state.standing is None:
            used = state.bytes_used + len(encode(message))
            if used > HELLO_BYTES_MAX:
                return self._refuse(peer, Refusal("hello.too-much", "over 64 KiB before admission"))
            state = self._peers[peer] = replace(state, bytes_used=used)
        match message:
            case Hello():
                return self._hello(peer, state, message, now)
            case Challenge():
                return [Send(peer, Echo(message.challenge, self._boot_nonce))]
            case Echo():
                return self._echo(peer, state, message, now)
            case Refused():
                self._peers[peer] = replace(state, connected=False, standing=None, hello=None)
                return [Notify(RefusedBy(peer, message.rule, message.detail)), Disconnect(peer, message.rule)]
            case _:
                return self._refuse(peer, Refusal("hello.not-admitted", "only hello is allowed before admission"))

    def _hello(self, peer: PeerId, state: _Peer, hello: Hello, now: Now) -> list[Effect]:
        if len(hello.boot_nonce) != BOOT_NONCE_BYTES or len(hello.challenge) != NONCE_BYTES:
            return self._refuse(peer, Refusal("hello.malformed", "a nonce has the wrong length"))
        if max(len(hello.credentials.certificates), len(hello.credentials.bundles)) > CREDENTIALS_MAX:
            # Each costs a signature, and each that is believed another look at those that are not.
            detail = f"more than {CREDENTIALS_MAX} certificates or admissions"
            return self._refuse(peer, Refusal("hello.malformed", detail))
        if hello.mesh != self._trust.mesh:
            return self._refuse(peer, Refusal("hello.wrong-mesh", "this node belongs to another mesh"))
        version = min(hello.version_max, VERSION_MAX)
        if version < max(hello.version_min, VERSION_MIN):
            detail = f"this node speaks versions {VERSION_MIN} to {VERSION_MAX}; update the older one"
            return self._refuse(peer, Refusal("hello.version", detail))
        effects: list[Effect] = []
        problem = self._trust.learn_credentials(hello.credentials, now.wall_ms)
        standing = self._trust.standing(peer, now.wall_ms)
        if hello.papers is not None and standing is not Standing.REVOKED:
            # A newcomer that is known already has not heard its welcome: the connection broke, here or elsewhere.
            invited = self._invite(peer, hello.papers, now) if standing is Standing.STRANGER else [self._welcome(peer)]
            if isinstance(invited, Refusal):
                return self._refuse(peer, invited)
            effects += invited
            standing = self._trust.standing(peer, now.wall_ms)
        if standing is Standing.STRANGER:
            why = problem or Refusal("hello.stranger", "ask an operator for an invite")
            return self._refuse(peer, Refusal(why.rule, f"this mesh does not know the node: {why.detail}"))
        if standing is Standing.REVOKED:
            return self._refuse(peer, Refusal("hello.revoked", "this node was revoked"))
        restarted = state.hello is not None and state.hello.boot_nonce != hello.boot_nonce
        state = replace(state, hello=hello, version=version)
        if hello.boot_nonce not in state.nonces:
            state = replace(state, nonces=(*state.nonces, hello.boot_nonce)[-NONCES_MAX:])
        if restarted:
            # The process that was admitted is gone, or there are two: whoever is alive can answer this.
            challenge = self._entropy.random_bytes(NONCE_BYTES)
            state = _ask(replace(state, standing=None, since_ms=now.mono_ms), challenge)
            effects.append(Send(peer, Challenge(challenge)))
        self._peers[peer] = state
        return [*effects, Send(peer, Echo(hello.challenge, self._boot_nonce))]

    def _echo(self, peer: PeerId, state: _Peer, echo: Echo, now: Now) -> list[Effect]:
        # An answered challenge stays: of two living processes either may answer first, and the second is the proof.
        newest_then = dict(state.challenges).get(echo.challenge)
        if newest_then is None:
            return [Reject(peer, "hello.echo", "an answer to a challenge that was not made")]
        if _older(state.nonces, echo.boot_nonce, newest_then):
            return self._cloned(peer, (echo.boot_nonce, newest_then), now)
        if state.hello is None or state.hello.boot_nonce != echo.boot_nonce or state.standing is not None:
            return []
        standing = self._trust.standing(peer, now.wall_ms)
        if standing in {Standing.STRANGER, Standing.REVOKED}:
            return self._refuse(peer, Refusal(f"hello.{standing.value}", "the node's standing changed during hello"))
        self._peers[peer] = replace(state, standing=standing)
        return [Notify(_admitted(peer, standing, state))]

    def _cloned(self, peer: PeerId, boot_nonces: tuple[bytes, bytes], now: Now) -> list[Effect]:
        self._quarantined_until_ms[peer] = now.mono_ms + QUARANTINE_MS
        refused = self._refuse(peer, Refusal("hello.cloned", "two machines use this node's key; see the operator"))
        return [Notify(PeerCloned(peer, boot_nonces)), *refused]

    # --- invites ------------------------------------------------------------------------------------------------------

    def _invite(self, peer: PeerId, papers: JoinPapers, now: Now) -> list[Effect] | Refusal:
        """Admit an invited node: certificate and countersignature, published before the welcome leaves."""
        key = public_key_of(peer)
        bundle = admit(self._trust, self._signer, self._verifier, papers, now, kind="node", key=key)
        if isinstance(bundle, Refusal):
            return bundle
        certificate = certify(self._trust, self._signer, peer, now)
        if isinstance(certificate, Refusal):
            return certificate
        return [Notify(Invited(peer, certificate, bundle)), self._welcome(peer)]

    def _welcome(self, peer: PeerId) -> Send[Welcome]:
        mine, theirs = self._trust.credentials(self._self), self._trust.credentials(peer)
        return Send(peer, Welcome(self._trust.genesis_bytes, theirs, mine))

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def _refuse(self, peer: PeerId, refusal: Refusal) -> list[Effect]:
        state = self._peers.get(peer)
        if state is not None:
            self._peers[peer] = replace(state, connected=False, standing=None, hello=None)
        refused = Refused(refusal.rule, refusal.detail)
        return [Send(peer, refused), Reject(peer, refusal.rule, refusal.detail), Disconnect(peer, refusal.rule)]

    def _time_out(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for peer in sorted(self._peers):
            state = self._peers[peer]
            if state.connected and state.standing is None and now.mono_ms >= state.since_ms + HELLO_TIMEOUT_MS:
                effects += self._refuse(peer, Refusal("hello.timeout", "no complete hello within 5 s"))
        return effects

    def _judge_again(self, now: Now) -> list[Effect]:
        self._judged_ms = now.mono_ms
        effects: list[Effect] = []
        for peer in sorted(self._peers):
            state = self._peers[peer]
            if not state.connected or state.standing is None:
                continue
            standing = self._trust.standing(peer, now.wall_ms)
            if standing in {Standing.REVOKED, Standing.STRANGER}:
                effects += self._refuse(peer, Refusal(f"hello.{standing.value}", "this node's standing changed"))
            elif standing is not state.standing and state.hello is not None:
                self._peers[peer] = replace(state, standing=standing)
                effects.append(Notify(_admitted(peer, standing, state)))
        return effects

    def _forget_one(self) -> bool:
        for peer, state in self._peers.items():
            if not state.connected:
                del self._peers[peer]
                return True
        return False


def _ask(state: _Peer, challenge: bytes) -> _Peer:
    newest = state.nonces[-1] if state.nonces else b""
    return replace(state, challenges=(*state.challenges, (challenge, newest))[-CHALLENGES_MAX:])


def _older(nonces: tuple[bytes, ...], nonce: bytes, other: bytes) -> bool:
    return nonce in nonces and other in nonces and nonces.index(nonce) < nonces.index(other)


def _admitted(peer: PeerId, standing: Standing, state: _Peer) -> Admitted:
    assert state.hello is not None
    return Admitted(peer, standing, state.version, state.hello.boot_nonce, state.hello.head)


def keep_connection(local: PeerId, remote: PeerId, *, outbound: bool) -> bool:
    """Return whether to keep this one of two simultaneous connections: the one opened by the lower peer id."""
    return outbound == (local < remote)
