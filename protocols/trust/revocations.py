"""Revocations: the statements that take trust away, which need no quorum, only grow, and always win.

A revocation of a node carries the last record sequence and the last certificate serial that are still believed: a
cutoff that needs no clocks. When several name one subject the lowest cutoffs count, so their order does not matter.

What a principal says by its grants is void once one of the keys or grants it rests on is revoked, but for what that
revocation keeps by name: again no clock, and whoever holds the same statements judges alike. What admins say rests on
nothing. Statements that void each other in a circle all stand: rather one too many is revoked than one too few.
Not here: pushing them (records.py) and closing connections (hello.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from protocols.envelope import DIGEST_BYTES, DecodeError, Signed, decode, digest, sign, verify
from protocols.machine import Digest, Signer, Verifier
from protocols.refusal import Refusal

REVOCATION_DOMAIN = "freehold/revocation/1"
REVOCATION_MAX_BYTES = 4 * 1024
REASON_CHARACTERS_MAX = 500
KEPT_MAX = 64
"""What one administrator took away before; more is repeated by an admin."""
BY_REVOKED = "revocation.by-revoked"
NOTHING_VALID = -1
"""As `last_seq` or `last_serial`: nothing of this author is believed any more."""

Subject = Literal["node", "principal", "grant"]


class Revocation(msgspec.Struct, frozen=True, tag="revocation"):
    """`subject` is a public key (node, principal) or the digest of a grant's payload, 32 bytes.

    For a node, records with a sequence above `last_seq` and certificates with a serial above `last_serial` are void.
    For a principal or a grant, revocations that rest on it are void but for `kept` (statement_id of each). `at_ms` is
    the signer's wall clock, for people; only the expiry of the grants shown is judged by it.
    """

    kind: Subject
    subject: bytes
    last_seq: int
    last_serial: int
    reason: str
    at_ms: int
    kept: tuple[bytes, ...] = ()


class RevocationStatement(msgspec.Struct, frozen=True, tag="revocation_statement"):
    """A signed revocation and the grants that entitle its signer; none for an admin key or a node leaving.

    To revoke a grant without being an admin, `chain` is that grant's own chain and the signer one of its holders.
    """

    signed: Signed
    chain: tuple[Signed, ...] = ()


def sign_revocation(
    signer: Signer, mesh: bytes, revocation: Revocation, chain: tuple[Signed, ...] = ()
) -> RevocationStatement:
    """Sign a revocation."""
    return RevocationStatement(sign(signer, REVOCATION_DOMAIN, mesh, revocation), chain)


def open_revocation(verifier: Verifier, mesh: bytes, statement: RevocationStatement) -> Revocation | Refusal:
    """Check form and signature; whether the signer may revoke is the trust store's question."""
    if not verify(verifier, REVOCATION_DOMAIN, mesh, statement.signed):
        return Refusal("revocation.signature", "the revocation's signature does not verify in this mesh")
    try:
        revocation: Revocation = decode(statement.signed.payload, Revocation, REVOCATION_MAX_BYTES)
    except DecodeError as error:
        return Refusal("revocation.malformed", str(error))
    if len(revocation.subject) != DIGEST_BYTES or len(revocation.reason) > REASON_CHARACTERS_MAX:
        return Refusal("revocation.malformed", "the subject is not 32 bytes or the reason is too long")
    if len(revocation.kept) > KEPT_MAX:
        return Refusal("revocation.malformed", f"a revocation keeps at most {KEPT_MAX} others")
    return revocation


@dataclass(frozen=True, slots=True)
class Resting:
    """A revocation whose signer was entitled, and the keys and grants that entitled it; none for an admin."""

    revocation: Revocation
    rests_on: tuple[bytes, ...] = ()


def statement_id(signed: Signed) -> Digest:
    """Return what another revocation keeps this one by."""
    return digest(signed.payload + signed.signature)


def void_among(said: Mapping[Digest, Resting]) -> frozenset[Digest]:
    """Return which of all known statements do not count, whatever the order in which they came.

    One counts for certain when all that could void it are void themselves, and is void when one that counts for certain
    voids it; so on until nothing changes (the grounded extension of Dung, 1995). What is left stands in a circle.
    """
    by_subject: dict[bytes, list[Digest]] = {}
    for entry, resting in said.items():
        if resting.revocation.kind != "node":
            by_subject.setdefault(resting.revocation.subject, []).append(entry)
    against = {
        digest: [
            other
            for subject in resting.rests_on
            for other in by_subject.get(subject, ())
            if other != digest and digest not in said[other].revocation.kept
        ]
        for digest, resting in said.items()
    }
    certain = {digest for digest, others in against.items() if not others}
    open_ones = set(said) - certain
    void: set[Digest] = set()
    while open_ones:
        lost = {digest for digest in open_ones if not certain.isdisjoint(against[digest])}
        won = {digest for digest in open_ones - lost if void.issuperset(against[digest])}
        if not lost and not won:
            break
        void |= lost
        certain |= won
        open_ones -= lost | won
    return frozenset(void)
