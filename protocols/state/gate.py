"""The gate of a start: the change, its author, and every approval and piece of evidence, read and judged together.

Reads the exhibits of one `start` against the mesh state and asks the policy checks (policy.py). All expiries are judged
at the decision's `at_ms`, once: a release that was admitted stays admitted. Break-glass, an admin's recorded reason,
skips approvals, evidence and windows, never authorship, digests or placement; nor does it let a release that runs from
source out of the mesh of `freehold dev`. Not here: cohorts and preparation
(rollout.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from protocols.chain.decision import CLOCK_TOLERANCE_MS
from protocols.changes.approvals import read_approval
from protocols.changes.change import Change, Release
from protocols.changes.demands import PASSKEY_RULES
from protocols.changes.evidence import read_evidence
from protocols.keys import peer_id
from protocols.machine import Digest, PeerId
from protocols.refusal import Refusal
from protocols.state.commands import REASON_MAX, Start
from protocols.state.exhibits import Case
from protocols.state.model import Lane, MeshState
from protocols.state.policy import (
    Gate,
    Shown,
    Subject,
    Vouched,
    approvals_refusal,
    evidence_refusal,
    gate,
    window_refusal,
)
from protocols.trust.grants import Rights, holders_of

CHANGE_AGE_MAX_MS = 30 * 86_400_000
"""An older change was computed against another world; the author's rights are judged at its creation."""


@dataclass(frozen=True, slots=True)
class GatePassed:
    """A change that may start: what was judged, its release, how many approvals it needed and whose it has."""

    subject: Subject
    release: Digest
    required: int
    approvers: tuple[bytes, ...]


def gate_of(state: MeshState, environment: str, release: Release) -> Gate:
    """Return the gate of a release in an environment of the state; a change names its digest as `policy`."""
    found_environment = next(entry for entry in state.environments if entry.name == environment)
    return gate(state.policy, found_environment.protected, found_environment.policy, release.demands_for(environment))


def admit(state: MeshState, lane: Lane, case: Case, action: Start) -> GatePassed | Refusal:
    """Return what a start may go on with, or the first rule it breaks."""
    shown = _change_and_release(lane, case, action)
    if isinstance(shown, Refusal):
        return shown
    change, change_digest, release, release_digest = shown
    if state.rules_version < PASSKEY_RULES and any(demands.by_passkey for _, demands in release.demands):
        return _too_early("the release asks for approval by passkey")
    if release.from_source and state.policy.mode != "dev":
        return Refusal("release.unreleasable", "it runs from source, as freehold dev does; build it: freehold deploy")
    author = case.rights(change.author, change.created_ms)
    refusal = _author_refusal(case, change, author) or _scope_refusal(state, lane, change)
    if refusal is not None:
        return refusal
    wanted = gate_of(state, lane.environment, release)
    if change.policy != wanted.digest:
        return Refusal("change.policy-moved", "the policy changed since this was proposed; propose it again")
    authors = {change.author, *case.lineage(change.author), release.author, *case.lineage(release.author)}
    subject = Subject(
        change, change_digest, tuple(component.digest for component in release.components), tuple(sorted(authors))
    )
    if action.break_glass:
        return _broken_glass(case, lane, action) or GatePassed(subject, release_digest, 0, ())
    approvers = _approvers(state, case, lane, wanted, subject)
    if isinstance(approvers, Refusal):
        return approvers
    refusal = _evidence(state, case, wanted, subject) or window_refusal(wanted, case.at_ms)
    return refusal or GatePassed(subject, release_digest, wanted.approvals, approvers)


def _change_and_release(lane: Lane, case: Case, action: Start) -> tuple[Change, Digest, Release, Digest] | Refusal:
    shown = case.change()
    if isinstance(shown, Refusal):
        return shown
    change, change_digest = shown
    if change_digest != action.change:
        return Refusal("change.other", "the exhibited change is not the one the start names; start that one")
    if (change.project, change.environment) != (lane.project, lane.environment):
        return Refusal("change.other-environment", "the change is for another project or environment; propose it here")
    manifest = case.release()
    if isinstance(manifest, Refusal):
        return manifest
    release, release_digest = manifest
    if release_digest != change.release or release.project != change.project:
        return Refusal("release.other", "the exhibited manifest is not the change's; show that, or propose it again")
    return change, change_digest, release, release_digest


