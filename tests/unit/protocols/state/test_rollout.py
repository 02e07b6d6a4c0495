"""Rollouts: stages, health proof, pause, abort, rollback, freeze, and what the table and the rights refuse."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocols.changes.change import Analysis, Plan, Route, Stage
from protocols.changes.demands import APPROVAL_MAX_MS, TEAM, Demands, EvidenceDemand, FreezeWindow, Policy
from protocols.changes.statements import Counts, Prepared, TimeoutVote, Vanished
from protocols.envelope import digest, encode
from protocols.state import lanes
from protocols.state.commands import (
    Abort,
    Freeze,
    Pause,
    PlaceData,
    Promote,
    Resume,
    Rollback,
    SetPolicy,
    Start,
    Unfreeze,
    WithdrawApproval,
)
from protocols.state.model import RETAINED_MAX, WITHDRAWN_MAX, MeshState
from tests.support.protocols.mesh_world import PLAN, MeshWorld, Shown, node_id, refused, signer
from tests.support.protocols.trust_world import DAY_MS

STRANGER = signer("stranger")


def world() -> MeshWorld:
    return MeshWorld().furnish()


def test_a_rollout_goes_stage_by_stage_and_the_last_makes_the_candidate_the_base() -> None:
    w = world().started()
    assert len(w.cohort) == 1
    first = w.rollout
    assert isinstance(w.promote(), MeshState)
    assert w.rollout.stage == 1
    assert w.rollout.opened > first.opened
    assert len(w.cohort) == 3
    assert w.rollout.order == first.order
    assert isinstance(w.promote(), MeshState)
    assert w.lane.rollout is None
    assert w.base == first.candidate


def test_a_first_stage_with_one_fail_aborts_and_keeps_the_base() -> None:
    w = world().deployed(1)
    base = w.base
    w.started(2)
    assert refused(w.promote(shown=w.verdicts("fail"))) == "health.fail"
    assert isinstance(w.abort(shown=w.verdicts("fail")), MeshState)
    assert w.lane.rollout is None
    assert w.base == base
    assert not w.lane.retained


def test_nothing_but_a_failure_aborts_without_a_principal() -> None:
    w = world().started()
    assert refused(w.abort(shown=w.verdicts("pass"))) == "health.pass"
    assert refused(w.abort(shown=w.verdicts("pending"))) == "health.pending"
    assert refused(w.abort()) == "health.pending"


def test_a_plan_that_does_not_revert_pauses_on_failure_instead() -> None:
    for plan in (Plan(PLAN.stages, auto_revert=False), Plan(PLAN.stages, irreversible=True)):
        w = world().started(plan=plan)
        assert refused(w.abort(shown=w.verdicts("fail"))) == "rollout.not-automatic"
        assert isinstance(w.on_lane(Pause(w.rollout.id), shown=w.verdicts("fail")), MeshState)
        assert "failed" in w.rollout.paused


def test_a_majority_of_timeouts_counts_the_vanished_as_failed() -> None:
    w = world().started()
    taken = w.verdicts("pending")
    assert refused(w.abort(shown=taken)) == "health.pending"
    late = w.timeouts("n1")
    both = Shown().add("statements", *taken.material.values(), *late.material.values())
    assert isinstance(w.abort(shown=both), MeshState)


def test_a_canary_that_was_never_reached_aborts_at_the_timeout() -> None:
    w = world().started()
    assert isinstance(w.abort(shown=w.timeouts("n1")), MeshState)


def test_statements_of_strangers_and_of_other_stages_refuse_the_command() -> None:
    w = world().started()
    old = w.verdicts()
    assert isinstance(w.promote(shown=old), MeshState)
    everyone = w.verdicts()
    assert refused(w.promote(shown=old)) == "health.other-stage"
    assert refused(w.promote(shown=w.verdicts(opened=w.rollout.opened + 1))) == "health.other-stage"
    assert refused(w.promote(shown=w.verdicts(era=b"e" * 32))) == "health.other-stage"
    twice = Shown().add("statements", *everyone.material.values(), w.said("n1", w.verdict(sequence=2)))
    assert refused(w.promote(shown=twice)) == "health.stranger"
    stranger = Shown().add("statements", *everyone.material.values(), w.said("stranger", w.verdict()))
    assert refused(w.promote(shown=stranger)) == "health.stranger"
    foreign = Shown().add("statements", w.said("n2", _timeout_of_the_founder(w)))
    assert refused(w.promote(shown=foreign)) == "health.stranger"


def _timeout_of_the_founder(w: MeshWorld) -> TimeoutVote:
    return TimeoutVote(w.state.era, w.rollout.id, w.rollout.opened, w.state.voters[0])


def test_a_prepared_statement_says_nothing_of_a_stage() -> None:
    w = world().started()
    shown = Shown().add("statements", w.said("n1", Prepared(w.rollout.candidate.change, b"", "passed")))
    assert refused(w.promote(shown=shown)) == "health.other-stage"


def test_ready_without_traffic_or_smoke_is_inconclusive_and_pauses() -> None:
    w = world().started()
    assert refused(w.promote(shown=w.verdicts(smoke_runs=0))) == "health.pending"
    w.at_ms += 30_000
    assert refused(w.promote(shown=w.verdicts(smoke_runs=0))) == "health.inconclusive"
    assert isinstance(w.on_lane(Pause(w.rollout.id), shown=w.verdicts(smoke_runs=0)), MeshState)
    assert "traffic" in w.rollout.paused
    assert isinstance(w.promote(w.admin, shown=w.verdicts(smoke_runs=0)), MeshState)
    assert not w.rollout.paused


def test_a_few_visitors_who_all_got_errors_outweigh_a_smoke_check() -> None:
    w = world().started()
    failing = w.verdicts(candidate=Counts(8, 8, ()), base=Counts(500, 0, ()))
    assert refused(w.promote(shown=failing)) == "health.pending"
    w.at_ms += 30_000
    assert refused(w.promote(shown=failing)) == "health.inconclusive"
    assert isinstance(w.on_lane(Pause(w.rollout.id), shown=failing), MeshState)
    assert "8 of 8 requests failed" in w.rollout.paused
    assert isinstance(w.promote(w.admin, shown=failing), MeshState), "whoever may promote may know better"


def test_a_few_visitors_who_were_all_served_do_not_hold_a_stage_up() -> None:
    w = world().started()
    assert isinstance(w.promote(shown=w.verdicts(candidate=Counts(8, 0, ()), base=Counts(0, 0, ()))), MeshState)


def test_a_probe_only_plan_accepts_readiness_alone() -> None:
    w = world().started(plan=Plan(PLAN.stages, probe_only=True))
    assert isinstance(w.promote(shown=w.verdicts(smoke_runs=0)), MeshState)


def test_a_worse_error_rate_than_the_base_fails_the_stage() -> None:
    w = world().deployed(1).started(2)
    canary = w.cohort[0]
    bad = w.said(canary, w.verdict(candidate=Counts(1000, 100)))
    rest = [w.said(name, w.verdict("pending", base=Counts(1000, 1))) for name in w.nodes if name != canary]
    shown = Shown().add("statements", bad, *rest)
    assert refused(w.promote(shown=shown)) == "health.fail"
    assert isinstance(w.abort(shown=shown), MeshState)


def test_one_silent_node_of_three_is_tolerated_once_the_stage_has_settled() -> None:
    w = world().started()
    assert isinstance(w.promote(), MeshState)
    two = w.cohort[:2]
    assert refused(w.promote(shown=w.verdicts(names=two))) == "health.pending"
    w.at_ms += 30_000
    assert refused(w.promote(shown=w.verdicts(names=two[:1]))) == "health.pending"
    assert isinstance(w.promote(shown=w.verdicts(names=two)), MeshState)


def test_failures_within_the_budget_do_not_stop_a_later_stage() -> None:
    plan = Plan(PLAN.stages, analysis=Analysis(failure_limit=1))
    w = world().started(plan=plan)
    assert isinstance(w.promote(), MeshState)
    a, b, c = w.cohort
    shown = Shown().add("statements", w.said(a, w.verdict("fail")), *(w.said(n, w.verdict()) for n in (b, c)))
    assert isinstance(w.promote(shown=shown), MeshState)


def test_the_first_stage_has_no_budget_for_failures() -> None:
    w = world().started(plan=Plan((Stage("100%"),), analysis=Analysis(failure_limit=1)))
    a, b, c = w.cohort
    shown = Shown().add("statements", w.said(a, w.verdict("fail")), *(w.said(n, w.verdict()) for n in (b, c)))
    assert refused(w.promote(shown=shown)) == "health.fail"


def test_a_stage_that_holds_is_not_promoted_early_but_by_a_person() -> None:
    w = world().started(plan=Plan((Stage("1", pause_ms=60_000), Stage("100%"))))
    assert refused(w.promote()) == "rollout.too-early"
    w.at_ms += 60_000
    assert isinstance(w.promote(), MeshState)
    again = world().started(plan=Plan((Stage("1", pause_ms=60_000), Stage("100%"))))
    assert isinstance(again.promote(again.admin), MeshState)


def test_a_plan_without_auto_promote_waits_for_a_person() -> None:
    w = world().started(plan=Plan(PLAN.stages, auto_promote=False))
    assert refused(w.promote()) == "rollout.not-automatic"
    assert refused(w.promote(w.admin, shown=w.verdicts("pending"))) == "health.pending"
    assert refused(w.promote(STRANGER)) == "grant.none"
    assert isinstance(w.promote(w.admin), MeshState)


def test_a_stage_behind_an_approval_pauses_and_needs_an_approver() -> None:
    w = world().started(plan=Plan((Stage("1", approve=True), Stage("100%"))))
    assert refused(w.promote()) == "rollout.awaits-approval"
    assert isinstance(w.on_lane(Pause(w.rollout.id), shown=w.verdicts()), MeshState)
    assert w.rollout.paused == "awaits an approver"
    deployer = w.grant("dev", "deployer")
    shown = w.verdicts().add("grants", encode(deployer))
    assert refused(w.promote(signer("dev"), shown=shown)) == "command.not-allowed"
    approver = w.grant("ann", "approver")
    shown = w.verdicts().add("grants", encode(approver))
    assert isinstance(w.promote(signer("ann"), shown=shown), MeshState)


def test_pause_and_resume_by_hand_open_the_stage_anew() -> None:
    w = world().started()
    opened = w.rollout.opened
    assert refused(w.on_lane(Resume(w.rollout.id), w.admin)) == "rollout.not-paused"
    assert refused(w.on_lane(Pause(w.rollout.id), STRANGER)) == "grant.none"
    assert refused(w.on_lane(Pause(w.rollout.id), shown=w.verdicts())) == "health.pass"
    assert isinstance(w.on_lane(Pause(w.rollout.id, "lunch"), w.admin), MeshState)
    assert w.rollout.paused == "lunch"
    assert refused(w.on_lane(Pause(w.rollout.id), w.admin)) == "rollout.paused"
    assert refused(w.promote()) == "rollout.not-automatic"
    assert refused(w.on_lane(Resume(w.rollout.id), STRANGER)) == "grant.none"
    assert isinstance(w.on_lane(Resume(w.rollout.id), w.admin), MeshState)
    assert not w.rollout.paused
    assert w.rollout.opened > opened


def test_without_a_rollout_there_is_nothing_to_move() -> None:
    w = world()
    for action in (Promote(b"r" * 32, 0), Pause(b"r" * 32), Resume(b"r" * 32), Abort(b"r" * 32)):
        assert refused(w.on_lane(action, w.admin)) == "rollout.none"


def test_a_command_for_another_rollout_or_stage_is_refused() -> None:
    w = world().started()
    other = b"o" * 32
    for action in (Promote(other, 0), Pause(other), Abort(other)):
        assert refused(w.on_lane(action, w.admin)) == "rollout.other"
    assert refused(w.on_lane(Promote(w.rollout.id, 1), w.admin)) == "rollout.stage"
    w.on_lane(Pause(w.rollout.id), w.admin)
    assert refused(w.on_lane(Resume(other), w.admin)) == "rollout.other"


def test_a_start_while_one_runs_is_refused_unless_it_supersedes() -> None:
    w = world().started(1)
    first = w.rollout
    release = w.release(2)
    change = w.change(release)
    assert refused(w.start(change, w.admin, shown=w.case_for(change, release))) == "rollout.under-way"
    done = w.start(change, w.admin, shown=w.case_for(change, release), supersede=True)
    assert isinstance(done, MeshState)
    assert w.rollout.id != first.id
    assert w.rollout.stage == 0


def test_a_rollback_returns_to_a_retained_release_at_once_and_whole() -> None:
    w = world().deployed(1).deployed(2)
    first, second = w.lane.retained[0], w.base
    assert isinstance(w.on_lane(Rollback(first.change, "worse"), w.admin), MeshState)
    assert w.base == first
    assert w.lane.retained == (second,)
    assert refused(w.on_lane(Rollback(first.change, "again"), w.admin)) == "rollback.already"
    assert refused(w.on_lane(Rollback(b"x" * 32, "what"), w.admin)) == "rollback.not-retained"
    assert refused(w.on_lane(Rollback(second.change, ""), w.admin)) == "command.reason"
    assert refused(w.on_lane(Rollback(second.change, "no"), STRANGER)) == "grant.none"


def test_a_rollback_ends_a_rollout_also_when_it_names_the_base() -> None:
    w = world().deployed(1).started(2)
    base = w.base
    assert isinstance(w.on_lane(Rollback(base.change, "stop"), w.admin), MeshState)
    assert w.lane.rollout is None
    assert w.base == base


def test_five_former_releases_are_retained_newest_first() -> None:
    w = world()
    bases = []
    for number in range(RETAINED_MAX + 3):
        w.deployed(number)
        bases.append(w.base)
    assert w.lane.retained == tuple(reversed(bases[:-1]))[:RETAINED_MAX]


def test_a_freeze_holds_what_is_new_but_never_the_way_back() -> None:
    w = world().deployed(1).deployed(2).started(3)
    assert refused(w.on_lane(Freeze("holiday"), STRANGER)) == "grant.none"
    assert refused(w.on_lane(Freeze(""), w.admin)) == "command.reason"
    assert refused(w.on_lane(Unfreeze(), w.admin)) == "lane.not-frozen"
    assert isinstance(w.on_lane(Freeze("holiday"), w.admin), MeshState)
    assert refused(w.on_lane(Freeze("holiday"), w.admin)) == "lane.frozen"
    assert refused(w.promote()) == "lane.frozen"
    assert isinstance(w.on_lane(Pause(w.rollout.id), w.admin), MeshState)
    assert refused(w.on_lane(Resume(w.rollout.id), w.admin)) == "lane.frozen"
    assert isinstance(w.abort(w.admin), MeshState)
    assert isinstance(w.on_lane(Rollback(w.lane.retained[0].change, "safer"), w.admin), MeshState)
    release = w.release(9)
    change = w.change(release)
    assert refused(w.start(change, w.admin, shown=w.case_for(change, release))) == "lane.frozen"
    assert isinstance(w.on_lane(Unfreeze(), w.admin), MeshState)
    assert isinstance(w.start(change, w.admin, shown=w.case_for(change, release)), MeshState)


def test_expect_and_the_idempotency_id_keep_a_command_from_happening_twice() -> None:
    w = world()
    assert refused(w.on_lane(Freeze("x"), w.admin, expect=5)) == "command.expect"
    assert refused(w.on_lane(Freeze("x"), w.admin, expect=None)) == "command.expect"
    command = w.command(Freeze("x"), (w.admin,), project="shop", environment="prod", expect=0)
    assert isinstance(w.judge(command), MeshState)
    assert refused(w.judge(command)) == "command.duplicate"
    assert refused(w.on_lane(Freeze("x"), w.admin, project="other")) == "lane.unknown"


def test_the_pinned_nodes_are_distinct_eligible_and_prepared() -> None:
    w = world()
    release = w.release()
    change = w.change(release)
    shown = w.case_for(change, release)
    ids = tuple(sorted(node_id(name) for name in w.nodes))
    for nodes, rule in (
        ((), "placement.nodes"),
        ((ids[0], ids[0]), "placement.nodes"),
        (tuple(reversed(ids)), "placement.nodes"),
        ((node_id("stranger"),), "placement.not-eligible"),
    ):
        assert refused(w.on_lane(Start(digest(encode(change)), nodes), w.admin, shown=shown)) == rule
    assert refused(w.start(change, w.admin, shown=w.case_for(change, release, prepared=()))) == "rollout.not-prepared"


def test_prepared_for_another_change_or_another_base_does_not_count() -> None:
    w = world().deployed(1)
    release = w.release(2)
    change = w.change(release)
    shown = w.case_for(change, release, prepared=())
    for said in (Prepared(b"o" * 32, change.base, "passed"), Prepared(digest(encode(change)), b"", "passed")):
        wrong = Shown(dict(shown.fields), dict(shown.material))
        wrong.add("statements", *(w.said(name, said) for name in w.nodes))
        assert refused(w.start(change, w.admin, shown=wrong)) == "rollout.not-prepared"


def test_an_app_with_data_runs_on_one_node_which_only_place_data_moves() -> None:
    w = world()
    release = w.release(1)
    change = w.change(release, data=True)
    shown = w.case_for(change, release)
    assert refused(w.start(change, w.admin, shown=shown)) == "placement.replicas"
    assert isinstance(w.start(change, w.admin, shown=shown, nodes=("n2",)), MeshState)
    assert w.lane.data_node == node_id("n2")
    assert refused(w.on_lane(PlaceData(node_id("n1")), w.admin)) == "rollout.under-way"
    assert isinstance(w.promote(), MeshState)
    release = w.release(2)
    change = w.change(release, data=True)
    shown = w.case_for(change, release)
    assert refused(w.start(change, w.admin, shown=shown, nodes=("n1",))) == "placement.data"
    assert refused(w.on_lane(PlaceData(node_id("x")), w.admin)) == "placement.not-eligible"
    assert refused(w.on_lane(PlaceData(node_id("n1")), STRANGER)) == "grant.none"
    assert isinstance(w.on_lane(PlaceData(node_id("n1")), w.admin), MeshState)
    assert isinstance(w.start(change, w.admin, shown=shown, nodes=("n1",)), MeshState)


def test_schedules_run_on_one_pinned_node() -> None:
    w = world().started(1, schedules=("cleanup",))
    assert w.lane.schedule_node in w.rollout.order
    assert isinstance(w.abort(w.admin), MeshState)
    assert isinstance(w.on_lane(PlaceData(node_id("n3"), schedule=True), w.admin), MeshState)
    w.started(2, schedules=("cleanup",))
    assert w.lane.schedule_node == node_id("n3")


def test_replicas_are_pinned_by_count() -> None:
    w = world()
    release = w.release(1)
    change = w.change(release, replicas=2)
    shown = w.case_for(change, release)
    assert refused(w.start(change, w.admin, shown=shown)) == "placement.replicas"
    assert isinstance(w.start(change, w.admin, shown=shown, nodes=("n1", "n3")), MeshState)


@pytest.mark.parametrize(
    ("stages", "rule"),
    [
        ((Stage("1"),), "plan.incomplete"),
        ((Stage("many"),), "plan.stage"),
        ((Stage("zone=nowhere"), Stage("100%")), "plan.stage"),
    ],
)
def test_a_plan_that_cannot_be_staged_is_refused(stages: tuple[Stage, ...], rule: str) -> None:
    w = world()
    release = w.release()
    change = w.change(release, plan=Plan(stages))
    assert refused(w.start(change, w.admin, shown=w.case_for(change, release))) == rule


def test_a_route_must_be_claimed_before_it_is_served() -> None:
    route = Route("", "/shop")
    w = world()
    release = w.release()
    change = w.change(release, routes=(route,))
    assert refused(w.start(change, w.admin, shown=w.case_for(change, release))) == "route.unclaimed"
    claimed = MeshWorld().furnish(route)
    change = claimed.change(release, routes=(route,))
    assert isinstance(claimed.start(change, claimed.admin, shown=claimed.case_for(change, release)), MeshState)


def _team() -> tuple[MeshWorld, bytes]:
    """A team mesh where dev's change runs with ann's approval; returns the change's digest."""
    w = MeshWorld(TEAM).furnish()
    for number in (1, 2):
        release = w.release(number, author="dev")
        change = w.change(release, author="dev")
        grants = (w.grant("dev", "deployer"), w.grant("ann", "approver"))
        shown = w.case_for(change, release, author="dev", grants=grants, approvals=(w.approval("ann", change),))
        assert isinstance(w.start(change, signer("dev"), shown=shown), MeshState)
        if number == 1:
            while w.lane.rollout is not None:
                assert isinstance(w.promote(), MeshState)
    return w, w.rollout.candidate.change


