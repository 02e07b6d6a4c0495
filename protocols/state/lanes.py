"""Rollouts: what each command does to a lane (one project in one environment), and what it must prove.

The transition table (transitions.py) is asked first, then rights, then proof: approvals and evidence for a start,
health for a promotion. Commands that no principal signed are allowed only where health statements force them: promote,
pause and abort. Pure functions from lane to lane. Not here: the mesh's own commands (governance.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import assert_never

from msgspec.structs import replace

from protocols.chain.decision import Voter
from protocols.changes.approvals import read_approval
from protocols.changes.demands import APPROVAL_MAX_MS, PASSKEY_RULES
from protocols.changes.statements import HealthVerdict, Prepared, TimeoutVote, Vanished
from protocols.envelope import DIGEST_BYTES, digest_of
from protocols.invariants import ensure
from protocols.machine import Digest, PeerId
from protocols.refusal import Refusal
from protocols.state.analysis import Assessment, StageOutcome, assess, left
from protocols.state.cohort import plan_cohorts
from protocols.state.commands import (
    REASON_MAX,
    Abort,
    Freeze,
    Pause,
    PlaceData,
    Promote,
    Resume,
    Rollback,
    Start,
    Unfreeze,
    WithdrawApproval,
)
from protocols.state.exhibits import Case
from protocols.state.gate import GatePassed, admit
from protocols.state.model import (
    RETAINED_MAX,
    WITHDRAWN_MAX,
    Deployed,
    Lane,
    MeshState,
    Rollout,
    Withdrawn,
)
from protocols.state.placement import eligible, pinned_size, rendezvous
from protocols.state.transitions import assert_led, check
from protocols.trust.grants import Verb

RolloutAction = Start | Promote | Pause | Resume | Abort | Rollback | Freeze | Unfreeze | PlaceData | WithdrawApproval


@dataclass(frozen=True, slots=True)
class StageStatements:
    """The health statements of one stage, by node; whether a majority of voters gave up waiting, and on whom."""

    verdicts: Mapping[PeerId, HealthVerdict]
    timed_out: bool
    vanished: tuple[PeerId, ...]


def step(state: MeshState, lane: Lane, case: Case, action: RolloutAction) -> Lane | Refusal:
    """Return the lane after `action`, or the first rule it breaks. `state` is the one before the command."""
    rule_broken = check(lane, action)
    if rule_broken is not None:
        return Refusal(rule_broken.rule, rule_broken.detail)
    after = _step(state, lane, case, action)
    if isinstance(after, Refusal):
        return after
    assert_led(lane, action, after)
    _assert_stage_step(lane, after)
    return after


def _step(state: MeshState, lane: Lane, case: Case, action: RolloutAction) -> Lane | Refusal:
    match action:
        case Start():
            return _start(state, lane, case, action)
        case Promote():
            return _promote(state, lane, case, action)
        case Pause():
            return _pause(state, lane, case, action)
        case Resume():
            return _resume(state, lane, case, action)
        case Abort():
            return _abort(state, lane, case, action)
        case Rollback():
            return _rollback(lane, case, action)
        case Freeze(reason):
            return _signed(case, lane, "admin") or _reasoned(reason) or replace(lane, frozen=reason)
        case Unfreeze():
            return _signed(case, lane, "admin") or replace(lane, frozen="")
        case PlaceData():
            return _place(state, lane, case, action)
        case WithdrawApproval():
            return _withdraw(state, lane, case, action)
        case _:
            assert_never(action)


# --- start ------------------------------------------------------------------------------------------------------------


def _start(state: MeshState, lane: Lane, case: Case, action: Start) -> Lane | Refusal:
    refusal = _signed(case, lane, "start")
    if refusal is not None:
        return refusal
    admitted = admit(state, lane, case, action)
    if isinstance(admitted, Refusal):
        return admitted
    problem = _nodes_problem(state, lane, action, admitted)
    if problem is not None:
        return problem
    change = admitted.subject.change
    opened = state.applied + 1
    rollout_id = digest_of((state.era, admitted.subject.digest, opened))
    labels = {node.node: node.labels for node in state.nodes if node.node in action.nodes}
    planned = plan_cohorts(rollout_id, labels, change.plan.stages)
    if isinstance(planned, Refusal):
        return planned
    order, stages = planned
    unprepared = _unprepared(case, order[: stages[0].size], admitted)
    if unprepared is not None:
        return unprepared
    candidate = Deployed(
        change=admitted.subject.digest,
        release=admitted.release,
        configuration=_digest32(change.configuration),
        secrets=change.secrets,
        routes=change.routes,
        schedules=change.schedules,
        data=change.data,
        replicas=change.replicas,
        required=admitted.required,
        approvers=admitted.approvers,
        break_glass=action.break_glass,
        author=change.author,
        applied=opened,
    )
    rollout = Rollout(
        id=rollout_id,
        candidate=candidate,
        plan=change.plan,
        order=order,
        stages=stages,
        stage=0,
        opened=opened,
        stage_at_ms=case.at_ms,
        started_at_ms=case.at_ms,
        authors=admitted.subject.authors,
    )
    return replace(
        lane,
        rollout=rollout,
        data_node=_keeper(lane.data_node, lane, action.nodes) if change.data else lane.data_node,
        schedule_node=_keeper(lane.schedule_node, lane, action.nodes) if change.schedules else lane.schedule_node,
    )


def _nodes_problem(state: MeshState, lane: Lane, action: Start, admitted: GatePassed) -> Refusal | None:
    able = eligible(state, lane.environment)
    if not action.nodes or any(a >= b for a, b in pairwise(action.nodes)):
        return Refusal("placement.nodes", "the pinned nodes are not distinct and ascending, or there are none")
    if any(node not in able for node in action.nodes):
        return Refusal("placement.not-eligible", "a pinned node is not one the environment selects; diff again")
    change = admitted.subject.change
    wanted = pinned_size(change.replicas, change.data, able)
    if wanted is not None and len(action.nodes) != wanted:
        return Refusal("placement.replicas", f"the change runs on {wanted} nodes, the start pins {len(action.nodes)}")
    if change.data and lane.data_node and action.nodes != (lane.data_node,):
        return Refusal("placement.data", "the data is on another node; only place_data moves it")
    return None


def _unprepared(case: Case, nodes: tuple[PeerId, ...], admitted: GatePassed) -> Refusal | None:
    statements = case.statements()
    if isinstance(statements, Refusal):
        return statements
    change = admitted.subject.change
    ready = {
        node
        for node, said in statements
        if isinstance(said, Prepared) and said.change == admitted.subject.digest and said.base == change.base
    }
    missing = [node for node in nodes if node not in ready]
    if missing:
        return Refusal(
            "rollout.not-prepared",
            f"of the first stage {', '.join(missing)} {'has' if len(missing) == 1 else 'have'} not prepared the change;"
            " a node does so by itself, and `freehold changes` says why one cannot",
        )
    return None


def _keeper(current: PeerId, lane: Lane, nodes: tuple[PeerId, ...]) -> PeerId:
    return current if current in nodes else rendezvous(f"{lane.project}/{lane.environment}", nodes)[0]


# --- a rollout under way ----------------------------------------------------------------------------------------------


def _promote(state: MeshState, lane: Lane, case: Case, action: Promote) -> Lane | Refusal:
    rollout = _same(lane, action.rollout)
    if isinstance(rollout, Refusal):
        return rollout
    if action.stage != rollout.stage:
        return Refusal("rollout.stage", f"the rollout is in stage {rollout.stage}, not {action.stage}")
    if rollout.candidate.withdrawn:
        return Refusal("approval.withdrawn", "an approval of the candidate was withdrawn; abort, or approve anew")
    assessed = _assess(state, rollout, case)
    if isinstance(assessed, Refusal):
        return assessed
    refusal = _promote_refusal(lane, rollout, case, assessed)
    if refusal is not None:
        return refusal
    if not rollout.last_stage:
        opened = state.applied + 1
        return replace(
            lane,
            rollout=replace(rollout, stage=rollout.stage + 1, opened=opened, stage_at_ms=case.at_ms, paused=""),
        )
    return replace(_based(lane, rollout.candidate), rollout=None)


def _promote_refusal(lane: Lane, rollout: Rollout, case: Case, assessed: Assessment) -> Refusal | None:
    stage = rollout.stages[rollout.stage]
    if case.signers:
        refusal = _signed(case, lane, "approve" if stage.approve else "promote")
        if refusal is not None:
            return refusal
        people = {key for signer in case.signers for key in case.lineage(signer)}
        if stage.approve and rollout.candidate.required and people & set(rollout.authors):
            return Refusal("approval.by-author", "the author and the author's agents do not approve a stage")
        if assessed.outcome in (StageOutcome.PASS, StageOutcome.INCONCLUSIVE):
            return None
        return Refusal(f"health.{assessed.outcome.value}", assessed.reason)
    if not rollout.plan.auto_promote or rollout.paused:
        return Refusal("rollout.not-automatic", "this promotion needs a person: freehold promote")
    if stage.approve:
        return Refusal("rollout.awaits-approval", "an approver promotes this stage: freehold promote")
    if assessed.outcome is not StageOutcome.PASS:
        return Refusal(f"health.{assessed.outcome.value}", assessed.reason)
    if case.at_ms < rollout.stage_at_ms + stage.pause_ms:
        return Refusal("rollout.too-early", f"the stage holds for {stage.pause_ms} ms")
    return None


def _pause(state: MeshState, lane: Lane, case: Case, action: Pause) -> Lane | Refusal:
    rollout = _same(lane, action.rollout)
    if isinstance(rollout, Refusal):
        return rollout
    if case.signers:
        refusal = _signed(case, lane, "pause")
        return refusal or replace(lane, rollout=replace(rollout, paused=action.reason[:REASON_MAX] or "by hand"))
    assessed = _assess(state, rollout, case)
    if isinstance(assessed, Refusal):
        return assessed
    answer = assessed.outcome is StageOutcome.FAIL and not _reverts(rollout)
    gated = assessed.outcome is StageOutcome.PASS and rollout.stages[rollout.stage].approve
    if answer or gated or assessed.outcome is StageOutcome.INCONCLUSIVE:
        reason = "awaits an approver" if gated else assessed.reason
        return replace(lane, rollout=replace(rollout, paused=reason))
    return Refusal(f"health.{assessed.outcome.value}", f"nothing forces a pause: {assessed.reason}")


def _resume(state: MeshState, lane: Lane, case: Case, action: Resume) -> Lane | Refusal:
    rollout = _same(lane, action.rollout)
    if isinstance(rollout, Refusal):
        return rollout
    if rollout.candidate.withdrawn:
        return Refusal("approval.withdrawn", "an approval of the candidate was withdrawn; abort, or approve anew")
    refusal = _signed(case, lane, "resume")
    opened = replace(rollout, opened=state.applied + 1, stage_at_ms=case.at_ms, paused="")
    return refusal or replace(lane, rollout=opened)


def _abort(state: MeshState, lane: Lane, case: Case, action: Abort) -> Lane | Refusal:
    rollout = _same(lane, action.rollout)
    if isinstance(rollout, Refusal):
        return rollout
    if case.signers:
        return _signed(case, lane, "abort") or replace(lane, rollout=None)
    assessed = _assess(state, rollout, case)
    if isinstance(assessed, Refusal):
        return assessed
    if assessed.outcome is not StageOutcome.FAIL:
        return Refusal(f"health.{assessed.outcome.value}", f"nothing forces an abort: {assessed.reason}")
    if not _reverts(rollout):
        return Refusal("rollout.not-automatic", "the plan does not revert by itself; it pauses")
    return replace(lane, rollout=None)


def _rollback(lane: Lane, case: Case, action: Rollback) -> Lane | Refusal:
    refusal = _signed(case, lane, "rollback") or _reasoned(action.reason)
    if refusal is not None:
        return refusal
    if lane.base is not None and lane.base.change == action.change:
        if lane.rollout is None:
            return Refusal("rollback.already", "that release is the base already")
        return replace(lane, rollout=None)
    target = next((deployed for deployed in lane.retained if deployed.change == action.change), None)
    if target is None:
        return Refusal("rollback.not-retained", "not among the last five releases; `freehold releases` lists them")
    if target.withdrawn:
        return Refusal("rollback.withdrawn", "an approval of that release was withdrawn; deploy it anew")
    return replace(_based(lane, target), rollout=None)


# --- the lane itself --------------------------------------------------------------------------------------------------


def _place(state: MeshState, lane: Lane, case: Case, action: PlaceData) -> Lane | Refusal:
    refusal = _signed(case, lane, "admin")
    if refusal is not None:
        return refusal
    if action.node not in eligible(state, lane.environment):
        return Refusal("placement.not-eligible", "the environment does not select that node")
    return replace(lane, schedule_node=action.node) if action.schedule else replace(lane, data_node=action.node)


def _withdraw(state: MeshState, lane: Lane, case: Case, action: WithdrawApproval) -> Lane | Refusal:
    if len(case.signers) != 1 or len(action.change) != DIGEST_BYTES:
        return Refusal("approval.withdrawal", "an approval is withdrawn by the one key that gave it")
    key, change = case.signers[0], _digest32(action.change)
    if any((withdrawn.change, withdrawn.key) == (change, key) for withdrawn in lane.withdrawn):
        return Refusal("approval.withdrawn-already", "this approval was withdrawn before")
    known = [deployed for deployed in (lane.base, *lane.retained) if deployed is not None]
    if lane.rollout is not None:
        known.append(lane.rollout.candidate)
    keys = _withdrawing(state, case, change, key)
    if isinstance(keys, Refusal):
        return keys
    gave = any(deployed.change == change and not set(keys).isdisjoint(deployed.approvers) for deployed in known)
    if not gave:
        refusal = _signed(case, lane, "approve")
        if refusal is not None:
            return refusal
    withdrawals = tuple(withdrawn for withdrawn in lane.withdrawn if case.at_ms - withdrawn.at_ms < APPROVAL_MAX_MS)
    if len(withdrawals) + len(keys) > WITHDRAWN_MAX:
        return Refusal("approval.withdrawals-full", f"at most {WITHDRAWN_MAX} withdrawals are remembered at a time")
    rollout = lane.rollout
    if rollout is not None:
        candidate = _without(rollout.candidate, change, keys)
        lost = candidate.withdrawn and not rollout.candidate.withdrawn
        paused = "an approval was withdrawn" if lost and not rollout.paused else rollout.paused
        rollout = replace(rollout, candidate=candidate, paused=paused)
    return replace(
        lane,
        withdrawn=(*withdrawals, *(Withdrawn(change, key, case.at_ms) for key in keys)),
        base=lane.base and _without(lane.base, change, keys),
        retained=tuple(_without(deployed, change, keys) for deployed in lane.retained),
        rollout=rollout,
    )


def _withdrawing(state: MeshState, case: Case, change: bytes, key: bytes) -> tuple[bytes, ...] | Refusal:
    """Return the signer's key, and every passkey of that person whose approval the command shows.

    A passkey signs approvals only: what it said is taken back with the key that it names as its person's.
    """
    approvers = {key}
    for named in case.exhibits.exhibits.approvals if state.rules_version >= PASSKEY_RULES else ():
        approval = read_approval(case.rules.verifier, case.rules.mesh, case.material[Digest(named)])
        if isinstance(approval, Refusal):
            return approval
        if approval.change != change or approval.person != key:
            return Refusal("approval.withdrawal", "the approval shown is of another change or person")
        approvers.add(approval.key)
    return tuple(sorted(approvers))


def _without(deployed: Deployed, change: bytes, keys: Sequence[bytes]) -> Deployed:
    if deployed.change != change:
        return deployed
    return replace(deployed, approvers=tuple(approver for approver in deployed.approvers if approver not in keys))


def _based(lane: Lane, base: Deployed) -> Lane:
    former = () if lane.base is None else (lane.base,)
    retained = tuple(entry for entry in (*former, *lane.retained) if entry.change != base.change)
    return replace(lane, base=base, retained=retained[:RETAINED_MAX])


# --- proof ------------------------------------------------------------------------------------------------------------


def read_said(state: MeshState, rollout: Rollout, case: Case) -> StageStatements | Refusal:
    """Return the exhibited statements of this very stage; a statement of another stage refuses the command.

    Only a goodbye holds on: who left before it took the candidate stands aside until it speaks again.
    """
    statements = case.statements()
    if isinstance(statements, Refusal):
        return statements
    verdicts: dict[PeerId, HealthVerdict] = {}
    gave_up: set[Voter] = set()
    lost: dict[PeerId, set[Voter]] = {}
    for node, said in statements:
        match said:
            case HealthVerdict(era, of, opened) | TimeoutVote(era, of, opened) | Vanished(era, of, opened):
                earlier = (
                    isinstance(said, HealthVerdict) and opened < rollout.opened and left(said, state.rules_version)
                )
                if (era, of) != (state.era, rollout.id) or (opened != rollout.opened and not earlier):
                    return Refusal("health.other-stage", "a statement is of another stage, rollout or era")
            case Prepared():
                return Refusal("health.other-stage", "a prepared statement says nothing of a stage")
        match said:
            case HealthVerdict():
                if node in verdicts or node not in rollout.order:
                    return Refusal("health.stranger", "a second verdict of a node, or one of a node that is not pinned")
                verdicts[node] = said
            case TimeoutVote(voter=voter) | Vanished(voter=voter):
                if voter.node != node or voter not in state.voters:
                    return Refusal("health.stranger", "a timeout is not signed by a voter's node")
                (gave_up if isinstance(said, TimeoutVote) else lost.setdefault(said.node, set())).add(voter)
    majority = len(state.voters) // 2 + 1
    vanished = tuple(sorted(node for node, voters in lost.items() if len(voters) >= majority))
    return StageStatements(verdicts, len(gave_up) >= majority, vanished)


def _assess(state: MeshState, rollout: Rollout, case: Case) -> Assessment | Refusal:
    said = read_said(state, rollout, case)
    if isinstance(said, Refusal):
        return said
    return assess(
        rollout,
        said.verdicts,
        case.at_ms,
        timed_out=said.timed_out,
        vanished=said.vanished,
        rules=state.rules_version,
    )


def _reverts(rollout: Rollout) -> bool:
    return rollout.plan.auto_revert and not rollout.plan.irreversible


def _same(lane: Lane, rollout_id: bytes) -> Rollout | Refusal:
    assert lane.rollout is not None
    if lane.rollout.id != rollout_id:
        return Refusal("rollout.other", "another rollout is under way by now")
    return lane.rollout


def _assert_stage_step(before: Lane, after: Lane) -> None:
    old, new = before.rollout, after.rollout
    if new is None or (old is None or old.id != new.id):
        ensure(new is None or new.stage == 0, "StageStep: a rollout starts in its first stage")
        return
    ensure(new.stage in (old.stage, old.stage + 1), "StageStep: the stage rises by one")
    ensure(new.stage == old.stage or new.opened > old.opened, "StageStep: each stage opens at its own slot")


def _signed(case: Case, lane: Lane, verb: Verb) -> Refusal | None:
    rights = case.signer(verb, lane.project, lane.environment)
    return rights if isinstance(rights, Refusal) else None


def _reasoned(reason: str) -> Refusal | None:
    if 0 < len(reason) <= REASON_MAX:
        return None
    return Refusal("command.reason", f"give a reason of 1 to {REASON_MAX} characters")


def _digest32(value: bytes) -> Digest:
    assert len(value) == DIGEST_BYTES
    return Digest(value)
