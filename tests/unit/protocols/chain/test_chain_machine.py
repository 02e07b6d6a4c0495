"""The chain as a whole on a small net: deciding, following, reading, growing, and what each message may not do."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest

from protocols.chain import acceptor as acceptors
from protocols.chain import fence as fences
from protocols.chain.ballots import NO_BALLOT, Ballot, Promise, Proposal, Vote, sign_statement
from protocols.chain.decision import (
    COMMAND_MAX_BYTES,
    RESET_DOMAIN,
    Admins,
    Decided,
    Decision,
    QuorumCertificate,
    Reset,
    ResetTo,
    Voter,
    VoterReady,
    VoteSignature,
    voters_digest,
)
from protocols.chain.fence import BOOT_LEAP
from protocols.chain.messages import (
    Answer,
    BootAnswer,
    BootRead,
    Cloned,
    Commit,
    Contradiction,
    Declined,
    Entries,
    EntryStored,
    EraChanged,
    Fetch,
    Forgotten,
    Forward,
    Head,
    IAm,
    Lied,
    Mute,
    Nack,
    Prepare,
    Probe,
    Promised,
    Propose,
    Quarantined,
    Ready,
    Stalled,
    Submit,
    SubmitReset,
    Voted,
    WhoAreYou,
)
from protocols.chain.pacing import ChainTimes
from protocols.envelope import Signed, decode, digest, encode, sign
from protocols.machine import PeerConnected, PeerDisconnected, PeerId, Persist, Received, Send, Store
from protocols.refusal import Refusal
from simulation.chain.toy_state import Add, SetToyRules, SetVoters, counter
from tests.support.protocols.chain_net import WALL_MS, ChainNet


def rules(net: ChainNet, name: str) -> list[str]:
    return [reject.rule for reject in net.nodes[name].rejects]


def sent(net: ChainNet, kind: type) -> list[Any]:
    return [message for _, _, message in net.sent if isinstance(message, kind)]


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
    found = [notice.rule for notice in net.nodes["n0"].notices if hasattr(notice, "rule")]
    assert found == ["chain.request-id", "chain.busy"]


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
    assert {one.outcome for one in sent(net, Answer)} == {"refused"}
    assert counter(net["n0"].state, "a") == 5


def test_a_busy_voter_sends_another_nodes_command_on_without_refusing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocols.chain import clients

    monkeypatch.setattr(clients, "PENDING_MAX", 0)
    net = ChainNet(4, 3)
    net.give("n0", Received(net.nodes["n3"].peer, Forward(b"r", encode(Add(b"i", "a", 1)), ())))
    assert [(one.outcome, one.rule) for one in sent(net, Answer)] == [("unknown", "chain.busy")]


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
    assert [(one.request_id, one.outcome) for one in sent(net, Answer)] == [(b"r", "unknown")]


def test_a_forwarded_command_says_how_long_its_client_still_waits() -> None:
    net = ChainNet(4, 3)
    net.keep = lambda _near, _far, message: not isinstance(message, Forward)
    net.give("n3", Submit(b"q", encode(Add(b"j", "a", 1))))
    net.run(10_000)
    waits_ms = [one.wait_ms for one in sent(net, Forward)]
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


# --- following --------------------------------------------------------------------------------------------------------


def test_a_node_that_was_away_catches_up_in_batches() -> None:
    net = ChainNet(4, 3)
    net.stop("n3")
    for _ in range(150):
        net.add("n0")
    net.start("n3")
    net.connect("n3")
    net.run(1_000)
    assert len(net.heads()) == 1
    batches = [m for _, far, m in net.sent if isinstance(m, Entries) and far == net.nodes["n3"].peer]
    assert len(batches) >= 3
    assert max(len(batch.entries) for batch in batches) <= 64


def test_a_voter_behind_is_brought_level_by_the_next_prepare() -> None:
    net = ChainNet(3, 3)
    net.cut = {net.nodes["n2"].peer}
    net.add("n0")
    net.cut = set()
    net.stop("n1")
    assert net.add("n0").outcome == "decided"
    assert net["n2"].position.slot >= 1


def test_a_proposer_behind_is_sent_what_it_missed() -> None:
    net = ChainNet(3, 3)
    net.cut = {net.nodes["n2"].peer}
    net.add("n0")
    net.cut = set()
    outcome = net.add("n2")
    assert (outcome.outcome, outcome.slot) == ("decided", 2)


def test_a_fetch_that_is_not_answered_asks_somebody_else() -> None:
    net = ChainNet(4, 3)
    silent = net.nodes["n0"].peer
    net.cut = {net.nodes["n3"].peer}
    net.add("n0")
    net.cut = set()
    net.keep = lambda near, far, message: not (near == silent and isinstance(message, Entries))
    net.give("n3", Received(silent, Head(net["n0"].position)))
    net.give("n3", Received(net.nodes["n1"].peer, Head(net["n1"].position)))
    net.run(5_000)
    assert net["n3"].position.slot == 1


def test_an_entry_without_a_good_certificate_is_rejected_by_rule() -> None:
    net = ChainNet(4, 3)
    net.cut = {net.nodes["n3"].peer}
    net.add("n0")
    entry = net["n0"].ledger.entry(1)
    assert isinstance(entry, Decided)
    good = entry.certificate
    one = msgspec.structs.replace(good, votes=good.votes[:1])
    twice = msgspec.structs.replace(good, votes=(good.votes[0], good.votes[0]))
    forged = msgspec.structs.replace(good.votes[0], signature=bytes(64))
    bad = msgspec.structs.replace(good, votes=(forged, *good.votes[1:]))
    stranger = msgspec.structs.replace(good.votes[0], store_id=b"x" * 16)
    strange = msgspec.structs.replace(good, votes=(stranger, *good.votes[1:]))
    other = msgspec.structs.replace(good, digest=digest(b"other"))
    wrong_slot = msgspec.structs.replace(good, slot=7)
    wrong_set = msgspec.structs.replace(good, voters_digest=digest(b"set"))
    head = net["n0"].position
    peer = net.nodes["n0"].peer
    for certificate in (one, twice, bad, strange, other, wrong_slot, wrong_set):
        altered = msgspec.structs.replace(entry, certificate=certificate)
        net.give("n3", Received(peer, Commit(1, altered, head)))
        net.give("n3", Received(peer, Entries(1, (altered,), head)))
    assert net["n3"].position.slot == 0
    assert set(rules(net, "n3")) == {"chain.certificate"}
    net.give("n3", Received(peer, Commit(1, entry, head)))
    assert net["n3"].position.slot == 1


def test_entries_that_leave_a_gap_are_not_taken() -> None:
    net = ChainNet(4, 3)
    net.cut = {net.nodes["n3"].peer}
    net.add("n0")
    net.add("n0")
    net.cut = set()
    head = net["n0"].position
    net.give("n3", Received(net.nodes["n0"].peer, Entries(2, (net["n0"].ledger.entry(2),), head)))
    assert net["n3"].position.slot == 0
    net.give("n3", Received(net.nodes["n0"].peer, Commit(2, net["n0"].ledger.entry(2), head)))
    net.run(2_000)
    assert net["n3"].position.slot == 2


def test_an_entry_is_passed_on_to_those_that_its_sender_could_not_tell_and_to_nobody_else() -> None:
    net = ChainNet(5, 5, times=ChainTimes(gossip_ms=1_000_000))
    net.add("n0")
    net.run(100)
    decider, far = net.nodes["n0"].peer, net.nodes["n4"].peer

    def told() -> set[PeerId]:
        return {there for here, there, message in net.sent if isinstance(message, Head) and here != decider}

    net.sent.clear()
    net.add("n0")
    net.run(100)
    assert len(net.heads()) == 1
    assert told() == set()
    for name, peer in (("n0", far), ("n4", decider)):
        net.give(name, PeerDisconnected(peer))
    net.keep = lambda here, there, message: {here, there} != {decider, far}
    net.sent.clear()
    net.add("n0")
    net.run(100)
    assert told() == {far}
    assert len(net.heads()) == 1


def test_another_entry_at_our_head_is_named_a_fork() -> None:
    net = ChainNet(4, 3)
    net.add("n0")
    forged = msgspec.structs.replace(net["n0"].position, digest=digest(b"other"))
    net.give("n3", Received(net.nodes["n0"].peer, Head(forged)))
    assert rules(net, "n3") == ["chain.fork"]


def test_a_voter_that_restarts_on_an_older_build_keeps_its_store_and_votes_again_once_updated() -> None:
    net = ChainNet(3, 3)
    for name in net.nodes:
        net.stop(name)
    for name in net.nodes:
        net.start(name, rules_version=2)
    net.connect_all()
    assert net.submit("n0", encode(SetToyRules(b"r", 2))).outcome == "decided"
    assert net.add("n0").outcome == "decided"
    net.run(500)
    store_id, promised = net["n2"].store_id, net["n2"].record
    net.stop("n2")
    net.start("n2", rules_version=1)
    net.connect("n2")
    net.stop("n1")
    assert net["n2"].stalled
    assert not net.notices("n2", Quarantined)
    assert net.add("n0").outcome == "unknown", "a build that cannot judge does not vote"
    assert net["n2"].store_id == store_id
    net.stop("n2")
    net.start("n2", rules_version=2)
    net.connect("n2")
    assert net["n2"].record.counter >= promised.counter
    assert net.add("n0").outcome == "decided"


def test_rules_that_this_build_does_not_know_stop_it_and_are_said() -> None:
    net = ChainNet(4, 3)
    for name in ("n0", "n1", "n2"):
        net.stop(name)
    for name in ("n0", "n1", "n2"):
        net.start(name, rules_version=2)
    net.connect_all()
    assert net.submit("n0", encode(SetToyRules(b"r", 2))).outcome == "decided"
    net.add("n0")
    net.run(500)
    assert net["n3"].position.slot == 1
    assert net["n3"].stalled
    assert [notice.slot for notice in net.notices("n3", Stalled)] == [2]
    net.stop("n3")
    net.start("n3", rules_version=2)
    net.connect("n3")
    net.run(500)
    assert net["n3"].position.slot == 2


# --- reads ------------------------------------------------------------------------------------------------------------


def test_a_read_sees_what_was_decided_before_it_began() -> None:
    net = ChainNet(4, 3)
    net.keep = lambda near, far, message: not isinstance(message, Commit | Head)
    slot = net.add("n0").slot
    assert net.read("n3") >= slot
    assert net.read("n1") >= slot


def test_a_read_completes_what_is_accepted_above_the_head() -> None:
    net = ChainNet(4, 3)
    net.keep = lambda near, far, message: not isinstance(message, Voted)
    net.give("n0", Submit(b"r", encode(Add(b"i", "a", 1))))
    net.run(100)
    net.keep = lambda near, far, message: True
    assert net.read("n3") == 1
    assert net.read("n1") == 1


def test_a_read_without_a_majority_ends_with_no_slot() -> None:
    net = ChainNet(3, 3)
    net.stop("n1")
    net.stop("n2")
    assert net.read("n0") == -1


def test_too_many_reads_at_once_are_turned_away() -> None:
    from protocols.chain.messages import Read, ReadDone

    net = ChainNet(3, 3)
    net.cut = {net.nodes["n0"].peer}
    for index in range(257):
        net.give("n0", Read(b"%d" % index))
    net.give("n0", Read(b"0"))
    assert [notice.request_id for notice in net.notices("n0", ReadDone)] == [b"256"]


# --- what a peer may not do -------------------------------------------------------------------------------------------


def ballot_of(net: ChainNet, name: str, round_: int = 9) -> Ballot:
    return Ballot(round_, net.nodes[name].peer, b"bootbootb"[:8])


def test_ballots_of_others_strangers_revoked_nodes_and_absurd_rounds_are_rejected() -> None:
    net = ChainNet(4, 3)
    position = net["n0"].position
    peers = {name: node.peer for name, node in net.nodes.items()}
    net.give("n0", Received(peers["n1"], Prepare(1, ballot_of(net, "n2"), position)))
    net.give("n0", Received(peers["n3"], Prepare(1, ballot_of(net, "n3"), position)))
    net.give("n0", Received(peers["n1"], Prepare(1, ballot_of(net, "n1", 1 << 60), position)))
    net.give("n0", Received(peers["n1"], Prepare(5, ballot_of(net, "n1"), position)))
    net.revoked.add(peers["n1"])
    net.give("n0", Received(peers["n1"], Prepare(1, ballot_of(net, "n1"), position)))
    assert rules(net, "n0") == [
        "chain.ballot-of-another", "chain.not-a-voter", "chain.round", "chain.slot", "chain.revoked-voter",
    ]  # fmt: skip
    assert net["n0"].record.promised == NO_BALLOT


def test_a_revoked_voter_stays_in_the_denominator_but_its_votes_do_not_count() -> None:
    net = ChainNet(3, 3)
    net.revoked.add(net.nodes["n2"].peer)
    net.stop("n1")
    assert net.add("n0").outcome == "unknown"
    net.start("n1")
    net.connect("n1")
    assert net.add("n0").outcome == "decided"
    entry = net["n0"].ledger.entry(net["n0"].position.slot)
    assert isinstance(entry, Decided)
    assert net.nodes["n2"].peer not in [vote.node for vote in entry.certificate.votes]


def proposal_at(net: ChainNet, *, accepted: bool = False) -> Propose:
    """A proposal by n1 at slot 1 with good promises of n1 and n2, of which one may say it accepted something else."""
    ballot = ballot_of(net, "n1")
    position = net["n0"].position
    made = net["n1"].ledger.draft(encode(Add(b"i", "a", 1)), (), 1_800_000_000_000 + net.now_ms)
    assert isinstance(made, bytes)
    promises = []
    for name in ("n1", "n2"):
        claims = (Ballot(1, net.nodes[name].peer, b"12345678"), digest(b"other")) if accepted else (NO_BALLOT, b"")
        promise = Promise(
            net.nodes[name].peer, net[name].store_id, 1, position.era, 1, ballot, *claims
        )  # fmt: skip
        promises.append(sign_statement(net.signers[name], net.mesh, promise))
    proposal = sign_statement(
        net.signers["n1"], net.mesh, Proposal(net["n1"].store_id, position.era, 1, ballot, digest(made))
    )
    return Propose(proposal, made, (), (tuple(promises),), position)


def test_a_good_proposal_is_voted_for() -> None:
    net = ChainNet(3, 3)
    net.give("n0", Received(net.nodes["n1"].peer, proposal_at(net)))
    assert len(sent(net, Voted)) == 1


def test_a_proposal_is_rejected_by_the_rule_it_breaks() -> None:
    net = ChainNet(3, 3)
    good = proposal_at(net)
    change = msgspec.structs.replace
    unsigned = change(good, proposal=change(good.proposal, signature=bytes(64)))
    first, second = good.grounds[0]
    cases = {
        "chain.proposal-malformed": change(good, decision=good.decision + b"x"),
        "chain.signature": unsigned,
    }
    for rule, message in cases.items():
        net.nodes["n0"].rejects.clear()
        net.give("n0", Received(net.nodes["n1"].peer, message))
        assert rules(net, "n0") == [rule]
    for message in (
        proposal_at(net, accepted=True),
        *(
            change(good, grounds=grounds)
            for grounds in (
                (),
                ((first,),),
                ((first, first),),
                ((first, change(second, store_id=b"y" * 16)),),
                ((first, change(second, slot=2)),),
                ((first,) * 8,),
                ((first, change(second, signature=bytes(64))),),
                good.grounds * 2,
                good.grounds * 17,
            )
        ),
    ):
        net.nodes["n0"].rejects.clear()
        net.give("n0", Received(net.nodes["n1"].peer, message))
        assert rules(net, "n0") == ["chain.grounds"]
    assert not sent(net, Voted)


def decline_of(net: ChainNet, message: Propose) -> str:
    net.sent.clear()
    net.give("n0", Received(net.nodes["n1"].peer, message))
    declined = sent(net, Declined)
    return declined[0].rule if declined else ""


def reproposed(net: ChainNet, **changes: Any) -> Propose:
    good = proposal_at(net)
    decision = msgspec.structs.replace(decode(good.decision, Decision), **changes)
    data = encode(decision)
    proposal = msgspec.structs.replace(good.proposal, digest=digest(data), signature=b"")
    return msgspec.structs.replace(good, decision=data, proposal=sign_statement(net.signers["n1"], net.mesh, proposal))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"mesh": b"other"}, "chain.decision-elsewhere"),
        ({"slot": 2}, "chain.decision-elsewhere"),
        ({"prev": b"other"}, "chain.decision-prev"),
        ({"at_ms": -5}, "chain.decision-time"),
        ({"at_ms": 5}, "chain.clock"),
        ({"at_ms": 1_900_000_000_000}, "chain.clock"),
        ({"evidence_root": digest(b"other")}, "chain.material"),
        ({"rules_version": 2}, "chain.rules-version"),
        ({"state_hash": digest(b"other")}, "chain.state-hash"),
        ({"voters": ()}, "chain.voters"),
        ({"command": b"\xff"}, "counter.malformed"),
        ({"command": b"x" * (COMMAND_MAX_BYTES + 1)}, "chain.command-size"),
    ],
)
def test_a_decision_is_declined_by_the_rule_it_breaks(changes: dict[str, Any], rule: str) -> None:
    net = ChainNet(3, 3)
    assert decline_of(net, reproposed(net, **changes)) == rule
    assert net["n0"].record.accepted_ballot == NO_BALLOT


def test_a_decision_that_is_no_decision_is_declined() -> None:
    net = ChainNet(3, 3)
    good = proposal_at(net)
    proposal = msgspec.structs.replace(good.proposal, digest=digest(b"junk"), signature=b"")
    junk = msgspec.structs.replace(
        good, decision=b"junk", proposal=sign_statement(net.signers["n1"], net.mesh, proposal)
    )
    assert decline_of(net, junk) == "chain.decision-malformed"
    net = ChainNet(3, 3)
    heavy = msgspec.structs.replace(proposal_at(net), material=(b"m",) * 300)
    assert decline_of(net, heavy) == "chain.material-size"


def test_two_decisions_at_one_ballot_prove_a_lie_and_the_liar_counts_no_more() -> None:
    net = ChainNet(3, 3)
    peer = net.nodes["n1"].peer
    net.give("n0", Received(peer, proposal_at(net)))
    net.now_ms += 1
    net.give("n0", Received(peer, proposal_at(net)))
    assert [notice.proof.rule for notice in net.notices("n0", Lied)] == ["chain.two-proposals"]
    store_id = net["n1"].store_id
    net.deliver()
    assert store_id in net["n2"].liars
    net.give("n0", Received(peer, Prepare(1, ballot_of(net, "n1", 12), net["n0"].position)))
    assert "chain.liar" in rules(net, "n0")
    net.stop("n0")
    net.start("n0")
    assert store_id in net["n0"].liars


def test_an_accused_node_gives_up_its_store() -> None:
    net = ChainNet(3, 3)
    peer = net.nodes["n1"].peer
    store_id = net["n1"].store_id
    net.give("n0", Received(peer, proposal_at(net)))
    net.now_ms += 1
    net.give("n0", Received(peer, proposal_at(net)))
    net.deliver()
    assert [notice.reason for notice in net.notices("n1", Quarantined)] == ["chain.two-proposals"]
    assert net["n1"].store_id != store_id


def test_a_proof_that_proves_nothing_is_rejected() -> None:
    net = ChainNet(3, 3)
    good = proposal_at(net)
    net.give("n0", Received(net.nodes["n2"].peer, Contradiction("chain.two-promises", good.grounds[0])))
    net.give("n0", Received(net.nodes["n2"].peer, Contradiction("chain.two-proposals")))
    assert rules(net, "n0") == ["chain.no-contradiction"] * 2


def vote_by(net: ChainNet, name: str, **changes: Any) -> Vote:
    attempt = net["n0"]._voting._attempt
    assert attempt is not None
    assert attempt.judged is not None
    vote = Vote(
        net.nodes[name].peer, net[name].store_id, 5, attempt.era, attempt.slot, attempt.ballot,
        attempt.judged.digest, voters_digest(net.founders),
    )  # fmt: skip
    return sign_statement(net.signers[name], net.mesh, msgspec.structs.replace(vote, **changes))


def test_votes_that_do_not_count_are_rejected() -> None:
    net = ChainNet(3, 3)
    net.keep = lambda near, far, message: not isinstance(message, Voted)
    net.give("n0", Submit(b"r", encode(Add(b"i", "a", 1))))
    net.deliver()
    n1 = net.nodes["n1"].peer
    net.give("n0", Received(n1, Voted(vote_by(net, "n2"))))
    net.give("n0", Received(n1, Voted(vote_by(net, "n1", store_id=b"z" * 16))))
    net.give("n0", Received(n1, Voted(msgspec.structs.replace(vote_by(net, "n1"), signature=bytes(64)))))
    net.give("n0", Received(n1, Voted(vote_by(net, "n1", voters_digest=digest(b"")))))
    assert rules(net, "n0") == [
        "chain.statement-of-another", "chain.not-a-voter", "chain.signature", "chain.vote-elsewhere",
    ]  # fmt: skip
    assert net["n0"].position.slot == 0
    net.give("n0", Received(n1, Voted(vote_by(net, "n1", slot=4))))
    net.give("n0", Received(n1, Voted(vote_by(net, "n1"))))
    assert net["n0"].position.slot == 1


def test_a_promise_whose_accepted_decision_or_evidence_is_missing_does_not_count() -> None:
    net = ChainNet(3, 3)
    net.keep = lambda near, far, message: not isinstance(message, Voted)
    net.give("n1", Submit(b"r", encode(Add(b"i", "a", 1)), (b"exhibit",)))
    net.deliver()
    net.stop("n1")
    held: list[Any] = []

    def hold(near: Any, far: Any, message: Any) -> bool:
        if isinstance(message, Promised):
            held.append((near, message))
        return not isinstance(message, Promised)

    net.keep = hold
    net.give("n0", Submit(b"q", encode(Add(b"j", "a", 1))))
    net.run(3_000)
    assert held
    near, message = held[-1]
    change = msgspec.structs.replace
    accepted = message.accepted
    assert accepted is not None
    for broken in (
        change(message, accepted=None),
        change(message, accepted=change(accepted, material=())),
        change(message, accepted=change(accepted, decision=b"junk")),
        change(message, accepted=change(accepted, ballot=NO_BALLOT)),
    ):
        net.nodes["n0"].rejects.clear()
        net.give("n0", Received(near, broken))
        assert rules(net, "n0") == ["chain.promise-incomplete"]
    net.keep = lambda near, far, message: True
    assert net.outcome("n0", b"q").outcome == "decided"
    assert counter(net["n0"].state, "a") == 2


def test_messages_about_closed_slots_and_old_attempts_are_ignored() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    peer = net.nodes["n1"].peer
    ballot = ballot_of(net, "n1")
    net.nodes["n0"].rejects.clear()
    position = net["n0"].position
    for message in (
        Nack(1, ballot, ballot),
        Nack(2, ballot, Ballot(1 << 60, peer, b"")),
        Declined(2, ballot, "x", "y"),
        BootAnswer(2, ballot, ()),
        BootAnswer(1, ballot, ()),
    ):
        net.give("n0", Received(peer, message))
    assert rules(net, "n0") == ["chain.round"]
    assert net["n0"].position == position


# --- voters that cannot write -----------------------------------------------------------------------------------------


def test_a_muted_voter_says_nothing_as_one_and_follows() -> None:
    net = ChainNet(3, 3)
    net.give("n2", Mute("the disk is full"))
    net.sent.clear()
    assert net.add("n0").outcome == "decided"
    net.run(500)
    said = [type(message) for near, _, message in net.sent if near == net.nodes["n2"].peer]
    assert not {Promised, Voted, Prepare, BootAnswer, Ready} & set(said), said
    assert len(net.heads()) == 1
    assert (net["n2"].muted, net["n2"].speaking) == ("the disk is full", False)


def test_what_is_asked_of_a_muted_voter_is_decided_by_the_others() -> None:
    net = ChainNet(4, 3)
    net.give("n2", Mute("the disk is full"))
    for _ in range(4):  # forwarded by who is no voter, too: to each voter in turn
        assert net.add("n2").outcome == "decided"
        assert net.add("n3").outcome == "decided"


def test_without_the_muted_no_majority_decides_until_one_speaks_again() -> None:
    net = ChainNet(3, 3)
    request = Submit(b"r", encode(Add(b"i", "a", 4)))
    net.give("n0", request)  # an attempt of its own is under way when it falls silent
    net.give("n0", Mute("the disk is full"))
    net.give("n1", Mute("the disk is full"))
    assert net.outcome("n0", b"r").outcome == "unknown"
    assert net.add("n2").outcome == "unknown"
    net.give("n1", Mute(""))
    assert net.add("n2").outcome == "decided"
    net.give("n0", Mute(""))
    net.stop("n1")
    assert net.add("n0").outcome == "decided"


def test_a_voter_muted_before_its_boot_read_makes_it_when_it_may_speak() -> None:
    net = ChainNet(3, 3)
    net.stop("n2")
    net.start("n2", same_boot=False)
    net.give("n2", Mute("the disk is full"))
    net.connect("n2")
    net.run(5_000)
    assert net["n2"].record.recovering
    net.give("n2", Mute(""))
    net.run(5_000)
    assert net["n2"].speaking


# --- stores that cannot be trusted ------------------------------------------------------------------------------------


def test_a_database_behind_its_fence_is_quarantined_and_replaced() -> None:
    net = ChainNet(4, 3, target=3)
    net.add("n0")
    net.run(200)
    net.stop("n2")
    net.nodes["n2"].disk.roll_back(Store.VOTE, 2)
    old = Voter(net.nodes["n2"].peer, b"store-%010d" % 2)
    net.start("n2")
    net.connect("n2")
    assert "behind the fence" in net.notices("n2", Quarantined)[0].reason
    assert not net["n2"].speaking
    net.run(120_000)
    assert old not in net["n0"].voters
    assert net["n2"].speaking


def test_what_only_the_database_kept_is_fenced_before_anything_else_is_said() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.run(200)
    net.stop("n0")
    net.nodes["n0"].disk.roll_back(Store.FENCE, 1)
    chain = net.start("n0", same_boot=True)
    written = [one for one in net.nodes["n0"].effects if isinstance(one, Persist)]
    assert [one.store for one in written] == [Store.FENCE]
    fence = fences.decode_slot(written[0].writes[0].value or b"")
    assert fence is not None
    assert (fence.counter, fence.digest) == (chain.record.counter, chain.record.said)
    assert chain.speaking


@pytest.mark.parametrize("damage", ["fence", "record", "chain", "lost", "unreadable", "gap"])
def test_any_damage_to_database_or_fence_costs_the_store_its_vote(damage: str) -> None:
    net = ChainNet(3, 3)
    for _ in range(3):
        net.add("n0")
    net.run(200)
    net.stop("n2")
    node = net.nodes["n2"]
    vote = node.disk.stores[Store.VOTE]
    match damage:
        case "fence":
            node.disk.lose(Store.FENCE)
        case "record":
            vote.tables[acceptors.TABLE][acceptors.RECORD_KEY] = b"junk"
        case "chain":
            vote.tables["chain"][(3).to_bytes(8, "big")] = b"junk"
        case "gap":
            del vote.tables["chain"][(2).to_bytes(8, "big")]
        case "lost":
            node.disk.lose(Store.VOTE)
        case "unreadable":
            vote.readable = False
    chain = net.start("n2")
    assert not chain.speaking
    assert len(net.notices("n2", Quarantined)) == 1
    net.connect("n2")
    assert net.add("n0").outcome == "decided"
    net.run(500)
    assert chain.position == net["n0"].position


def test_a_voter_fenced_by_the_boot_read_of_a_copy_of_its_machine_gives_up_its_store() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.run(200)
    n2 = net.nodes["n2"]
    store = net["n2"].store_id
    floor = net["n2"].record.counter + BOOT_LEAP
    asked = BootRead(2, Ballot(9, n2.peer, b"a copy"), store, floor, net["n0"].position)
    net.give("n0", Received(n2.peer, asked))
    net.queue.clear()  # the answer went to the copy
    net.give("n1", Received(net.nodes["n0"].peer, Forgotten(store, floor)))
    net.give("n2", Received(net.nodes["n0"].peer, Forgotten(b"x" * 16, floor)))
    net.give("n2", Received(net.nodes["n0"].peer, Forgotten(store, net["n2"].record.counter)))
    assert net["n2"].speaking, "none of these concerns it"
    net.stop("n1")  # now the vote of n2 is needed, and n0 does not count it
    net.give("n0", Submit(b"r", encode(Add(b"i", "a", 4))))
    net.run(3_000)
    assert [notice.reason for notice in net.notices("n2", Quarantined)] == [
        "another life of this node has spoken for its store"
    ]
    assert net["n2"].store_id != store
    net.start("n1")
    net.connect("n1")
    assert net.outcome("n0", b"r").outcome == "decided"


def test_only_a_voter_may_say_that_a_store_is_fenced() -> None:
    net = ChainNet(4, 3)
    net.give("n2", Received(net.nodes["n3"].peer, Forgotten(net["n2"].store_id, 1 << 40)))
    assert rules(net, "n2") == ["chain.not-a-voter"]
    assert net["n2"].speaking


def test_after_a_reboot_a_voter_asks_the_others_before_it_speaks() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.stop("n2")
    net.start("n2", same_boot=False)
    assert net["n2"].record.recovering
    assert not net["n2"].speaking
    net.connect("n2")
    net.run(1_000)
    assert net["n2"].speaking
    assert sent(net, BootRead)
    net.stop("n0")
    assert net.add("n2").outcome == "decided"


def test_a_boot_read_that_was_cut_short_is_begun_again() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.stop("n2")
    net.start("n2", same_boot=False)
    net.stop("n2")
    assert net.start("n2", same_boot=True).record.recovering
    net.connect("n2")
    net.run(1_000)
    assert net["n2"].speaking
    assert not net["n2"].record.recovering


def test_a_boot_read_needs_enough_others() -> None:
    net = ChainNet(3, 3)
    net.stop("n1")
    net.stop("n2")
    net.start("n2", same_boot=False)
    net.connect("n2")
    net.run(20_000)
    assert not net["n2"].speaking
    assert (net["n2"].boot_answers_needed, net["n0"].boot_answers_needed) == (2, 0)
    assert net.add("n0").outcome == "unknown"
    net.start("n1")
    net.connect("n1")
    net.run(20_000)
    assert net["n2"].speaking
    assert net["n2"].boot_answers_needed == 0


def test_a_rolled_back_voter_learns_what_it_accepted_and_finishes_it() -> None:
    net = ChainNet(3, 3)
    net.keep = lambda near, far, message: not isinstance(message, Voted)
    net.give("n0", Submit(b"r", encode(Add(b"i", "a", 4))))
    net.run(50)
    net.stop("n2")
    for store in Store:
        net.nodes["n2"].disk.roll_back(store, 2)
    net.start("n2", same_boot=False)
    net.connect("n2")
    net.keep = lambda near, far, message: not isinstance(message, Voted) or net.by_peer[near].name != "n1"
    net.run(5_000)
    assert net.outcome("n0", b"r").outcome == "decided"
    net.run(5_000)
    assert net["n2"].speaking
    assert not net["n2"].record.recovering


def test_all_voters_rebooting_at_once_recover_together() -> None:
    net = ChainNet(5, 5)
    net.add("n0")
    for name in net.nodes:
        net.stop(name)
    for name in net.nodes:
        net.start(name, same_boot=False)
    net.connect_all()
    assert net.add("n3").outcome == "decided"


def test_a_sole_voter_has_nobody_to_ask_after_a_reboot() -> None:
    net = ChainNet(1)
    net.add("n0")
    net.stop("n0")
    net.start("n0", same_boot=False)
    assert net.add("n0").outcome == "decided"
    net.run(5_000)
    assert not net["n0"].record.recovering


def test_what_a_forgotten_life_promised_counts_no_more() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.stop("n2")
    net.start("n2", same_boot=False)
    net.connect("n2")
    net.run(1_000)
    position = net["n0"].position
    ballot = Ballot(40, net.nodes["n1"].peer, b"bootboot")
    old = Promise(
        net.nodes["n2"].peer, net["n2"].store_id, 7, position.era, position.slot + 1, ballot, NO_BALLOT, b""
    )  # fmt: skip
    own = msgspec.structs.replace(old, node=net.nodes["n1"].peer, store_id=net["n1"].store_id)
    made = net["n1"].ledger.draft(encode(Add(b"z", "a", 1)), (), net["n1"].ledger.at_ms)
    assert isinstance(made, bytes)
    proposal = Proposal(net["n1"].store_id, position.era, position.slot + 1, ballot, digest(made))
    message = Propose(
        sign_statement(net.signers["n1"], net.mesh, proposal), made, (),
        ((sign_statement(net.signers["n1"], net.mesh, own), sign_statement(net.signers["n2"], net.mesh, old)),), position,
    )  # fmt: skip
    net.give("n0", Received(net.nodes["n1"].peer, message))
    assert "chain.forgotten-life" in rules(net, "n0")


def test_boot_reads_of_strangers_and_old_ballots_get_no_answer() -> None:
    net = ChainNet(4, 3)
    net.add("n0")
    position = net["n0"].position
    n1, n3 = net.nodes["n1"].peer, net.nodes["n3"].peer
    slot = position.slot + 1
    net.nodes["n0"].rejects.clear()
    net.give("n0", Received(n3, BootRead(slot, ballot_of(net, "n3"), b"s" * 16, 9, position)))
    net.give("n0", Received(n1, BootRead(slot, ballot_of(net, "n2"), net["n1"].store_id, 9, position)))
    assert rules(net, "n0") == ["chain.not-a-voter"] * 2
    net.sent.clear()
    net.give("n0", Received(n1, BootRead(slot, ballot_of(net, "n1"), net["n1"].store_id, 9, position)))
    net.give("n0", Received(n1, BootRead(slot, ballot_of(net, "n1"), net["n1"].store_id, 9, position)))
    net.give("n0", Received(n1, BootRead(slot, ballot_of(net, "n1", 2), net["n1"].store_id, 9, position)))
    assert [type(message) for message in (m for _, _, m in net.sent)] == [BootAnswer, Nack]
    net.sent.clear()
    net.give("n3", Received(n1, BootRead(slot, ballot_of(net, "n1"), net["n1"].store_id, 9, net["n3"].position)))
    assert not sent(net, BootAnswer)


# --- clones -----------------------------------------------------------------------------------------------------------


def test_two_lives_that_answer_one_challenge_are_both_told() -> None:
    net = ChainNet(3, 3)
    n1 = net.nodes["n1"]
    net.give("n0", PeerConnected(n1.peer, True, b"otherone"))
    challenge = sent(net, WhoAreYou)[0].challenge
    net.run(50)
    assert not net.notices("n1", Quarantined)
    from protocols.chain.messages import LIFE_DOMAIN, Life

    double = sign(net.signers["n1"], LIFE_DOMAIN, net.mesh, Life(challenge, b"otherone"))
    net.give("n0", Received(n1.peer, IAm(double)))
    assert rules(net, "n0") == ["chain.cloned"]
    net.deliver()
    assert "identity" in net.notices("n1", Quarantined)[0].reason


def test_a_clone_notice_needs_two_lives_of_ours_under_one_challenge() -> None:
    from protocols.chain.messages import LIFE_DOMAIN, Life

    net = ChainNet(3, 3)
    n0 = net.nodes["n0"].peer
    mine = sign(net.signers["n1"], LIFE_DOMAIN, net.mesh, Life(b"c" * 16, b"boot0001"))
    foreign = sign(net.signers["n2"], LIFE_DOMAIN, net.mesh, Life(b"c" * 16, b"boot0009"))
    junk = Signed(b"junk", mine.key, mine.signature)
    for first, second in ((mine, mine), (mine, foreign), (junk, mine), (mine, junk)):
        net.give("n1", Received(n0, Cloned(first, second)))
    assert rules(net, "n1") == ["chain.no-clone"] * 4
    net.give("n1", Received(n0, WhoAreYou(b"short")))
    net.give("n1", Received(n0, IAm(mine)))
    assert rules(net, "n1")[-1] == "chain.challenge-size"
    assert not net.notices("n1", Quarantined)


# --- voters come and go -----------------------------------------------------------------------------------------------


def test_one_node_grows_to_three_and_to_five_when_nodes_stay_up() -> None:
    net = ChainNet(5, 1, target=5)
    net.run(50_000)
    assert len(net["n0"].voters) == 1
    net.run(60_000)
    assert len(net["n0"].voters) == 5
    assert net.add("n4").outcome == "decided"


def test_two_nodes_stay_at_one_voter() -> None:
    net = ChainNet(2, 1, target=3)
    net.run(120_000)
    assert len(net["n0"].voters) == 1


def test_a_revoked_voter_is_replaced_at_once() -> None:
    net = ChainNet(4, 3, target=3)
    net.run(70_000)
    net.revoked.add(net.nodes["n2"].peer)
    net.run(60_000)
    assert net.nodes["n2"].peer not in [voter.node for voter in net["n0"].voters]
    assert len(net["n0"].voters) == 3


def test_a_reconfiguration_is_told_when_the_new_voters_decided() -> None:
    net = ChainNet(3, 1)
    wanted = tuple(sorted(Voter(node.peer, net[name].store_id) for name, node in net.nodes.items()))
    ready = tuple(encode(net[name]._growing.statement()) for name in net.nodes)
    outcome = net.submit("n0", encode(SetVoters(b"v", wanted)), ready)
    assert outcome.outcome == "decided"
    assert net["n0"].position.slot == outcome.slot + 1
    unready = net.submit("n0", encode(SetVoters(b"w", wanted[:1])), ())
    assert unready.rule == "counter.not-ready"


def test_ready_statements_of_others_and_damaged_ones_are_rejected() -> None:
    net = ChainNet(3, 1)
    statement = net["n1"]._growing.statement()
    net.give("n0", Received(net.nodes["n2"].peer, Ready(statement)))
    net.give("n0", Received(net.nodes["n1"].peer, Ready(msgspec.structs.replace(statement, signature=bytes(64)))))
    assert rules(net, "n0") == ["chain.ready-of-another", "chain.ready-malformed"]
    net.give("n0", Received(net.nodes["n1"].peer, Ready(statement)))
    known = {ready.node for ready, _ in net["n0"].ready_stores()}
    assert known == {net.nodes["n0"].peer, net.nodes["n1"].peer}
    assert isinstance(net["n0"].ready_stores()[0][0], VoterReady)
    net.give("n0", PeerDisconnected(net.nodes["n1"].peer))
    assert len(net["n0"].ready_stores()) == 1


# --- resets -----------------------------------------------------------------------------------------------------------


def reset_entry(net: ChainNet, name: str, *, number: int = 1, slot: int | None = None, by: Any = None) -> ResetTo:
    chain = net[name]
    at = chain.position.slot + 1 if slot is None else slot
    voters = (Voter(net.nodes[name].peer, chain.store_id),)
    reset = Reset(net.mesh, number, at, chain.ledger.digest_at(at - 1), 1_800_000_000_000, voters, "lost")
    signed = sign(by or net.admin, RESET_DOMAIN, net.mesh, reset)
    return ResetTo(signed.payload, (signed,))


def test_admins_begin_a_new_era_when_the_majority_is_gone() -> None:
    net = ChainNet(4, 3)
    net.add("n0")
    net.add("n0")
    net.run(200)
    net.stop("n1")
    net.stop("n2")
    net.give("n0", SubmitReset(encode(reset_entry(net, "n0"))))
    net.run(200)
    assert net["n3"].position == net["n0"].position
    assert net["n0"].position.resets == 1
    assert net.notices("n0", EraChanged)[0].kept_slot == 2
    assert net.add("n3").outcome == "decided"
    net.stop("n3")
    net.start("n3")
    assert net["n3"].position == net["n0"].position
    net.start("n1")
    net.connect("n1")
    net.run(1_000)
    assert net["n1"].position == net["n0"].position


def test_a_reset_abandons_what_came_after_the_head_it_keeps() -> None:
    net = ChainNet(4, 3)
    for _ in range(4):
        net.add("n0")
    net.run(200)
    net.give("n0", SubmitReset(encode(reset_entry(net, "n0", slot=3))))
    net.run(500)
    assert {counter(net[name].state, "a") for name in net.nodes} == {2}
    assert len(net.heads()) == 1


def test_of_two_resets_the_same_one_wins_everywhere() -> None:
    net = ChainNet(4, 3)
    net.add("n0")
    net.run(200)
    first, second = reset_entry(net, "n0"), reset_entry(net, "n1")
    net.give("n0", SubmitReset(encode(first)))
    net.give("n1", SubmitReset(encode(second)))
    net.run(30_000)
    assert len({net[name].position.era for name in net.nodes}) == 1
    assert net["n0"].position.era == max(digest(first.reset), digest(second.reset))


def test_a_reset_that_is_unsigned_out_of_turn_or_elsewhere_changes_nothing() -> None:
    net = ChainNet(4, 3)
    net.add("n0")
    net.run(200)
    peer = net.nodes["n1"].peer
    before = net["n0"].position
    good = reset_entry(net, "n0")
    body = decode(good.reset, Reset)

    def signed(**changes: Any) -> ResetTo:
        approval = sign(net.admin, RESET_DOMAIN, net.mesh, msgspec.structs.replace(body, **changes))
        return ResetTo(approval.payload, (approval,))

    bad = [
        ResetTo(good.reset, ()),
        reset_entry(net, "n0", by=net.signers["n0"]),
        signed(number=2),
        signed(slot=9),
        signed(mesh=b"other"),
        signed(prev=b"other"),
        signed(voters=()),
        ResetTo(b"junk", good.approvals),
    ]
    for entry in bad:
        net.give("n0", Received(peer, Entries(2, (entry,), before)))
        net.give("n0", SubmitReset(encode(entry)))
    net.give("n0", SubmitReset(b"junk"))
    assert net["n0"].position == before
    assert len(rules(net, "n0")) == len(bad) + 1


def test_a_reset_is_signed_by_whoever_were_the_admins_at_the_head_it_keeps() -> None:
    net = ChainNet(1)
    net.add("n0")
    net.add("n0", counter="handover")
    net.add("n0")
    net.add("n0")
    own = net.signers["n0"]
    after = Admins((own.public_key,), 1)
    net.nodes["n0"].machine.admins_named = (  # type: ignore[method-assign]
        lambda command: after if b"handover" in command else None
    )
    ledger = net["n0"].ledger
    for slot, by, rule in ((4, net.admin, "reset.admin-threshold"), (2, own, "reset.admin-threshold"), (4, own, "")):
        found = ledger.check_reset(reset_entry(net, "n0", slot=slot, by=by))
        assert (found.rule if isinstance(found, Refusal) else "") == rule
    assert isinstance(ledger.check_reset(reset_entry(net, "n0", slot=2)), Reset)


def test_a_reset_that_the_admins_did_not_sign_costs_no_replay() -> None:
    net = ChainNet(1)
    for _ in range(6):
        net.add("n0")
    before = net["n0"].position
    good = reset_entry(net, "n0", slot=3)
    applied: list[bytes] = []
    machine = net.nodes["n0"].machine
    apply = machine.apply

    def counted(state: Any, command: bytes, *rest: Any) -> Any:
        applied.append(command)
        return apply(state, command, *rest)

    machine.apply = counted  # type: ignore[method-assign]
    unsigned = (
        ResetTo(good.reset, ()),
        ResetTo(good.reset, (msgspec.structs.replace(good.approvals[0], signature=bytes(64)),)),
        ResetTo(good.reset, good.approvals * 17),
        reset_entry(net, "n0", slot=3, by=net.signers["n0"]),
    )
    for entry in unsigned:
        net.give("n0", Received(net.nodes["n0"].peer, Entries(7, (entry,), before)))
    assert rules(net, "n0") == ["reset.admin-threshold"] * len(unsigned)
    assert (applied, net["n0"].position) == ([], before)
    net.give("n0", SubmitReset(encode(good)))
    assert len(applied) == 2
    assert net["n0"].position.resets == 1


# --- connections ------------------------------------------------------------------------------------------------------


def test_nothing_assumes_a_connection_to_everyone() -> None:
    """A line of nodes: heads and entries travel over every hop."""
    net = ChainNet(6, 1)
    names = list(net.nodes)
    for name in names:
        for other in names:
            if abs(names.index(name) - names.index(other)) > 1:
                net.give(name, PeerDisconnected(net.nodes[other].peer))
    near = {(net.nodes[a].peer, net.nodes[b].peer) for a, b in pairwise(names)}
    net.keep = lambda one, two, message: (one, two) in near or (two, one) in near
    net.add("n0")
    net.run(30_000)
    assert len(net.heads()) == 1


def test_more_peers_than_the_limit_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocols.chain import chain

    monkeypatch.setattr(chain, "PEERS_MAX", 2)
    net = ChainNet(4, 3)
    assert len(net["n0"]._at.peers) == 2
    assert net.add("n0").outcome == "decided"


def test_an_entry_is_told_to_the_node_once() -> None:
    net = ChainNet(4, 3)
    net.add("n0")
    net.run(1_000)
    assert [len(net.notices(name, EntryStored)) for name in net.nodes] == [1] * 4


def test_a_fetch_from_one_who_knows_everything_is_not_answered() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.run(200)
    assert net.give("n0", Received(net.nodes["n1"].peer, Fetch(net["n1"].position))) == []
    net.give("n0", Received(net.nodes["n1"].peer, Probe(b"nonce", net["n1"].position)))
    assert sent(net, Probe) == []


def decided_by(net: ChainNet, name: str, ballot: Ballot, counters: dict[str, int], amount: int) -> Decided:
    """An entry for the open slot of `name`, with statements of others that say they accepted nothing before."""
    position, voters = net[name].position, voters_digest(net[name].voters)
    slot = position.slot + 1
    wall_ms = 1_800_000_000_000 + net.now_ms
    made = net[name].ledger.draft(encode(Add(b"fork %d" % amount, "a", amount)), (), wall_ms)
    assert isinstance(made, bytes)
    promises, votes = [], []
    for other, counter_ in counters.items():
        peer, store = net.nodes[other].peer, net[other].store_id
        promise = Promise(peer, store, counter_, position.era, slot, ballot, NO_BALLOT, b"")
        promises.append(sign_statement(net.signers[other], net.mesh, promise))
        vote = Vote(peer, store, counter_ + 1, position.era, slot, ballot, digest(made), voters)
        votes.append(sign_statement(net.signers[other], net.mesh, vote))
    signatures = tuple(VoteSignature(one.node, one.store_id, one.counter, one.signature) for one in votes)
    certificate = QuorumCertificate(position.era, slot, ballot, digest(made), voters, signatures)
    return Decided(made, certificate, (), (tuple(promises),))


@pytest.mark.parametrize("slots_behind", [0, 1, 70])
def test_a_fork_made_by_a_liar_is_traced_to_it_when_the_two_sides_meet(slots_behind: int) -> None:
    """n1 votes for one decision, hides that from the next ballot, and votes for another there; then both sides restart.

    The side that went on and the side that stayed hold the proof between them, however far the chains went since.
    """
    net = ChainNet(3, 3)
    n1, n2 = (net.nodes[name].peer for name in ("n1", "n2"))
    liar = net["n1"].store_id
    net.keep = lambda near, far, message: n2 not in (near, far)
    assert net.add("n0", 1).outcome == "decided"
    ballot = Ballot(40, n2, b"bootboot")
    counters = {"n1": 9, "n2": 1}
    for amount in range(slots_behind + 1):
        entry = decided_by(net, "n2", ballot, counters, amount + 5)
        net.give("n2", Received(n1, Commit(amount + 1, entry, net["n2"].position)))
        counters = {name: said + 2 for name, said in counters.items()}
    assert net["n2"].position.slot == slots_behind + 1
    assert net["n0"].ledger.digest_at(1) != net["n2"].ledger.digest_at(1)
    for name in ("n0", "n2"):
        net.stop(name)
        net.start(name)
    net.keep = lambda near, far, message: n1 not in (near, far)
    for name in ("n0", "n2"):
        net.connect(name)
    net.run(15_000)
    for name in ("n0", "n2"):
        assert net[name].liars[liar].rule == "chain.hidden-vote"
    assert "chain.fork" in rules(net, "n0") + rules(net, "n2")


def test_two_sides_of_a_fork_that_prove_nothing_are_compared_once() -> None:
    """Entries that differ for a reason that names nobody (a side went on from another entry) are not asked for again."""
    net = ChainNet(3, 3)
    n1, n2 = net.nodes["n1"].peer, net.nodes["n2"].peer
    net.keep = lambda near, far, message: n2 not in (near, far)
    assert net.add("n0", 1).outcome == "decided"
    ballot = Ballot(40, n2, b"bootboot")
    other = decided_by(net, "n2", ballot, {"n1": 9, "n2": 1}, 5)
    net.give("n2", Received(n1, Commit(1, other, net["n2"].position)))
    after = decided_by(net, "n2", ballot, {"n1": 11, "n2": 3}, 6)
    net.sent.clear()
    for _ in range(3):
        net.give("n0", Received(n2, Commit(2, after, net["n2"].position)))
    assert len(sent(net, Fetch)) == 1
    stripped = msgspec.structs.replace(other, grounds=())
    net.give("n0", Received(n2, Commit(1, stripped, net["n2"].position)))
    assert rules(net, "n0")[-1] == "chain.certificate"
    assert not net["n0"].liars


def test_a_commit_for_our_head_that_proves_nothing_is_ignored_or_rejected() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    net.run(200)
    entry = net["n0"].ledger.entry(1)
    assert isinstance(entry, Decided)
    head = net["n0"].position
    peer = net.nodes["n1"].peer
    net.give("n0", Received(peer, Commit(1, entry, head)))
    altered = msgspec.structs.replace(entry, decision=entry.decision + b"x")
    net.give("n0", Received(peer, Commit(1, altered, head)))
    elsewhere = msgspec.structs.replace(entry.certificate, slot=3)
    net.give("n0", Received(peer, Commit(1, msgspec.structs.replace(altered, certificate=elsewhere), head)))
    assert rules(net, "n0") == ["chain.certificate"]


def test_the_voters_of_every_slot_can_be_told_afterwards() -> None:
    net = ChainNet(4, 3)
    net.add("n0")
    net.run(200)
    ledger = net["n0"].ledger
    assert ledger.voters_at(1) == ledger.voters_at(2) == net.founders
    net.give("n0", SubmitReset(encode(reset_entry(net, "n0"))))
    assert net.add("n0").outcome == "decided"
    assert len(ledger.voters_at(3)) == 1
    assert net["n0"].ledger.voters_at(2) == net.founders


def test_a_refusal_by_one_voter_is_not_final_while_another_may_still_propose() -> None:
    net = ChainNet(4, 3)
    net.cut = {net.nodes["n0"].peer, net.nodes["n1"].peer, net.nodes["n2"].peer}
    command = encode(Add(b"i", "a", 1))
    net.give("n3", Submit(b"r", command))
    net.run(5_000)
    asked = [far for near, far, message in net.sent if isinstance(message, Forward)]
    assert len(set(asked)) >= 2
    net.give("n3", Received(asked[0], Answer(b"r", "refused", 0, "some.rule")))
    net.give("n3", Received(asked[1], Answer(b"r", "unknown", 0, "")))
    assert not [notice for notice in net.nodes["n3"].notices if getattr(notice, "request_id", b"") == b"r"]
    assert net.outcome("n3", b"r").outcome == "unknown"


def test_a_read_whose_voters_changed_on_the_way_asks_the_new_ones() -> None:
    net = ChainNet(4, 1)
    wanted = tuple(sorted(Voter(net.nodes[name].peer, net[name].store_id) for name in ("n0", "n1", "n2")))
    ready = tuple(encode(net[name]._growing.statement()) for name in ("n0", "n1", "n2"))
    net.cut = {net.nodes["n3"].peer}
    assert net.submit("n0", encode(SetVoters(b"v", wanted)), ready).outcome == "decided"
    net.add("n0")
    net.cut = set()
    assert net.read("n3") == 3