def test_withdrawing_an_approval_pauses_the_rollout_and_stops_its_promotion() -> None:
    w, change = _team()
    assert w.rollout.candidate.approvers == (signer("ann").public_key,)
    assert isinstance(w.on_lane(WithdrawApproval(change), signer("ann"), expect=None), MeshState)
    assert w.rollout.paused == "an approval was withdrawn"
    assert refused(w.on_lane(WithdrawApproval(change), signer("ann"))) == "approval.withdrawn-already"
    assert refused(w.on_lane(Resume(w.rollout.id), w.admin)) == "approval.withdrawn"
    assert refused(w.promote(w.admin)) == "approval.withdrawn"
    assert isinstance(w.abort(w.admin), MeshState)


def test_no_rollback_returns_to_a_release_whose_approval_was_withdrawn() -> None:
    w, _ = _team()
    while w.lane.rollout is not None:
        assert isinstance(w.promote(), MeshState)
    first = w.lane.retained[0].change
    assert isinstance(w.on_lane(WithdrawApproval(first), signer("ann")), MeshState)
    assert w.lane.retained[0].withdrawn
    assert refused(w.on_lane(Rollback(first, "back"), w.admin)) == "rollback.withdrawn"


def test_an_approval_is_withdrawn_by_the_key_that_may_give_it() -> None:
    w, change = _team()
    assert refused(w.on_lane(WithdrawApproval(change))) == "approval.withdrawal"
    assert refused(w.on_lane(WithdrawApproval(b"short"), signer("ann"))) == "approval.withdrawal"
    assert refused(w.on_lane(WithdrawApproval(change), STRANGER)) == "grant.none"
    assert isinstance(w.on_lane(WithdrawApproval(b"f" * 32), w.admin), MeshState)
    assert not w.rollout.paused


