"""Approvals: a person's signature over a change's digest, for one environment, until an expiry.

An approval is a DSSE envelope like evidence, signed by an Ed25519 key or by a passkey, with a predicate of our own, so
that a stranger can check it offline. It names the change by digest: whatever alters the change voids it. Who counts as an
approver is not here (policy.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from protocols.changes.evidence import open_envelope, parse_json, seal, statement_json
from protocols.machine import Digest, Signer, Verifier
from protocols.refusal import Refusal

APPROVAL = "urn:freehold:predicate:approval:v1"
"""in-toto has no vetted predicate for a person's approval; this one is ours and versioned."""
COMMENT_MAX_CHARACTERS = 2000


class ApprovalPredicate(msgspec.Struct, frozen=True):
    """What the person said yes to, beside the change's digest in the subject; times are wall ms."""

    mesh: str
    project: str
    environment: str
    approved_ms: int
    expires_ms: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """A verified approval by `key` of `change`; whether the key may approve, and is not the author's, is open.

    Where a passkey signed, `key` is its id and `person` the key of whose it is: somebody present was verified.
    """

    key: bytes
    change: Digest
    project: str
    environment: str
    approved_ms: int
    expires_ms: int
    comment: str = ""
    person: bytes = b""

    @property
    def by_passkey(self) -> bool:
        """Whether a passkey signed."""
        return bool(self.person)


def sign_approval(signer: Signer, mesh: bytes, approval: Approval) -> bytes:
    """Return the signed envelope of an approval; `approval.key` is ignored for the signer's own."""
    return seal(signer, approval_statement(mesh, approval))


def approval_statement(mesh: bytes, approval: Approval) -> bytes:
    """Return the statement that an approval signs, whoever signs it: JSON bytes; a passkey's challenge is their SHA-256."""
    predicate = ApprovalPredicate(
        mesh.hex(),
        approval.project,
        approval.environment,
        approval.approved_ms,
        approval.expires_ms,
        approval.comment,
    )
    return statement_json((("change", approval.change),), APPROVAL, predicate)


def read_approval(verifier: Verifier, mesh: bytes, data: bytes) -> Approval | Refusal:
    """Verify an envelope and read it as an approval in this mesh."""
    opened = open_envelope(verifier, data)
    if isinstance(opened, Refusal):
        return opened
    if opened.statement.predicate_type != APPROVAL:
        return Refusal("approval.predicate", "the envelope is not an approval")
    changes = opened.statement.sha256s()
    if len(changes) != 1 or len(opened.statement.subject) != 1:
        return Refusal("approval.malformed", "an approval names exactly one change")
    try:
        said = parse_json(bytes(opened.statement.predicate), ApprovalPredicate)
    except ValueError as error:
        return Refusal("approval.malformed", str(error)[:200])
    if said.mesh != mesh.hex():
        return Refusal("approval.other-mesh", "the approval was given in another mesh")
    if len(said.comment) > COMMENT_MAX_CHARACTERS:
        return Refusal("approval.malformed", "the comment is too long")
    return Approval(
        opened.key,
        changes[0],
        said.project,
        said.environment,
        said.approved_ms,
        said.expires_ms,
        said.comment,
        opened.person,
    )
