"""The rollout agent and its conductor on a whole fleet of three nodes under virtual time."""

from __future__ import annotations

from msgspec.structs import replace

from protocols.changes.change import Plan, Stage
from protocols.changes.statements import Counts
from protocols.liveness import Leave
from protocols.machine import (
    PeerConnected,
    Tick,
)
from protocols.rollout.orders import (
    Observe,
    PeersDown,
    ReplaySmoke,
    Reverted,
    SmokeReplayed,
)
from protocols.state.analysis import GOODBYE_RULES
from protocols.state.commands import Freeze
from tests.support.protocols.fleet import Fleet, canary, fleet, others
from tests.support.protocols.mesh_world import PLAN, MeshWorld, node_id


def test_a_good_release_goes_through_every_stage_by_itself() -> None:
    f = fleet()
    candidate = f.w.rollout.candidate.change
    first = canary(f)
    assert first.runs is not None
    assert (first.runs.deployed.change, first.runs.role) == (candidate, "candidate")
    assert all(node.runs is not None and node.runs.role == "base" for node in others(f))
    f.run_for(13)
    assert f.w.rollout.stage == 1
    f.run_for(60)
    assert f.w.lane.rollout is None
    assert f.serving() == {candidate}
    assert {node.runs.role for node in f.nodes.values() if node.runs} == {"base"}
    assert not f.refusals
    assert all(node.agent.deadline_ms() is None for node in f.nodes.values())


def test_nodes_of_a_stage_take_the_candidate_one_after_the_other() -> None:
    f = fleet(Plan((Stage("100%"),)))
    order = f.w.names(f.w.rollout.order)

    def taken() -> list[str]:
        return [n for n in order if (run := f.nodes[n].runs) is not None and run.role == "candidate"]

    assert taken() == [order[0]]
    f.run_for(11)
    assert taken() == [order[0], order[1]]
    f.run_for(11)
    assert taken() == list(order)
    f.run_for(20)
    assert f.w.lane.rollout is None


def test_with_max_parallel_the_whole_stage_moves_at_once() -> None:
    f = fleet(Plan((Stage("100%"),), max_parallel=3))
    assert f.serving() == {f.w.rollout.candidate.change}


def test_a_silent_predecessor_holds_up_its_successors_only_for_the_healthy_deadline() -> None:
    f = fleet(Plan((Stage("100%"),)))
    order = f.w.names(f.w.rollout.order)
    f.nodes[order[0]].up = False
    f.run_for(299)
    assert f.nodes[order[1]].agent.running("shop", "prod") == (f.w.base.change, "base")
    f.run_for(2)
    assert f.nodes[order[1]].agent.running("shop", "prod") == (f.w.rollout.candidate.change, "candidate")


def test_a_canary_that_is_never_ready_is_reverted_here_and_aborted_everywhere() -> None:
    f = fleet()
    base = f.w.base.change
    sick = canary(f)
    sick.sick = True
    f.run_for(299)
    assert f.w.lane.rollout is not None
    f.run_for(4)
    assert any(isinstance(order, Reverted) for order in sick.orders)
    assert f.w.lane.rollout is None
    assert f.serving() == {base}
    f.run_for(20)
    assert not sick.disk, "the latch ends with the rollout"


def test_a_crash_loop_fails_at_once() -> None:
    f = fleet()
    canary(f).crashes = 3
    f.run_for(3)
    assert f.w.lane.rollout is None


def test_a_failed_smoke_check_fails_the_stage() -> None:
    f = fleet()
    canary(f).smoke = "failed"
    f.run_for(13)
    assert f.w.lane.rollout is None


def test_without_smoke_and_traffic_the_rollout_pauses() -> None:
    f = fleet()
    canary(f).smoke = "absent"
    f.run_for(35)
    assert "traffic" in f.w.rollout.paused
    f.run_for(20)
    assert f.w.rollout.stage == 0


