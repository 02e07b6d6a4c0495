"""Policy checks: whether a change may run, as pure functions of what was shown and the moment of judging.

Every refusal names its rule, what is missing and who can give it. Not here: the shape of policies (demands.py),
signatures of approvals (approvals.py) and of evidence (evidence.py), and the rights behind a key (grants.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from protocols.chain.decision import CLOCK_TOLERANCE_MS
from protocols.changes.approvals import Approval
from protocols.changes.change import Change
from protocols.changes.demands import Demands, EvidenceDemand, Policy
from protocols.changes.evidence import Attested
from protocols.envelope import digest_of
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.trust.grants import Rights

PROTECTED = Demands(evidence=(EvidenceDemand("smoke", 7 * 86_400_000, by_node=True),))
"""What a protected environment without a policy of its own demands beside the mesh's: smoke, run again by a node."""


A_NODE_RUNS_IT = "a node runs it again"
"""In a refusal: who gives the evidence that is missing or too old; the node that holds the start reads it."""


class Gate(msgspec.Struct, frozen=True, array_like=True):
    """All that must hold for one release in one environment; every one of `demands` must be met by itself.

    So whatever a project file adds can only tighten: there is no merging that could loosen.
    """

    demands: tuple[Demands, ...]
    approval_max_ms: int

    @property
    def approvals(self) -> int:
        """How many approvals are needed."""
        return max(demand.approvals for demand in self.demands)

    @property
    def asks_nodes(self) -> bool:
        """Whether some of it can only be met by a node, which runs a check again and says so."""
        return any(evidence_demand.by_node for demand in self.demands for evidence_demand in demand.evidence)

    @property
    def digest(self) -> Digest:
        """What a change names as its policy."""
        return digest_of(self)


def gate(policy: Policy, protected: bool, own: Policy | None, release: Demands) -> Gate:
    """Return the gate under the mesh's `policy`, the environment's `own` (replaces it) and a release's demands."""
    base = own or policy
    demands: tuple[Demands, ...] = (base.demands, release)
    if protected and own is None:
        demands = (*demands, PROTECTED)
    return Gate(demands, base.approval_max_ms)


@dataclass(frozen=True, slots=True)
class Vouched:
    """A verified approval together with what its key may do at the moment of judging; a Refusal when nothing."""

    approval: Approval
    rights: Rights | Refusal