def _author_refusal(case: Case, change: Change, author: Rights | Refusal) -> Refusal | None:
    who = f"a principal with the role {holders_of('propose')} proposes it"
    if isinstance(author, Refusal):
        return Refusal("change.author", f"the author had no rights when proposing: {author.detail}; {who}")
    if not author.allows("propose", change.project, change.environment):
        return Refusal("change.author", f"{author.name} may not propose in {change.environment}; {who}")
    age_ms = case.at_ms - change.created_ms
    if not -CLOCK_TOLERANCE_MS <= age_ms <= CHANGE_AGE_MAX_MS:
        return Refusal("change.age", "the change is from the future or over 30 days old; propose it again")
    return None


def _scope_refusal(state: MeshState, lane: Lane, change: Change) -> Refusal | None:
    base = lane.base.release if lane.base is not None else b""
    if change.base != base:
        return Refusal("change.base-moved", "another release runs by now; diff and propose again")
    mine = {
        route.route for route in state.routes if (route.project, route.environment) == (lane.project, lane.environment)
    }
    if any(route not in mine for route in change.routes):
        return Refusal("route.unclaimed", "the change serves a route that the project has not claimed here")
    return None


def _broken_glass(case: Case, lane: Lane, action: Start) -> Refusal | None:
    if len(action.break_glass) > REASON_MAX:
        return Refusal("command.reason", f"a reason has at most {REASON_MAX} characters")
    rights = case.signer("admin", lane.project, lane.environment)
    return rights if isinstance(rights, Refusal) else None


def _too_early(what: str) -> Refusal:
    return Refusal("rules.passkey", f"{what}, which needs rules {PASSKEY_RULES}; an admin: freehold mesh rules --raise")


def _approvers(state: MeshState, case: Case, lane: Lane, wanted: Gate, subject: Subject) -> tuple[bytes, ...] | Refusal:
    vouched = []
    for named in case.exhibits.exhibits.approvals:
        approval = read_approval(case.rules.verifier, case.rules.mesh, case.material[Digest(named)])
        if isinstance(approval, Refusal):
            return _with_wanted(approval, approvals_refusal(wanted, subject, (), (), case.at_ms))
        if approval.by_passkey and state.rules_version < PASSKEY_RULES:
            return _too_early("a passkey approves")
        vouched.append(Vouched(approval, case.rights(approval.key)))
    withdrawn = tuple(withdrawn.key for withdrawn in lane.withdrawn if withdrawn.change == subject.digest)
    return approvals_refusal(wanted, subject, vouched, withdrawn, case.at_ms)


def _evidence(state: MeshState, case: Case, wanted: Gate, subject: Subject) -> Refusal | None:
    shown = []
    nodes = {node.node for node in state.nodes}
    for named in case.exhibits.exhibits.evidence:
        attested = read_evidence(case.rules.verifier, case.rules.mesh, case.material[Digest(named)])
        if isinstance(attested, Refusal):
            return _with_wanted(attested, evidence_refusal(wanted, subject, (), case.at_ms))
        shown.append(Shown(attested, _attester(case, subject.change, attested.key, nodes)))
    return evidence_refusal(wanted, subject, shown, case.at_ms)


def _with_wanted(fault: Refusal, wanted: Refusal | object) -> Refusal:
    """A paper that cannot be read refuses by its own rule, and says with that what is wanted in its place."""
    instead = f"needed is {wanted.detail}" if isinstance(wanted, Refusal) else "none is needed; leave it out"
    return Refusal(fault.rule, f"{fault.detail}; {instead}")


def _attester(
    case: Case, change: Change, key: bytes, nodes: Collection[PeerId]
) -> Literal["node", "principal", "stranger"]:
    if peer_id(key) in nodes:
        return "node"
    rights = case.rights(key)
    if isinstance(rights, Rights) and rights.allows("attest", change.project, change.environment):
        return "principal"
    return "stranger"
