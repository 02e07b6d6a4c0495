"""Operations on papers: what this node holds for a change, who signed it, and what the gate would still ask for.

Papers are handed out as signed, so that a client can check each by itself. What is missing is found by the very checks
voters make (policy.py), on the papers held here; it is advice, and the voters judge again. Not here: filing papers
(handlers.py), and any decision.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.api.callers.objects import of_principal
from node.api.callers.scope import covered, place_of
from node.api.operations import Call, Operation, Page, Parameter, page
from node.api.problems import not_found
from node.api.reports.naming import KeyNames
from node.control import Control
from protocols.api_models import (
    ApprovalView,
    EvidenceView,
    MissingView,
    PapersView,
    PrincipalView,
    RightsView,
)
from protocols.changes.approvals import read_approval
from protocols.changes.change import RELEASE_MAX_BYTES, Release
from protocols.changes.evidence import Attested, read_evidence
from protocols.core import NodeCore
from protocols.envelope import decode, encode
from protocols.keys import peer_id
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.rollout.dossiers import Proposed
from protocols.state.gate import gate_of
from protocols.state.policy import (
    Gate,
    Shown,
    Subject,
    Vouched,
    approval_problem,
    approvals_refusal,
    evidence_refusal,
    window_refusal,
)
from protocols.trust.grants import NO_GRANT, Rights

_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


async def papers(call: Call) -> PapersView:
    """Hand out what is held for one change."""
    control: Control = call.node
    return papers_of(control, change_named(call, call.path["change"]))


def change_named(call: Call, named: str) -> Proposed:
    """Return a proposed change by its digest in hex. Raises ProblemError 404 if the caller's grants cover none such."""
    proposed: Proposed | None = call.node.core.dossiers.changes.get(Digest(bytes.fromhex(named)))
    if proposed is None or not covered(call.scope, place_of(proposed.change)):
        raise not_found("change", named, "freehold changes")
    return proposed


def papers_of(control: Control, proposed: Proposed) -> PapersView:
    """The papers this node holds for a change, and what the gate would still ask for."""
    core, wall_ms, change = control.core, control.clock().wall_ms, proposed.change
    release_bytes = control.artifacts.read(change.release, RELEASE_MAX_BYTES) if _has(control, change.release) else b""
    authors = core.dossiers.lineage(change.author)
    release: Release | None = decode(release_bytes, Release, RELEASE_MAX_BYTES) if release_bytes else None
    components = tuple(component.digest for component in release.components) if release is not None else ()
    authors = (*authors, *core.dossiers.lineage(release.author)) if release is not None else authors
    subject = Subject(change, proposed.id, components, authors)
    gate = gate_of(core.state, change.environment, release) if release is not None else None
    vouched = _vouched(control, proposed)
    shown: list[tuple[Shown, bytes]] = []
    if release is not None:
        shown = _shown(control, release, change.configuration)
    lane = core.state.lane(change.project, change.environment)
    withdrawn = (
        tuple(withdrawn.key for withdrawn in lane.withdrawn if withdrawn.change == proposed.id)
        if lane is not None
        else ()
    )
    limit_ms = gate.approval_max_ms if gate is not None else 0
    offered = [entry for entry, _ in vouched]
    answer = approvals_refusal(gate, subject, offered, withdrawn, wall_ms) if gate is not None else None
    return PapersView(
        change=proposed.id.hex(),
        signed=encode(proposed.signed),
        release=release_bytes,
        author=principal_view(core, change.author, change.created_ms),
        required=gate.approvals if gate is not None else 0,
        approvals=tuple(
            _approval(core, entry, data, approval_problem(entry, subject, withdrawn, wall_ms, limit_ms))
            for entry, data in vouched
        ),
        evidence=tuple(_evidence(core, entry, data, authors, wall_ms) for entry, data in shown),
        missing=_missing(core, subject, gate, approvals=answer, shown=[entry for entry, _ in shown], wall_ms=wall_ms),
    )


def missing_of(control: Control, proposed: Proposed) -> tuple[MissingView, ...]:
    """What the gate would still ask for; the change need not be filed yet, nor signed."""
    return papers_of(control, proposed).missing


def _missing(
    core: NodeCore,
    subject: Subject,
    gate: Gate | None,
    *,
    approvals: tuple[bytes, ...] | Refusal | None,
    shown: Sequence[Shown],
    wall_ms: int,
) -> tuple[MissingView, ...]:
    change = subject.change
    if gate is None:
        return (MissingView("release.absent", "this node has not fetched the release yet; try again in a moment"),)
    refusals: list[Refusal] = []
    lane = core.state.lane(change.project, change.environment)
    base = lane.base.release if lane is not None and lane.base is not None else b""
    running = lane.base.change if lane is not None and lane.base is not None else b""
    if change.base != base and running != subject.digest:
        refusals.append(Refusal("change.base-moved", "another release runs by now; diff and propose again"))
    if change.policy != gate.digest:
        refusals.append(Refusal("change.policy-moved", "the policy changed since this was proposed; propose it again"))
    if isinstance(approvals, Refusal):
        refusals.append(approvals)
    refusals += [
        refusal
        for refusal in (evidence_refusal(gate, subject, shown, wall_ms), window_refusal(gate, wall_ms))
        if refusal is not None
    ]
    return tuple(MissingView(refusal.rule, refusal.detail) for refusal in refusals)


def _has(control: Control, digest: bytes) -> bool:
    return control.artifacts.has(digest)