def test_the_author_does_not_approve_a_stage_in_a_team() -> None:
    w = MeshWorld(TEAM).furnish()
    plan = Plan((Stage("1", approve=True), Stage("100%")))
    release = w.release(1, author="dev")
    change = w.change(release, author="dev", plan=plan)
    dev = w.grant("dev", "deployer", "approver")
    grants = (dev, w.grant("ann", "approver"))
    shown = w.case_for(change, release, author="dev", grants=grants, approvals=(w.approval("ann", change),))
    assert isinstance(w.start(change, signer("dev"), shown=shown), MeshState)
    shown = w.verdicts().add("grants", encode(dev))
    assert refused(w.promote(signer("dev"), shown=shown)) == "approval.by-author"
    shown = w.verdicts().add("grants", encode(grants[1]))
    assert isinstance(w.promote(signer("ann"), shown=shown), MeshState)


def test_the_authors_other_key_does_not_approve_a_stage_either() -> None:
    plan = Plan((Stage("1", approve=True), Stage("100%")))
    for author, other in (("me", "admin"), ("dev", "phone")):
        w = MeshWorld(TEAM).furnish()
        release = w.release(1, author=author)
        change = w.change(release, author=author, plan=plan)
        dev = w.grant("dev", "deployer", "approver")
        phone = w.grant("phone", "approver", by=signer("dev"), parent=dev)
        grants = (w.grant("me", "deployer", same_person=True), dev, w.grant("ann", "approver"))
        shown = w.case_for(change, release, author=author, grants=grants, approvals=(w.approval("ann", change),))
        assert isinstance(w.start(change, signer(author), shown=shown), MeshState)
        shown = w.verdicts() if other == "admin" else w.verdicts().add("grants", encode(phone))
        assert refused(w.promote(signer(other), shown=shown)) == "approval.by-author"
        shown = w.verdicts().add("grants", encode(grants[2]))
        assert isinstance(w.promote(signer("ann"), shown=shown), MeshState)


