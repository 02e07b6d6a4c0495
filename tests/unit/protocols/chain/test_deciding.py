"""How the chain decides on a small net: in quiet, in contention, through a forwarding node."""

from __future__ import annotations

from typing import Any

import pytest

from protocols.chain.decision import (
    COMMAND_MAX_BYTES,
    Decided,
    Decision,
)
from protocols.chain.messages import (
    Answer,
    Commit,
    Forward,
    Nack,
    Prepare,
    Promised,
    Propose,
    Submit,
    Voted,
)
from protocols.envelope import decode, digest, encode
from protocols.machine import Persist, Received, Send, Store
from protocols.refusal import Refusal
from simulation.chain.toy_state import Add, counter
from tests.support.protocols.chain_asks import ballot_of, rules, sent
from tests.support.protocols.chain_net import WALL_MS, ChainNet

# --- deciding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voters", [1, 3, 5, 7])
def test_a_command_is_decided_and_known_everywhere(voters: int) -> None:
    net = ChainNet(voters + 1, voters)
    outcome = net.add("n0", 5)
    net.run(200)
    assert (outcome.outcome, outcome.slot) == ("decided", 1)
    assert len(net.heads()) == 1
    assert all(counter(node.chain.state, "a") == 5 for node in net.nodes.values() if node.chain)


def test_a_sole_voter_decides_through_the_same_barriers_at_once() -> None:
    net = ChainNet(1)
    effects = net.give("n0", Submit(b"r", encode(Add(b"i", "a", 1))))
    stores = [effect.store for effect in effects if isinstance(effect, Persist)]
    assert stores == [Store.VOTE, Store.FENCE, Store.VOTE, Store.FENCE]


def test_a_promise_and_a_vote_leave_behind_database_and_fence() -> None:
    net = ChainNet(3, 3)
    kinds: dict[type, list[str]] = {}
    handle = net.nodes["n1"].chain.handle  # type: ignore[union-attr]

    def watched(event: Any, now: Any) -> Any:
        effects = handle(event, now)
        for index, effect in enumerate(effects):
            if isinstance(effect, Send) and isinstance(effect.message, Promised | Voted):
                before = [e.store.value for e in effects[:index] if isinstance(e, Persist)]
                kinds[type(effect.message)] = before
        return effects

    net.nodes["n1"].chain.handle = watched  # type: ignore[union-attr,method-assign]
    net.add("n0")
    assert kinds == {Promised: ["vote", "fence"], Voted: ["vote", "fence"]}


def test_who_decided_stands_by_and_its_next_decision_needs_votes_only() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.run(30_000)
    assert {message.slot for message in sent(net, Prepare)} == {1, 2}
    net.sent.clear()
    assert net.add("n0").slot == 2
    assert [message.proposal.slot for message in sent(net, Propose)] == [2, 2]
    assert {message.slot for message in sent(net, Prepare)} <= {3}
    assert net["n0"].ledger.at_ms == WALL_MS + net.now_ms, "it is dated when it is made"


def test_promises_held_for_too_long_are_asked_for_again() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.run(70_000)
    net.sent.clear()
    assert net.add("n0").slot == 2
    assert 2 in {message.slot for message in sent(net, Prepare)}


def test_another_node_decides_past_one_that_stands_by_and_it_notices() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.run(1_000)
    began_ms = net.now_ms
    net.keep = lambda near, far, message: not isinstance(message, Commit)
    assert net.add("n1").slot == 2
    net.keep = lambda near, far, message: True
    assert net.add("n0").slot == 3
    net.run(200)
    assert len(net.heads()) == 1
    assert net.now_ms - began_ms < 2_000


def test_commands_through_different_nodes_land_in_different_slots() -> None:
    net = ChainNet(5, 3)
    for index in range(5):
        net.give(f"n{index}", Submit(b"r", encode(Add(b"i%d" % index, "a", 1))))
    slots = sorted(net.outcome(f"n{index}", b"r").slot for index in range(5))
    assert slots == sorted(set(slots))
    assert counter(net["n0"].state, "a") == 5


def test_a_minority_of_dead_voters_is_not_missed() -> None:
    net = ChainNet(5, 5)
    net.stop("n3")
    net.stop("n4")
    assert net.add("n0").outcome == "decided"


