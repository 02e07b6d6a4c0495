"""Clocks, keys, form and rights of records. Signatures are hashes here (record_world.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.envelope import DecodeError, Signed, decode, digest, encode
from protocols.machine import (
    Now,
    Received,
    Reject,
    Send,
)
from protocols.records.credentials import admission_record, certificate_record, grant_record
from protocols.records.gossip import (
    Publish,
    PublishRefused,
    RecordMessage,
)
from protocols.records.hlc import AHEAD_MAX_MS, HLC_MAX, HlcClock, ahead, wall_ms_of
from protocols.records.key_table import BODY_MAX_BYTES, KEY_TABLE, make_key, parse_key
from protocols.records.record import Record, read_record, sign_record
from protocols.records.store import (
    OfferOutcome,
    RecordStore,
)
from protocols.refusal import Refusal
from protocols.trust.admission import certify
from protocols.trust.certificates import LIFETIME_MS
from protocols.trust.invites import Bundle
from protocols.trust.revocations import RevocationStatement
from tests.support.protocols.record_asks import (
    NAMES,
    NOW,
    STATUS,
    events,
    machine,
    refused,
    revocation_by,
    store,
)
from tests.support.protocols.record_world import (
    MESH,
    AnyBody,
    FastSigner,
    certificate,
    fast_id,
    hlc,
    immutable,
    owned,
    trust_of,
)
from tests.support.protocols.trust_papers import admitted
from tests.support.protocols.trust_world import DAY_MS, WALL_MS

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
