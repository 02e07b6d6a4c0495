"""What one voter's own view adds to the judgement of a fresh decision: revocations, admissions, liveness, newer verdicts.

Views differ between voters, so none of this is asked of an adopted decision: that could wedge a slot. It stops a
proposer who picks its exhibits. Not here: what every voter judges alike (apply.py), and the clock (acceptor.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from protocols.changes.evidence import open_envelope
from protocols.changes.statements import STATEMENT_MAX_BYTES, HealthVerdict
from protocols.envelope import Signed, digest
from protocols.machine import Digest, PeerId
from protocols.refusal import Refusal
from protocols.state.analysis import Assessment, StageOutcome, assess
from protocols.state.commands import Pause, Promote, Start
from protocols.state.exhibits import SIGNED_OVERHEAD_BYTES, Case
from protocols.state.lanes import StageStatements, read_said
from protocols.state.model import MeshState, Rollout
from protocols.state.placement import eligible
from protocols.trust.grants import BEFORE_EXPIRY_MS, Rights, verify_grants

MISSED_PERCENT = 10
"""How much of a voter's own view of the eligible nodes a start may leave out."""


class View(Protocol):
    """What one voter knows beyond the chain; it may differ between voters and only stops fresh decisions."""

    def revoked(self, key: bytes) -> bool:
        """Return whether this voter knows a revocation of the key, or of the grant with that digest."""
        ...

    def admitted(self, principal: bytes, invite_key: bytes) -> bool:
        """Return whether this voter knows that a member admitted the key with that invite, for a use of its own."""
        ...

    def alive(self, node: PeerId) -> bool:
        """Return whether this voter believes the node to be up."""
        ...

    def verdicts(self, rollout: bytes, opened: int) -> Mapping[PeerId, HealthVerdict]:
        """Return the newest verdict this voter holds of each node for that stage."""
        ...


def fresh_refusal(state: MeshState, case: Case, view: View) -> Refusal | None:
    """Return why this voter does not vote for a fresh decision of the command, or None; depends on its own view.

    Asked after `apply` accepted the command, never of an adopted decision: that could wedge the slot.
    """
    for key in _speakers(case):
        if view.revoked(key):
            return Refusal(
                "fresh.revoked", f"key or grant {key.hex()[:16]} is revoked; somebody who still may signs in its place"
            )
    for chain in (chain for chains in case.chains.values() for chain in chains):
        rights = verify_grants(case.rules.verifier, case.rules.mesh, case.admins, chain, BEFORE_EXPIRY_MS)
        # Whoever has an invite's line can sign grants with its key; only an admission says whom it let in.
        if isinstance(rights, Rights) and rights.invite_key and not view.admitted(rights.principal, rights.invite_key):
            return Refusal(
                "fresh.not-admitted",
                f"no member is known to have admitted {rights.name} with its invite, or another key took the same use; "
                "try again when the mesh has heard of it, or ask an admin for a new invite",
            )
    match case.command.action:
        case Start(_, nodes):
            return _missed_nodes(state, case, nodes, view)
        case Promote():
            return _stale_health(state, case, view)
        case Pause() if not case.signers:
            return _stale_pause(state, case, view)
        case _:
            return None


def _speakers(case: Case) -> tuple[bytes, ...]:
    """Return every key and grant that the command rests on."""
    exhibits = case.exhibits.exhibits
    signers = list(case.signers)
    for chain in (chain for chains in case.chains.values() for chain in chains):
        signers += [part for link in chain for part in (link.key, bytes(digest(link.payload)))]
    signers += list(case.chains)
    for named in exhibits.statements:
        signed = case.read(named, Signed, STATEMENT_MAX_BYTES + SIGNED_OVERHEAD_BYTES, "statement")
        if isinstance(signed, Signed):
            signers.append(signed.key)
    for named in exhibits.approvals + exhibits.evidence:
        opened = open_envelope(case.rules.verifier, case.material[Digest(named)])
        if not isinstance(opened, Refusal):
            signers.append(opened.key)
    change = case.change()
    if not isinstance(change, Refusal):
        signers.append(change[0].author)
    return tuple(signers)


def _missed_nodes(state: MeshState, case: Case, nodes: tuple[PeerId, ...], view: View) -> Refusal | None:
    shown = case.change()
    if isinstance(shown, Refusal) or shown[0].replicas or shown[0].data:
        return None
    seen = [node for node in eligible(state, case.command.environment) if view.alive(node)]
    missed = [node for node in seen if node not in nodes]
    if len(missed) * 100 > MISSED_PERCENT * len(seen):
        return Refusal("fresh.nodes-missed", f"the start leaves out {len(missed)} of {len(seen)} nodes that are up")
    return None


def _stale_health(state: MeshState, case: Case, view: View) -> Refusal | None:
    rollout = _rollout_of(state, case)
    said = read_said(state, rollout, case)
    if isinstance(said, Refusal):
        return said
    newest = _newest(rollout, said, view)
    assessed = _judged(state, rollout, said, newest, case)
    if assessed.outcome in (StageOutcome.FAIL, StageOutcome.PENDING):
        return Refusal("fresh.stale-verdict", f"by the newer verdicts this voter holds: {assessed.reason}")
    counted = (node for node in rollout.cohort if node in newest and node not in said.vanished)
    vanished = next((node for node in counted if newest[node].verdict == "pass" and not view.alive(node)), None)
    if vanished is not None:
        return Refusal("fresh.vanished", f"{vanished} took the candidate and is not seen any more")
    return None


def _stale_pause(state: MeshState, case: Case, view: View) -> Refusal | None:
    """Nobody is woken for a stage that this voter knows to be well: the proposer has not heard of it yet."""
    rollout = _rollout_of(state, case)
    said = read_said(state, rollout, case)
    if isinstance(said, Refusal):
        return said
    assessed = _judged(state, rollout, said, _newest(rollout, said, view), case)
    if assessed.outcome is StageOutcome.PASS and not rollout.stages[rollout.stage].approve:
        return Refusal("fresh.stale-verdict", f"by the newer verdicts this voter holds: {assessed.reason}")
    return None


def _judged(
    state: MeshState, rollout: Rollout, said: StageStatements, verdicts: Mapping[PeerId, HealthVerdict], case: Case
) -> Assessment:
    return assess(
        rollout, verdicts, case.at_ms, timed_out=said.timed_out, vanished=said.vanished, rules=state.rules_version
    )


def _rollout_of(state: MeshState, case: Case) -> Rollout:
    lane = state.lane(case.command.project, case.command.environment)
    assert lane is not None
    assert lane.rollout is not None
    return lane.rollout


def _newest(rollout: Rollout, said: StageStatements, view: View) -> dict[PeerId, HealthVerdict]:
    """Return the newer of what the exhibits and this voter hold, of each pinned node."""
    newest = dict(said.verdicts)
    for node, verdict in view.verdicts(rollout.id, rollout.opened).items():
        if node in rollout.order and (node not in newest or verdict.sequence > newest[node].sequence):
            newest[node] = verdict
    return newest