def test_without_a_majority_nothing_is_decided_and_the_client_is_told_unknown() -> None:
    net = ChainNet(3, 3)
    net.stop("n1")
    net.stop("n2")
    assert net.add("n0").outcome == "unknown"
    assert net["n0"].position.slot == 0


def test_a_command_that_the_rules_forbid_is_refused_with_the_rule() -> None:
    net = ChainNet(3, 3)
    outcome = net.add("n0", 1, "a", expect=7)
    assert (outcome.outcome, outcome.rule) == ("refused", "counter.expect")


def test_a_command_overtaken_by_another_is_superseded() -> None:
    net = ChainNet(3, 3)
    net.give("n0", Submit(b"x", encode(Add(b"x", "a", 1, 0))))
    net.give("n0", Submit(b"y", encode(Add(b"y", "a", 1, 0))))
    outcomes = {net.outcome("n0", b"x").outcome, net.outcome("n0", b"y").outcome}
    assert outcomes in ({"decided", "refused"}, {"decided", "superseded"})


def test_the_same_command_again_is_answered_with_its_first_slot() -> None:
    net = ChainNet(4, 3)
    command = encode(Add(b"once", "a", 1))
    first = net.submit("n0", command)
    net.run(200)
    assert net.submit("n1", command).slot == first.slot
    assert net.submit("n3", command).slot == first.slot
    assert counter(net["n0"].state, "a") == 1


@pytest.mark.parametrize(
    ("command", "material", "rule"),
    [
        (b"x" * (COMMAND_MAX_BYTES + 1), (), "chain.command-size"),
        (b"x", (b"m",) * 300, "chain.material-size"),
    ],
)
def test_what_is_too_large_is_refused_before_anything_is_sent(
    command: bytes, material: tuple[bytes, ...], rule: str
) -> None:
    net = ChainNet(3, 3)
    assert net.submit("n0", command, material).rule == rule
    assert not sent(net, Prepare)


def test_an_overlong_request_id_and_a_full_queue_are_refused() -> None:
    net = ChainNet(3, 3)
    net.cut = {net.nodes["n0"].peer}
    net.give("n0", Submit(b"r" * 65, b"x"))
    for index in range(257):
        net.give("n0", Submit(b"r%d" % index, encode(Add(b"i%d" % index, "a", 1))))
    found_rules = [notice.rule for notice in net.nodes["n0"].notices if hasattr(notice, "rule")]
    assert found_rules == ["chain.request-id", "chain.busy"]


def test_a_forwarded_command_that_comes_again_after_its_refusal_is_refused_again() -> None:
    """The first copy met a state that forbids it; by the time of the second, the state would allow it."""
    net = ChainNet(4, 3)
    n3 = net.nodes["n3"].peer
    again = Forward(b"r", encode(Add(b"late", "a", 1, 5)), ())
    net.give("n0", Received(n3, again))
    net.run(2_000)
    assert net.add("n1", 5).outcome == "decided"
    net.sent.clear()
    net.give("n0", Received(n3, again))
    net.run(2_000)
    assert {entry.outcome for entry in sent(net, Answer)} == {"refused"}
    assert counter(net["n0"].state, "a") == 5


def test_a_busy_voter_sends_another_nodes_command_on_without_refusing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocols.chain import clients

    monkeypatch.setattr(clients, "PENDING_MAX", 0)
    net = ChainNet(4, 3)
    net.give("n0", Received(net.nodes["n3"].peer, Forward(b"r", encode(Add(b"i", "a", 1)), ())))
    assert [(entry.outcome, entry.rule) for entry in sent(net, Answer)] == [("unknown", "chain.busy")]


def test_a_second_submission_under_one_request_id_is_the_first() -> None:
    net = ChainNet(3, 3)
    net.give("n0", Submit(b"r", encode(Add(b"i", "a", 1))))
    net.give("n0", Submit(b"r", encode(Add(b"other", "a", 1))))
    assert net.outcome("n0", b"r").outcome == "decided"
    net.run(2_000)
    assert counter(net["n0"].state, "a") == 1


