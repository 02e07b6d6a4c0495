"""Renewal: a node whose certificate is past its 30th day asks an issuer for the next one, before and after expiry.

Expiry stops no workload, so nothing here is urgent: one request a minute, to one issuer at a time. An issuer renews
itself. Not here: what an issuer may sign (trust.py), and publishing the certificate as a record, which the composer
does on `Renewed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from protocols.envelope import Signed
from protocols.keys import peer_id
from protocols.machine import Effect, Entropy, Notify, Now, PeerId, Received, Reject, Send, Signer, Tick
from protocols.refusal import Refusal
from protocols.trust.admission import certify
from protocols.trust.store import TrustStore

ASK_EVERY_MS = 60_000
CHECK_EVERY_MS = 60_000
"""How often a node looks at its certificate. It costs a comparison, and a machine that slept for a month wakes up with a wall
clock of now and a monotonic one of then: so its certificate is renewed within two minutes."""


class RenewMe(msgspec.Struct, frozen=True, tag="renew_me"):
    """The sender asks for its next certificate."""


class RenewedCertificate(msgspec.Struct, frozen=True, tag="renewed"):
    """The asked-for certificate."""

    certificate: Signed


class NotRenewed(msgspec.Struct, frozen=True, tag="not_renewed"):
    """Why not; the asker tries the next issuer."""

    rule: str
    detail: str


RenewalMessage = RenewMe | RenewedCertificate | NotRenewed


@dataclass(frozen=True, slots=True)
class Renewed:
    """`certificate` is new and believed: publish it as a record before the effects that follow."""

    node: PeerId
    certificate: Signed


class RenewalMachine:
    """Asks for this node's renewals and, on an issuer, grants those of others."""

    def __init__(self, trust: TrustStore, signer: Signer, entropy: Entropy) -> None:
        """Take the node's trust store and key."""
        self._trust = trust
        self._signer = signer
        self._entropy = entropy
        self._self = peer_id(signer.public_key)
        self._due_ms = 0
        self._asked = 0
        self.connected_issuers: tuple[PeerId, ...] = ()
        """Admitted peers with the issuer role; the composer keeps it current."""

    def handle(self, event: Received[RenewalMessage] | Tick, now: Now) -> Sequence[Effect]:
        """Consume one message or tick."""
        match event:
            case Tick():
                return self._tick(now) if now.mono_ms >= self._due_ms else []
            case Received(peer, RenewMe()):
                current = self._trust.certificate(peer)
                if current is None or not current.renewal_due(now.wall_ms):
                    return [Reject(peer, "renewal.not-due", "the certificate is unknown or younger than 30 days")]
                signed = certify(self._trust, self._signer, peer, now)
                if isinstance(signed, Refusal):
                    return [Send(peer, NotRenewed(signed.rule, signed.detail))]
                return [Notify(Renewed(peer, signed)), Send(peer, RenewedCertificate(signed))]
            case Received(peer, RenewedCertificate() as message):
                certificate = self._trust.learn_certificate(message.certificate, now.wall_ms)
                if isinstance(certificate, Refusal) or certificate.node != self._self:
                    return [Reject(peer, "renewal.unbelievable", "the certificate is not believed or not ours")]
                return [Notify(Renewed(self._self, message.certificate))]
            case Received(_, NotRenewed()):
                return []  # the next tick asks the next issuer
            case _:
                return [Reject(event.peer, "renewal.unknown-message")]

    def deadline_ms(self) -> int | None:
        """When the certificate is looked at next."""
        return self._due_ms

    def _tick(self, now: Now) -> list[Effect]:
        self._due_ms = now.mono_ms + CHECK_EVERY_MS
        current = self._trust.certificate(self._self)
        if current is None or not current.renewal_due(now.wall_ms):
            return []
        if "issuer" in current.roles:
            signed = certify(self._trust, self._signer, self._self, now)
            return [] if isinstance(signed, Refusal) else [Notify(Renewed(self._self, signed))]
        self._due_ms = now.mono_ms + ASK_EVERY_MS + int(self._entropy.uniform(0, ASK_EVERY_MS))
        if not self.connected_issuers:
            return []
        self._asked += 1
        return [Send(self.connected_issuers[self._asked % len(self.connected_issuers)], RenewMe())]
