"""Anti-entropy: two nodes or a few, with hashes in place of signatures (record_world.py)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.envelope import DecodeError, Signed, decode, digest, encode
from protocols.machine import Now, PeerConnected, PeerDisconnected, PeerId, Persist, Received, Reject, Send, Tick
from protocols.records.floors import Contact, FloorVector, Moment
from protocols.records.gossip import Publish, RecordsConfig
from protocols.records.key_table import make_key
from protocols.records.quotas import RecordLimits
from protocols.records.record import read_record
from protocols.records.sync import (
    LEAVES_ASKED_MAX,
    AnsweredEqual,
    LeafIds,
    NodeHashes,
    SyncAnswer,
    SyncBusy,
    SyncConfig,
    Synced,
    SyncEqual,
    SyncLeaves,
    SyncMachine,
    SyncMessage,
    SyncNodes,
    SyncRecords,
    SyncRoot,
    _Session,
)
from protocols.records.trie import EMPTY, HASH_BYTES, LEAVES, WIDTH, id_of, leaf_of
from protocols.refusal import Refusal
from tests.support.protocols.record_world import Fleet, FleetConfig, fast_id, fill, immutable, owned
from tests.support.protocols.trust_world import DAY_MS, WALL_MS

# --- two nodes --------------------------------------------------------------------------------------------------------


def numbered(author: str, count: int, first: int = 0) -> list[Signed]:
    return [
        immutable(author, body=b"%d of %s" % (number, author.encode()), seq=number)
        for number in range(first, first + count)
    ]


def sessions(fleet: Fleet) -> list[Synced]:
    return [event for node in fleet.nodes.values() for event in node.events if isinstance(event, Synced)]


def test_equal_sets_cost_one_round() -> None:
    fleet = Fleet(["n0", "n1"])
    for name in ("n0", "n1"):
        fill(fleet, name, numbered("n0", 50))
    fleet.connect("n0", "n1")
    fleet.settle()
    (session,) = sessions(fleet)
    assert (session.equal, session.rounds) == (True, 1)
    assert sum(len(node.sent_messages) for node in fleet.nodes.values()) == 2
    assert sum(node.sent_bytes for node in fleet.nodes.values()) < 400


def test_differences_are_found_and_exchanged_both_ways() -> None:
    fleet = Fleet(["n0", "n1"])
    shared = numbered("n0", 300)
    fill(fleet, "n0", [*shared, *numbered("n0", 5, 1000), owned("n1", 1)])
    fill(fleet, "n1", [*shared, *numbered("n1", 7), owned("n1", 2)])
    fleet.connect("n0", "n1")
    fleet.settle()
    assert len(fleet.roots()) == 1
    (session,) = sessions(fleet)
    assert session.equal
    assert session.rounds == 4
    assert (session.received, session.sent) == (8, 5)
    assert not [rule for node in fleet.nodes.values() for rule in node.rejects]
    assert fleet["n0"].disk.keys() == {key.encode() for key in fleet["n0"].held_keys()}


def test_a_newcomer_gets_everything_in_bounded_messages() -> None:
    config = FleetConfig(sync=SyncConfig(answer_max_bytes=8_000))
    fleet = Fleet(["n0", "n1"], config)
    fill(fleet, "n1", numbered("n1", 2_000))
    fleet.connect("n0", "n1")
    fleet.settle()
    assert len(fleet.roots()) == 1
    (session,) = sessions(fleet)
    assert session.received == 2_000
    assert max(len(encode(message)) for message in fleet["n1"].sent_messages) < 70_000


def test_a_large_difference_the_other_way_is_sent_too() -> None:
    fleet = Fleet(["n0", "n1"])
    fill(fleet, "n0", numbered("n0", 2_000))
    fleet.connect("n0", "n1")
    fleet.settle()
    assert len(fleet.roots()) == 1
    assert sessions(fleet)[0].sent == 2_000


def test_nodes_that_lost_every_push_agree_after_some_rounds_of_the_timer() -> None:
    names = ["n0", "n1", "n2", "n3"]
    fleet = Fleet(names, loss=0.0, seed=3)
    fleet.connect_all()
    fleet.settle()
    fleet.loss = 1.0
    for name in names:
        fleet.publish(name, make_key("status", fast_id(name)), b"alone")
    fleet.settle()
    fleet.loss = 0.05
    fleet.run(240_000)
    assert len(fleet.roots()) == 1
    assert len(fleet["n0"].held_keys()) >= 4


def test_a_session_whose_answer_is_lost_times_out_and_the_next_one_works() -> None:
    fleet = Fleet(["n0", "n1"], loss=1.0)
    fill(fleet, "n0", numbered("n0", 3))
    fleet.connect("n0", "n1")
    fleet.run(9_000)
    assert sessions(fleet) == []
    fleet.run(2_000)
    assert [session.equal for session in sessions(fleet)] == [False, False], "each side had asked once"
    fleet.loss = 0.0
    fleet.run(60_000)
    assert len(fleet.roots()) == 1


def test_both_sides_hear_that_they_hold_the_same_whoever_asked() -> None:
    fleet = Fleet(["n0", "n1"])
    fill(fleet, "n0", numbered("n0", 3))
    fleet.connect("n0", "n1")
    fleet.settle()
    heard = {
        node.name: {type(event) for event in node.events if isinstance(event, Synced | AnsweredEqual)}
        for node in fleet.nodes.values()
    }
    assert sorted(map(len, heard.values())) == [1, 1]
    assert set.union(*heard.values()) == {Synced, AnsweredEqual}


def test_when_the_asked_peer_leaves_the_next_in_line_is_asked_at_once() -> None:
    fleet = Fleet(["n0", "n1", "n2"], loss=1.0)
    fill(fleet, "n0", numbered("n0", 3))
    fleet.connect_all()
    asker = next(node for node in fleet.nodes.values() if node.sync._eager)
    asked, waits = asker.sync._session, asker.sync._eager[0]
    assert asked is not None
    fleet.loss = 0.0
    fleet.disconnect(asker.name, fleet.nodes[asked.peer].name)
    assert asker.sync._session is not None
    assert asker.sync._session.peer == waits
    assert not asker.sync._eager


def test_a_peer_that_leaves_in_the_middle_is_forgotten() -> None:
    fleet = Fleet(["n0", "n1", "n2"])
    fill(fleet, "n0", numbered("n0", 3))
    fleet.connect_all()
    fleet.disconnect("n0", "n1")
    fleet.disconnect("n0", "n2")
    fleet.disconnect("n1", "n2")
    fleet.settle()
    assert all(node.sync._session is None and not node.sync._eager for node in fleet.nodes.values())
    fleet.run(100_000)
    fleet.connect_all()
    fleet.run(60_000)
    assert len(fleet.roots()) == 1


def test_a_peer_out_of_tokens_is_told_so_and_served_later() -> None:
    config = FleetConfig(sync=SyncConfig(serve_burst_bytes=3_000, serve_bytes_per_s=100))
    fleet = Fleet(["n0", "n1"], config)
    fill(fleet, "n1", numbered("n1", 30))
    fleet.connect("n0", "n1")
    fleet.settle()
    assert 0 < len(fleet["n0"].held_keys()) < 30
    assert not sessions(fleet)[0].equal
    fleet.run(600_000)
    assert len(fleet.roots()) == 1


def test_records_that_must_be_refused_do_not_make_a_session_endless() -> None:
    fleet = Fleet(["n0", "n1"], FleetConfig(sync=SyncConfig(answer_max_bytes=1_000)))
    fleet["n0"].records.store.limits = RecordLimits(records_max=5)
    fleet["n0"].records.store.trie.put("/ghost", b"x" * 32)
    fleet["n0"].records.store.trie.remove("/ghost")
    fill(fleet, "n1", numbered("n1", 40))
    fleet.connect("n0", "n1")
    fleet.settle()
    assert len(fleet["n0"].held_keys()) == 5
    assert [session.equal for session in sessions(fleet)] == [False]
    full = Fleet(["n0", "n1"])
    full["n0"].records.store.limits = RecordLimits(records_max=0)
    fill(full, "n1", numbered("n1", 3))
    full.connect("n0", "n1")
    full.settle()
    assert [session.equal for session in sessions(full)] == [False]


# --- one machine facing nonsense --------------------------------------------------------------------------------------


def pair() -> tuple[Fleet, SyncMachine, PeerId]:
    fleet = Fleet(["n0", "n1"])
    fill(fleet, "n0", numbered("n0", 3))
    machine, peer = fleet["n0"].sync, fast_id("n1")
    machine.handle(PeerConnected(peer, inbound=True), Now(0, WALL_MS))
    return fleet, machine, peer


NOBODY = Contact(FloorVector(()), 0)

HASHES = b"h" * (WIDTH * HASH_BYTES)


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        (SyncNodes(1, (NodeHashes(16, HASHES),)), "sync.nodes"),
        (SyncNodes(1, (NodeHashes(0, b"short"),)), "sync.nodes"),
        (SyncLeaves((LeafIds(LEAVES, b""),)), "sync.leaves"),
        (SyncLeaves((LeafIds(0, b"x"),)), "sync.leaves"),
        (SyncLeaves((LeafIds(0, b""),) * (LEAVES_ASKED_MAX + 1)), "sync.leaves"),
        (SyncRecords((owned("n1", 1),)), "sync.unasked"),
        (SyncEqual(NOBODY), "sync.unasked"),
        (SyncAnswer((), (), False), "sync.unasked"),
        (Publish("/x"), "sync.unknown-message"),
    ],
)
def test_nonsense_is_rejected_by_name(message: object, rule: str) -> None:
    _, machine, peer = pair()
    machine._session = None
    effects = machine.handle(Received(peer, message), Now(0, WALL_MS))
    assert [effect.rule for effect in effects if isinstance(effect, Reject)] == [rule]
    stranger = machine.handle(Received(fast_id("n9"), message), Now(0, WALL_MS))
    assert [effect.rule for effect in stranger if isinstance(effect, Reject)] == ["sync.not-connected"]


@pytest.mark.parametrize("resync", [False, True])
def test_a_record_that_is_wanted_many_times_over_is_given_or_forgotten_once(resync: bool) -> None:
    fleet, machine, peer = pair()
    old = immutable("n0", at_ms=WALL_MS - 40 * DAY_MS)
    before = fleet["n0"].held_keys()
    fleet.take("n0", old)
    (key,) = set(fleet["n0"].held_keys()) - set(before)
    machine._session = _Session(peer, 0, asked=(leaf_of(key),), resync=resync)
    held = id_of(key, fleet["n0"].records.store.entries[key].digest)
    effects = machine.handle(Received(peer, SyncAnswer((), (LeafIds(leaf_of(key), held * 3),), False)), Now(0, WALL_MS))
    entries = [
        effect.message.records
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, SyncRecords)
    ]
    assert entries == ([] if resync else [(old,)])
    assert fleet["n0"].held_keys() == sorted(before if resync else [*before, key])


def test_nonsense_in_an_answer_is_rejected_and_the_session_times_out() -> None:
    fleet, machine, peer = pair()
    if machine._session is None:
        machine.handle(Tick(), Now(0, WALL_MS))
    for message in (
        SyncNodes(1, ()), SyncNodes(3, ()), SyncNodes(0, (NodeHashes(0, b""),)), SyncNodes(0, (NodeHashes(1, HASHES),)),
        SyncNodes(0, (NodeHashes(0, HASHES),) * 2), SyncAnswer((), (), False),
    ):  # fmt: skip
        effects = machine.handle(Received(peer, message), Now(0, WALL_MS))
        assert not any(isinstance(effect, Send) and isinstance(effect.message, SyncLeaves) for effect in effects)
    assert machine._session is not None
    machine.handle(Tick(), Now(20_000, WALL_MS))
    assert machine._session is None
    machine.handle(Tick(), Now(100_000, WALL_MS))
    assert machine._session is not None
    effects = machine.handle(Received(peer, SyncBusy()), Now(100_000, WALL_MS))
    assert machine._session is None
    assert fleet["n0"].rejects == []


def test_a_peer_that_asks_too_often_is_put_off() -> None:
    fleet = Fleet(["n0", "n1"], FleetConfig(sync=SyncConfig(requests_burst=2, requests_per_s=1)))
    machine, peer = fleet["n0"].sync, fast_id("n1")
    machine.handle(PeerConnected(peer, inbound=True), Now(0, WALL_MS))
    answers = [machine.handle(Received(peer, SyncRoot(EMPTY, NOBODY)), Now(0, WALL_MS)) for _ in range(3)]
    assert isinstance(answers[1][0], Send)
    assert isinstance(answers[1][0].message, SyncEqual)
    assert isinstance(answers[2][0], Send)
    assert isinstance(answers[2][0].message, SyncBusy)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_random_bytes_are_a_decode_error_or_a_clear_answer(data: bytes) -> None:
    try:
        message = decode(data, SyncMessage)
    except DecodeError:
        return
    _, machine, peer = pair()
    for effect in machine.handle(Received(peer, message), Now(0, WALL_MS)):
        assert isinstance(effect, Reject | Send)


# --- tombstones and long absences -------------------------------------------------------------------------------------


def test_tombstones_are_forgotten_when_all_have_seen_them_and_a_long_lost_node_revives_nothing() -> None:
    names = ["n0", "n1", "n2"]
    config = FleetConfig(records=RecordsConfig(), sync=SyncConfig(floor_every_ms=60_000))
    fleet = Fleet(names, config, seed=8)
    fleet.connect_all()
    body = b"password"
    secret = make_key("secret", "shop", "prod", "db", digest(body).hex())
    fleet.publish("n0", secret, body)
    fleet.publish("n2", make_key("status", fast_id("n2")), b"fine")
    fleet.run(300_000)
    fleet.settle()
    assert len(fleet.roots()) == 1
    assert secret in fleet["n2"].held_keys()
    for name in ("n0", "n1"):
        fleet.disconnect("n2", name)
    fleet.publish("n0", secret, b"ended", tombstone=True)
    fleet.run(300_000)
    fleet.settle()
    assert fleet["n1"].records.store.entries[secret].record.tombstone
    fleet.base_wall_ms += 40 * DAY_MS
    fleet.run(300_000)
    fleet.settle()
    assert secret in fleet["n0"].held_keys(), "n2 has not seen it yet, and has not been silent for too long"
    fleet.base_wall_ms += 30 * DAY_MS
    fleet.run(900_000)
    fleet.settle()
    assert secret not in fleet["n0"].held_keys()
    assert secret not in fleet["n1"].held_keys()
    assert secret in fleet["n2"].held_keys()
    for name in ("n0", "n1"):
        fleet.connect("n2", name)
    fleet.run(300_000)
    fleet.settle()
    assert [name for name in names if secret in fleet[name].held_keys()] == []
    assert secret.encode() not in fleet["n2"].disk
    fleet.publish("n2", make_key("status", fast_id("n2")), b"back")
    fleet.run(300_000)
    fleet.settle()
    assert len(fleet.roots()) == 1
    assert fleet["n0"].records.store.entries[make_key("status", fast_id("n2"))].record.body == b"back"


def test_a_node_that_was_away_for_a_month_still_brings_what_it_wrote_and_learns_the_removal() -> None:
    fleet = Fleet(["n0", "n1"], FleetConfig(sync=SyncConfig(floor_every_ms=60_000)))
    fleet.connect_all()
    body = b"password"
    secret = make_key("secret", "shop", "prod", "db", digest(body).hex())
    fleet.publish("n0", secret, body)
    fleet.run(300_000)
    fleet.disconnect("n0", "n1")
    fleet.publish("n0", secret, b"ended", tombstone=True)
    fleet.publish("n1", make_key("status", fast_id("n1")), b"offline work")
    fleet.base_wall_ms += 35 * DAY_MS
    fleet.run(120_000)
    fleet.connect("n0", "n1")
    fleet.run(10_000)
    fleet.settle()
    assert len(fleet.roots()) == 1
    assert fleet["n1"].records.store.entries[secret].record.tombstone
    assert make_key("status", fast_id("n1")) in fleet["n0"].held_keys()
    fleet.run(300_000)
    fleet.settle()
    assert len(fleet.roots()) == 1
    assert [name for name in ("n0", "n1") if secret in fleet[name].held_keys()] == [], "all have seen it: it may go"


def test_a_restarted_node_continues_from_its_own_floor_record() -> None:
    fleet = Fleet(["n0", "n1"], FleetConfig(sync=SyncConfig(floor_every_ms=10_000)))
    fleet.connect_all()
    fleet.run(100_000)
    node = fleet["n0"]
    assert make_key("floor", fast_id("n0")) in node.held_keys()
    node.boot(fleet.now(node.peer))
    assert node.sync._floors.established
    assert not Fleet(["n0"])["n0"].sync._floors.established


def test_a_damaged_floor_record_only_keeps_tombstones_longer() -> None:
    fleet = Fleet(["n0", "n1"])
    fill(fleet, "n0", [owned("n1", 1, key=make_key("floor", fast_id("n1")), body=b"junk")])
    fleet["n0"].sync.handle(PeerConnected(fast_id("n1"), inbound=True), Now(0, WALL_MS))
    fleet["n0"].sync._floors.equal_with(FloorVector((Moment(fast_id("n1"), WALL_MS),)), WALL_MS)
    effects = fleet["n0"].sync.handle(Tick(), Now(0, WALL_MS))
    assert any(isinstance(effect, Persist) for effect in effects), "its own floor is published"
    assert fleet["n0"].records.store.floor_ms == 0
    many = FloorVector(tuple(Moment(PeerId(f"{random.Random(n).random()}"), WALL_MS) for n in range(1_000)))
    fleet["n0"].sync._floors.equal_with(many, WALL_MS)
    effects = fleet["n0"].sync.handle(Tick(), Now(3_600_000, WALL_MS))
    assert not any(isinstance(effect, Persist) for effect in effects)
    fleet["n0"].sync.handle(PeerDisconnected(fast_id("n1")), Now(0, WALL_MS))


# --- convergence ------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "cut", "mend", "restart", "wait"]), st.integers(0, 3), st.integers(0, 3)),
    max_size=20,
)


@settings(max_examples=25)
@given(STEPS, st.integers(0, 1_000))
def test_whatever_happened_all_nodes_agree_soon_after_the_network_heals(steps, seed: int) -> None:  # type: ignore[no-untyped-def]
    names = ["n0", "n1", "n2", "n3"]
    fleet = Fleet(names, loss=0.2, seed=seed)
    fleet.reorder = True
    for index, name in enumerate(names):
        fleet.wall_offset_ms[fast_id(name)] = (index - 2) * 50_000
    fleet.connect_all()
    for number, (what, first, second) in enumerate(steps):
        entry, two = names[first], names[second]
        match what:
            case "write":
                fleet.publish(entry, make_key("status", fast_id(entry)), b"%d" % number)
                body = b"x" * (second * 700) + b"%d" % number
                fleet.publish(entry, make_key("evidence", "s", digest(body).hex()), body)
            case "cut" if entry != two:
                fleet.disconnect(entry, two)
            case "mend" if entry != two:
                fleet.connect(entry, two)
            case "restart":
                node = fleet.nodes[fast_id(entry)]
                for other in fleet.neighbours(node.peer):
                    fleet.disconnect(entry, fleet.nodes[other].name)
                fleet.perform(node.peer, node.boot(fleet.now(node.peer)))
            case _:
                fleet.run(3_000)
    fleet.loss = 0.0
    for entry in names:
        for two in names:
            if entry < two:
                fleet.disconnect(entry, two)
                fleet.connect(entry, two)
    fleet.run(130_000)
    fleet.settle()
    assert len(fleet.roots()) == 1
    for node in fleet.nodes.values():
        assert node.disk.keys() == {key.encode() for key in node.held_keys()}


# --- nobody sends what was not asked for ------------------------------------------------------------------------------


def test_a_peer_gives_just_the_records_that_it_was_asked_for() -> None:
    """Right in number, right in kind, and not what was named: still unasked."""
    _, machine, peer = pair()
    asked, other = owned("n1", 1), owned("n1", 1, key=make_key("address", fast_id("n1")))
    entry = read_record(asked)
    assert not isinstance(entry, Refusal)
    machine._expected[peer] = {id_of(entry.record.key, entry.digest)}
    effects = machine.handle(Received(peer, SyncRecords((other,))), Now(0, WALL_MS))
    assert [effect.rule for effect in effects if isinstance(effect, Reject)] == ["sync.unasked"]
    newer = owned("n1", 2)
    effects = machine.handle(Received(peer, SyncRecords((newer,))), Now(0, WALL_MS))
    assert [effect.rule for effect in effects if isinstance(effect, Reject)] == ["sync.unasked"]
    effects = machine.handle(Received(peer, SyncRecords((asked,))), Now(0, WALL_MS))
    assert not [effect for effect in effects if isinstance(effect, Reject)]
    effects = machine.handle(Received(peer, SyncRecords((asked,))), Now(0, WALL_MS))
    assert [effect.rule for effect in effects if isinstance(effect, Reject)] == ["sync.unasked"], "only once"


def test_an_answer_with_records_of_other_leaves_ends_the_session() -> None:
    _, machine, peer = pair()
    signed = owned("n1", 1)
    entry = read_record(signed)
    assert not isinstance(entry, Refusal)
    mine = leaf_of(entry.record.key)
    for asked, rules in (((mine,), []), (((mine + 1) % LEAVES,), ["sync.unasked"])):
        machine._session = _Session(peer, 0, asked=asked, open_leaves=list(asked))
        effects = machine.handle(Received(peer, SyncAnswer((signed,), (), False)), Now(0, WALL_MS))
        assert [effect.rule for effect in effects if isinstance(effect, Reject)] == rules
