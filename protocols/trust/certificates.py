"""Node certificates: what a mesh says about one of its nodes, for 90 days at a time.

A certificate names a peer key, its labels and its roles. It is signed by an admin, or by a node with the issuer role,
which may only pass on roles an admin gave (trust.py checks that). Expiry never stops a workload; it asks for a renewal.
Not here: whether an issuer is believed (trust.py), renewal over the network (renewal.py).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocols.envelope import DecodeError, Signed, decode, sign, verify
from protocols.keys import public_key_of
from protocols.machine import PeerId, Signer, Verifier
from protocols.refusal import Refusal

NodeRole = Literal["issuer", "voter", "worker"]
NODE_ROLES: tuple[NodeRole, ...] = ("issuer", "voter", "worker")
Labels = tuple[tuple[str, str], ...]
"""Pairs of key and value in ascending order of distinct keys."""

CERTIFICATE_DOMAIN = "freehold/certificate/1"
CERTIFICATE_MAX_BYTES = 4 * 1024
DAY_MS = 86_400_000
LIFETIME_MS = 90 * DAY_MS
RENEW_AFTER_MS = 30 * DAY_MS
"""Renewal starts with two thirds of the lifetime left, so that a month without any issuer harms nobody."""

WARN_BEFORE_MS = 14 * DAY_MS
LABELS_MAX = 32
LABEL_CHARACTERS_MAX = 63


class Certificate(msgspec.Struct, frozen=True, tag="certificate"):
    """`node` may take part with these roles and labels from `issued_ms` until `expires_ms` (wall time, exclusive).

    `serial` counts what one issuer signed; a revocation of the issuer voids the serials above its cutoff.
    """

    node: PeerId
    roles: tuple[NodeRole, ...]
    labels: Labels
    serial: int
    issued_ms: int
    expires_ms: int

    def renewal_due(self, wall_ms: int) -> bool:
        """Return whether the node should ask for a new certificate now."""
        return wall_ms >= self.issued_ms + RENEW_AFTER_MS

    def expired(self, wall_ms: int) -> bool:
        """Return whether the certificate has run out."""
        return wall_ms >= self.expires_ms


def issue(
    signer: Signer, mesh: bytes, node: PeerId, *, roles: tuple[NodeRole, ...], labels: Labels, serial: int, wall_ms: int
) -> Signed:
    """Sign a certificate of the full lifetime, valid from now."""
    certificate = Certificate(node, roles, labels, serial, wall_ms, wall_ms + LIFETIME_MS)
    return sign(signer, CERTIFICATE_DOMAIN, mesh, certificate)


def open_certificate(verifier: Verifier, mesh: bytes, signed: Signed) -> Certificate | Refusal:
    """Check form and signature; whether the signer may issue is the trust store's question."""
    if not verify(verifier, CERTIFICATE_DOMAIN, mesh, signed):
        return Refusal("certificate.signature", "the certificate's signature does not verify in this mesh")
    try:
        certificate: Certificate = decode(signed.payload, Certificate, CERTIFICATE_MAX_BYTES)
        public_key_of(certificate.node)
    except (DecodeError, ValueError) as error:
        return Refusal("certificate.malformed", str(error))
    if not 0 < certificate.expires_ms - certificate.issued_ms <= LIFETIME_MS:
        return Refusal("certificate.lifetime", "a certificate lasts at most 90 days")
    if not valid_labels(certificate.labels):
        return Refusal("certificate.malformed", "labels are too many, too long, repeated or out of order")
    return certificate


def valid_labels(labels: Labels) -> bool:
    """Return whether labels are few, short, distinct and in order."""
    keys = [key for key, _ in labels]
    return (
        len(labels) <= LABELS_MAX
        and keys == sorted(set(keys))
        and all(0 < len(key) <= LABEL_CHARACTERS_MAX and len(value) <= LABEL_CHARACTERS_MAX for key, value in labels)
    )
