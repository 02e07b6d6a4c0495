"""How nodes of the chain follow, read, grow and learn of each other."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from protocols.chain.ballots import NO_BALLOT, Ballot, Promise, Vote, sign_statement
from protocols.chain.decision import (
    Decided,
    QuorumCertificate,
    Voter,
    VoterReady,
    VoteSignature,
    voters_digest,
)
from protocols.chain.messages import (
    Answer,
    Commit,
    Entries,
    EntryStored,
    Fetch,
    Forward,
    Head,
    Probe,
    Quarantined,
    Ready,
    Stalled,
    Submit,
    SubmitReset,
    Voted,
)
from protocols.chain.pacing import ChainTimes
from protocols.envelope import digest, encode
from protocols.machine import PeerDisconnected, PeerId, Received
from simulation.chain.toy_state import Add, SetToyRules, SetVoters
from tests.support.protocols.chain_asks import reset_entry, rules, sent
from tests.support.protocols.chain_net import ChainNet

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
    quorum_certificate = msgspec.structs.replace(good, votes=good.votes[:1])
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
    for certificate in (quorum_certificate, twice, bad, strange, other, wrong_slot, wrong_set):
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
    answer = net[name].ledger.draft(encode(Add(b"fork %d" % amount, "a", amount)), (), wall_ms)
    assert isinstance(answer, bytes)
    promises, votes = [], []
    for other, counter_ in counters.items():
        peer, store = net.nodes[other].peer, net[other].store_id
        promise = Promise(peer, store, counter_, position.era, slot, ballot, NO_BALLOT, b"")
        promises.append(sign_statement(net.signers[other], net.mesh, promise))
        vote = Vote(peer, store, counter_ + 1, position.era, slot, ballot, digest(answer), voters)
        votes.append(sign_statement(net.signers[other], net.mesh, vote))
    signatures = tuple(VoteSignature(vote.node, vote.store_id, vote.counter, vote.signature) for vote in votes)
    certificate = QuorumCertificate(position.era, slot, ballot, digest(answer), voters, signatures)
    return Decided(answer, certificate, (), (tuple(promises),))


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