def test_neither_an_approvals_expiry_nor_a_new_policy_nor_an_approver_without_rights_blocks_the_way_back() -> None:
    w, _ = _team()
    while w.lane.rollout is not None:
        assert isinstance(w.promote(), MeshState)
    first, second = w.lane.retained[0], w.base
    w.at_ms += 60 * DAY_MS  # Her grant and her approval have both ended.
    windows = (FreezeWindow("deny", 0, 1 << 50, reason="for good"),)
    evidence = (EvidenceDemand("test", 1), EvidenceDemand("smoke", 1, by_node=True))
    strict = Policy("team", Demands(5, ("admin",), evidence, windows), voters_target=1)
    assert isinstance(w.govern(SetPolicy(strict), w.admin), MeshState)
    assert isinstance(w.on_lane(Rollback(first.change, "worse"), w.admin), MeshState)
    assert w.base == first
    assert isinstance(w.on_lane(Rollback(second.change, "no, better"), w.admin), MeshState)
    # Ann may not approve any more, but what she said was hers, and she may still take it back.
    assert isinstance(w.on_lane(WithdrawApproval(first.change), signer("ann")), MeshState)
    assert refused(w.on_lane(Rollback(first.change, "again"), w.admin)) == "rollback.withdrawn"
    assert w.base == second, "a withdrawal stops nothing that runs"


