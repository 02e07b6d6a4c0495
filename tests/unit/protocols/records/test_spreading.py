"""Spreading: what a new record costs each node, and how what comparing taught is passed on."""

from __future__ import annotations

import itertools

import pytest

from protocols.envelope import Signed
from protocols.machine import Now, PeerConnected, Send, Tick
from protocols.records.credentials import revocation_record
from protocols.records.gossip import ANNOUNCED_MAX, Announce, Push, RecordMachine, RecordsConfig
from protocols.records.key_table import make_key
from protocols.records.record import read_record
from protocols.refusal import Refusal
from protocols.trust.revocations import Revocation, RevocationStatement, sign_revocation
from tests.support.protocols.record_world import (
    ADMIN,
    MESH,
    AnyBody,
    FastSigner,
    Fleet,
    fast_id,
    immutable,
    owned,
    trust_of,
)
from tests.support.protocols.trust_world import WALL_MS, SeededEntropy

NOW = Now(0, WALL_MS)
STATUS = make_key("status", fast_id("n0"))


def revoked(name: str) -> tuple[Revocation, RevocationStatement]:
    body = Revocation("node", FastSigner(name).public_key, 0, 9, "stolen", WALL_MS)
    return body, sign_revocation(ADMIN, MESH, body)


def key_of(signed: Signed) -> str:
    entry = read_record(signed)
    assert not isinstance(entry, Refusal)
    return entry.record.key


@pytest.mark.parametrize("count", [8, 16, 32])
def test_an_urgent_record_costs_each_node_a_fixed_few_messages(count: int) -> None:
    names = [f"n{index}" for index in range(count)]
    fleet = Fleet(names)
    fleet.connect_all()
    fleet.settle()
    for node in fleet.nodes.values():
        node.sent_messages.clear()
    fleet.publish("n0", *revocation_record(*revoked("n1")))
    fleet.settle()
    assert len(fleet.roots()) == 1
    pushes = sum(isinstance(message, Push) for node in fleet.nodes.values() for message in node.sent_messages)
    assert pushes == (count - 1) * (1 + RecordsConfig().relay_fanout)


def test_what_comparing_taught_is_announced_in_one_message_to_a_few_and_not_to_who_told_it() -> None:
    config = RecordsConfig(relay_fanout=2)
    trust = trust_of([f"n{index}" for index in range(6)])
    here = RecordMachine(trust, FastSigner("n0"), SeededEntropy(), config, court=AnyBody(trust))
    peers = [fast_id(f"n{index}") for index in range(1, 6)]
    for peer in peers:
        here.handle(PeerConnected(peer, inbound=True), NOW)
    first, second = [owned("n1", 1)], [immutable("n2", body=b"%d" % number) for number in range(70)]
    here.handle(Tick(), NOW)
    assert not [entry for entry in here.learn(peers[0], first, NOW) if isinstance(entry, Send)]
    later = Now(100, WALL_MS)
    assert not [entry for entry in here.learn(peers[1], second, later) if isinstance(entry, Send)]
    assert here.deadline_ms() == config.gather_ms
    assert not [entry for entry in here.handle(Tick(), Now(config.gather_ms - 1, WALL_MS)) if isinstance(entry, Send)]
    sent = [entry for entry in here.handle(Tick(), Now(config.gather_ms, WALL_MS)) if isinstance(entry, Send)]
    assert len({entry.peer for entry in sent}) == config.relay_fanout
    assert len(sent) == config.relay_fanout * 2, "71 names are two messages"
    for send in sent:
        assert isinstance(send.message, Announce)
        assert len(send.message.records) <= ANNOUNCED_MAX
    for peer in {entry.peer for entry in sent}:
        named = [
            item.key
            for entry in sent
            if entry.peer == peer and isinstance(entry.message, Announce)
            for item in entry.message.records
        ]
        told = {peers[0]: second, peers[1]: first}.get(peer, [*first, *second])
        assert sorted(named) == sorted(key_of(signed) for signed in told)
    assert not [entry for entry in here.handle(Tick(), Now(9_000, WALL_MS)) if isinstance(entry, Send)], "and only once"


def test_what_a_bridge_learnt_by_comparing_reaches_all_behind_it_before_their_next_comparison() -> None:
    near, far = [f"n{index}" for index in range(4)], [f"n{index}" for index in range(4, 12)]
    fleet = Fleet([*near, *far])
    for side in (near, far):
        for text, two in itertools.combinations(side, 2):
            fleet.connect(text, two)
    fleet.settle()
    fleet.publish("n0", STATUS, b"written while the two were apart")
    fleet.publish("n0", make_key("change", "shop", "00" * 32), b"x" * 4_000)
    fleet.settle()
    fleet.connect("n1", "n4")
    fleet.run(RecordsConfig().gather_ms + 1_000)
    assert len(fleet.roots()) == 1