def _vouched(control: Control, proposed: Proposed) -> list[tuple[Vouched, bytes]]:
    core, wall_ms = control.core, control.clock().wall_ms
    pairs = []
    for data in core.dossiers.approvals(proposed.id):
        approval = read_approval(core.trust.verifier, core.trust.mesh, data)
        if not isinstance(approval, Refusal):
            pairs.append((Vouched(approval, core.dossiers.rights(approval.key, wall_ms)), data))
    return pairs


def _shown(control: Control, release: Release, configuration: bytes) -> list[tuple[Shown, bytes]]:
    core, wall_ms = control.core, control.clock().wall_ms
    nodes = [node.node for node in core.state.nodes]
    pairs = []
    for data in core.dossiers.evidence(release):
        attested = read_evidence(core.trust.verifier, core.trust.mesh, data)
        if isinstance(attested, Refusal) or not attested.about(configuration):
            continue
        rights = core.dossiers.rights(attested.key, wall_ms)
        if peer_id(attested.key) in nodes:
            shown = Shown(attested, "node")
        elif isinstance(rights, Rights) and any("attest" in entry.verbs for entry in rights.each):
            shown = Shown(attested, "principal")
        else:
            shown = Shown(attested, "stranger")
        pairs.append((shown, data))
    return pairs


def _approval(core: NodeCore, one: Vouched, data: bytes, problem: Refusal | None) -> ApprovalView:
    said = one.approval
    return ApprovalView(
        key=said.key.hex(),
        name=one.rights.name if isinstance(one.rights, Rights) else "",
        approved_ms=said.approved_ms,
        expires_ms=said.expires_ms,
        comment=said.comment,
        problem=f"{problem.rule}: {problem.detail}" if problem is not None else "",
        envelope=data,
        by_passkey=said.by_passkey,
    )


def _evidence(core: NodeCore, one: Shown, data: bytes, authors: Sequence[bytes], wall_ms: int) -> EvidenceView:
    said: Attested = one.attested
    rights = core.dossiers.rights(said.key, wall_ms)
    return EvidenceView(
        key=said.key.hex(),
        name=peer_id(said.key) if one.by == "node" else rights.name if isinstance(rights, Rights) else "",
        kind=said.kind,
        passed=said.passed,
        by=one.by,
        self_attested=one.by != "node" and any(key in authors for key in core.dossiers.lineage(said.key)),
        finished_ms=said.finished_ms,
        components=tuple(digest.hex() for digest in said.components),
        configurations=tuple(digest.hex() for digest in said.configurations),
        envelope=data,
    )


def principal_view(core: NodeCore, key: bytes, at_ms: int, names: KeyNames | None = None) -> PrincipalView:
    """What a key may do at a moment, with the chains of grants held for it."""
    rights = core.dossiers.rights(key, at_ms)
    chains = tuple(encode(chain) for chain in core.dossiers.chains(key))
    if isinstance(rights, Refusal):
        problem = f"{rights.rule}: {rights.detail}"
        past = (names or KeyNames(core, at_ms)).past(key)
        name, kind = (past.name, past.kind) if past is not None else ("", "")
        return PrincipalView(key.hex(), name, kind, (), (), (), (), 0, (), (), problem, chains)
    return PrincipalView(
        key=key.hex(),
        name=rights.name,
        kind=rights.kind,
        roles=rights.roles,
        verbs=rights.verbs,
        projects=rights.projects,
        environments=rights.environments,
        expires_ms=rights.expires_ms,
        lineage=tuple(key.hex() for key in rights.behind),
        grants=tuple(grant.hex() for grant in rights.grants),
        problem="",
        chains=chains,
        beside=tuple(
            RightsView(
                entry.roles, entry.verbs, entry.projects, entry.environments, entry.expires_ms,
                tuple(grant.hex() for grant in entry.grants),
            )
            for entry in rights.beside
        ),
    )  # fmt: skip


async def principals(call: Call) -> Page:
    """List every key that holds a grant."""
    control: Control = call.node
    wall_ms = control.clock().wall_ms
    held = [
        key for key in control.core.dossiers.principals()
        if covered(call.scope, of_principal(call.scope, control.core, key))
    ]  # fmt: skip
    cut = page(sorted(held, reverse=True), bytes.hex, call.query)
    names = KeyNames(control.core, wall_ms)
    return Page(tuple(principal_view(control.core, key, wall_ms, names) for key in cut.items), cut.cursor)


async def principal(call: Call) -> PrincipalView:
    """Show what one key may do now."""
    control: Control = call.node
    key = bytes.fromhex(call.path["key"])
    if not covered(call.scope, of_principal(call.scope, control.core, key)):
        return PrincipalView(key.hex(), "", "", (), (), (), (), 0, (), (), f"{NO_GRANT.rule}: {NO_GRANT.detail}", ())
    return principal_view(control.core, key, control.clock().wall_ms)


PAPER_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "papers", "GET", "/v1/changes/{change}/papers", "What is held for a change, as signed", papers,
        answer=PapersView, parameters=(Parameter("change", _DIGEST, "the change", "path"),),
    ),
    Operation("principals", "GET", "/v1/principals", "Every key with a grant", principals,
              answer=tuple[PrincipalView, ...], paged=True),
    Operation(
        "principal", "GET", "/v1/principals/{key}", "What a key may do", principal, answer=PrincipalView,
        parameters=(Parameter("key", _DIGEST, "the key", "path"),),
    ),
)  # fmt: skip