def test_one_of_two_approvals_is_withdrawn_without_harm_when_one_was_enough() -> None:
    w = MeshWorld(TEAM).furnish()
    grants = (w.grant("dev", "deployer"), w.grant("ann", "approver"), w.grant("bob", "approver"))
    for number in (1, 2):
        release = w.release(number, author="dev")
        change = w.change(release, author="dev")
        approvals = (w.approval("ann", change), w.approval("bob", change))
        shown = w.case_for(change, release, author="dev", grants=grants, approvals=approvals)
        assert isinstance(w.start(change, signer("dev"), shown=shown), MeshState)
        while w.lane.rollout is not None:
            assert isinstance(w.promote(), MeshState)
    first = w.lane.retained[0].change
    assert isinstance(w.on_lane(WithdrawApproval(first), signer("ann")), MeshState)
    assert isinstance(w.on_lane(Rollback(first, "back"), w.admin), MeshState)


def test_withdrawals_are_bounded_and_forgotten_when_no_approval_could_still_live() -> None:
    w = world()
    for number in range(WITHDRAWN_MAX):
        assert isinstance(w.on_lane(WithdrawApproval(bytes([number]) * 32), w.admin), MeshState)
    assert refused(w.on_lane(WithdrawApproval(b"\xff" * 32), w.admin)) == "approval.withdrawals-full"
    w.at_ms += APPROVAL_MAX_MS
    assert isinstance(w.on_lane(WithdrawApproval(b"\xff" * 32), w.admin), MeshState)
    assert len(w.lane.withdrawn) == 1


