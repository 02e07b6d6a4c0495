"""The newcomer's side of an invite: from a pasted line to a genesis, a certificate and a trust store that believes it.

The machine speaks hello to the pinned members of the invite line, shows its papers, checks everything in the welcome
against the mesh id the admin signed, and reports. The node then starts its ordinary machines and connects again as a
member. Not here: dialling, and what a member checks (hello.py, admission.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols.envelope import DecodeError
from protocols.keys import peer_id
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
from protocols.trust.admission import JoinPapers
from protocols.trust.hello import (
    BOOT_NONCE_BYTES,
    HELLO_TIMEOUT_MS,
    NONCE_BYTES,
    VERSION_MAX,
    VERSION_MIN,
    ChainHead,
    Challenge,
    Echo,
    Hello,
    Refused,
    RefusedBy,
    Welcome,
)
from protocols.trust.invites import InviteLine, JoinRequest, make_join
from protocols.trust.store import Credentials, Standing, TrustStore


@dataclass(frozen=True, slots=True)
class Joined:
    """The mesh let this node in: store the genesis and both credentials, then start as a member."""

    genesis: bytes
    credentials: Credentials
    admitted_by: PeerId
    admitted_by_credentials: Credentials


class JoinMachine:
    """Turns one invite line into one `Joined` or a `RefusedBy` that says why not."""

    def __init__(
        self,
        line: InviteLine,
        invite_signer: Signer,
        signer: Signer,
        verifier: Verifier,
        entropy: Entropy,
        *,
        name: str,
    ) -> None:
        """Take the parsed line, a signer on its seed, and the node's own key; `name` is shown to operators."""
        self._mesh = line.invite.mesh
        self._pins = tuple(address.pin for address in line.addresses)
        join = JoinRequest(signer.public_key, name, entropy.random_bytes(NONCE_BYTES))
        self._papers = JoinPapers(line.signed, make_join(invite_signer, self._mesh, join))
        self._verifier = verifier
        self._entropy = entropy
        self._boot_nonce = entropy.random_bytes(BOOT_NONCE_BYTES)
        self._self = peer_id(signer.public_key)
        self._asked_ms: dict[PeerId, int] = {}
        self.joined: Joined | None = None

    def handle(self, event: PeerConnected | PeerDisconnected | Received[object] | Tick, now: Now) -> Sequence[Effect]:
        """Consume one event; peers that are not pinned in the line are hung up on."""
        match event:
            case PeerConnected():
                return self._connected(event.peer, now)
            case PeerDisconnected():
                self._asked_ms.pop(event.peer, None)
                return []
            case Received():
                return self._received(event.peer, event.message, now)
            case Tick():
                late = sorted(peer for peer, index in self._asked_ms.items() if now.mono_ms >= index + HELLO_TIMEOUT_MS)
                for peer in late:
                    del self._asked_ms[peer]
                return [Disconnect(peer, "hello.timeout") for peer in late]

    def deadline_ms(self) -> int | None:
        """When the oldest unanswered hello runs out."""
        return min(self._asked_ms.values()) + HELLO_TIMEOUT_MS if self._asked_ms else None

    def _connected(self, peer: PeerId, now: Now) -> list[Effect]:
        if peer not in self._pins:
            return [Disconnect(peer, "join.not-pinned")]
        if self.joined is not None:
            return []
        self._asked_ms[peer] = now.mono_ms
        challenge = self._entropy.random_bytes(NONCE_BYTES)
        hello = Hello(
            self._mesh, VERSION_MIN, VERSION_MAX, self._boot_nonce, challenge, ChainHead(), Credentials(), self._papers
        )
        return [Send(peer, hello)]

    def _received(self, peer: PeerId, message: object, now: Now) -> list[Effect]:
        if peer not in self._asked_ms:
            return [Reject(peer, "join.not-asked")]
        match message:
            case Hello() | Challenge():
                return [Send(peer, Echo(message.challenge, self._boot_nonce))]
            case Echo():
                return []
            case Refused():
                del self._asked_ms[peer]
                return [Notify(RefusedBy(peer, message.rule, message.detail)), Disconnect(peer, message.rule)]
            case Welcome():
                return self._welcome(peer, message, now)
            case _:
                return [Reject(peer, "join.unknown-message")]

    def _welcome(self, peer: PeerId, welcome: Welcome, now: Now) -> list[Effect]:
        if self.joined is not None:
            return []
        try:
            trust = TrustStore(self._verifier, welcome.genesis)
        except DecodeError as error:
            return _told(Reject(peer, "join.genesis", str(error)))
        if trust.mesh != self._mesh:
            return _told(Reject(peer, "join.genesis", "the genesis is not the one the invite names"))
        problem = trust.learn_credentials(welcome.admitted_by, now.wall_ms)
        problem = trust.learn_credentials(welcome.credentials, now.wall_ms) or problem
        if trust.standing(self._self, now.wall_ms) is Standing.STRANGER or trust.certificate(peer) is None:
            why = f": {problem.detail}" if problem is not None else ""
            return _told(Reject(peer, "join.unproven", f"the welcome does not prove that an admin let us in{why}"))
        self.joined = Joined(welcome.genesis, welcome.credentials, peer, welcome.admitted_by)
        return [Notify(self.joined)]


def _told(reject: Reject) -> list[Effect]:
    """Say why the welcome is not believed also to who waits for it: nothing better will come."""
    return [reject, Notify(RefusedBy(reject.peer, reject.rule, reject.detail))]