def test_evidence_travels_with_its_decision() -> None:
    net = ChainNet(4, 3)
    net.submit("n3", encode(Add(b"i", "a", 1)), (b"exhibit one", b"exhibit two"))
    net.run(200)
    entry = net["n3"].ledger.entry(1)
    assert isinstance(entry, Decided)
    assert sorted(entry.material) == [b"exhibit one", b"exhibit two"]


def test_a_voters_own_view_refuses_fresh_decisions_and_names_the_rule() -> None:
    net = ChainNet(3, 3)
    for name in ("n1", "n2"):
        net.nodes[name].machine.fresh_refusals = {"a": Refusal("view.stale", "no")}
    outcome = net.add("n0")
    assert (outcome.outcome, outcome.rule) == ("refused", "view.stale")
    assert net.add("n0", 1, "b").outcome == "decided"


def test_a_proposer_does_not_propose_what_its_own_view_forbids() -> None:
    net = ChainNet(3, 3)
    net.nodes["n0"].machine.fresh_refusals = {"a": Refusal("view.stale", "no")}
    assert net.add("n0").rule == "view.stale"
    assert net.add("n1").outcome == "decided"


def test_an_accepted_decision_is_finished_though_every_view_now_forbids_it() -> None:
    net = ChainNet(3, 3)
    net.keep = lambda near, far, message: not isinstance(message, Voted)
    net.give("n0", Submit(b"r", encode(Add(b"i", "a", 1))))
    net.run(100)
    for node in net.nodes.values():
        node.machine.fresh_refusals = {"a": Refusal("view.stale", "no")}
    net.keep = lambda near, far, message: True
    assert net.outcome("n0", b"r").outcome == "decided"


def test_one_clock_an_hour_ahead_neither_dates_nor_blocks_decisions() -> None:
    net = ChainNet(3, 3)
    net.nodes["n0"].wall_offset_ms = 3_600_000
    assert net.add("n0").outcome == "decided"
    assert net.add("n1").outcome == "decided"
    entry = net["n0"].ledger.entry(1)
    assert isinstance(entry, Decided)
    assert decode(entry.decision, Decision).at_ms < 1_800_000_000_000 + 600_000


# --- retry and contention ---------------------------------------------------------------------------------------------


def test_what_a_dead_proposer_left_accepted_is_finished_by_another_voter() -> None:
    net = ChainNet(3, 3)
    net.keep = lambda near, far, message: not isinstance(message, Voted)
    net.give("n0", Submit(b"r", encode(Add(b"i", "a", 3))))
    net.run(100)
    net.stop("n0")
    net.keep = lambda near, far, message: True
    net.run(10_000)
    assert net["n1"].position.slot == 1
    assert counter(net["n1"].state, "a") == 3


def test_a_nack_lifts_the_next_ballot_above_the_one_in_the_way() -> None:
    net = ChainNet(3, 3)
    for name in ("n0", "n2"):
        net.give(name, Received(net.nodes["n1"].peer, Prepare(1, ballot_of(net, "n1"), net[name].position)))
    net.give("n2", Received(net.nodes["n1"].peer, Prepare(1, ballot_of(net, "n1", 30), net["n2"].position)))
    net.stop("n1")
    assert net.add("n0").outcome == "decided"
    assert sent(net, Nack)
    assert sorted({message.ballot.round for message in sent(net, Prepare) if message.slot == 1}) == [10, 31]


@pytest.mark.parametrize("kind", [Prepare, Promised, Propose, Voted, Commit])
def test_any_lost_message_only_costs_time(kind: type) -> None:
    net = ChainNet(3, 3)
    lost: list[Any] = []

    def keep(near: Any, far: Any, message: Any) -> bool:
        if isinstance(message, kind) and len(lost) < 2:
            lost.append(message)
            return False
        return True

    net.keep = keep
    assert net.add("n0").outcome == "decided"
    net.run(25_000)
    assert len(lost) == 2
    assert len(net.heads()) == 1


def test_every_message_twice_changes_nothing() -> None:
    net = ChainNet(3, 3)

    def twice(near: Any, far: Any, message: Any) -> bool:
        net.queue.append((near, far, message))
        return True

    net.keep = twice
    net.add("n0")
    net.add("n1")
    net.run(1_000)
    assert counter(net["n2"].state, "a") == 2
    assert not [rule for name in net.nodes for rule in rules(net, name)]


