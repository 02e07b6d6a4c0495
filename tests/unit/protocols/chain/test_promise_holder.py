"""Promises held for the open slot: who holds them is asked, what that costs the disks, and what is done without."""

from __future__ import annotations

from typing import Any

import pytest

from node.mesh.pump import share_commits
from protocols.chain.ballots import NO_BALLOT
from protocols.chain.decision import Decision
from protocols.chain.messages import Answer, Forward, Outcome, Prepare, Promised, Propose
from protocols.envelope import decode
from protocols.machine import Effect, Persist
from protocols.refusal import Refusal
from tests.support.protocols.chain_net import WALL_MS, ChainNet


def standing_by(holder: str = "n0", count: int = 3) -> ChainNet:
    """A net in which the first slot was decided by `holder`, who holds promises for the next."""
    net = ChainNet(count, 3)
    assert net.add(holder).outcome == "decided"
    net.run(1_000)
    net.sent.clear()
    return net


def by(net: ChainNet, kind: type) -> set[str]:
    return {net.by_peer[near].name for near, _, message in net.sent if isinstance(message, kind)}


@pytest.mark.parametrize("name", ["n1", "n2"])
def test_a_command_goes_to_the_voter_that_holds_promises_and_needs_votes_only(name: str) -> None:
    net = standing_by()
    outcome = net.add(name)
    assert (outcome.outcome, outcome.slot) == ("decided", 2)
    assert by(net, Forward) == {name}
    assert by(net, Propose) == {"n0"}
    assert {message.slot for _, _, message in net.sent if isinstance(message, Prepare)} <= {3}, "no ballot for the slot"


def test_the_holder_itself_asks_nobody() -> None:
    net = standing_by()
    assert net.add("n0").slot == 2
    assert by(net, Forward) == set()


def test_asked_at_all_in_turn_one_voter_proposes_everything() -> None:
    net = standing_by()
    for number in range(6):
        assert net.add(f"n{number % 3}").slot == 2 + number
        net.run(1_000)
    assert by(net, Propose) == {"n0"}


def test_a_holder_that_stays_silent_is_waited_for_one_round_trip_and_then_overtaken() -> None:
    net = standing_by()
    net.keep = lambda near, far, message: not isinstance(message, Forward)
    before_ms = net.now_ms
    assert net.add("n1").outcome == "decided"
    assert by(net, Propose) == {"n1"}
    assert before_ms + net["n1"]._at.pacer.base_ms <= net.now_ms < before_ms + 3_000


def test_a_holder_that_is_gone_is_not_waited_for() -> None:
    net = standing_by()
    net.stop("n0")
    before_ms = net.now_ms
    assert net.add("n1").outcome == "decided"
    assert by(net, Forward) == set()
    assert net.now_ms - before_ms < 2 * net["n1"]._at.pacer.base_ms


def test_what_the_holder_will_not_propose_is_proposed_here() -> None:
    net = standing_by()
    net.nodes["n0"].machine.fresh_refusals = {"a": Refusal("view.stale", "no")}
    assert net.add("n1").outcome == "decided"
    assert "n1" in by(net, Propose)


def test_what_nobody_may_propose_is_refused_once_by_its_own_rule() -> None:
    net = standing_by()
    for node in net.nodes.values():
        node.machine.fresh_refusals = {"a": Refusal("view.stale", "no")}
    assert net.add("n1").rule == "view.stale"
    net.run(60_000)
    assert len([notice for notice in net.nodes["n1"].notices if isinstance(notice, Outcome)]) == 1


def test_a_holder_that_takes_no_more_is_not_waited_for() -> None:
    net = standing_by()
    net["n0"]._at.muted = "its disk is full"
    before_ms = net.now_ms
    assert net.add("n1").outcome == "decided"
    assert by(net, Answer) == {"n0"}
    assert net.now_ms - before_ms < net["n1"]._at.pacer.base_ms, "it said so, and nothing is waited for"


# --- what it costs the disks ------------------------------------------------------------------------------------------


def recorded(net: ChainNet) -> dict[str, list[Effect]]:
    """What each node does from now on, in order."""
    done: dict[str, list[Effect]] = {name: [] for name in net.nodes}
    give = net.give

    def noted(name: str, event: Any) -> list[Effect]:
        effects = give(name, event)
        done[name] += effects
        return effects

    net.give = noted  # type: ignore[method-assign]
    return done


def test_a_decision_costs_the_disks_of_three_voters_ten_waits() -> None:
    net = standing_by()
    done = recorded(net)
    net.add("n0")
    net.run(1_000)
    waits = {
        name: [commit.store.value for commit in share_commits(effects) if isinstance(commit, Persist)]
        for name, effects in done.items()
    }
    # Its own vote and the entry in one commit; what it would promise itself for the next slot is not needed.
    assert waits["n0"] == ["vote", "fence"]
    # A vote; then the entry and the promise for the next slot, which come together, in one commit.
    assert waits["n1"] == waits["n2"] == ["vote", "fence", "vote", "fence"]


def test_who_stands_by_promises_itself_only_when_that_completes_the_majority() -> None:
    net = standing_by()
    assert net["n0"].record.promised == NO_BALLOT
    net = standing_by()
    net.keep = lambda near, far, message: not (isinstance(message, Promised) and net.by_peer[near].name == "n2")
    net.add("n0")
    net.run(1_000)
    ballot = net["n1"].record.promised
    assert net["n0"].record.promised == NO_BALLOT != ballot
    net.keep = lambda near, far, message: True
    assert net.add("n0").slot == 3
    assert {message.proposal.ballot for _, _, message in net.sent if isinstance(message, Propose)} >= {ballot}


def test_who_promised_another_meanwhile_does_not_use_the_promises_it_holds() -> None:
    net = standing_by()
    before = net["n1"].record.promised
    net.keep = lambda near, far, message: not isinstance(message, Forward)
    assert net.add("n1").slot == 2, "the holder did not hear of it, and n1 opened a higher ballot"
    net.keep = lambda near, far, message: True
    assert before.node == net.nodes["n0"].peer
    assert net["n0"].record.slot == 3
    assert net.add("n0").slot == 3
    assert len(net.heads()) == 1


def test_promises_from_before_the_machines_slept_date_no_decision() -> None:
    days = 60
    net = standing_by()
    for node in net.nodes.values():
        node.wall_offset_ms += days * 86_400_000
    net.now_ms += 1
    wall_ms = WALL_MS + net.now_ms + days * 86_400_000
    assert net.add("n0").slot == 2
    dated = [decode(message.decision, Decision).at_ms for _, _, message in net.sent if isinstance(message, Propose)]
    assert dated
    assert min(dated) >= wall_ms, "the time of before"
