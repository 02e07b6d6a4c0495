"""The machine that publishes, spreads and restores records. Signatures are hashes here (record_world.py)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from protocols.envelope import Signed, digest, encode
from protocols.machine import (
    Broadcast,
    Effect,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Persist,
    Received,
    Reject,
    Send,
    Tick,
    Write,
)
from protocols.records.credentials import certificate_record, revocation_record
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
    Records,
    RecordsConfig,
    RecordsMerged,
    RecordsVoided,
    TrustLearnt,
)
from protocols.records.key_table import make_key
from protocols.records.record import Entry, read_record
from protocols.records.store import signed_records
from protocols.trust.store import TrustChanged
from tests.support.protocols.record_asks import (
    NOW,
    STATUS,
    entry_of,
    events,
    machine,
    revocation_by,
    revocation_of,
)
from tests.support.protocols.record_world import (
    AnyBody,
    FastSigner,
    Fleet,
    FleetConfig,
    certificate,
    fast_id,
    immutable,
    owned,
    trust_of,
)
from tests.support.protocols.trust_world import WALL_MS, SeededEntropy


def rules(effects) -> list[str]:  # type: ignore[no-untyped-def]
    return [effect.rule for effect in effects if isinstance(effect, Reject)]


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
    lost.learn(fast_id("n1"), [again.store.entries[STATUS].signed], NOW)
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
    for text, two in itertools.pairwise(names):
        fleet.connect(text, two)
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
    fleet.run(RecordsConfig().gather_ms)
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


def test_an_author_that_floods_announcements_is_asked_at_its_pace_and_others_are_not_slowed_down() -> None:
    here = machine(RecordsConfig(author_burst=3, author_rate_per_s=1))
    peer, other = fast_id("n1"), fast_id("n2")

    def announced(by: str, teller: PeerId, names: Sequence[str], at: Now = NOW) -> list[Effect]:
        items = tuple(AnnouncedRecord(make_key("prepared", fast_id(by), name), 1, bytes(32)) for name in names)
        return list(here.handle(Received(teller, Announce(items)), at))

    effects = announced("n1", peer, [f"{number:064x}" for number in range(5)])
    assert [len(effect.message.keys) for effect in effects if isinstance(effect, Send)] == [3]
    assert rules(effects) == ["records.rate"]
    again = announced("n1", other, [f"{number:064x}" for number in range(5, 7)])
    assert rules(again) == ["records.rate"], "whoever passes them on, they are the author's"
    assert not any(isinstance(entry, Send) for entry in again)
    near = announced("n2", other, ["f" * 64])
    assert [len(entry.message.keys) for entry in near if isinstance(entry, Send)] == [1], (
        "another author has its own pace"
    )
    assert rules(near) == []
    later = announced("n1", peer, ["e" * 64], Now(1_000, WALL_MS))
    assert [len(entry.message.keys) for entry in later if isinstance(entry, Send)] == [1]


def test_a_record_is_kept_once_and_handed_on_byte_for_byte_however_its_author_encoded_it() -> None:
    signed = owned("n1", 1, b"x" * 16_000)
    entry = read_record(signed)
    assert isinstance(entry, Entry)
    assert entry.payload == b"", "it is the record as we encode it, so it is not kept beside the record"
    assert entry.signed == signed
    fields = msgspec.msgpack.decode(signed.payload)
    padded = msgspec.msgpack.encode([*fields, "of a newer release"])
    other = read_record(Signed(padded, signed.key, signed.signature))
    assert isinstance(other, Entry)
    assert other.signed.payload == padded
    assert other.digest != entry.digest


def test_a_late_answer_counts_and_calls_off_neither_the_next_source_nor_what_came_with_it() -> None:
    here = machine()
    peer_id, two = fast_id("n1"), fast_id("n2")
    large, other, unasked = (immutable("n1", body=body * 2_000) for body in (b"a", b"b", b"c"))
    for peer in (peer_id, two):
        for signed in (large, other):
            entry = entry_of(signed)
            news = AnnouncedRecord(entry.record.key, entry.record.seq, entry.digest)
            here.handle(Received(peer, Announce((news,))), NOW)
    here.handle(Tick(), Now(2_000, WALL_MS))
    late = here.handle(Received(peer_id, Records((large,))), Now(2_100, WALL_MS))
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
    here = machine(RecordsConfig(author_burst=2 * WANTED_MAX))
    peer_id, two = fast_id("n1"), fast_id("n2")
    signed = owned("n1", 5, b"x" * 4000)
    item = AnnouncedRecord(make_key("status", fast_id("n1")), 5, digest(signed.payload))
    assert here.handle(Received(peer_id, Announce((item,))), NOW) == [Send(peer_id, FetchRecords((item.key,)))]
    assert here.handle(Received(two, Announce((item,))), NOW) == []
    assert here.deadline_ms() == 0
    here.handle(Tick(), NOW)
    assert here.deadline_ms() == 2_000
    assert here.handle(Tick(), Now(2_000, WALL_MS)) == [Send(two, FetchRecords((item.key,)))]
    effects = here.handle(Received(two, Records((signed,))), Now(2_050, WALL_MS))
    assert isinstance(events(effects)[0], RecordsMerged)
    assert here.handle(Received(peer_id, Announce((item,))), NOW) == []
    assert here.handle(Received(peer_id, Announce((AnnouncedRecord(item.key, 4, b"old"),))), NOW) == []
    newer = AnnouncedRecord(item.key, 6, b"new")
    assert here.handle(Received(peer_id, Announce((newer,))), Now(3_000, WALL_MS)) == [
        Send(peer_id, FetchRecords((item.key,)))
    ]
    assert here.handle(Tick(), Now(5_000, WALL_MS)) == [], "nobody is left to ask; anti-entropy will bring it"
    for index in range(WANTED_MAX + 70):
        key = make_key("evidence", "s", digest(str(index).encode()).hex())
        here.handle(Received(peer_id, Announce((AnnouncedRecord(key, 1, b"d"),))), NOW)
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
    effects = here.learn(fast_id("n2"), batch, NOW)
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
