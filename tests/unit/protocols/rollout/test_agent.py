"""One rollout agent: alone against every failure, and event by event."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocols.changes.change import Plan, Stage
from protocols.changes.statements import Prepared, TimeoutVote, Vanished, open_statement, state_it
from protocols.envelope import Signed, decode, digest
from protocols.machine import (
    Broadcast,
    Digest,
    Effect,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    Persist,
    Received,
    Reject,
    Send,
    Tick,
)
from protocols.refusal import Refusal
from protocols.rollout.agent import RolloutAgent, latch_key
from protocols.rollout.conductor import CHANGES_MAX
from protocols.rollout.orders import (
    ChangeProposed,
    NodePrepared,
    PeerCompared,
    PeersDown,
    PreparationDone,
    PrepareRelease,
    ReplaySmoke,
    Retain,
    Reverted,
    RolloutStatement,
    Run,
    SmokeReplayed,
    StateDecided,
    Stop,
    VoterHere,
    VoterProbe,
    WorkObserved,
)
from protocols.rollout.watch import ensure_authorized
from protocols.state.commands import Abort, DrainNode, Pause, Resume, Rollback
from protocols.state.model import NODES_MAX
from tests.support.protocols.fleet import Fleet, canary, fleet, others
from tests.support.protocols.mesh_world import PLAN, MeshWorld, node_id, signer
from tests.support.protocols.trust_world import VERIFIER, WALL_MS

# --- a node alone -----------------------------------------------------------------------------------------------------


def test_an_isolated_canary_returns_to_the_base_after_its_ttl_and_stays_there() -> None:
    f = fleet(Plan((Stage("1"), Stage("100%")), auto_promote=False), voters=3)
    f.run_for(20)
    lonely = canary(f)
    base, candidate = f.w.base.change, f.w.rollout.candidate.change
    f.cut = {lonely.name}
    f.run_for(1775)
    assert lonely.agent.running("shop", "prod") == (candidate, "candidate")
    f.run_for(70)
    assert lonely.agent.running("shop", "prod") == (base, "base")
    assert any(isinstance(order, Reverted) for order in lonely.orders)
    f.reboot(lonely.name)
    f.run_for(30)
    again = f.nodes[lonely.name]
    assert again.runs is not None
    assert again.runs.role == "base"
    assert not any(isinstance(order, Run) and order.role == "candidate" for order in again.orders)


def test_a_node_that_hears_a_majority_keeps_the_candidate_beyond_the_ttl() -> None:
    f = fleet(Plan((Stage("1"), Stage("100%")), auto_promote=False), voters=3)
    f.run_for(2000)
    assert canary(f).agent.running("shop", "prod") == (f.w.rollout.candidate.change, "candidate")


def test_a_short_ttl_is_probed_often_enough_to_outlive_good_contact_and_ends_a_lonely_candidate() -> None:
    f = fleet(Plan((Stage("1"), Stage("100%")), auto_promote=False, candidate_ttl_ms=10_000), voters=3)
    f.run_for(100)
    lonely = canary(f)
    assert lonely.agent.running("shop", "prod") == (f.w.rollout.candidate.change, "candidate")
    f.cut = {lonely.name}
    f.run_for(15)
    assert lonely.agent.running("shop", "prod") == (f.w.base.change, "base")


def test_an_irreversible_candidate_is_never_reverted_by_its_node() -> None:
    plan = Plan((Stage("1"), Stage("100%")), auto_promote=False, irreversible=True)
    f = fleet(plan, voters=3)
    f.cut = {canary(f).name}
    canary(f).crashes = 3
    f.run_for(2000)
    assert canary(f).agent.running("shop", "prod") == (f.w.rollout.candidate.change, "candidate")
    assert not canary(f).disk


def test_a_latch_ends_when_a_later_decision_opens_the_stage_anew() -> None:
    f = fleet(Plan(PLAN.stages, auto_revert=False))
    canary(f).crashes = 3
    f.run_for(3)
    assert f.w.rollout.paused
    assert canary(f).agent.running("shop", "prod") == (f.w.base.change, "base")
    f.do(f.w.on_lane(Resume(f.w.rollout.id), f.w.admin))
    assert canary(f).agent.running("shop", "prod") == (f.w.rollout.candidate.change, "candidate")
    assert not canary(f).disk


def test_a_candidate_whose_supervisor_falls_silent_does_not_pass() -> None:
    f = fleet()
    node = canary(f)
    change = f.w.rollout.candidate.change
    node.agent.handle(WorkObserved("shop", "prod", change, True), f.now)
    for wait_ms in (9_000, 60_000, 31_000, 31_000):
        f.mono_ms += wait_ms
        node.agent.handle(Tick(), f.now)
    held = node.agent.conductor.verdicts(f.w.rollout.id, f.w.rollout.opened)[node_id(node.name)]
    assert (held.verdict, held.reason) == ("fail", "readiness lost for 3 windows")


def test_two_flips_from_pass_to_fail_stay_a_fail_for_the_whole_rollout() -> None:
    f = fleet(Plan(PLAN.stages, auto_revert=False, auto_promote=False))
    for _ in range(2):
        f.run_for(15)
        canary(f).sick = True
        f.run_for(35)
        canary(f).sick = False
        assert f.w.rollout.paused
        f.do(f.w.on_lane(Resume(f.w.rollout.id), f.w.admin))
    f.run_for(3)
    assert f.w.rollout.paused


def test_after_an_abort_no_older_state_brings_the_candidate_back() -> None:
    f = fleet()
    before = f.w.state
    node = canary(f)
    f.do(f.w.abort(f.w.admin))
    assert node.runs is not None
    assert node.runs.role == "base"
    f.perform(node, node.agent.handle(StateDecided(before, None), f.now))
    assert node.runs.role == "base"


def test_a_rollback_moves_every_node_at_once() -> None:
    w = MeshWorld().furnish().deployed(1).deployed(2)
    f = Fleet(w)
    first = w.lane.retained[0].change
    f.do(w.on_lane(Rollback(first, "worse"), w.admin))
    assert f.serving() == {first}


def test_a_leaving_node_drains_and_a_later_joiner_gets_the_base() -> None:
    f = fleet()
    leaving, joining = others(f)[0], others(f)[1]
    f.do(f.w.govern(DrainNode(node_id(leaving.name)), f.w.admin))
    assert isinstance(leaving.orders[-1], Stop | Retain)
    assert leaving.agent.running("shop", "prod") is None
    assert joining.agent.running("shop", "prod") == (f.w.base.change, "base")


def test_a_first_deploy_that_fails_leaves_nothing_running() -> None:
    w = MeshWorld().furnish()
    f = Fleet(w)
    f.start(1)
    canary(f).crashes = 3
    f.run_for(3)
    assert w.lane.rollout is None
    assert f.serving() == {None}


def test_what_base_candidate_and_retained_need_is_prepared_and_kept() -> None:
    f = fleet()
    node = canary(f)
    retain = [order for order in node.orders if isinstance(order, Retain)][-1]
    assert set(retain.changes) == {f.w.base.change, f.w.rollout.candidate.change}
    asked = [order.change for order in node.orders if isinstance(order, PrepareRelease)]
    assert sorted(asked) == sorted(set(asked))


# --- one agent, event by event ----------------------------------------------------------------------------------------


def alone(w: MeshWorld, name: str = "n1", **fields: Any) -> RolloutAgent:
    return RolloutAgent(node_id(name), w.mesh, signer(name), VERIFIER, **fields)


NOW = Now(0, WALL_MS)


def test_nothing_happens_before_the_first_state() -> None:
    agent = alone(MeshWorld())
    assert agent.deadline_ms() is None
    assert agent.running("shop", "prod") is None
    for event in (
        Tick(),
        PeersDown(()),
        PeerConnected(node_id("n2"), False),
        PeerDisconnected(node_id("n2")),
        Received(node_id("n2"), VoterProbe(1)),
        Received(node_id("n2"), VoterHere(0)),
        Received(node_id("n2"), "something else"),
        WorkObserved("shop", "prod", Digest(b"c" * 32), True),
        SmokeReplayed("shop", "prod", Digest(b"c" * 32), "passed"),
    ):
        assert agent.handle(event, NOW) == []


def test_prepared_is_said_once_the_change_and_its_base_are_both_held() -> None:
    w = MeshWorld().furnish().deployed(1)
    agent = alone(w)
    change = Digest(b"c" * 32)
    agent.handle(StateDecided(w.state, w.state.voters[0]), NOW)
    proposed = ChangeProposed("shop", "prod", change, w.base.release)
    assert agent.handle(proposed, NOW) == [Notify(PrepareRelease(change))]
    assert agent.handle(PreparationDone(change, True), NOW) == []
    said = agent.handle(PreparationDone(w.base.change, True, "passed"), NOW)
    assert [type(effect) for effect in said] == [Broadcast, Notify]
    assert said[1] == Notify(NodePrepared(change))
    assert agent.handle(proposed, NOW) == []
    again = agent.handle(PeerConnected(node_id("n2"), True), NOW)
    assert [effect for effect in again if isinstance(effect, Send)] == again
    assert len(again) == 1
    (data,) = agent.conductor.prepared(change, (node_id("n1"),))
    assert agent.conductor.prepared(change, ()) == ()
    assert agent.conductor.prepared_nodes(change) == (node_id("n1"),)
    assert agent.conductor.prepared_nodes(b"other") == ()
    opened = open_statement(VERIFIER, w.mesh, decode(data, Signed))
    assert not isinstance(opened, Refusal)
    assert opened.statement == Prepared(change, w.base.release, "absent")


def test_a_change_on_another_base_is_never_said_to_be_prepared() -> None:
    w = MeshWorld().furnish()
    agent = alone(w)
    agent.handle(StateDecided(w.state, None), NOW)
    agent.handle(ChangeProposed("shop", "prod", Digest(b"c" * 32), b"b" * 32), NOW)
    assert agent.handle(PreparationDone(Digest(b"c" * 32), True), NOW) == []


def test_after_a_restart_only_changes_that_may_still_start_are_prepared() -> None:
    w = MeshWorld().furnish().deployed(1)
    agent = alone(w)
    old = [ChangeProposed("shop", "prod", digest(b"old %d" % number), b"") for number in range(100)]
    next_one = ChangeProposed("shop", "prod", digest(b"next"), w.base.release)
    for proposed in (*old[:50], next_one, *old[50:]):
        assert agent.handle(proposed, NOW) == []
    orders = agent.handle(StateDecided(w.state, w.state.voters[0]), NOW)
    prepares = [
        order.event.change for order in orders if isinstance(order, Notify) and isinstance(order.event, PrepareRelease)
    ]
    assert prepares == [w.base.change, next_one.change]
    for proposed in old:
        assert agent.handle(proposed, NOW) == []
    assert next_one.change in agent._wanted  # those that cannot start made way


def test_a_change_that_arrives_before_its_base_is_prepared_when_that_is_decided() -> None:
    w = MeshWorld().furnish()
    agent = alone(w)
    agent.handle(StateDecided(w.state, w.state.voters[0]), NOW)
    w.deployed(1)
    early = ChangeProposed("shop", "prod", digest(b"early"), w.base.release)
    assert agent.handle(early, NOW) == []
    assert Notify(PrepareRelease(early.change)) in agent.handle(StateDecided(w.state, w.state.voters[0]), NOW)


def test_a_plan_that_accepts_readiness_alone_replays_no_smoke() -> None:
    g = Fleet(MeshWorld(nodes=("n1",)).furnish())
    g.w.started(1, plan=Plan((Stage("100%", 0),), probe_only=True))
    g.decided()
    node = g.nodes["n1"]
    change = g.w.rollout.candidate.change
    g.tell("n1", PreparationDone(change, True))
    g.tell("n1", WorkObserved("shop", "prod", change, True))
    assert not [order for order in node.orders if isinstance(order, ReplaySmoke)]
    assert g.w.lane.rollout is None
    assert g.w.base.change == change


def test_preparations_and_proposals_are_bounded() -> None:
    w = MeshWorld().furnish()
    agent = alone(w)
    agent.handle(StateDecided(w.state, None), NOW)
    for number in range(200):
        change = digest(b"%d" % number)
        agent.handle(ChangeProposed("shop", "prod", change, b""), NOW)
        agent.handle(PreparationDone(change, number % 2 == 0), NOW)
        agent.handle(PreparationDone(digest(b"other %d" % number), number % 2 == 0), NOW)
    assert len(agent._wanted) <= 64
    assert len(agent._prepared) <= 64
    assert len(agent._broken) <= 64
    assert len(agent.conductor._prepared) <= CHANGES_MAX


def test_the_latch_is_durable_before_the_revert() -> None:
    f = fleet()
    node = canary(f)
    effects = node.agent.handle(
        WorkObserved("shop", "prod", f.w.rollout.candidate.change, False, 3), Now(1000, WALL_MS)
    )
    kinds = [type(effect.event) if isinstance(effect, Notify) else type(effect) for effect in effects]
    assert kinds == [Persist, Reverted, Run, Broadcast]
    assert latch_key(f.w.rollout) in node.agent._latched


def test_observations_of_what_does_not_run_change_nothing() -> None:
    f = fleet()
    node = canary(f)
    assert node.agent.handle(WorkObserved("shop", "prod", Digest(b"o" * 32), False, 3), f.now) == []
    assert node.agent.handle(SmokeReplayed("shop", "prod", Digest(b"o" * 32), "failed"), f.now) == []
    assert others(f)[0].agent.handle(WorkObserved("shop", "prod", f.w.base.change, False, 3), f.now) == []


def test_probes_are_answered_by_voters_and_counted_by_round() -> None:
    f = fleet(voters=3)
    asker, voter = canary(f), others(f)[0]
    assert voter.agent.handle(Received(node_id(asker.name), VoterProbe(7)), f.now) == [
        Send(node_id(asker.name), VoterHere(7))
    ]
    quiet = RolloutAgent(node_id("n9"), f.w.mesh, signer("n9"), VERIFIER)
    quiet.handle(StateDecided(f.w.state, None), f.now)
    assert quiet.handle(Received(node_id(asker.name), VoterProbe(7)), f.now) == []
    late = Now(10**9, WALL_MS)
    before = asker.agent._contact.since_ms
    for peer in (voter.name, others(f)[1].name):
        assert asker.agent.handle(Received(node_id(peer), VoterHere(99)), late) == []
    assert asker.agent._contact.since_ms == before
    assert asker.agent.handle(Received(node_id("stranger"), VoterHere(0)), late) == []


def test_statements_that_do_not_belong_are_rejected_or_ignored() -> None:
    f = fleet(voters=3)
    w, agent, me = f.w, others(f)[0].agent, node_id(canary(f).name)
    forged = RolloutStatement(Signed(b"x", b"k" * 32, b"s" * 64))
    (rejected,) = agent.handle(Received(me, forged), f.now)
    assert isinstance(rejected, Reject)
    assert rejected.rule == "statement.signature"
    good = w.verdict("pass", sequence=10)

    far = node_id("far")
    agent.handle(PeerConnected(far, False), f.now)

    def hear(name: str, statement: Any) -> list[Effect]:
        message = RolloutStatement(state_it(signer(name), w.mesh, statement), (far,))
        return agent.handle(Received(me, message), f.now)

    name = canary(f).name
    founder = w.state.voters[0]
    owner = w.names((founder.node,))[0]
    stage = (w.state.era, w.rollout.id, w.rollout.opened)
    for who, statement in (
        ("stranger", good),
        (name, replace(good, opened=99)),
        (name, replace(good, era=b"e" * 32)),
        (name, replace(good, rollout=b"r" * 32)),
        ("stranger", Prepared(b"c" * 32, b"", "passed")),
        ("stranger", TimeoutVote(*stage, founder)),
        (owner, TimeoutVote(b"e" * 32, *stage[1:], founder)),
        (owner, Vanished(*stage, founder, node_id("stranger"))),
    ):
        assert hear(who, statement) == []
    assert [entry.peer for entry in hear(name, good) if isinstance(entry, Send)] == [far]
    assert hear(name, good) == [], "it was told the same word already"
    assert hear(name, replace(good, sequence=11)) != []
    assert hear(name, good) == [], "an older word is not passed on"
    assert hear(name, replace(good, sequence=12, verdict="fail")) != []
    assert hear(name, replace(good, sequence=13)) == [], "a fail is final"
    held = agent.conductor.verdicts(w.rollout.id, w.rollout.opened)
    assert held[me].verdict == "fail"
    assert agent.conductor.verdicts(b"r" * 32, 0) == {}
    assert agent.conductor.statements(b"r" * 32, 0) == ()
    for vote in (TimeoutVote(*stage, founder), Vanished(*stage, founder, me)):
        assert hear(owner, vote) != []
        assert hear(owner, vote) == []
    assert hear(name, Prepared(b"c" * 32, b"", "passed")) != []
    assert hear(name, Prepared(b"c" * 32, b"", "passed")) == []


def test_a_word_is_passed_on_only_to_those_that_its_sender_could_not_tell() -> None:
    f = fleet()
    w, agent, author = f.w, others(f)[0].agent, node_id(canary(f).name)
    near, far, away = (node_id(name) for name in ("near", "far", "away"))
    for peer in (author, near, far):
        agent.handle(PeerConnected(peer, False), f.now)

    def hear(peer: Any, statement: Any, *untold: Any) -> list[tuple[Any, Any]]:
        message = RolloutStatement(state_it(signer(canary(f).name), w.mesh, statement), untold)
        effects = agent.handle(Received(peer, message), f.now)
        return [(effect.peer, effect.message.untold) for effect in effects if isinstance(effect, Send)]

    assert hear(author, w.verdict("pass", sequence=10)) == []
    assert hear(author, w.verdict("pass", sequence=11), far, away) == [(far, (away,))]
    assert hear(near, w.verdict("pass", sequence=11), far, away) == [], "it was told from here"
    assert hear(author, w.verdict("pass", sequence=12), away) == [], "nobody here knows the way"
    prepared = Prepared(b"c" * 32, b"", "passed")
    assert hear(near, prepared) == [], "who passes a word on may hide who was not told"
    assert hear(author, prepared, near, far) == [(far, ())], "it hides that from nobody else; near has it"
    assert hear(near, replace(prepared, smoke="absent"), far) == [], "of two words the one held is passed on"
    (rejected,) = agent.handle(
        Received(near, RolloutStatement(state_it(signer("n1"), w.mesh, prepared), (far,) * (NODES_MAX + 1))), f.now
    )
    assert isinstance(rejected, Reject)
    assert rejected.rule == "statement.untold"


def test_a_node_names_those_that_it_is_not_connected_to() -> None:
    f = fleet()
    node = others(f)[0]
    me, first, second = node_id(node.name), *(node_id(name) for name in f.w.nodes if name != node.name)
    change = Digest(b"c" * 32)
    node.agent.handle(PeerConnected(first, False), f.now)
    node.agent.handle(ChangeProposed("shop", "prod", change, b""), f.now)
    said = node.agent.handle(PreparationDone(change, True), f.now)
    assert [entry.message.untold for entry in said if isinstance(entry, Broadcast)] == [(second,)]
    told = node.agent.handle(PeerConnected(second, False), f.now)
    assert [(entry.peer, entry.message.untold) for entry in told if isinstance(entry, Send)] == [(second, ())]
    node.agent.handle(PeerDisconnected(first), f.now)
    told = node.agent.handle(PeerConnected(second, False), f.now)
    assert [entry.message.untold for entry in told if isinstance(entry, Send)] == [(first,)]
    assert node.agent.conductor.prepared_nodes(change) == (me,)


def test_what_is_said_once_and_was_lost_comes_when_records_are_compared() -> None:
    f = fleet(voters=3)
    w = f.w
    near, there = (f.nodes[name] for name in w.names(w.rollout.order[1:3]))
    change = Digest(b"c" * 32)
    stage = (w.state.era, w.rollout.id, w.rollout.opened)
    own = next(voter for voter in w.state.voters if voter.node == node_id(there.name))
    lost = [
        state_it(signer(there.name), w.mesh, candidate)
        for candidate in (
            Prepared(change, b"", "passed"),
            TimeoutVote(*stage, own),
            Vanished(*stage, own, w.rollout.order[0]),
        )
    ]
    lane = w.state.lanes[0]
    for node in (near, there):
        node.agent.handle(
            ChangeProposed(lane.project, lane.environment, change, lane.base.release if lane.base else b""), f.now
        )
    for signed in lost:
        there.agent.handle(Received(node_id(there.name), RolloutStatement(signed)), f.now)
    (asked,) = near.agent.handle(PeerCompared(node_id(there.name)), f.now)
    assert isinstance(asked, Send)
    answer = there.agent.handle(Received(node_id(near.name), asked.message), f.now)
    assert {candidate.message.signed for candidate in answer if isinstance(candidate, Send)} == set(lost)
    for entry in answer:
        assert isinstance(entry, Send)
        near.agent.handle(Received(node_id(there.name), entry.message), f.now)
    assert near.agent.conductor.prepared_nodes(change) == (node_id(there.name),)
    (asked,) = near.agent.handle(PeerCompared(node_id(there.name)), f.now)
    assert isinstance(asked, Send)
    assert there.agent.handle(Received(node_id(near.name), asked.message), f.now) == [], "nothing is lacking any more"


def test_a_node_that_waits_for_nothing_asks_for_nothing() -> None:
    f = fleet()
    node = others(f)[0]
    f.w.state = replace(f.w.state, lanes=())
    f.decided()
    assert node.agent.handle(PeerCompared(node_id("n9")), f.now) == []


def test_what_a_revoked_node_says_is_shown_to_nobody() -> None:
    f = fleet()
    name = canary(f).name
    agent = alone(f.w, "n1" if name != "n1" else "n2", revoked=lambda node: node == node_id(name))
    agent.handle(StateDecided(f.w.state, None), f.now)
    statement = state_it(signer(name), f.w.mesh, f.w.verdict())
    agent.handle(Received(node_id(name), RolloutStatement(statement)), f.now)
    assert agent.conductor.verdicts(f.w.rollout.id, f.w.rollout.opened) == {}
    assert agent.conductor.statements(f.w.rollout.id, f.w.rollout.opened) == ()


def test_a_verdict_is_never_older_than_one_before_a_restart() -> None:
    f = fleet()
    f.run_for(12)
    stage = (f.w.rollout.id, f.w.rollout.opened)
    name = f.w.names(f.w.rollout.order[:1])[0]
    before = f.nodes[name].agent.conductor.verdicts(*stage)[node_id(name)].sequence
    f.reboot(name)
    f.run_for(12)
    after = f.nodes[name].agent.conductor.verdicts(*stage)
    assert after[node_id(name)].sequence > before


def test_an_unauthorized_order_is_an_assertion() -> None:
    f = fleet()
    agent = others(f)[0].agent
    lane, rollout = f.w.lane, f.w.rollout
    with pytest.raises(AssertionError, match="not the base"):
        ensure_authorized(agent._me, lane, rollout.candidate, "base")
    with pytest.raises(AssertionError, match="not in the cohort"):
        ensure_authorized(agent._me, lane, rollout.candidate, "candidate")
    with pytest.raises(AssertionError, match="NoZombie"):
        ensure_authorized(agent._me, replace(lane, rollout=None), rollout.candidate, "candidate")


def test_pauses_and_aborts_by_hand_reach_every_node() -> None:
    f = fleet()
    f.do(f.w.on_lane(Pause(f.w.rollout.id), f.w.admin))
    f.run_for(30)
    assert f.w.rollout.stage == 0
    assert canary(f).agent.running("shop", "prod") == (f.w.rollout.candidate.change, "candidate")
    f.do(f.w.on_lane(Abort(f.w.rollout.id), f.w.admin))
    assert f.serving() == {f.w.base.change}