@dataclass(frozen=True, slots=True)
class Shown:
    """Verified evidence, and by whom: a confirmed node, a principal who may attest (self-attested), or a stranger."""

    attested: Attested
    by: Literal["node", "principal", "stranger"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged: the change, its digest, its release's components, and every key that counts as its author."""

    change: Change
    digest: Digest
    components: tuple[bytes, ...]
    authors: tuple[bytes, ...]


def approval_problem(
    vouched: Vouched, subject: Subject, withdrawn: Sequence[bytes], at_ms: int, limit_ms: int
) -> Refusal | None:
    """Return why this approval does not count for the subject at `at_ms`, or None."""
    approval, rights, change = vouched.approval, vouched.rights, subject.change
    if approval.change != subject.digest:
        return Refusal("approval.other-change", "the approval is for another change; anything altered voids it")
    if (approval.project, approval.environment) != (change.project, change.environment):
        return Refusal("approval.other-environment", "the approval is for another project or environment")
    if at_ms >= approval.expires_ms:
        return Refusal("approval.expired", "the approval has expired; ask the approver to approve again")
    if approval.approved_ms > at_ms + CLOCK_TOLERANCE_MS:
        # Else it could outlive what policy lets one last, and the memory of its withdrawal.
        return Refusal(
            "approval.in-future", "the approval is dated later than now; set the approver's clock, and approve"
        )
    if approval.expires_ms - approval.approved_ms > limit_ms:
        return Refusal("approval.too-long", f"policy lets an approval last {limit_ms // 3_600_000} hours at most")
    if approval.key in withdrawn:
        return Refusal("approval.withdrawn", "the approver has withdrawn this approval")
    if isinstance(rights, Refusal):
        return Refusal("approval.no-rights", f"the approver's key has no rights here: {rights.detail}")
    here = _approving(vouched, change)
    if not here:
        return Refusal("approval.no-rights", f"{rights.name} may not approve in {change.environment}")
    if not _independent(here, subject):
        return Refusal("approval.by-author", "the author and the author's agents do not count as approvers")
    return None


def approvals_refusal(
    wanted: Gate, subject: Subject, vouched: Sequence[Vouched], withdrawn: Sequence[bytes], at_ms: int
) -> tuple[bytes, ...] | Refusal:
    """Return the approvers' keys in ascending order, one per person, or what is missing and who can give it.

    When approvals are missing, the refusal is the first offered approval's own fault, if one was offered.
    """
    problems = [approval_problem(item, subject, withdrawn, at_ms, wanted.approval_max_ms) for item in vouched]
    good = [item for item, problem in zip(vouched, problems, strict=True) if problem is None]
    for demand in wanted.demands:
        able = [item for item in good if item.approval.by_passkey or not demand.by_passkey]
        people = _people(able, subject, demand.approver_roles)
        if len(people) < demand.approvals:
            fault = next((problem for problem in problems if problem is not None), None)
            if fault is None and len(able) < len(good):
                fault = Refusal("approval.passkey", "policy asks for a passkey, and a key file's approval is none")
            who = " or ".join(demand.approver_roles or ("approver",))
            how = " --passkey" if demand.by_passkey else ""
            missing = (
                f"{len(people)} of {demand.approvals} approvals; a person with the role {who} other than the author "
                f"gives it: freehold approve {subject.digest.hex()[:12]}{how}"
            )
            if fault is not None:
                return Refusal(fault.rule, f"{fault.detail}; {missing}")
            return Refusal("approval.missing", missing)
    return tuple(sorted(_people(good, subject).values()))


def evidence_refusal(wanted: Gate, subject: Subject, shown: Sequence[Shown], at_ms: int) -> Refusal | None:
    """Return which demanded evidence is missing, stale, failed, foreign or only self-attested, or None."""
    for demand in (demand for demands in wanted.demands for demand in demands.evidence):
        problems = [_evidence_problem(demand, subject, item, at_ms) for item in shown]
        if None in problems:
            continue
        who = A_NODE_RUNS_IT if demand.by_node else "freehold test makes it"
        hours = demand.max_age_ms / 3_600_000
        wants = f"{demand.kind} evidence, PASSED, at most {hours:g} hours old, on these digests: {who}"
        fault = next((problem for problem in problems if problem and problem.rule != "evidence.missing"), None)
        if fault is not None:
            return Refusal(fault.rule, f"{fault.detail}; needed is {wants}")
        return Refusal("evidence.missing", wants)
    return None


def window_refusal(wanted: Gate, at_ms: int) -> Refusal | None:
    """Return which freeze window forbids a start at `at_ms`, or None; deny beats allow."""
    for demand in wanted.demands:
        for window in demand.windows:
            if window.effect == "deny" and window.covers(at_ms):
                return Refusal(
                    "window.frozen",
                    f"a freeze window is open ({window.reason or 'no reason given'}); wait, or an admin breaks glass",
                )
        allowing = [window for window in demand.windows if window.effect == "allow"]
        if allowing and not any(window.covers(at_ms) for window in allowing):
            return Refusal("window.closed", "outside every allowed window; wait for the next, or an admin breaks glass")
    return None


def _approving(found: Vouched, change: Change) -> tuple[Rights, ...]:
    """Return each grant that by itself lets a person approve this change's project and environment.

    Of a passkey only those that come from the key it names as its person's: nobody makes another's passkey their own.
    """
    assert isinstance(found.rights, Rights), "without rights there is nothing to look at"
    here = found.rights.allowing("approve", change.project, change.environment)
    person = found.approval.person
    return tuple(rights for rights in here if rights.kind == "person" and (not person or person in rights.lineage))


def _independent(here: Sequence[Rights], subject: Subject) -> list[Rights]:
    """Return the grants that do not come by way of the author.

    Each grant is looked at alone: an author who lends a right to an approver's key does not take the approver's own.
    """
    return [rights for rights in here if not any(key in subject.authors for key in rights.lineage)]


def _people(good: Sequence[Vouched], subject: Subject, roles: Sequence[str] = ()) -> dict[bytes, bytes]:
    """Return the keys that approve by a grant with one of `roles` (none: any), one per person.

    The grant that leads to the key most directly says whose it is.
    """
    people: dict[bytes, bytes] = {}
    for item in good:
        independent = _independent(_approving(item, subject.change), subject)
        fitting = [rights for rights in independent if not roles or any(role in rights.roles for role in roles)]
        if fitting:
            nearest = min(fitting, key=lambda one: (len(one.lineage), one.lineage))
            people.setdefault(nearest.lineage[0], item.approval.key)
    return people


def _evidence_problem(demand: EvidenceDemand, subject: Subject, shown: Shown, at_ms: int) -> Refusal | None:
    attested = shown.attested
    if attested.kind != demand.kind:
        return Refusal("evidence.missing")
    if any(component not in attested.components for component in subject.components):
        return Refusal("evidence.other-digests", "the evidence names other components than the release")
    if not attested.about(subject.change.configuration):
        return Refusal("evidence.other-digests", "the evidence names another configuration than the change")
    if not attested.passed:
        return Refusal("evidence.failed", f"the {demand.kind} run did not pass")
    if attested.finished_ms > at_ms + CLOCK_TOLERANCE_MS:
        return Refusal("evidence.in-future", "the run ended later than now, by its own clock")
    if at_ms - attested.finished_ms > demand.max_age_ms:
        return Refusal("evidence.stale", f"the {demand.kind} run is too old")
    if shown.by == "stranger":
        return Refusal("evidence.stranger", "the evidence is signed by a key that may not attest here")
    if demand.by_node and shown.by != "node":
        return Refusal("evidence.self-attested", f"policy asks that a node runs {demand.kind} again")
    return None