def test_a_pass_is_not_said_before_the_smoke_replay_it_asked_for_has_ended() -> None:
    f = fleet()
    slow = canary(f)
    slow.smoke = "late"
    f.run_for(60)
    assert not f.w.rollout.paused, "a stage was taken for one of which nothing says that it works"
    assert f.w.rollout.stage == 0
    f.tell(slow.name, SmokeReplayed("shop", "prod", f.w.rollout.candidate.change, "passed"))
    f.run_for(3)
    assert f.w.rollout.stage == 1


def test_the_moment_a_candidate_was_healthy_for_long_enough_moves_the_rollout_on() -> None:
    f = fleet()
    node = canary(f)
    assert node.runs is not None

    def pass_ms(ms: int) -> None:
        f.mono_ms += ms
        f.w.at_ms += ms

    pass_ms(250)
    f.tell(node.name, f.observation(node, node.runs, 0))
    while (due_ms := node.agent.deadline_ms() or 0) < 10_250:
        pass_ms(due_ms - f.mono_ms)
        f.tell(node.name, Tick())
    assert due_ms == 10_250
    pass_ms(due_ms - f.mono_ms)
    f.tell(node.name, Tick())
    assert node.orders[-1] == Observe("shop", "prod", f.w.rollout.candidate.change)
    assert (node.agent.deadline_ms() or 0) > 10_250, "it is asked after once"
    f.tell(node.name, f.observation(node, node.runs, 0))
    assert f.w.rollout.stage == 1


def test_with_traffic_no_smoke_check_is_replayed() -> None:
    f = fleet()
    for node in f.nodes.values():
        node.counts = Counts(100, 0)
    f.run_for(13)
    assert f.w.rollout.stage == 1
    assert not any(isinstance(order, ReplaySmoke) for node in f.nodes.values() for order in node.orders)


def test_a_stage_behind_an_approval_pauses_when_it_passed() -> None:
    f = fleet(Plan((Stage("1", approve=True), Stage("100%"))))
    f.run_for(13)
    assert f.w.rollout.paused == "awaits an approver"


def test_a_plan_without_auto_promote_stays_until_a_person_comes() -> None:
    f = fleet(Plan(PLAN.stages, auto_promote=False))
    f.run_for(30)
    assert f.w.rollout.stage == 0
    shown = canary(f).agent.conductor.statements(f.w.rollout.id, f.w.rollout.opened)
    assert shown


def test_a_frozen_lane_is_not_promoted_but_a_failure_still_ends_it() -> None:
    f = fleet()
    f.do(f.w.on_lane(Freeze("holiday"), f.w.admin))
    f.run_for(20)
    assert f.w.rollout.stage == 0
    assert not f.refusals
    canary(f).crashes = 3
    f.run_for(3)
    assert f.w.lane.rollout is None


def test_a_canary_that_cannot_prepare_fails() -> None:
    w = MeshWorld().furnish().deployed(1)
    f = Fleet(w)
    for node in f.nodes.values():
        node.broken = True
    f.start(2)
    f.run_for(3)
    assert f.w.lane.rollout is None


def test_a_canary_that_nobody_ever_reaches_ends_at_the_progress_deadline() -> None:
    f = fleet(voters=3)
    canary(f).up = False
    f.run_for(599)
    assert f.w.lane.rollout is not None
    f.run_for(5)
    assert f.w.lane.rollout is None


def test_voters_that_were_all_apart_at_the_progress_deadline_end_the_rollout_when_they_meet() -> None:
    f = fleet(voters=3)
    canary(f).up = False
    f.run_for(590)
    f.cut = set(f.w.nodes)
    f.run_for(30)
    f.cut = set()
    node, other = others(f)
    for here, there in ((node, other), (other, node)):
        f.tell(here.name, PeerConnected(node_id(there.name), True))
    f.run_for(5)
    assert f.w.lane.rollout is None


