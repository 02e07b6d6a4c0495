"""Records: form, rights, merging, spreading, limits. Signatures are hashes here (record_world.py)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.envelope import DecodeError, Signed, decode, digest, encode
from protocols.machine import (
    Broadcast,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    Persist,
    Received,
    Reject,
    Send,
    Tick,
    Write,
)
from protocols.records.credentials import admission_record, certificate_record, grant_record, revocation_record
from protocols.records.gossip import (
    ANNOUNCED_MAX,
    AUTHORS_TRACKED_MAX,
    MESSAGE_RECORDS_BYTES,
    RECORD_TABLE,
    SEQ_BITS,
    WANTED_MAX,
    Announce,
    AnnouncedRecord,
    Equivocated,
    FetchRecords,
    Publish,
    PublishRefused,
    Push,
    RecordMachine,
    RecordMessage,
    Records,
    RecordsConfig,
    RecordsMerged,
    RecordsVoided,
    TrustLearnt,
)
from protocols.records.hlc import AHEAD_MAX_MS, HLC_MAX, HlcClock, ahead, wall_ms_of
from protocols.records.key_table import BODY_MAX_BYTES, KEY_TABLE, make_key, parse_key
from protocols.records.quotas import RecordLimits
from protocols.records.record import Record, beats, read_record, sign_record
from protocols.records.store import (
    EquivocationProof,
    OfferOutcome,
    OfferResult,
    RecordStore,
    proof_record,
    signed_records,
)
from protocols.refusal import Refusal
from protocols.trust.certificates import LIFETIME_MS
from protocols.trust.invites import Bundle
from protocols.trust.revocations import Revocation, RevocationStatement, revoke
from protocols.trust.store import TrustChanged
from tests.support.protocols.record_world import (
    ADMIN,
    MESH,
    AnyBody,
    FastSigner,
    Fleet,
    FleetConfig,
    certificate,
    fast_id,
    hlc,
    immutable,
    owned,
    trust_of,
)
from tests.support.protocols.trust_world import DAY_MS, WALL_MS, SeededEntropy

NAMES = ("n0", "n1", "n2")
NOW = Now(0, WALL_MS)


def store(**limits: int) -> RecordStore:
    trust = trust_of(NAMES)
    return RecordStore(trust, RecordLimits(**limits), court=AnyBody(trust))


def refused(offered: OfferResult) -> str:
    assert offered.outcome is OfferOutcome.REFUSED, offered
    assert offered.refusal is not None
    assert offered.refusal.detail
    return offered.refusal.rule


def entry_of(signed: Signed):  # type: ignore[no-untyped-def]
    entry = read_record(signed)
    assert not isinstance(entry, Refusal), entry
    return entry


# --- the clock --------------------------------------------------------------------------------------------------------


def test_a_hybrid_clock_never_runs_backwards_and_follows_the_wall() -> None:
    clock = HlcClock()
    first = clock.tick(1_000)
    assert wall_ms_of(first) == 1_000
    assert first < clock.tick(1_000) < clock.tick(900) < clock.tick(1_001)


def test_a_hybrid_clock_is_never_moved_by_a_peer_far_ahead() -> None:
    clock = HlcClock()
    assert clock.observe(hlc(1_000 + AHEAD_MAX_MS), 1_000)
    assert not clock.observe(hlc(1_001 + AHEAD_MAX_MS), 1_000)
    assert wall_ms_of(clock.last) == 1_000 + AHEAD_MAX_MS
    assert clock.tick(1_000) == clock.last
    assert ahead(hlc(200_000), 1)


def test_a_node_whose_clock_was_far_ahead_writes_on_when_it_is_set_back() -> None:
    here = machine()
    here.handle(Publish(STATUS, b"from the future"), Now(0, WALL_MS + 30 * DAY_MS))
    effects = here.handle(Publish(STATUS, b"now"), Now(1, WALL_MS))
    assert not any(isinstance(event, PublishRefused) for event in events(effects))
    held = here.store.entries[STATUS].record
    assert (held.body, wall_ms_of(held.hlc)) == (b"now", WALL_MS)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_makes_keys_that_parse_back() -> None:
    for rule in KEY_TABLE:
        parts = ["a" * 64 if part == "digest" else fast_id("n0") if part == "node" else "x" for part in rule.parts]
        parsed = parse_key(make_key(rule.prefix, *parts))
        assert not isinstance(parsed, Refusal)
        assert parsed.rule is rule
        assert (parsed.owner is not None) == ("node" in rule.parts)
        if rule.writer == "owner":
            assert "node" in rule.parts, "an owned row must name its owner"
        if rule.kind == "immutable":
            assert rule.parts[-1] == "digest"


@pytest.mark.parametrize(
    "key",
    [
        "status/x", "/nothing/x", "/status", "/status/", "/status/not-a-node", f"/status/{'x' * 300}",
        "/evidence/s/abc", f"/evidence/s/{'A' * 64}", f"/evidence/../{'a' * 64}/x", f"/evidence/a b/{'a' * 64}", "",
    ],
)  # fmt: skip
def test_a_key_the_table_does_not_know_is_refused(key: str) -> None:
    assert isinstance(parse_key(key), Refusal)


def test_making_an_impossible_key_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="parts"):
        make_key("status", "a", "b")


# --- form -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signed", "rule"),
    [
        (Signed(b"junk", FastSigner("n0").public_key, b"s" * 64), "records.malformed"),
        (Signed(b"junk", b"short", b"s" * 64), "records.malformed"),
        (owned("n0", 1, key="/nothing/x"), "records.unknown-prefix"),
        (owned("n0", 1, kind="immutable"), "records.kind"),
        (owned("n0", -1), "records.malformed"),
        (owned("n0", 1, hlc=HLC_MAX + 1), "records.malformed"),
        (owned("n0", 1, body=b"x" * (BODY_MAX_BYTES + 1)), "records.malformed"),
        (owned("n0", 1, body=b"", artifact=b"short"), "records.malformed"),
        (owned("n0", 1, body=b""), "records.malformed"),
        (owned("n0", 1, artifact=b"a" * 32), "records.malformed"),
        (immutable("n0", key=make_key("evidence", "s", "0" * 64)), "records.digest"),
        (owned("n0", 1, key=make_key("audit", fast_id("n0"), "1")), "records.ttl"),
        (
            immutable("n0", "decision", key=make_key("decision", "0", "1", "0" * 64), tombstone=True),
            "records.tombstone",
        ),
        (owned("n0", 1, tombstone=True, artifact=b"a" * 32), "records.tombstone"),
    ],
)
def test_a_malformed_record_is_refused_by_name(signed: Signed, rule: str) -> None:
    answer = read_record(signed)
    assert isinstance(answer, Refusal)
    assert answer.rule == rule
    assert refused(store().offer(signed, WALL_MS)) == rule


def test_content_too_large_for_a_body_is_named_by_its_digest() -> None:
    artifact = digest(b"big")
    signed = immutable("n0", body=b"", key=make_key("evidence", "s", artifact.hex()), artifact=artifact)
    assert store().offer(signed, WALL_MS).outcome is OfferOutcome.MERGED


@given(st.binary(max_size=300))
def test_random_payloads_are_refused(payload: bytes) -> None:
    signed = Signed(payload, FastSigner("n0").public_key, FastSigner("n0").sign(payload))
    assert store().offer(signed, WALL_MS).outcome is OfferOutcome.REFUSED


@given(st.binary(max_size=300))
def test_random_messages_are_a_decode_error_or_a_clear_answer(data: bytes) -> None:
    try:
        message = decode(data, RecordMessage)
    except DecodeError:
        return
    for effect in machine().handle(Received(fast_id("n1"), message), NOW):
        assert isinstance(effect, Reject | Send)


# --- rights -----------------------------------------------------------------------------------------------------------


def test_only_the_node_in_the_key_writes_an_owned_record() -> None:
    signed = owned("n1", 1, key=make_key("status", fast_id("n0")))
    assert refused(store().offer(signed, WALL_MS)) == "records.not-owner"
    assert store().offer(owned("n0", 1), WALL_MS).outcome is OfferOutcome.MERGED


def test_a_stranger_an_unconfirmed_and_an_expired_author_are_refused_by_name() -> None:
    trust = trust_of(("n0", "n1"), confirmed=("n0",))
    held = RecordStore(trust, court=AnyBody(trust))
    assert refused(held.offer(owned("eve", 1), WALL_MS)) == "records.unknown-author"
    assert refused(held.offer(immutable("n1"), WALL_MS)) == "records.unconfirmed"
    assert held.offer(owned("n1", 1), WALL_MS).outcome is OfferOutcome.MERGED, "its own status it may write"
    late = WALL_MS + LIFETIME_MS
    assert refused(held.offer(owned("n1", 2, at_ms=late), late)) == "records.author-expired"
    assert held.offer(owned("n1", 2, at_ms=late - 1), late).outcome is OfferOutcome.MERGED


def test_a_record_signed_by_another_or_for_another_mesh_is_refused() -> None:
    good = owned("n0", 1)
    forged = Signed(good.payload, good.key, FastSigner("n1").sign(good.payload))
    assert refused(store().offer(forged, WALL_MS)) == "records.signature"
    record: Record = decode(good.payload, Record)
    assert refused(store().offer(sign_record(FastSigner("n0"), b"x" * 32, record), WALL_MS)) == "records.signature"


def revocation_of(name: str, last_seq: int, last_serial: int = 9) -> tuple[Revocation, RevocationStatement]:
    body = Revocation("node", FastSigner(name).public_key, last_seq, last_serial, "stolen", WALL_MS)
    return body, revoke(ADMIN, MESH, body)


def revocation_by(author: str, name: str, last_seq: int) -> Signed:
    key, body = revocation_record(*revocation_of(name, last_seq))
    return immutable(author, "revocation", body, key=key)


def test_a_revocation_voids_what_its_node_wrote_after_the_cutoff_and_nothing_before() -> None:
    held = store()
    held.offer(immutable("n1", body=b"old", seq=5), WALL_MS)
    held.offer(immutable("n1", body=b"new", seq=6), WALL_MS)
    held.offer(owned("n1", 7, key=make_key("load", fast_id("n1")), kind="ephemeral", ttl_ms=1000), WALL_MS)
    assert (held.last_seq(fast_id("n1")), held.last_seq(fast_id("n2"))) == (7, -1)
    assert held.offer(revocation_by("n0", "n1", 5), WALL_MS).outcome is OfferOutcome.MERGED
    voided = held.void_revoked(WALL_MS)
    assert sorted(entry.record.seq for entry in voided) == [6, 7]
    assert refused(held.offer(immutable("n1", body=b"new", seq=6), WALL_MS)) == "records.revoked"
    assert held.offer(immutable("n1", body=b"older", seq=4), WALL_MS).outcome is OfferOutcome.MERGED
    assert held.void_revoked(WALL_MS) == []


def test_a_revocation_counts_whoever_carries_it() -> None:
    held = store()
    held.offer(revocation_by("n1", "n1", -1), WALL_MS)
    assert held.void_revoked(WALL_MS) == [], "a node that carries its own revocation does not take it back"
    assert held.offer(revocation_by("eve", "n2", 3), WALL_MS).outcome is OfferOutcome.MERGED


def test_trust_records_are_believed_or_refused_by_their_content() -> None:
    held = RecordStore(trust_of(("n0",)))
    key, body = certificate_record(fast_id("n1"), certificate("n1"))
    assert held.offer(immutable("eve", "certificate", body, key=key), WALL_MS).outcome is OfferOutcome.MERGED
    assert held.trust.certificate(fast_id("n1")) is not None
    other = make_key("certificate", fast_id("n2"), digest(body).hex())
    assert refused(held.offer(immutable("n0", "certificate", body, key=other), WALL_MS)) == "records.key"
    junk = immutable("n0", "certificate", b"junk", key=make_key("certificate", fast_id("n1"), digest(b"junk").hex()))
    assert refused(held.offer(junk, WALL_MS)) == "records.body"
    forged = encode(RevocationStatement(certificate("n1")))
    bad = immutable("n0", "revocation", forged)
    assert refused(held.offer(bad, WALL_MS)) == "revocation.signature"


def test_a_certificate_whose_issuer_is_unknown_is_kept_for_members_only() -> None:
    from protocols.trust.certificates import issue

    held = RecordStore(trust_of(("n0",)))
    unproven = issue(
        FastSigner("i"), MESH, fast_id("a"), roles=("worker",), labels=(), serial=1, wall_ms=WALL_MS,
    )  # fmt: skip
    key, body = certificate_record(fast_id("a"), unproven)
    assert refused(held.offer(immutable("eve", "certificate", body, key=key), WALL_MS)) == "records.unknown-author"
    assert held.offer(immutable("n0", "certificate", body, key=key), WALL_MS).outcome is OfferOutcome.MERGED


def test_grants_and_admissions_have_records_too() -> None:
    from tests.support.protocols.trust_world import World, signer
    from tests.unit.protocols.trust.test_trust import admitted

    world = World()
    held = RecordStore(world.trust())
    grant = world.grant("ann")
    key, body = grant_record(signer("ann").public_key, (grant,))
    mine = sign_record(signer("founder"), world.mesh, Record(key, "immutable", 1, hlc(WALL_MS), body=body))
    assert held.offer(mine, WALL_MS).outcome is OfferOutcome.MERGED
    bundle = admitted(world.trust(), world.papers("a", world.invite()))
    key, body = admission_record(bundle)
    mine = sign_record(signer("founder"), world.mesh, Record(key, "immutable", 2, hlc(WALL_MS), body=body))
    assert held.offer(mine, WALL_MS).outcome is OfferOutcome.MERGED
    assert held.trust.admission_of(signer("a").public_key) is not None
    broken = encode(Bundle(bundle.invite, bundle.join, bundle.invite))
    key = make_key("admission", "x", digest(broken).hex())
    mine = sign_record(signer("founder"), world.mesh, Record(key, "immutable", 3, hlc(WALL_MS), body=broken))
    assert refused(held.offer(mine, WALL_MS)) == "invite.malformed"
    chain = encode((world.grant("ann", by="eve"),))
    key = make_key("grant", "x", digest(chain).hex())
    mine = sign_record(signer("founder"), world.mesh, Record(key, "immutable", 4, hlc(WALL_MS), body=chain))
    assert refused(held.offer(mine, WALL_MS)) == "grant.not-by-admin"


def test_the_records_of_a_contested_node_wait_for_an_admin() -> None:
    from tests.support.protocols.trust_world import World, node_id, now, signer
    from tests.unit.protocols.trust.test_trust import admitted, certify

    world = World()
    trust, elsewhere = world.trust(), world.trust(world.certificate("i", ("issuer",)))
    elsewhere.chain_decided(elsewhere.admins, 1, [node_id("i")])
    invite = world.invite()
    admitted(trust, world.papers("a", invite))
    certify(trust, signer("founder"), node_id("a"), now())
    trust.learn_certificate(world.certificate("i", ("issuer",)), WALL_MS)
    trust.learn_bundle(admitted(elsewhere, world.papers("b", invite), by="i"))
    record = Record(make_key("status", node_id("a")), "owned", 1, hlc(WALL_MS), body=b"x")
    answer = RecordStore(trust).offer(sign_record(signer("a"), world.mesh, record), WALL_MS)
    assert refused(answer) == "records.limited"


def test_a_check_of_another_module_refuses_bodies_and_its_crash_is_only_a_refusal() -> None:
    def check(entry) -> Refusal | None:  # type: ignore[no-untyped-def]
        if entry.record.body == b"crash":
            raise RuntimeError("bug")
        return Refusal("evidence.bad", "bad") if entry.record.body == b"bad" else None

    held = RecordStore(trust := trust_of(NAMES), None, {"evidence": check}, AnyBody(trust))
    assert held.offer(immutable("n0", body=b"good"), WALL_MS).outcome is OfferOutcome.MERGED
    assert refused(held.offer(immutable("n0", body=b"bad"), WALL_MS)) == "evidence.bad"
    assert refused(held.offer(immutable("n0", body=b"crash"), WALL_MS)) == "records.check-failed"


# --- merging ----------------------------------------------------------------------------------------------------------


def test_the_highest_sequence_wins_and_a_repetition_is_known() -> None:
    held = store()
    assert held.offer(owned("n0", 2), WALL_MS).outcome is OfferOutcome.MERGED
    assert held.offer(owned("n0", 1), WALL_MS).outcome is OfferOutcome.OUTDATED
    assert held.offer(owned("n0", 2), WALL_MS).outcome is OfferOutcome.KNOWN
    assert held.offer(owned("n0", 3, tombstone=True, body=b""), WALL_MS).outcome is OfferOutcome.MERGED


def test_two_bodies_at_one_sequence_are_kept_as_proof_and_all_agree_on_the_winner() -> None:
    one, other = owned("n0", 4, b"one"), owned("n0", 4, b"other")
    winners, proofs = set(), set()
    for order in itertools.permutations((one, other)):
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
    one, other = owned("n0", 4, b"one"), owned("n0", 4, b"other")
    pair = sorted((entry_of(one), entry_of(other)), key=lambda entry: entry.digest)
    proof = EquivocationProof(pair[0].signed, pair[1].signed)
    made = proof_record(fast_id("n0"), proof)
    assert made is not None
    key, body = made
    assert store().offer(immutable("n1", "equivocation", body, key=key), WALL_MS).outcome is OfferOutcome.MERGED
    blamed = make_key("equivocation", fast_id("n1"), digest(body).hex())
    assert refused(store().offer(immutable("n2", "equivocation", body, key=blamed), WALL_MS)) == "records.proof"
    fakes = [
        EquivocationProof(one, one),
        EquivocationProof(one, Signed(other.payload, other.key, b"s" * 64)),
        EquivocationProof(Signed(b"", b"", b""), one),
    ]
    for body in (*map(encode, fakes), b"junk"):
        key = make_key("equivocation", fast_id("n0"), digest(body).hex())
        assert refused(store().offer(immutable("n1", "equivocation", body, key=key), WALL_MS)) == "records.proof"
    large = [owned("n0", 5, bytes([n]) * 16_000) for n in (1, 2)]
    assert proof_record(fast_id("n0"), EquivocationProof(*large)) is None


def test_of_two_authors_of_the_same_content_all_keep_the_same_one_and_a_tombstone_beats_both() -> None:
    first, second = immutable("n0"), immutable("n1", seq=9)
    removal = immutable("n1", seq=10, key=decode(first.payload, Record).key, body=b"ended", tombstone=True)
    kept = set()
    for order in itertools.permutations((first, second, removal)):
        held = store()
        for signed in order:
            held.offer(signed, WALL_MS)
        (entry,) = held.entries.values()
        kept.add(entry.digest)
    assert kept == {digest(removal.payload)}


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
    one, two, three = entries
    assert beats(one, two) != beats(two, one)
    if beats(one, two) and beats(two, three):
        assert beats(one, three)


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


# --- the machine ------------------------------------------------------------------------------------------------------


def machine(config: RecordsConfig | None = None, name: str = "n0") -> RecordMachine:
    trust = trust_of(NAMES)
    return RecordMachine(trust, FastSigner(name), SeededEntropy(), config, court=AnyBody(trust))


def rules(effects) -> list[str]:  # type: ignore[no-untyped-def]
    return [effect.rule for effect in effects if isinstance(effect, Reject)]


def events(effects) -> list[object]:  # type: ignore[no-untyped-def]
    return [effect.event for effect in effects if isinstance(effect, Notify)]


STATUS = make_key("status", fast_id("n0"))


def test_publishing_is_durable_before_it_is_sent() -> None:
    effects = machine().handle(Publish(STATUS, b"up"), NOW)
    assert [type(effect) for effect in effects] == [Persist, Notify, Broadcast]
    broadcast = effects[2]
    assert isinstance(broadcast, Broadcast)
    assert isinstance(broadcast.message, Push)
    assert entry_of(broadcast.message.record).record.seq == WALL_MS << SEQ_BITS


def test_a_nodes_sequence_rises_across_restarts_and_lost_disks() -> None:
    here = machine()
    disk = {}
    for body in (b"1", b"2"):
        for effect in here.handle(Publish(STATUS, body), NOW):
            if isinstance(effect, Persist):
                disk = {write.key: write.value or b"" for write in effect.writes}
    seq = here.store.entries[STATUS].record.seq
    assert here.store.entries[STATUS].record.prev
    again = machine()
    assert again.restore(disk.items(), NOW) == []
    again.handle(Publish(STATUS, b"3"), Now(0, WALL_MS - 50_000))
    assert again.store.entries[STATUS].record.seq == seq + 1
    lost = machine()
    lost.take(fast_id("n1"), [again.store.entries[STATUS].signed], NOW)
    lost.handle(Publish(STATUS, b"4"), Now(0, WALL_MS - 50_000))
    assert lost.store.entries[STATUS].record.seq == seq + 2


def test_what_may_not_be_published_says_why_and_the_same_content_twice_is_nothing() -> None:
    here = machine()
    for key, rule in (
        (make_key("status", fast_id("n1")), "records.not-owner"),
        ("/nothing/x", "records.unknown-prefix"),
    ):
        (event,) = events(here.handle(Publish(key, b"x"), NOW))
        assert isinstance(event, PublishRefused)
        assert event.refusal.rule == rule
    key = make_key("evidence", "s", digest(b"x").hex())
    assert len(here.handle(Publish(key, b"x"), NOW)) == 3
    assert here.handle(Publish(key, b"x"), NOW) == []
    here.store.offer(owned("n0", 1 << 62), WALL_MS)
    (event,) = events(here.handle(Publish(STATUS, b"x"), NOW))
    assert isinstance(event, PublishRefused)
    assert event.refusal.rule == "records.outdated"


def test_a_new_record_reaches_everybody_small_ones_at_once_and_large_ones_by_asking() -> None:
    fleet = Fleet(["n0", "n1", "n2", "n3", "n4", "n5"])
    fleet.connect_all()
    fleet.settle()
    fleet.publish("n0", STATUS, b"up")
    fleet.publish("n1", make_key("evidence", "s", digest(b"x" * 9000).hex()), b"x" * 9000)
    fleet.publish("n2", make_key("load", fast_id("n2")), b"1", ttl_ms=1000)
    started = fleet.mono_ms
    fleet.settle()
    assert fleet.mono_ms - started <= 250
    assert len(fleet.roots()) == 1
    assert all(len(node.held_keys()) == 2 and len(node.records.store.ephemeral) == 1 for node in fleet.nodes.values())
    bodies = [m for node in fleet.nodes.values() for m in node.sent_messages if isinstance(m, Records)]
    assert len(bodies) == 5, "each node fetched the large one once"
    assert all(node.disk.keys() == {key.encode() for key in node.held_keys()} for node in fleet.nodes.values())


def test_a_record_travels_through_a_line_of_nodes() -> None:
    names = [f"n{index}" for index in range(8)]
    fleet = Fleet(names)
    for one, two in itertools.pairwise(names):
        fleet.connect(one, two)
    fleet.settle()
    fleet.publish("n0", STATUS, b"up")
    fleet.settle()
    assert len(fleet.roots()) == 1


def test_a_revocation_is_pushed_to_all_voids_records_and_is_told_to_hello() -> None:
    fleet = Fleet(["n0", "n1", "n2"])
    fleet.connect_all()
    fleet.settle()
    fleet.publish("n1", make_key("status", fast_id("n1")), b"evil")
    fleet.settle()
    key, body = revocation_record(*revocation_of("n1", 0))
    fleet.publish("n0", key, body)
    fleet.settle()
    for name in ("n0", "n2"):
        kinds = [type(event) for event in fleet[name].events]
        assert TrustLearnt in kinds
        assert RecordsVoided in kinds
        assert make_key("status", fast_id("n1")) not in fleet[name].held_keys()
        assert make_key("status", fast_id("n1")).encode() not in fleet[name].disk


def test_an_equivocator_is_convicted_by_a_published_proof() -> None:
    fleet = Fleet(["n0", "n1", "n2"])
    fleet.connect_all()
    fleet.settle()
    fleet.take("n0", owned("n1", 9, b"one"))
    fleet.take("n2", owned("n1", 9, b"two"))
    fleet.settle()
    assert len(fleet.roots()) == 1
    assert any(key.startswith(f"/equivocation/{fast_id('n1')}/") for key in fleet["n0"].held_keys())
    assert any(isinstance(event, Equivocated) for node in fleet.nodes.values() for event in node.events)


def test_an_author_that_floods_pushes_is_slowed_down_and_urgent_records_are_not() -> None:
    here = machine(RecordsConfig(author_burst=3, author_rate_per_s=1))
    peer = fast_id("n1")
    answers = [rules(here.handle(Received(peer, Push(owned("n1", seq))), NOW)) for seq in range(5)]
    assert answers == [[], [], [], ["records.rate"], ["records.rate"]]
    assert rules(here.handle(Received(peer, Push(owned("n1", 9))), Now(1_000, WALL_MS))) == []
    assert rules(here.handle(Received(peer, Push(revocation_by("n1", "n2", 0))), Now(1_000, WALL_MS))) == []
    assert here.handle(Received(peer, Push(owned("n1", 9))), Now(1_000, WALL_MS)) == [], "known: not even counted"
    for index in range(AUTHORS_TRACKED_MAX + 5):
        here.handle(Received(peer, Push(owned(f"x{index}", 1))), NOW)
    assert len(here._buckets) == AUTHORS_TRACKED_MAX


def test_a_late_answer_counts_and_calls_off_neither_the_next_source_nor_what_came_with_it() -> None:
    here = machine()
    one, two = fast_id("n1"), fast_id("n2")
    large, other, unasked = (immutable("n1", body=body * 2_000) for body in (b"a", b"b", b"c"))
    for peer in (one, two):
        for signed in (large, other):
            entry = entry_of(signed)
            news = AnnouncedRecord(entry.record.key, entry.record.seq, entry.digest)
            here.handle(Received(peer, Announce((news,))), NOW)
    here.handle(Tick(), Now(2_000, WALL_MS))
    late = here.handle(Received(one, Records((large,))), Now(2_100, WALL_MS))
    assert rules(late) == []
    mixed = here.handle(Received(two, Records((large, other, unasked))), Now(2_200, WALL_MS))
    assert rules(mixed) == ["records.unasked"]
    assert set(here.store.entries) == {entry_of(signed).record.key for signed in (large, other)}


def test_bad_pushes_and_unasked_records_are_rejected() -> None:
    here = machine()
    peer = fast_id("n1")

    def answer(message: object) -> list[str]:
        return rules(here.handle(Received(peer, message), NOW))

    assert answer(Push(Signed(b"", b"", b""))) == ["records.malformed"]
    assert answer(Push(owned("eve", 1))) == ["records.unknown-author"]
    assert answer(Records((owned("n1", 1),))) == ["records.unasked"]
    assert answer(Records((Signed(b"", b"", b""),))) == ["records.malformed"]
    many = tuple(AnnouncedRecord(STATUS, 1, b"d") for _ in range(ANNOUNCED_MAX + 1))
    assert answer(Announce(many)) == ["records.announce"]
    assert answer(FetchRecords((STATUS,) * (ANNOUNCED_MAX + 1))) == ["records.fetch"]
    assert answer(TrustLearnt()) == ["records.unknown-message"]
    assert here.handle(Received(peer, Announce((AnnouncedRecord("/bad", 1, b"d"),))), NOW) == []


def test_an_announcement_that_is_not_served_is_asked_of_the_next_who_has_it() -> None:
    here = machine()
    one, two = fast_id("n1"), fast_id("n2")
    signed = owned("n1", 5, b"x" * 4000)
    item = AnnouncedRecord(make_key("status", fast_id("n1")), 5, digest(signed.payload))
    assert here.handle(Received(one, Announce((item,))), NOW) == [Send(one, FetchRecords((item.key,)))]
    assert here.handle(Received(two, Announce((item,))), NOW) == []
    assert here.deadline_ms() == 0
    here.handle(Tick(), NOW)
    assert here.deadline_ms() == 2_000
    assert here.handle(Tick(), Now(2_000, WALL_MS)) == [Send(two, FetchRecords((item.key,)))]
    effects = here.handle(Received(two, Records((signed,))), Now(2_050, WALL_MS))
    assert isinstance(events(effects)[0], RecordsMerged)
    assert here.handle(Received(one, Announce((item,))), NOW) == []
    assert here.handle(Received(one, Announce((AnnouncedRecord(item.key, 4, b"old"),))), NOW) == []
    newer = AnnouncedRecord(item.key, 6, b"new")
    assert here.handle(Received(one, Announce((newer,))), Now(3_000, WALL_MS)) == [Send(one, FetchRecords((item.key,)))]
    assert here.handle(Tick(), Now(5_000, WALL_MS)) == [], "nobody is left to ask; anti-entropy will bring it"
    for index in range(WANTED_MAX + 70):
        key = make_key("evidence", "s", digest(str(index).encode()).hex())
        here.handle(Received(one, Announce((AnnouncedRecord(key, 1, b"d"),))), NOW)
    assert len(here._wanted) == WANTED_MAX


def test_served_records_are_split_into_bounded_messages() -> None:
    here = machine()
    keys = []
    for index in range(8):
        body = bytes([index]) * 12_000
        keys.append(make_key("evidence", "s", digest(body).hex()))
        here.handle(Publish(keys[-1], body), NOW)
    sent = here.handle(Received(fast_id("n1"), FetchRecords((*keys, make_key("evidence", "s", "0" * 64)))), NOW)
    assert len(sent) == 2
    assert sum(len(effect.message.records) for effect in sent if isinstance(effect, Send)) == 8
    assert all(len(encode(effect.message)) < MESSAGE_RECORDS_BYTES + 500 for effect in sent if isinstance(effect, Send))


def test_a_parked_record_is_merged_when_its_time_has_come() -> None:
    here = machine()
    far = owned("n1", 1, at_ms=WALL_MS + 3_600_000)
    assert here.handle(Received(fast_id("n1"), Push(far)), NOW) == []
    here.handle(Tick(), Now(0, WALL_MS))
    assert here.handle(Tick(), Now(60_000, WALL_MS + 60_000)) == []
    effects = here.handle(Tick(), Now(3_540_000, WALL_MS + 3_540_000))
    assert isinstance(events(effects)[0], RecordsMerged)
    assert here.handle(Publish(STATUS, b"x"), NOW), "our clock was not moved by it before"
    here.handle(Tick(), Now(3_600_000, WALL_MS + 3_600_000))
    assert here._parked_check_ms is None


def test_parked_records_are_looked_at_in_time_however_many_more_are_parked() -> None:
    here = machine()
    first, *more = [immutable("n1", body=b"%d" % n, at_ms=WALL_MS + 130_000 + 50_000 * n) for n in range(9)]
    here.handle(Received(fast_id("n1"), Push(first)), NOW)
    for at_ms, signed in enumerate(more, 1):
        here.handle(Received(fast_id("n1"), Push(signed)), Now(50_000 * at_ms, WALL_MS + 50_000 * at_ms))
        due_ms = here.deadline_ms()
        assert due_ms is not None
        if due_ms <= 50_000 * at_ms:
            here.handle(Tick(), Now(50_000 * at_ms, WALL_MS + 50_000 * at_ms))
    assert entry_of(first).record.key in here.store.entries


def test_sweeping_erases_the_expired_and_restoring_ignores_damage() -> None:
    here = machine()
    key = make_key("prepared", fast_id("n0"), "c")
    persisted = next(
        effect for effect in here.handle(Publish(key, b"x", ttl_ms=1_000), NOW) if isinstance(effect, Persist)
    )
    row = (persisted.writes[0].key, persisted.writes[0].value or b"")
    erased = here.handle(Tick(), Now(60_000, WALL_MS + 60_000))
    assert [write.value for effect in erased if isinstance(effect, Persist) for write in effect.writes] == [None]
    again = machine()
    rows = [row, (b"k", b"junk"), (b"k", encode(Signed(b"", b"", b"")))]
    effects = again.restore(rows, Now(0, WALL_MS + 60_000))
    assert again.store.entries == {}
    erased = [write for effect in effects if isinstance(effect, Persist) for write in effect.writes]
    assert erased == [Write(RECORD_TABLE, row[0], None)], "what ran out while the node was down leaves its disk too"
    assert signed_records([(b"k", b"junk")]) == []


def test_a_restart_learns_trust_from_its_records_and_voids_what_was_revoked_meanwhile() -> None:
    rows = [(b"k", encode(signed)) for signed in (owned("n1", 5), revocation_by("n0", "n1", 0))]
    key, body = certificate_record(fast_id("n9"), certificate("n9"))
    rows.append((b"c", encode(immutable("n0", "certificate", body, key=key))))
    here = machine()
    effects = here.restore(rows, NOW)
    assert [type(event) for event in events(effects)] == [RecordsVoided]
    assert here.store.trust.certificate(fast_id("n9")) is not None
    assert here.handle(TrustChanged(), NOW) == []


def test_connections_decide_whom_news_is_passed_to() -> None:
    here = machine(RecordsConfig(relay_fanout=1))
    assert here.handle(PeerConnected(fast_id("n1"), inbound=True), NOW) == []
    here.handle(PeerConnected(fast_id("n2"), inbound=True), NOW)
    effects = here.handle(Received(fast_id("n1"), Push(owned("n1", 1))), NOW)
    assert [effect.peer for effect in effects if isinstance(effect, Send)] == [fast_id("n2")]
    here.handle(PeerDisconnected(fast_id("n2")), NOW)
    effects = here.handle(Received(fast_id("n1"), Push(owned("n1", 2))), NOW)
    assert not [effect for effect in effects if isinstance(effect, Send)]


def test_a_batch_brings_certificates_before_what_their_subjects_wrote() -> None:
    trust = trust_of(("n0",))
    here = RecordMachine(trust, FastSigner("n0"), SeededEntropy(), court=AnyBody(trust))
    key, body = certificate_record(fast_id("n1"), certificate("n1"))
    batch = [owned("n1", 1), Signed(b"", b"", b""), immutable("n0", "certificate", body, key=key)]
    effects = here.take(fast_id("n2"), batch, NOW)
    assert rules(effects) == ["records.malformed"]
    assert len(here.store.entries) == 2


def test_a_lossy_network_still_informs_nearly_everybody_at_once() -> None:
    names = [f"n{index}" for index in range(12)]
    fleet = Fleet(names, FleetConfig(), loss=0.1, seed=4)
    fleet.connect_all()
    fleet.settle()
    for round_number in range(10):
        fleet.publish("n0", STATUS, str(round_number).encode())
        fleet.settle()
        informed = sum(
            node.records.store.entries[STATUS].record.body == str(round_number).encode()
            for node in fleet.nodes.values()
            if STATUS in node.records.store.entries
        )
        assert informed >= 11
