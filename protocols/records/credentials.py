"""Trust as records: how certificates, admissions, revocations and grants are keyed, written and learnt.

These records prove themselves: what counts is who signed the body, not which node wrote the record. So a body that the
trust store believes is merged from any author, even a revoked one. Not here: the beliefs themselves (trust.py).
"""

from __future__ import annotations

from protocols.envelope import DecodeError, Signed, decode, digest, digest_of, encode
from protocols.machine import PeerId
from protocols.records.key_table import BODY_MAX_BYTES, make_key
from protocols.records.record import Entry
from protocols.refusal import Refusal
from protocols.trust.certificates import Certificate, open_certificate
from protocols.trust.grants import GRANT_MAX_BYTES, Grant
from protocols.trust.invites import Bundle, OpenedBundle
from protocols.trust.revocations import Revocation, RevocationStatement
from protocols.trust.store import TrustStore


def certificate_record(node: PeerId, signed: Signed) -> tuple[str, bytes]:
    """Return key and body of a certificate's record."""
    body = encode(signed)
    return make_key("certificate", node, digest(body).hex()), body


def admission_record(bundle: Bundle) -> tuple[str, bytes]:
    """Return key and body of an admission's record."""
    return make_key("admission", digest(bundle.invite.payload).hex(), digest_of(bundle).hex()), encode(bundle)


def revocation_record(revocation: Revocation, statement: RevocationStatement) -> tuple[str, bytes]:
    """Return key and body of a revocation's record."""
    return make_key("revocation", revocation.subject.hex(), digest_of(statement).hex()), encode(statement)


def grant_record(key: bytes, chain: tuple[Signed, ...]) -> tuple[str, bytes]:
    """Return key and body of the record of a whole chain of grants that ends in `key`."""
    return make_key("grant", key.hex(), digest_of(chain).hex()), encode(chain)


def delegator_of(prefix: str, body: bytes) -> bytes:
    """Return the principal whose right a grant or a revocation rests on, which pays for it; b"" where that is an admin's.

    A joiner's own grant is paid for by the uses of its invite.
    """
    try:
        match prefix:
            case "grant":
                links: tuple[Signed, ...] = decode(body, tuple[Signed, ...], BODY_MAX_BYTES)
                above = links[:-1]
            case "revocation":
                above = decode(body, RevocationStatement, BODY_MAX_BYTES).chain
            case _:
                return b""
        grants: list[Grant] = [decode(link.payload, Grant, GRANT_MAX_BYTES) for link in above]
    except DecodeError:
        return b""
    return next((grant.key for grant in grants if not grant.invite_uses), b"")


def absorb(trust: TrustStore, entry: Entry, wall_ms: int) -> Refusal | None:
    """Let the trust store learn from a trust record; return None if it believes the body and the key fits it."""
    body, scope = entry.record.body, entry.parsed.parts[0]
    try:
        match entry.parsed.rule.prefix:
            case "certificate":
                certificate = trust.learn_certificate(decode(body, Signed, BODY_MAX_BYTES), wall_ms)
                return _fits(certificate, isinstance(certificate, Certificate) and certificate.node == scope)
            case "admission":
                opened = trust.learn_bundle(decode(body, Bundle, BODY_MAX_BYTES))
                return _fits(opened, isinstance(opened, OpenedBundle) and opened.invite_id.hex() == scope)
            case "revocation":
                revocation = trust.learn_revocation(decode(body, RevocationStatement, BODY_MAX_BYTES))
                return _fits(revocation, isinstance(revocation, Revocation) and revocation.subject.hex() == scope)
            case "grant":
                rights = trust.check_grants(decode(body, tuple[Signed, ...], BODY_MAX_BYTES))
                return rights if isinstance(rights, Refusal) else _fits(None, rights.key.hex() == scope)
            case prefix:
                return Refusal("records.not-trust", f"a {prefix} record says nothing about trust")
    except DecodeError as error:
        return Refusal("records.body", str(error))


def void_revocation(trust: TrustStore, body: bytes) -> Refusal | None:
    """Return why a revocation that is about to be published would not count, or None."""
    try:
        return trust.void_revocation(decode(body, RevocationStatement, BODY_MAX_BYTES))
    except DecodeError as error:
        return Refusal("records.body", str(error))


def well_formed_certificate(trust: TrustStore, entry: Entry) -> bool:
    """Return whether a certificate record may be kept although its issuer is not known yet."""
    try:
        signed: Signed = decode(entry.record.body, Signed, BODY_MAX_BYTES)
    except DecodeError:
        return False
    certificate = open_certificate(trust.verifier, trust.mesh, signed)
    return isinstance(certificate, Certificate) and certificate.node == entry.parsed.parts[0]


def _fits(learnt: object, fits: bool) -> Refusal | None:
    if isinstance(learnt, Refusal):
        return learnt
    return None if fits else Refusal("records.key", "the key names another subject than the body")
