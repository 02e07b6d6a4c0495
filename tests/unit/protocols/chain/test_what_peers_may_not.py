"""What a peer of the chain may not do: every message that breaks a rule is rejected by that rule."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocols.chain.ballots import NO_BALLOT, Ballot, Promise, Proposal, Vote, sign_statement
from protocols.chain.decision import (
    COMMAND_MAX_BYTES,
    Decided,
    Decision,
    voters_digest,
)
from protocols.chain.messages import (
    BootAnswer,
    Contradiction,
    Declined,
    Lied,
    Mute,
    Nack,
    Prepare,
    Promised,
    Propose,
    Quarantined,
    Ready,
    Submit,
    Voted,
)
from protocols.envelope import decode, digest, encode
from protocols.machine import Received
from simulation.chain.toy_state import Add, counter
from tests.support.protocols.chain_asks import ballot_of, rules, sent
from tests.support.protocols.chain_net import ChainNet

# --- what a peer may not do -------------------------------------------------------------------------------------------


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
    answer = net["n1"].ledger.draft(encode(Add(b"i", "a", 1)), (), 1_800_000_000_000 + net.now_ms)
    assert isinstance(answer, bytes)
    promises = []
    for name in ("n1", "n2"):
        claims = (Ballot(1, net.nodes[name].peer, b"12345678"), digest(b"other")) if accepted else (NO_BALLOT, b"")
        promise = Promise(
            net.nodes[name].peer, net[name].store_id, 1, position.era, 1, ballot, *claims
        )  # fmt: skip
        promises.append(sign_statement(net.signers[name], net.mesh, promise))
    proposal = sign_statement(
        net.signers["n1"], net.mesh, Proposal(net["n1"].store_id, position.era, 1, ballot, digest(answer))
    )
    return Propose(proposal, answer, (), (tuple(promises),), position)


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