# --- forwarding -------------------------------------------------------------------------------------------------------


def test_a_node_without_a_vote_forwards_and_hears_the_outcome() -> None:
    net = ChainNet(4, 3)
    assert net.add("n3").outcome == "decided"
    assert sent(net, Forward)
    assert net.add("n3", 1, "a", expect=9).rule == "counter.expect"


def test_a_silent_voter_is_passed_over() -> None:
    net = ChainNet(4, 3)
    command = encode(Add(b"i", "a", 1))
    first = int.from_bytes(digest(command)[:4], "big") % 3
    net.cut = {net.founders[first].node}
    assert net.submit("n3", command).outcome == "decided"


def test_a_forward_to_one_who_lost_its_vote_is_answered_and_tried_elsewhere() -> None:
    net = ChainNet(2, 1)
    peer = net.nodes["n0"].peer
    net.give("n1", Received(peer, Forward(b"r", encode(Add(b"i", "a", 1)), ())))
    answers = [message for near, _, message in net.sent if isinstance(message, Answer)]
    assert [(answer.outcome, answer.rule) for answer in answers] == [("unknown", "chain.not-a-voter")]
    net.give("n1", Submit(b"q", encode(Add(b"j", "a", 1))))
    net.queue.clear()
    net.give("n1", Received(peer, Answer(b"q", "unknown", 0, "chain.not-a-voter")))
    assert net.outcome("n1", b"q").outcome == "decided"


@pytest.mark.parametrize(("wait_ms", "lasts_ms"), [(700, 700), (0, 30_000), (-5, 30_000), (1 << 40, 30_000)])
def test_a_voter_works_on_a_forwarded_command_as_long_as_its_client_waits(wait_ms: int, lasts_ms: int) -> None:
    net = ChainNet(4, 3)
    peer = net.nodes["n3"].peer
    net.keep = lambda _near, _far, message: not isinstance(message, Promised)
    net.give("n0", Received(peer, Forward(b"r", encode(Add(b"i", "a", 1)), (), wait_ms)))
    net.run(lasts_ms - 100)
    assert not sent(net, Answer)
    net.run(200)
    assert [(entry.request_id, entry.outcome) for entry in sent(net, Answer)] == [(b"r", "unknown")]


def test_a_forwarded_command_says_how_long_its_client_still_waits() -> None:
    net = ChainNet(4, 3)
    net.keep = lambda _near, _far, message: not isinstance(message, Forward)
    net.give("n3", Submit(b"q", encode(Add(b"j", "a", 1))))
    net.run(10_000)
    waits_ms = [entry.wait_ms for entry in sent(net, Forward)]
    assert waits_ms[0] == net.times.submit_ms
    assert waits_ms == sorted(waits_ms, reverse=True)
    assert waits_ms[-1] <= net.times.submit_ms - 8_000


def test_a_voter_that_reaches_one_other_alone_has_its_command_decided_through_it() -> None:
    net = ChainNet(5, 5)
    lost, friend = net.nodes["n0"].peer, net.nodes["n1"].peer
    net.keep = lambda near, far, _message: lost not in (near, far) or friend in (near, far)
    assert net.add("n0").outcome == "decided"
    assert net.add("n0", 1, "a", expect=9).rule == "counter.expect"
    net.keep = lambda near, far, _message: lost not in (near, far)
    assert net.add("n0").outcome == "unknown"


def test_a_voter_that_hears_a_majority_asks_nobody_else_as_soon_as_one_that_does_not() -> None:
    net = ChainNet(5, 5)
    net.keep = lambda _near, _far, message: not isinstance(message, Propose)
    net.give("n0", Submit(b"busy", encode(Add(b"busy", "a", 1))))
    net.run(7_000)
    assert sent(net, Promised)
    assert not sent(net, Forward)
    net.keep = lambda _near, _far, message: not isinstance(message, Promised)
    net.run(15_000)
    assert sent(net, Forward)


def test_an_answer_nobody_waits_for_is_ignored() -> None:
    net = ChainNet(2, 1)
    assert net.give("n1", Received(net.nodes["n0"].peer, Answer(b"none", "decided", 3))) == []
