"""Stores of voters that cannot be trusted, clones, and resets by the admins."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocols.chain.acceptor import ACCEPTOR_TABLE, RECORD_KEY
from protocols.chain.ballots import NO_BALLOT, Ballot, Promise, Proposal, sign_statement
from protocols.chain.decision import (
    RESET_DOMAIN,
    Admins,
    Reset,
    ResetTo,
    Voter,
)
from protocols.chain.fence import BOOT_LEAP, decode_slot
from protocols.chain.messages import (
    BootAnswer,
    BootRead,
    Cloned,
    Entries,
    EraChanged,
    Forgotten,
    IAm,
    Mute,
    Nack,
    Propose,
    Quarantined,
    Submit,
    SubmitReset,
    Voted,
    WhoAreYou,
)
from protocols.envelope import Signed, decode, digest, encode, sign
from protocols.machine import PeerConnected, PeerId, Persist, Received, Store
from protocols.refusal import Refusal
from simulation.chain.toy_state import Add, counter
from tests.support.protocols.chain_asks import ballot_of, reset_entry, rules, sent
from tests.support.protocols.chain_net import ChainNet

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
    written = [effect for effect in net.nodes["n0"].effects if isinstance(effect, Persist)]
    assert [persist.store for persist in written] == [Store.FENCE]
    fence = decode_slot(written[0].writes[0].value or b"")
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
            vote.tables[ACCEPTOR_TABLE][RECORD_KEY] = b"junk"
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


@pytest.mark.parametrize("silenced", ["fenced", "muted"])
def test_a_proposer_that_is_silenced_completes_no_majority_with_its_own_vote(silenced: str) -> None:
    net = ChainNet(3, 3)
    held: list[tuple[PeerId, Any]] = []
    n0, n2 = net.nodes["n0"], net.nodes["n2"]

    def hold(near: PeerId, far: PeerId, message: Any) -> bool:
        if far == n2.peer and isinstance(message, Voted):
            held.append((near, message))
        return not held

    net.keep = hold
    net.give("n2", Submit(b"r", encode(Add(b"i", "a", 4))))
    net.run()
    store = net["n2"].store_id
    if silenced == "fenced":
        net.give("n2", Received(n0.peer, Forgotten(store, net["n2"].record.counter + 1)))
        assert net["n2"].store_id != store
    else:
        net.give("n2", Mute("the disk is full"))
    assert not net["n2"].speaking
    before = net["n2"].position
    for peer, message in held:
        net.give("n2", Received(peer, message))
    assert held, "its vote was all that was missing"
    assert net["n2"].position == before
    net.keep = lambda near, far, message: True
    net.run(5_000)
    assert counter(net["n0"].state, "a") == 4
    assert net["n2"].position == net["n0"].position


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
    answer = net["n1"].ledger.draft(encode(Add(b"z", "a", 1)), (), net["n1"].ledger.at_ms)
    assert isinstance(answer, bytes)
    proposal = Proposal(net["n1"].store_id, position.era, position.slot + 1, ballot, digest(answer))
    message = Propose(
        sign_statement(net.signers["n1"], net.mesh, proposal), answer, (),
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


# --- resets -----------------------------------------------------------------------------------------------------------


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
        answer = ledger.check_reset(reset_entry(net, "n0", slot=slot, by=by))
        assert (answer.rule if isinstance(answer, Refusal) else "") == rule
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
