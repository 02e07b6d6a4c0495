"""Papers that are handed over to be filed: each is read, verified and held against its author's rights before it is kept.

What nobody could ever use is refused here, not filed with every node: random bytes, other meshes' papers, signatures that
do not verify, authors without the right, subjects that the caller does not see. Not here: what other nodes take
(protocols/records), and the gate, which judges every paper again.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.api.callers.objects import of_artifact, of_change
from node.api.callers.scope import Owned, Place, Scope, covered
from node.control import Control
from protocols.api_models import RecordBody
from protocols.changes.approvals import read_approval
from protocols.changes.change import CHANGE_DOMAIN, RELEASE_MAX_BYTES, Change, Release, change_problem
from protocols.changes.demands import PASSKEY_RULES
from protocols.changes.evidence import read_evidence
from protocols.envelope import DecodeError, Signed, decode, open_signed
from protocols.keys import peer_id
from protocols.machine import Digest
from protocols.records.key_table import BODY_MAX_BYTES
from protocols.refusal import Refusal
from protocols.rollout.dossiers import void
from protocols.trust.grants import Rights
from protocols.trust.revocations import RevocationStatement

FUTURE_MAX_MS = 600_000
"""How far ahead of this node's clock a paper may be dated: as far as members' clocks may differ."""


def paper_refusal(control: Control, scope: Scope, body: RecordBody) -> Refusal | None:
    """Return why a paper is not filed for this caller, or None."""
    match body.kind:
        case "change":
            return _change_refusal(control, scope, body)
        case "approval":
            return _approval_refusal(control, scope, body)
        case "evidence":
            return _evidence_refusal(control, scope, body)
        case "grant":
            return _grant_refusal(control, body)
        case "revocation":
            return _revocation_refusal(control, body)


def _change_refusal(control: Control, scope: Scope, body: RecordBody) -> Refusal | None:
    core = control.core
    try:
        signed: Signed = decode(body.body, Signed, BODY_MAX_BYTES)
        change: Change = open_signed(core.trust.verifier, CHANGE_DOMAIN, core.trust.mesh, signed, Change)
    except DecodeError as error:
        return Refusal("change.malformed", str(error))
    problem = change_problem(change)
    if problem or body.scope != change.project:
        return Refusal("change.malformed", problem or "the change is of another project than the one it is filed under")
    rights = core.dossiers.rights(signed.key, control.clock().wall_ms)
    if isinstance(rights, Refusal):
        return rights
    if change.author != signed.key or not rights.allows("propose", change.project, change.environment):
        return Refusal("change.author", f"{rights.name} may not propose {change.project} in {change.environment}")
    if change.created_ms > control.clock().wall_ms + FUTURE_MAX_MS:
        return Refusal(
            "change.created", "the change is dated in the future; check the clock of the machine that signed it"
        )
    if not covered(scope, Owned((Place(change.project, change.environment),)), writing=True):
        return Refusal("change.author", f"your grants do not cover {change.project} in {change.environment}")
    return _unseen(control, scope, _named_by(control, change))


def _named_by(control: Control, change: Change) -> list[bytes]:
    """What a change names: whoever files it must see each, for from then on its project does."""
    named = [bytes(change.release), bytes(change.configuration)]
    if control.artifacts.has(change.release):
        try:
            release: Release = decode(
                control.artifacts.read(change.release, RELEASE_MAX_BYTES), Release, RELEASE_MAX_BYTES
            )
        except (DecodeError, OSError):
            return named
        named += [bytes(component.digest) for component in release.components]
    return named


def _unseen(control: Control, scope: Scope, named: Sequence[bytes]) -> Refusal | None:
    if scope.whole:
        return None
    for digest in dict.fromkeys(named):
        if not covered(scope, of_artifact(control, digest)):
            return Refusal("change.artifact", f"artifact {digest.hex()[:12]} is not here; send it before the change")
    return None


def _approval_refusal(control: Control, scope: Scope, body: RecordBody) -> Refusal | None:
    core, wall_ms = control.core, control.clock().wall_ms
    approval = read_approval(core.trust.verifier, core.trust.mesh, body.body)
    if isinstance(approval, Refusal):
        return approval
    if approval.by_passkey and core.state.rules_version < PASSKEY_RULES:
        step = "an admin: freehold mesh rules --raise"
        return Refusal("rules.passkey", f"approval by passkey needs rules {PASSKEY_RULES}; {step}")
    proposed = core.dossiers.changes.get(Digest(approval.change))
    if proposed is None or body.scope != proposed.id.hex() or not covered(scope, of_change(control, approval.change)):
        return Refusal("approval.change", "this node knows no such change")
    place = proposed.change.project, proposed.change.environment
    if (approval.project, approval.environment) != place:
        return Refusal("approval.place", "the approval names another project or environment than its change")
    if approval.expires_ms <= wall_ms or approval.approved_ms > wall_ms + FUTURE_MAX_MS:
        return Refusal("approval.expired", "the approval has expired, or is dated in the future")
    rights = core.dossiers.rights(approval.key, wall_ms)
    if isinstance(rights, Refusal):
        return rights
    if not rights.allows("approve", *place):
        return Refusal("approval.not-allowed", f"{rights.name} may not approve in {place[1]}")
    return None


def _evidence_refusal(control: Control, scope: Scope, body: RecordBody) -> Refusal | None:
    core, wall_ms = control.core, control.clock().wall_ms
    attested = read_evidence(core.trust.verifier, core.trust.mesh, body.body)
    if isinstance(attested, Refusal):
        return attested
    subjects = {component.hex(): component for component in attested.components}
    subject = subjects.get(body.scope)
    if subject is None:
        return Refusal("evidence.subject", "the evidence is about other components than the one it is filed under")
    owned = of_artifact(control, subject)
    if not covered(scope, owned, writing=True) or not (owned.places or owned.keys):
        return Refusal(
            "evidence.subject", "this node knows no such component; send it, or the change that names it, first"
        )
    if attested.finished_ms > wall_ms + FUTURE_MAX_MS:
        return Refusal("evidence.finished", "the evidence is dated in the future")
    if any(peer_id(attested.key) == node.node for node in core.state.nodes):
        return None
    rights = core.dossiers.rights(attested.key, wall_ms)
    if isinstance(rights, Refusal):
        return rights
    return _may_attest(rights, owned.places)


def _may_attest(rights: Rights, places: Sequence[Place]) -> Refusal | None:
    able = [entry for entry in rights.each if "attest" in entry.verbs]
    if not any(rights.allows("attest", place.project, place.environment) for place in places) and (places or not able):
        return Refusal("evidence.not-allowed", f"{rights.name} may not attest this")
    return None


def _grant_refusal(control: Control, body: RecordBody) -> Refusal | None:
    core = control.core
    try:
        chain: tuple[Signed, ...] = decode(body.body, tuple[Signed, ...], BODY_MAX_BYTES)
    except DecodeError as error:
        return Refusal("grant.malformed", str(error))
    rights = core.trust.check_grants(chain)
    if isinstance(rights, Refusal):
        return rights
    now = core.trust.rights(rights.key, chain, control.clock().wall_ms)
    if isinstance(now, Refusal) and void(now):
        return now
    if rights.key.hex() != body.scope:
        return Refusal("grant.other-key", "the grant is to another key than the one it is filed under")
    if rights.expires_ms <= control.clock().wall_ms:
        return Refusal("grant.expired", f"the grant to {rights.name!r} has expired")
    return None


def _revocation_refusal(control: Control, body: RecordBody) -> Refusal | None:
    try:
        return control.core.trust.void_revocation(decode(body.body, RevocationStatement, BODY_MAX_BYTES))
    except DecodeError as error:
        return Refusal("revocation.malformed", str(error))