def test_a_node_that_took_the_candidate_and_vanished_counts_as_failed() -> None:
    f = fleet(Plan((Stage("1", pause_ms=3_600_000), Stage("100%"))), voters=3)
    f.run_for(13)
    gone = canary(f)
    gone.up = False
    for node in others(f):
        f.tell(node.name, PeersDown((node_id(gone.name),)))
    f.run_for(299)
    assert f.w.lane.rollout is not None
    f.run_for(5)
    assert f.w.lane.rollout is None


def leave(made: Fleet, name: str) -> None:
    made.tell(name, Leave())
    made.nodes[name].up = False


def test_a_node_that_says_goodbye_before_its_turn_holds_up_nobody() -> None:
    f = fleet(voters=1)
    f.w.state = replace(f.w.state, rules_version=GOODBYE_RULES)
    f.decided()
    last = f.w.names(f.w.rollout.order)[-1]
    leave(f, "n3" if last == "n1" else last)  # not the only voter
    f.run_for(13)
    assert f.w.rollout.stage == 1, "said in the first stage, of which it is no part"
    f.run_for(24)
    assert f.w.lane.rollout is None, "not three times the healthy time, nor the progress deadline"


def test_whose_turn_comes_behind_a_node_that_left_does_not_wait_for_it() -> None:
    f = fleet(Plan((Stage("1"), Stage("100%"))), voters=3)
    f.w.state = replace(f.w.state, rules_version=GOODBYE_RULES)
    f.decided()
    order, candidate = f.w.names(f.w.rollout.order), f.w.rollout.candidate.change
    f.run_for(5)
    leave(f, order[1])
    f.run_for(40)
    assert f.nodes[order[2]].runs is not None
    assert f.nodes[order[2]].runs.deployed.change == candidate


def test_behind_a_node_that_took_the_candidate_and_is_down_the_next_one_waits() -> None:
    f = fleet(Plan((Stage("100%"),)))
    first, second, _ = f.w.names(f.w.rollout.order)
    f.nodes[first].sick = True
    f.run_for(11)  # it says that it took it, and is not ready
    f.nodes[first].up = False
    f.tell(second, PeersDown((node_id(first),)))
    f.run_for(60)
    assert f.nodes[second].agent.running("shop", "prod") == (f.w.base.change, "base")


def test_a_node_that_comes_back_takes_part_again() -> None:
    f = fleet(Plan((Stage("1", pause_ms=20_000), Stage("100%"))))
    f.w.state = replace(f.w.state, rules_version=GOODBYE_RULES)
    f.decided()
    gone = next(name for name in f.w.names(f.w.rollout.order)[::-1] if name != "n1")
    leave(f, gone)
    f.run_for(5)
    f.reboot(gone)
    candidate = f.w.rollout.candidate.change
    f.run_for(80)
    assert f.w.lane.rollout is None
    assert f.nodes[gone].runs is not None
    assert f.nodes[gone].runs.deployed.change == candidate


def test_a_goodbye_hides_no_candidate_that_was_taken() -> None:
    f = fleet(Plan((Stage("1"), Stage("100%"))), voters=3)
    f.w.state = replace(f.w.state, rules_version=GOODBYE_RULES)
    f.decided()
    gone = canary(f)
    leave(f, gone.name)
    for node in others(f):
        f.tell(node.name, PeersDown((node_id(gone.name),)))
    f.run_for(100)
    assert f.w.rollout.stage == 0
    f.run_for(210)
    assert f.w.lane.rollout is None
    stayed = [node for node in f.nodes.values() if node is not gone]
    assert {node.runs.deployed.change for node in stayed if node.runs} == {f.w.base.change}


def test_who_leaves_takes_no_candidate_any_more() -> None:
    f = fleet()
    node = others(f)[0]
    f.tell(node.name, Leave())
    f.run_for(120)
    assert node.runs is not None
    assert node.runs.role == "base"
    assert node.agent.deadline_ms() is None


def test_voters_propose_in_turn_so_that_one_silent_voter_delays_only() -> None:
    f = fleet(voters=3)
    f.run_for(11)
    first = f.w.rollout.stage
    f.run_for(12)
    assert (first, f.w.rollout.stage) in ((0, 1), (1, 1))
