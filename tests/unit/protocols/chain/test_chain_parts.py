"""The parts of the chain one by one: fence, counting, pacing, the record of the acceptor, the ledger, bad input."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.chain import quorum
from protocols.chain.acceptor import (
    ACCEPTED_KEY,
    ACCEPTOR_TABLE,
    FLOORS_MAX,
    RECORD_KEY,
    Acceptor,
    AcceptorRecord,
    fresh_record,
    load_acceptor,
)
from protocols.chain.ballots import (
    Ballot,
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
from protocols.chain.fence import (
    BOOT_LEAP,
    SLOT_BYTES,
    SLOT_KEYS,
    Fence,
    advance_fence,
    decode_slot,
    distrust_of,
    encode_slot,
    is_same_boot,
    newest_fence,
)
from protocols.chain.ledger import Ledger, slot_key
from protocols.chain.messages import Accepted, ChainMessage, Entries, Position, Prepare
from protocols.chain.pacing import ChainTimes, Pacer
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.machine import Digest, PeerId, Persist, Store, Write
from protocols.refusal import Refusal
from simulation.chain.toy_state import Add
from simulation.world.entropy import SeededEntropy, stream
from tests.support.protocols.chain_net import ChainNet
from tests.support.protocols.chain_statements import (
    BALLOT,
    HIGHER,
    MESH,
    RING,
    SIGNER_OF,
    VOTERS,
    promise,
    proposal,
    vote,
)

# --- fence ------------------------------------------------------------------------------------------------------------


def test_a_fence_slot_survives_encoding_and_nothing_else_passes_for_one() -> None:
    fence = Fence(b"s" * 16, 7, bytes(digest(b"x")))
    data = encode_slot(fence)
    assert len(data) == SLOT_BYTES
    assert decode_slot(data) == fence
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        assert decode_slot(bytes(flipped)) is None


@given(st.binary(max_size=200))
def test_random_bytes_are_no_fence(data: bytes) -> None:
    assert decode_slot(data) is None


def test_the_newest_good_slot_counts_and_writes_go_to_the_other() -> None:
    slots: dict[bytes, bytes] = {}
    for counter in range(4):
        persist = advance_fence(Fence(b"s" * 16, counter, bytes(32)))
        assert persist.store is Store.FENCE
        slots[persist.writes[0].key] = persist.writes[0].value or b""
    assert len(slots) == 2
    newest = newest_fence(slots)
    assert newest is not None
    assert newest.counter == 3
    torn = newest_fence({**slots, SLOT_KEYS[1]: b"torn"})
    assert torn is not None
    assert torn.counter == 2
    assert newest_fence({}) is None


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

    distrust = distrust_of(made(database), made(fence))
    assert why in distrust
    assert bool(distrust) == bool(why)
    same = Fence(b"a" * 16, 5, bytes(32))
    assert "disagree" in distrust_of(same, Fence(b"a" * 16, 5, b"1" * 32))


def test_a_copy_in_the_runtime_folder_shows_whether_the_fence_went_back() -> None:
    fence = Fence(b"s" * 16, 5, bytes(32))
    slots = {SLOT_KEYS[1]: encode_slot(fence)}
    copy = encode_slot
    assert is_same_boot(copy(fence), slots)
    assert is_same_boot(copy(Fence(b"s" * 16, 4, bytes(32))), slots)
    assert not is_same_boot(copy(Fence(b"s" * 16, 6, bytes(32))), slots)
    assert not is_same_boot(copy(Fence(b"t" * 16, 5, bytes(32))), slots)
    assert not is_same_boot(b"", slots)
    assert not is_same_boot(copy(fence), {})


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
    assert all(300 * 2**index <= wait <= 600 * 2**index for index, wait in enumerate(waits[:6]))
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


# --- the acceptor's record --------------------------------------------------------------------------------------------


def an_acceptor() -> Acceptor:
    acceptor = Acceptor(MESH, VOTERS[0].node, SIGNER_OF[VOTERS[0].node], fresh_record(VOTERS[0].store_id), None)
    acceptor.open(Position(MESH, 0, 0, MESH))
    return acceptor


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
    acceptor = an_acceptor()
    effects, said = acceptor.promise(BALLOT)
    tables = tables_of(effects)
    assert load_acceptor(tables) == (acceptor.record, None)
    assert said.counter == 1
    data = b"a decision"
    effects, voted = acceptor.accept(
        proposal(digest=digest(data)), data, (b"m",), ((promise(),),), voters_digest(VOTERS)
    )
    tables = tables_of(effects, tables)
    loaded = load_acceptor(tables)
    assert loaded == (acceptor.record, acceptor.accepted)
    assert (voted.counter, voted.digest) == (2, digest(data))
    with pytest.raises(AssertionError):
        acceptor.promise(BALLOT)
    with pytest.raises(AssertionError):
        acceptor.accept(proposal(), data, (), (), voters_digest(VOTERS))
    tables[ACCEPTOR_TABLE][ACCEPTED_KEY] = encode(Accepted(BALLOT, b"another", (), b""))
    with pytest.raises(DecodeError):
        load_acceptor(tables)
    with pytest.raises(DecodeError):
        load_acceptor({ACCEPTOR_TABLE: {RECORD_KEY: b"junk"}})
    assert load_acceptor({}) is None


def test_opening_the_same_slot_again_writes_nothing() -> None:
    acceptor = an_acceptor()
    assert acceptor.open(Position(MESH, 0, 0, MESH)) == ()
    assert acceptor.open(Position(MESH, 0, 1, MESH))[0] == Write(ACCEPTOR_TABLE, RECORD_KEY, encode(acceptor.record))


def test_floors_only_rise_and_are_bounded() -> None:
    acceptor = an_acceptor()
    for index in range(FLOORS_MAX + 4):
        acceptor.bow(Ballot(index + 1, VOTERS[1].node, b"n"), b"store %d" % index, index)
    assert len(acceptor.record.floors) == FLOORS_MAX
    acceptor.bow(Ballot(99, VOTERS[1].node, b"n"), b"store 19", 3)
    assert acceptor.floor_of(b"store 19") == 19
    assert acceptor.floor_of(b"unknown") == 0


def test_a_recovery_takes_over_the_highest_decision_and_the_others_floors() -> None:
    acceptor = an_acceptor()
    acceptor.suspect()
    low, high = (Accepted(Ballot(n, VOTERS[1].node, b"n"), b"decision %d" % n, (), b"") for n in (1, 2))
    acceptor.recover(HIGHER, BOOT_LEAP, high, ((b"store", 5),))
    assert acceptor.accepted == high
    assert acceptor.record.recovering
    assert acceptor.record.counter == BOOT_LEAP + 1
    assert acceptor.floor_of(b"store") == 5
    acceptor.recover(Ballot(10, VOTERS[1].node, b"n"), 2 * BOOT_LEAP, low, ())
    assert acceptor.accepted == high
    acceptor.open(Position(MESH, 0, 1, MESH))
    acceptor.recover(HIGHER, 3 * BOOT_LEAP, None, ())
    assert not acceptor.record.recovering


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
    for index in range(6):
        net.submit("n0", encode(Add(b"%d" % index, "a", 1)), (bytes([index]) * 200_000,))
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
    commands = [encode(Add(b"%d" % index, "a", 1)) for index in range(5)]
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
        votes = [vote(number, voters_digest=voters_digest(three)) for number in at]
        signatures = tuple(VoteSignature(vote.node, vote.store_id, vote.counter, vote.signature) for vote in votes)
        quorum_certificate = QuorumCertificate(MESH, 1, BALLOT, decided, voters_digest(three), signatures)
        return msgspec.structs.replace(quorum_certificate, **changes)

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
