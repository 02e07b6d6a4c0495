"""How records merge, expire and are limited. Signatures are hashes here (record_world.py)."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.envelope import Signed, decode, digest, encode
from protocols.records.credentials import revocation_record
from protocols.records.hlc import AHEAD_MAX_MS
from protocols.records.key_table import make_key
from protocols.records.record import Record, beats
from protocols.records.store import (
    EquivocationProof,
    OfferOutcome,
    proof_record,
)
from tests.support.protocols.record_asks import (
    entry_of,
    refused,
    revocation_by,
    revocation_of,
    store,
)
from tests.support.protocols.record_world import (
    fast_id,
    immutable,
    owned,
)
from tests.support.protocols.trust_world import DAY_MS, WALL_MS

# --- merging ----------------------------------------------------------------------------------------------------------


def test_the_highest_sequence_wins_and_a_repetition_is_known() -> None:
    held = store()
    assert held.offer(owned("n0", 2), WALL_MS).outcome is OfferOutcome.MERGED
    assert held.offer(owned("n0", 1), WALL_MS).outcome is OfferOutcome.OUTDATED
    assert held.offer(owned("n0", 2), WALL_MS).outcome is OfferOutcome.KNOWN
    assert held.offer(owned("n0", 3, tombstone=True, body=b""), WALL_MS).outcome is OfferOutcome.MERGED


def test_two_bodies_at_one_sequence_are_kept_as_proof_and_all_agree_on_the_winner() -> None:
    chosen_signed, other = owned("n0", 4, b"one"), owned("n0", 4, b"other")
    winners, proofs = set(), set()
    for order in itertools.permutations((chosen_signed, other)):
        held = store()
        offered = [held.offer(signed, WALL_MS) for signed in order]
        proof = offered[1].proof
        assert proof is not None
        proofs.add(encode(proof))
        winners.add(held.entries[make_key("status", fast_id("n0"))].digest)
    assert len(winners) == len(proofs) == 1
    third = held.offer(owned("n0", 4, b"third"), WALL_MS)
    assert third.proof is None, "one proof convicts"


def test_a_proof_is_a_record_that_anybody_can_check() -> None:
    signed, other = owned("n0", 4, b"one"), owned("n0", 4, b"other")
    pair = sorted((entry_of(signed), entry_of(other)), key=lambda entry: entry.digest)
    proof = EquivocationProof(pair[0].signed, pair[1].signed)
    answer = proof_record(fast_id("n0"), proof)
    assert answer is not None
    key, body = answer
    assert store().offer(immutable("n1", "equivocation", body, key=key), WALL_MS).outcome is OfferOutcome.MERGED
    blamed = make_key("equivocation", fast_id("n1"), digest(body).hex())
    assert refused(store().offer(immutable("n2", "equivocation", body, key=blamed), WALL_MS)) == "records.proof"
    fakes = [
        EquivocationProof(signed, signed),
        EquivocationProof(signed, Signed(other.payload, other.key, b"s" * 64)),
        EquivocationProof(Signed(b"", b"", b""), signed),
    ]
    for body in (*map(encode, fakes), b"junk"):
        key = make_key("equivocation", fast_id("n0"), digest(body).hex())
        assert refused(store().offer(immutable("n1", "equivocation", body, key=key), WALL_MS)) == "records.proof"
    large = [owned("n0", 5, bytes([n]) * 16_000) for n in (1, 2)]
    assert proof_record(fast_id("n0"), EquivocationProof(*large)) is None


def test_of_two_authors_of_the_same_content_all_keep_the_same_one_and_a_tombstone_beats_both() -> None:
    first, second = immutable("n0"), immutable("n1", seq=9)
    removal = immutable("n1", seq=10, key=decode(first.payload, Record).key, body=b"ended", tombstone=True)
    digests = set()
    for order in itertools.permutations((first, second, removal)):
        held = store()
        for signed in order:
            held.offer(signed, WALL_MS)
        (entry,) = held.entries.values()
        digests.add(entry.digest)
    assert digests == {digest(removal.payload)}


def test_the_later_clock_wins_among_ephemeral_records_which_are_not_in_the_trie() -> None:
    held = store()
    key = make_key("health", fast_id("n0"), "web")
    for at_ms, expected in ((5, OfferOutcome.MERGED), (4, OfferOutcome.OUTDATED), (6, OfferOutcome.MERGED)):
        signed = owned("n0", 1, key=key, kind="ephemeral", ttl_ms=60_000, at_ms=WALL_MS + at_ms)
        assert held.offer(signed, WALL_MS).outcome is expected
    assert held.entries == {}
    assert len(held.trie) == 0
    assert list(held.ephemeral) == [key]


POOL = [
    owned("n0", 1), owned("n0", 2), owned("n0", 2, b"fork"), owned("n0", 3, body=b"", tombstone=True),
    owned("n1", 1), owned("n1", 5), immutable("n0"), immutable("n1", seq=3), immutable("n2", body=b"else"),
    immutable("n2", seq=8, key=decode(immutable("n0").payload, Record).key, body=b"ended", tombstone=True),
    owned("n0", 1, key=make_key("load", fast_id("n0")), kind="ephemeral", ttl_ms=900, at_ms=WALL_MS),
    owned("n0", 2, key=make_key("load", fast_id("n0")), kind="ephemeral", ttl_ms=900, at_ms=WALL_MS + 1),
]  # fmt: skip


def merged(records: list[Signed]) -> tuple[object, ...]:
    held = store()
    for signed in records:
        held.offer(signed, WALL_MS)
    return held.trie.root(), sorted(held.entries), sorted(entry.digest for entry in held.ephemeral.values())


@settings(max_examples=150)
@given(st.lists(st.sampled_from(POOL), max_size=14), st.randoms(use_true_random=False))
def test_merging_is_commutative_and_idempotent(records: list[Signed], shuffler) -> None:  # type: ignore[no-untyped-def]
    shuffled = [*records, *records[:3]]
    shuffler.shuffle(shuffled)
    assert merged(shuffled) == merged(records)


@settings(max_examples=100)
@given(*[st.lists(st.sampled_from(POOL), max_size=6)] * 3)
def test_merging_is_associative(one: list[Signed], two: list[Signed], three: list[Signed]) -> None:
    def held_after(*groups: list[Signed]) -> list[Signed]:
        held = store()
        for signed in itertools.chain(*groups):
            held.offer(signed, WALL_MS)
        return [entry.signed for entry in (*held.entries.values(), *held.ephemeral.values())]

    left = merged([*held_after(held_after(one, two)), *three])
    right = merged([*one, *held_after(held_after(two, three))])
    assert left == right


@given(st.sampled_from(POOL), st.sampled_from(POOL), st.sampled_from(POOL))
def test_of_versions_of_one_key_exactly_one_wins_and_winning_is_transitive(a: Signed, b: Signed, c: Signed) -> None:
    entries = [entry_of(signed) for signed in (a, b, c)]
    if len({entry.record.key for entry in entries}) > 1 or len({entry.digest for entry in entries}) < 3:
        return
    answer, two, three = entries
    assert beats(answer, two) != beats(two, answer)
    if beats(answer, two) and beats(two, three):
        assert beats(answer, three)


# --- time and space ---------------------------------------------------------------------------------------------------


def test_a_record_from_far_ahead_is_parked_until_its_time_comes() -> None:
    held = store(parked_max=1)
    signed = owned("n0", 1, at_ms=WALL_MS + AHEAD_MAX_MS + 1)
    assert held.offer(signed, WALL_MS).outcome is OfferOutcome.PARKED
    assert refused(held.offer(owned("n1", 1, at_ms=WALL_MS + AHEAD_MAX_MS + 1), WALL_MS)) == "records.ahead"
    assert held.entries == {}
    assert held.release_parked(WALL_MS) == []
    assert held.release_parked(WALL_MS + 1) == [signed]
    assert held.parked == {}


def test_a_lifetime_ends_on_every_node() -> None:
    held = store()
    signed = owned("n0", 1, key=make_key("prepared", fast_id("n0"), "c"), ttl_ms=1_000)
    newer = owned("n0", 2, key=make_key("prepared", fast_id("n0"), "c"), ttl_ms=5_000)
    held.offer(signed, WALL_MS)
    assert held.next_expiry_ms() == WALL_MS + 1_000
    held.offer(newer, WALL_MS)
    assert held.remove_expired(WALL_MS + 1_000) == [], "the replaced version no longer matters"
    assert [entry.record.seq for entry in held.remove_expired(WALL_MS + 5_000)] == [2]
    assert held.next_expiry_ms() is None
    assert refused(held.offer(newer, WALL_MS + 5_000)) == "records.expired"


def test_a_revocation_holds_at_once_however_far_ahead_the_clock_was_of_the_node_that_wrote_it() -> None:
    held = store()
    held.offer(owned("n1", 5), WALL_MS)
    key, body = revocation_record(*revocation_of("n1", 3))
    ahead_ms = WALL_MS + AHEAD_MAX_MS + 3_600_000
    assert (
        held.offer(immutable("n0", "revocation", body, key=key, at_ms=ahead_ms), WALL_MS).outcome is OfferOutcome.MERGED
    )
    assert [entry.record.seq for entry in held.void_revoked(WALL_MS)] == [5]


def test_a_full_store_still_takes_newer_versions_and_revocations() -> None:
    held = store(records_max=2)
    held.offer(owned("n0", 1), WALL_MS)
    held.offer(immutable("n0"), WALL_MS)
    assert refused(held.offer(immutable("n0", body=b"more"), WALL_MS)) == "records.full"
    assert held.offer(owned("n0", 2), WALL_MS).outcome is OfferOutcome.MERGED
    assert held.offer(revocation_by("n0", "n1", 0), WALL_MS).outcome is OfferOutcome.MERGED


def test_an_author_cannot_fill_the_store_with_many_or_long_records() -> None:
    held = store(node_words_max=2)
    held.offer(owned("n0", 1), WALL_MS)
    held.offer(immutable("n0"), WALL_MS)
    assert refused(held.offer(immutable("n0", body=b"more"), WALL_MS)) == "quota.words"
    assert held.offer(owned("n0", 2), WALL_MS).outcome is OfferOutcome.MERGED
    assert held.offer(immutable("n1", body=b"more"), WALL_MS).outcome is OfferOutcome.MERGED
    assert held.offer(revocation_by("n0", "n2", 0), WALL_MS).outcome is OfferOutcome.MERGED, (
        "no share refuses a revocation"
    )
    small = store(node_bytes_max=1_000)
    small.offer(owned("n0", 1, b"x" * 600), WALL_MS)
    assert small.offer(owned("n0", 2, b"y" * 600), WALL_MS).outcome is OfferOutcome.MERGED
    assert refused(small.offer(immutable("n0", body=b"z" * 600), WALL_MS)) == "quota.bytes"
    assert small.offer(revocation_by("n0", "n2", 0), WALL_MS).outcome is OfferOutcome.MERGED


def test_a_tombstone_goes_only_when_it_is_old_and_known_to_all_and_does_not_come_back() -> None:
    held = store()
    signed = owned("n0", 2, body=b"", tombstone=True)
    held.offer(signed, WALL_MS)
    late = WALL_MS + 31 * DAY_MS
    assert held.remove_tombstones(late) == []
    held.floor_ms = WALL_MS + 1
    assert held.remove_tombstones(WALL_MS + 29 * DAY_MS) == []
    assert [entry.signed for entry in held.remove_tombstones(late)] == [signed]
    assert refused(held.offer(signed, late)) == "records.collected"
    assert refused(held.offer(owned("n0", 1), late, not_before_ms=WALL_MS + 1)) == "records.stale"