def test_one_wrong_stage_step_is_an_assertion() -> None:
    w = world().started()
    lane = w.lane
    for stage in (2, -1):
        with pytest.raises(AssertionError, match="StageStep"):
            lanes._assert_stage_step(lane, replace(lane, rollout=replace(w.rollout, stage=stage)))
    with pytest.raises(AssertionError, match="StageStep"):
        lanes._assert_stage_step(lane, replace(lane, rollout=replace(w.rollout, stage=1)))


def test_statements_that_cannot_be_read_refuse_whatever_rests_on_them() -> None:
    w = world().started()
    broken = Shown().add("statements", b"\xc1")
    for action in (Promote(w.rollout.id, 0), Pause(w.rollout.id), Abort(w.rollout.id)):
        assert refused(w.on_lane(action, shown=broken)) == "statement.malformed"


def test_withdrawing_an_approval_of_a_paused_rollout_leaves_its_reason() -> None:
    w, change = _team()
    assert isinstance(w.on_lane(Pause(w.rollout.id, "lunch"), w.admin), MeshState)
    assert isinstance(w.on_lane(WithdrawApproval(change), signer("ann")), MeshState)
    assert w.rollout.paused == "lunch"
    assert w.rollout.candidate.withdrawn


def test_a_majority_of_voters_that_lost_sight_of_a_canary_ends_the_rollout() -> None:
    w = world().started()
    (canary,) = w.cohort
    passed = w.said(canary, w.verdict())
    gone = Vanished(w.state.era, w.rollout.id, w.rollout.opened, w.state.voters[0], w.rollout.cohort[0])
    shown = Shown().add("statements", passed, w.said("n1", gone))
    assert refused(w.promote(shown=shown)) == "health.fail"
    assert isinstance(w.abort(shown=shown), MeshState)
