"""The chain's parts one by one: fence, counting, pacing, statements, proofs, the acceptor's record, the ledger."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.chain import acceptor as acceptors
from protocols.chain import fence as fences
from protocols.chain import quorum
from protocols.chain.acceptor import Acceptor, AcceptorRecord, fresh_record, load
from protocols.chain.ballots import (
    NO_BALLOT,
    Ballot,
    Promise,
    Proposal,
    Vote,
    key_of,
    sign_statement,
    statement_holds,
)
from protocols.chain.decision import (
    NOOP,
    Decided,
    QuorumCertificate,
    Voter,
    VoteSignature,
    evidence_root,
    material_fits,
    material_of,
    voters_digest,
)
from protocols.chain.fence import BOOT_LEAP, Fence
from protocols.chain.grounds import ROUNDS_MAX, adopted, built_on, grounds_problem, promises_problem
from protocols.chain.ledger import Ledger, slot_key
from protocols.chain.messages import Accepted, ChainMessage, Entries, Position, Prepare
from protocols.chain.pacing import ChainTimes, Pacer
from protocols.chain.proposer import Attempt
from protocols.chain.witness import STATEMENTS_MAX, Witness, contradiction, proof, proof_holds
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.keys import peer_id
from protocols.machine import Digest, Now, PeerId, Persist, Store, Write
from protocols.refusal import Refusal
from simulation.chain.toy_state import Add
from simulation.world.entropy import KeyRing, SeededEntropy, stream
from tests.support.protocols.chain_net import ChainNet

MESH = bytes(digest(b"parts"))
RING = KeyRing()
SIGNERS = [RING.signer(f"v{index}") for index in range(7)]
VOTERS = tuple(sorted(Voter(peer_id(one.public_key), b"store-%010d" % at) for at, one in enumerate(SIGNERS)))
SIGNER_OF = {peer_id(one.public_key): one for one in SIGNERS}
BALLOT = Ballot(3, VOTERS[0].node, b"nonce---")


# --- fence ------------------------------------------------------------------------------------------------------------


def test_a_fence_slot_survives_encoding_and_nothing_else_passes_for_one() -> None:
    fence = Fence(b"s" * 16, 7, bytes(digest(b"x")))
    data = fences.encode_slot(fence)
    assert len(data) == fences.SLOT_BYTES
    assert fences.decode_slot(data) == fence
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        assert fences.decode_slot(bytes(flipped)) is None


@given(st.binary(max_size=200))
def test_random_bytes_are_no_fence(data: bytes) -> None:
    assert fences.decode_slot(data) is None


def test_the_newest_good_slot_counts_and_writes_go_to_the_other() -> None:
    slots: dict[bytes, bytes] = {}
    for counter in range(4):
        persist = fences.advance(Fence(b"s" * 16, counter, bytes(32)))
        assert persist.store is Store.FENCE
        slots[persist.writes[0].key] = persist.writes[0].value or b""
    assert len(slots) == 2
    newest = fences.newest(slots)
    assert newest is not None
    assert newest.counter == 3
    torn = fences.newest({**slots, fences.SLOT_KEYS[1]: b"torn"})
    assert torn is not None
    assert torn.counter == 2
    assert fences.newest({}) is None


@pytest.mark.parametrize(
    ("database", "fence", "why"),
    [
        ((b"a", 5), (b"a", 5), ""),
        ((b"a", 6), (b"a", 5), ""),
        ((b"a", 6 + BOOT_LEAP), (b"a", 5), ""),
        (None, (b"a", 5), "unreadable"),
        ((b"a", 5), None, "fence is unreadable"),
        ((b"a", 5), (b"b", 5), "another store"),
        ((b"a", 4), (b"a", 5), "behind the fence"),
        ((b"a", 8), (b"a", 5), "fence is behind"),
    ],
)
def test_database_and_fence_must_agree(database: Any, fence: Any, why: str) -> None:
    def made(pair: Any) -> Fence | None:
        return None if pair is None else Fence(pair[0] * 16, pair[1], bytes(32))

    found = fences.distrust(made(database), made(fence))
    assert why in found
    assert bool(found) == bool(why)
    same = Fence(b"a" * 16, 5, bytes(32))
    assert "disagree" in fences.distrust(same, Fence(b"a" * 16, 5, b"1" * 32))


def test_a_copy_in_the_runtime_folder_shows_whether_the_fence_went_back() -> None:
    fence = Fence(b"s" * 16, 5, bytes(32))
    slots = {fences.SLOT_KEYS[1]: fences.encode_slot(fence)}
    copy = fences.encode_slot
    assert fences.same_boot(copy(fence), slots)
    assert fences.same_boot(copy(Fence(b"s" * 16, 4, bytes(32))), slots)
    assert not fences.same_boot(copy(Fence(b"s" * 16, 6, bytes(32))), slots)
    assert not fences.same_boot(copy(Fence(b"t" * 16, 5, bytes(32))), slots)
    assert not fences.same_boot(b"", slots)
    assert not fences.same_boot(copy(fence), {})


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "needed", "others"), [(1, 1, 1), (3, 2, 2), (5, 3, 3), (7, 4, 4)])
def test_majorities_and_boot_quorums_meet(count: int, needed: int, others: int) -> None:
    assert quorum.majority(count) == needed
    assert quorum.boot_quorum(count) == others
    # A majority that this voter was part of, less itself, and the others asked at boot share somebody.
    assert (needed - 1) + others > count - 1


def test_legal_sets_of_voters_are_odd_small_sorted_and_distinct() -> None:
    assert all(quorum.valid_voters(VOTERS[:count]) for count in (1, 3, 5, 7))
    assert not any(quorum.valid_voters(VOTERS[:count]) for count in (0, 2, 4, 6))
    assert not quorum.valid_voters(tuple(reversed(VOTERS[:3])))
    twice = tuple(sorted((VOTERS[0], Voter(VOTERS[0].node, b"other store id  "), VOTERS[1])))
    assert not quorum.valid_voters(twice)


def test_ranks_are_a_permutation_that_differs_by_slot() -> None:
    orders = {tuple(quorum.rank(VOTERS, slot, voter.node) for voter in VOTERS) for slot in range(20)}
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(orders) > 10
    assert quorum.rank(VOTERS, 1, PeerId("stranger")) == 7
    assert quorum.voter_of(VOTERS, PeerId("stranger")) is None


# --- pacing -----------------------------------------------------------------------------------------------------------


def pacer() -> Pacer:
    return Pacer(ChainTimes(), SeededEntropy(stream(1, "pacing")))


def test_waits_double_are_jittered_and_end_at_the_cap() -> None:
    pace = pacer()
    waits = []
    for _ in range(12):
        pace.start_attempt(0, 0)
        waits.append(pace.next_ms)
    assert 300 <= waits[0] <= 600
    assert all(300 * 2**at <= wait <= 600 * 2**at for at, wait in enumerate(waits[:6]))
    assert waits[-1] == 30_000


def test_slow_links_stretch_the_wait_and_rank_adds_to_it() -> None:
    pace = pacer()
    pace.sample(500)
    assert pace.base_ms == 2_000
    pace.start_attempt(0, 0)
    first = pace.next_ms
    assert 2_000 <= first <= 4_000
    pace.hurry(10, 2)
    assert pace.next_ms == min(first, 10 + 2_000 + 100)
    assert pace.attempts == 0


def test_those_who_were_forestalled_together_try_again_a_round_trip_apart_and_only_once() -> None:
    pace = pacer()
    pace.sample(500)
    due = []
    for rank in range(3):
        pace.open_slot(0, 0)
        pace.start_attempt(0, rank)
        pace.forestalled(100, rank)
        due.append(pace.next_ms)
    assert due == [100, 600, 1_100]
    pace.start_attempt(1_100, 0)
    waits = pace.next_ms
    pace.forestalled(1_200, 0)
    assert pace.next_ms == waits


def test_a_new_slot_starts_at_once_unless_proposers_collide() -> None:
    pace = pacer()
    pace.open_slot(100, 2)
    assert pace.next_ms == 100
    pace.crowd(100)
    pace.open_slot(150, 2)
    assert pace.next_ms == 250


def test_scaled_times_keep_what_the_network_bounds() -> None:
    scaled = ChainTimes().scaled(10)
    assert (scaled.retry_min_ms, scaled.growth_ms, scaled.submit_ms) == (300, 6_000, 3_000)


# --- statements -------------------------------------------------------------------------------------------------------


def vote(at: int = 0, **changes: Any) -> Vote:
    voter = VOTERS[at]
    made = Vote(voter.node, voter.store_id, 4, MESH, 1, BALLOT, digest(b"d"), voters_digest(VOTERS))
    return sign_statement(SIGNER_OF[voter.node], MESH, msgspec.structs.replace(made, **changes))


def promise(at: int = 0, **changes: Any) -> Promise:
    voter = VOTERS[at]
    made = Promise(voter.node, voter.store_id, 3, MESH, 1, BALLOT, NO_BALLOT, b"")
    return sign_statement(SIGNER_OF[voter.node], MESH, msgspec.structs.replace(made, **changes))


def proposal(at: int = 0, **changes: Any) -> Proposal:
    made = msgspec.structs.replace(Proposal(VOTERS[at].store_id, MESH, 1, BALLOT, digest(b"d")), **changes)
    return sign_statement(SIGNER_OF[made.ballot.node], MESH, made)


@pytest.mark.parametrize("made", [vote(), promise(), proposal()])
def test_a_statement_is_signed_field_by_field(made: Any) -> None:
    assert statement_holds(RING, MESH, made)
    assert not statement_holds(RING, bytes(digest(b"other mesh")), made)
    for name in made.__struct_fields__:
        value = getattr(made, name)
        other = {int: lambda v: v + 1, bytes: lambda v: v + b"x", Ballot: lambda v: Ballot(9, *list_of(v)[1:])}.get(
            type(value), lambda v: VOTERS[1].node
        )
        assert not statement_holds(RING, MESH, msgspec.structs.replace(made, **{name: other(value)})), name


def list_of(ballot: Ballot) -> tuple[int, PeerId, bytes]:
    return ballot.round, ballot.node, ballot.boot_nonce


def test_a_statement_by_nobody_does_not_hold() -> None:
    assert not statement_holds(RING, MESH, msgspec.structs.replace(vote(), node=PeerId("1nobody")))


def test_keys_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocols.chain import ballots

    monkeypatch.setattr(ballots, "_KEYS_MAX", 2)
    monkeypatch.setattr(ballots, "_keys", {})
    for voter in VOTERS:
        assert key_of(voter.node) == SIGNER_OF[voter.node].public_key
    assert len(ballots._keys) <= 2


def test_ballots_order_by_round_then_node_then_life() -> None:
    ordered = [NO_BALLOT, Ballot(1, PeerId("a"), b"2"), Ballot(1, PeerId("b"), b"1"), Ballot(2, PeerId("a"), b"1")]
    for shuffled in permutations(ordered):
        assert sorted(shuffled) == ordered


# --- proofs -----------------------------------------------------------------------------------------------------------

HIGHER = Ballot(9, VOTERS[1].node, b"nonce---")
LIES = [
    ("chain.two-votes", vote(), vote(digest=digest(b"e"), counter=5)),
    ("chain.two-promises", promise(), promise(accepted_ballot=Ballot(1, VOTERS[2].node, b"n"), counter=9)),
    ("chain.hidden-vote", vote(), promise(ballot=HIGHER, counter=5)),
    (
        "chain.hidden-vote",
        vote(),
        promise(ballot=HIGHER, counter=5, accepted_ballot=BALLOT, accepted_digest=bytes(digest(b"e"))),
    ),
    ("chain.counter-regressed", vote(), promise(ballot=HIGHER, counter=2)),
    ("chain.counter-regressed", vote(), vote(slot=2, counter=4)),
    ("chain.two-proposals", proposal(), proposal(digest=digest(b"e"))),
]
HONEST = [
    (vote(), vote()),
    (vote(), vote(1, digest=digest(b"e"))),
    (promise(), vote()),
    (vote(), promise(ballot=HIGHER, counter=5, accepted_ballot=BALLOT, accepted_digest=bytes(digest(b"d")))),
    (vote(), vote(slot=2, counter=9)),
    (proposal(), proposal(ballot=Ballot(4, VOTERS[0].node, b"n"), digest=digest(b"e"))),
    (proposal(), vote()),
    (vote(), vote(era=b"another", digest=digest(b"e"))),
    (vote(), promise(ballot=HIGHER, counter=5 + BOOT_LEAP)),
    (vote(slot=2), proposal()),
    (vote(), vote(1, slot=2, counter=1)),
    (vote(slot=3, counter=1), vote(counter=BOOT_LEAP + 1)),
]


@pytest.mark.parametrize(("rule", "first", "second"), LIES)
def test_two_statements_that_no_honest_store_makes_are_a_proof(rule: str, first: Any, second: Any) -> None:
    assert contradiction(first, second) == contradiction(second, first) == rule
    made = proof(rule, first, second)
    assert proof_holds(RING, MESH, made)
    assert proof_holds(RING, MESH, decode(encode(made), ChainMessage))
    assert not proof_holds(RING, MESH, msgspec.structs.replace(made, rule="chain.other"))
    forged = msgspec.structs.replace(second, signature=bytes(64))
    assert not proof_holds(RING, MESH, proof(rule, first, forged))
    witness = Witness()
    assert witness.see(first) is None
    found = witness.see(second)
    assert found is not None
    assert found.rule == rule


@pytest.mark.parametrize(("first", "second"), HONEST)
def test_what_honest_stores_say_proves_nothing(first: Any, second: Any) -> None:
    assert contradiction(first, second) == contradiction(second, first) == ""
    assert not proof_holds(RING, MESH, proof("", first, second))
    witness = Witness()
    assert witness.see_all((first, second, first)) is None


def test_a_witness_forgets_closed_slots_and_holds_a_bounded_number() -> None:
    witness = Witness()
    for slot in range(STATEMENTS_MAX + 10):
        witness.see(vote(slot=slot, counter=slot))
    assert len(witness._seen) == STATEMENTS_MAX
    witness.forget_before(STATEMENTS_MAX)
    assert len(witness._seen) == 10


# --- the proposer's rules ---------------------------------------------------------------------------------------------


def test_the_accepted_decision_of_the_highest_ballot_must_be_adopted() -> None:
    low, high = Ballot(1, VOTERS[0].node, b"n"), Ballot(2, VOTERS[0].node, b"n")
    claims = (
        promise(0),
        promise(1, accepted_ballot=high, accepted_digest=b"high"),
        promise(2, accepted_ballot=low, accepted_digest=b"low"),
    )
    for order in permutations(claims):
        assert adopted(order) == (high, b"high")
    assert adopted(claims[:1]) == (NO_BALLOT, b"")


def rounds(count: int) -> tuple[tuple[Promise, ...], ...]:
    """Good grounds for digest(b"d"): fresh at round 1, then adopted again and again, newest first."""
    found = []
    for number in range(1, count + 1):
        below = (NO_BALLOT, b"") if number == 1 else (ballot_at(number - 1), digest(b"d"))
        found.append(
            (
                promise(0, ballot=ballot_at(number), accepted_ballot=below[0], accepted_digest=below[1]),
                promise(1, ballot=ballot_at(number)),
            )
        )
    return tuple(reversed(found))


def ballot_at(number: int) -> Ballot:
    return Ballot(number, VOTERS[1].node, b"nonce---")


def why_not(grounds: Any, number: int, decided: bytes = b"d") -> str:
    return grounds_problem(RING, MESH, VOTERS[:3], grounds, (MESH, 1, ballot_at(number)), digest(decided))


def test_grounds_go_down_to_the_round_that_was_free() -> None:
    for count in range(1, ROUNDS_MAX + 1):
        assert why_not(rounds(count), count) == ""
    three = rounds(3)
    assert why_not((), 1) == why_not(rounds(ROUNDS_MAX + 1), ROUNDS_MAX + 1)
    assert "no grounds" in why_not((), 1)
    assert "missing" in why_not(three[:2], 3)
    assert "another ballot" in why_not(three[1:], 3)
    assert "another ballot" in why_not((three[0], three[2]), 3)
    assert "another decision" in why_not(three, 3, b"other")
    assert "below the one that was free" in why_not((*rounds(1), *rounds(1)), 1)
    assert "no majority" in why_not((three[0][:1],), 3)
    own = promise(0, ballot=ballot_at(3), accepted_ballot=ballot_at(3), accepted_digest=digest(b"d"))
    assert "at its own ballot" in why_not(((own, three[0][1]), *three[1:]), 3)
    unsigned = msgspec.structs.replace(three[1][1], signature=bytes(64))
    assert "signature" in why_not((three[0], (three[1][0], unsigned), three[2]), 3)


def test_grounds_of_a_long_fight_lose_their_oldest_rounds_and_still_hold() -> None:
    grounds: Any = ()
    for number, newest in enumerate(reversed(rounds(ROUNDS_MAX + 5)), 1):
        grounds = built_on(newest, grounds)
        assert why_not(grounds, number) == ""
    assert len(grounds) == ROUNDS_MAX


def test_a_lie_in_a_round_below_the_last_is_found_in_the_grounds() -> None:
    """What was adopted innocently at ballot 3 was made possible by a vote hidden at ballot 2."""
    voted = vote(0, ballot=ballot_at(1), digest=digest(b"other"), counter=3)
    lie = promise(0, ballot=ballot_at(2), counter=4)
    honest = promise(1, ballot=ballot_at(2))
    shown = promise(2, ballot=ballot_at(3), accepted_ballot=ballot_at(2), accepted_digest=digest(b"d"))
    grounds = built_on((honest_at_3 := promise(1, ballot=ballot_at(3), counter=9), shown), ((lie, honest),))
    assert why_not(grounds, 3) == ""
    assert Witness().see_all((voted, shown, honest_at_3)) is None
    found = Witness().see_all((voted, *(said for said in grounds[0]), *grounds[1]))
    assert found is not None
    assert found.rule == "chain.hidden-vote"


def test_an_attempt_takes_the_highest_accepted_and_the_lower_median_clock() -> None:
    attempt = Attempt(1, MESH, BALLOT, VOTERS[:3], voters_digest(VOTERS[:3]), 0)
    low, high = (Accepted(Ballot(n, VOTERS[0].node, b"n"), b"%d" % n, (), b"") for n in (1, 2))
    assert not attempt.add_promise(promise(0), Now(100, 9_100), high)
    assert attempt.add_promise(promise(1), Now(200, 1_200), low)
    attempt.add_promise(promise(2), Now(300, 5_300), None)
    assert attempt.accepted == high
    assert attempt.wall_ms(1_000) == 6_000, "the clock in the middle, and how long the promises were held"
    assert not attempt.decline(VOTERS[0].node, "r", "d")
    assert not attempt.decline(VOTERS[0].node, "r", "d")
    assert attempt.decline(VOTERS[1].node, "r", "d")


def test_a_promise_that_comes_twice_counts_its_makers_clock_once() -> None:
    attempt = Attempt(1, MESH, BALLOT, VOTERS[:3], voters_digest(VOTERS[:3]), 0, stands_by=True)
    attempt.add_promise(promise(0), Now(0, 1_000), None)
    for _ in range(2):
        attempt.add_promise(promise(1), Now(0, 2_400_000), None)
    assert attempt.wall_ms(0) == 1_000


def test_promises_entitle_only_when_a_majority_of_distinct_voters_made_them_for_this_ballot() -> None:
    attempt = (MESH, 1, BALLOT)
    three = VOTERS[:3]
    assert promises_problem((promise(0), promise(1)), attempt, three) == ""
    assert "majority" in promises_problem((promise(0),), attempt, three)
    assert "distinct" in promises_problem((promise(0), promise(0)), attempt, three)
    assert "distinct" in promises_problem((promise(0), promise(5)), attempt, three)
    assert "another ballot" in promises_problem((promise(0), promise(1, slot=2)), attempt, three)


# --- the acceptor's record --------------------------------------------------------------------------------------------


def an_acceptor() -> Acceptor:
    made = Acceptor(MESH, VOTERS[0].node, SIGNER_OF[VOTERS[0].node], fresh_record(VOTERS[0].store_id), None)
    made.open(Position(MESH, 0, 0, MESH))
    return made


def tables_of(effects: list[Any], tables: dict[str, dict[bytes, bytes]] | None = None) -> dict[str, dict[bytes, bytes]]:
    tables = {} if tables is None else tables
    for effect in effects:
        if isinstance(effect, Persist) and effect.store is Store.VOTE:
            for write in effect.writes:
                rows = tables.setdefault(write.table, {})
                if write.value is None:
                    rows.pop(write.key, None)
                else:
                    rows[write.key] = write.value
    return tables


def test_promised_and_accepted_come_back_from_disk() -> None:
    made = an_acceptor()
    effects, said = made.promise(BALLOT)
    tables = tables_of(effects)
    assert load(tables) == (made.record, None)
    assert said.counter == 1
    data = b"a decision"
    effects, voted = made.accept(proposal(digest=digest(data)), data, (b"m",), ((promise(),),), voters_digest(VOTERS))
    tables = tables_of(effects, tables)
    loaded = load(tables)
    assert loaded == (made.record, made.accepted)
    assert (voted.counter, voted.digest) == (2, digest(data))
    with pytest.raises(AssertionError):
        made.promise(BALLOT)
    with pytest.raises(AssertionError):
        made.accept(proposal(), data, (), (), voters_digest(VOTERS))
    tables[acceptors.TABLE][acceptors.ACCEPTED_KEY] = encode(Accepted(BALLOT, b"another", (), b""))
    with pytest.raises(DecodeError):
        load(tables)
    with pytest.raises(DecodeError):
        load({acceptors.TABLE: {acceptors.RECORD_KEY: b"junk"}})
    assert load({}) is None


def test_opening_the_same_slot_again_writes_nothing() -> None:
    made = an_acceptor()
    assert made.open(Position(MESH, 0, 0, MESH)) == ()
    assert made.open(Position(MESH, 0, 1, MESH))[0] == Write(acceptors.TABLE, acceptors.RECORD_KEY, encode(made.record))


def test_floors_only_rise_and_are_bounded() -> None:
    made = an_acceptor()
    for at in range(acceptors.FLOORS_MAX + 4):
        made.bow(Ballot(at + 1, VOTERS[1].node, b"n"), b"store %d" % at, at)
    assert len(made.record.floors) == acceptors.FLOORS_MAX
    made.bow(Ballot(99, VOTERS[1].node, b"n"), b"store 19", 3)
    assert made.floor_of(b"store 19") == 19
    assert made.floor_of(b"unknown") == 0


def test_a_recovery_takes_over_the_highest_decision_and_the_others_floors() -> None:
    made = an_acceptor()
    made.suspect()
    low, high = (Accepted(Ballot(n, VOTERS[1].node, b"n"), b"decision %d" % n, (), b"") for n in (1, 2))
    made.recover(HIGHER, BOOT_LEAP, high, ((b"store", 5),))
    assert made.accepted == high
    assert made.record.recovering
    assert made.record.counter == BOOT_LEAP + 1
    assert made.floor_of(b"store") == 5
    made.recover(Ballot(10, VOTERS[1].node, b"n"), 2 * BOOT_LEAP, low, ())
    assert made.accepted == high
    made.open(Position(MESH, 0, 1, MESH))
    made.recover(HIGHER, 3 * BOOT_LEAP, None, ())
    assert not made.record.recovering


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_a_long_chain_starts_from_its_stored_state_and_a_damaged_state_is_replayed() -> None:
    net = ChainNet(1)
    for _ in range(40):
        net.add("n0")
    tables = net.nodes["n0"].disk.load(Store.VOTE)
    assert tables is not None
    applied: list[bytes] = []

    class Counting:
        def __init__(self) -> None:
            self.inner = net.state_machine()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def apply(self, *rest: Any) -> Any:
            applied.append(b"")
            return self.inner.apply(*rest)

    def restored() -> tuple[Ledger, str]:
        applied.clear()
        ledger = Ledger(net.mesh, Counting(), net.ring)  # type: ignore[arg-type]
        return ledger, ledger.restore(tables)

    ledger, problem = restored()
    assert problem == ""
    assert (ledger.state, ledger.position) == (net["n0"].state, net["n0"].position)
    assert len(applied) == 40 % 16
    tables["state"][b"state"] = b"junk"
    ledger, problem = restored()
    assert (ledger.state, problem, len(applied)) == (net["n0"].state, "", 40)
    del tables["chain"][slot_key(30)]
    ledger, problem = restored()
    assert ledger.position.slot == 29
    assert "missing" in problem
    tables["chain"][slot_key(30)] = tables["chain"][slot_key(31)]
    ledger, problem = restored()
    assert ledger.position.slot == 29
    assert "slot 30" in problem


def test_a_link_that_does_not_follow_ends_the_restored_chain() -> None:
    net = ChainNet(1)
    for _ in range(20):
        net.add("n0")
    tables = net.nodes["n0"].disk.load(Store.VOTE)
    assert tables is not None
    tables["chain"][slot_key(5)] = tables["chain"][slot_key(6)]
    ledger = Ledger(net.mesh, net.state_machine(), net.ring)
    assert "does not follow" in ledger.restore(tables)
    assert ledger.position.slot == 4


def test_batches_are_bounded_in_bytes_and_entries() -> None:
    net = ChainNet(1)
    for at in range(6):
        net.submit("n0", encode(Add(b"%d" % at, "a", 1)), (bytes([at]) * 200_000,))
    ledger = net["n0"].ledger
    batch = ledger.batch_after(Position(net.mesh, 0, 0, net.mesh))
    assert isinstance(batch, Entries)
    assert len(batch.entries) == 2
    assert len(encode(batch)) < 1 << 20
    assert ledger.batch_after(ledger.position) is None
    assert ledger.batch_after(Position(b"later era", 4, 0, b"")) is None


def test_remembered_commands_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocols.chain import ledger as ledgers

    monkeypatch.setattr(ledgers, "DECIDED_COMMANDS_MAX", 3)
    net = ChainNet(1)
    commands = [encode(Add(b"%d" % at, "a", 1)) for at in range(5)]
    for command in commands:
        net.submit("n0", command)
    slots = [net["n0"].ledger.slot_of(digest(command)) for command in commands]
    assert slots == [None, None, 3, 4, 5]


def test_a_noop_carries_no_evidence_and_too_much_evidence_is_no_draft() -> None:
    net = ChainNet(1)
    ledger = net["n0"].ledger
    assert isinstance(ledger.draft(NOOP, (b"m",), 1), Refusal)
    assert isinstance(ledger.draft(NOOP, (b"m",) * 300, 1), Refusal)
    assert not material_fits((b"x" * 400_000,))
    assert material_of((b"a",)) == {digest(b"a"): b"a"}
    assert evidence_root([digest(b"a"), digest(b"b")]) == evidence_root([digest(b"b"), digest(b"a")])


def test_a_certificate_is_judged_by_every_part_of_it() -> None:
    decided = digest(b"d")
    three = VOTERS[:3]

    def certificate(*at: int, **changes: Any) -> QuorumCertificate:
        votes = [vote(one, voters_digest=voters_digest(three)) for one in at]
        signatures = tuple(VoteSignature(one.node, one.store_id, one.counter, one.signature) for one in votes)
        made = QuorumCertificate(MESH, 1, BALLOT, decided, voters_digest(three), signatures)
        return msgspec.structs.replace(made, **changes)

    def problem(made: QuorumCertificate, what: Digest = decided) -> str:
        return quorum.certificate_problem(RING, MESH, three, made, what)

    assert problem(certificate(0, 1)) == problem(certificate(0, 1, 2)) == ""
    assert "another decision" in problem(certificate(0, 1), digest(b"e"))
    assert "other voters" in problem(certificate(0, 1, voters_digest=digest(b"")))
    assert "twice" in problem(certificate(0, 0))
    assert "no voter" in problem(certificate(0, 5))
    assert "no majority" in problem(certificate(0))
    assert "signature" in problem(certificate(0, 1, slot=2))


# --- bad input --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_random_bytes_are_a_message_or_a_decode_error(data: bytes) -> None:
    try:
        message = decode(data, ChainMessage)
    except DecodeError:
        return
    assert isinstance(message, msgspec.Struct)


@given(st.integers(0, 400), st.integers(0, 255))
def test_one_changed_byte_of_a_message_is_a_message_or_a_decode_error(position: int, value: int) -> None:
    good = bytearray(encode(Prepare(1, BALLOT, Position(MESH, 0, 0, MESH))))
    good[position % len(good)] = value
    try:
        message = decode(bytes(good), ChainMessage)
    except DecodeError:
        return
    assert isinstance(message, msgspec.Struct)


def test_an_entry_keeps_its_meaning_through_encoding() -> None:
    net = ChainNet(3, 3)
    net.add("n0")
    entry = net["n0"].ledger.entry(1)
    assert isinstance(entry, Decided)
    assert decode(encode(entry), Decided) == entry
    assert decode(encode(net["n0"].record), AcceptorRecord) == net["n0"].record
