"""Revocations: the statements that take trust away, which need no quorum, only grow, and always win.

A revocation of a node carries the last record sequence and the last certificate serial that are still believed: a
cutoff that needs no clocks. When several name one subject the lowest cutoffs count, so their order does not matter.
Not here: pushing them (records.py) and closing connections (hello.py).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocols.envelope import DIGEST_BYTES, DecodeError, Signed, decode, sign, verify
from protocols.machine import Signer, Verifier
from protocols.refusal import Refusal

REVOCATION_DOMAIN = "freehold/revocation/1"
REVOCATION_MAX_BYTES = 2 * 1024
REASON_CHARACTERS_MAX = 500
NOTHING_VALID = -1
"""As `last_seq` or `last_serial`: nothing of this author is believed any more."""

Subject = Literal["node", "principal", "grant"]


class Revocation(msgspec.Struct, frozen=True, tag="revocation"):
    """`subject` is a public key (node, principal) or the digest of a grant's payload, 32 bytes.

    For a node, records with a sequence above `last_seq` and certificates with a serial above `last_serial` are void.
    `at_ms` is the signer's wall clock, for people; nothing is judged by it.
    """

    kind: Subject
    subject: bytes
    last_seq: int
    last_serial: int
    reason: str
    at_ms: int


class RevocationStatement(msgspec.Struct, frozen=True, tag="revocation_statement"):
    """A signed revocation and the grants that entitle its signer; none for an admin key or a node leaving.

    To revoke a grant without being an admin, `chain` is that grant's own chain and the signer one of its holders.
    """

    signed: Signed
    chain: tuple[Signed, ...] = ()


def revoke(signer: Signer, mesh: bytes, revocation: Revocation, chain: tuple[Signed, ...] = ()) -> RevocationStatement:
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
    return revocation
