"""Trust, hello, renewal, records and sync together: nodes that join, renew, meet and are thrown out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from protocols.envelope import Signed, encode
from protocols.keys import Ed25519Signer
from protocols.machine import (
    Broadcast,
    Disconnect,
    Effect,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Received,
    Send,
    Tick,
)
from protocols.records.credentials import admission_record, certificate_record, revocation_record
from protocols.records.gossip import Publish, Push, RecordMachine, RecordMessage, RecordsMerged, TrustLearnt
from protocols.records.sync import SyncMachine, SyncMessage
from protocols.refusal import Refusal
from protocols.trust.certificates import RENEW_AFTER_MS
from protocols.trust.hello import ALLOWED, Admitted, HelloMachine, HelloMessage, Invited, RefusedBy
from protocols.trust.invites import Address, read_line, write_line
from protocols.trust.joining import Joined, JoinMachine
from protocols.trust.renewal import RenewalMachine, RenewalMessage, Renewed
from protocols.trust.store import Standing, TrustChanged, TrustStore
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, SeededEntropy, World, node_id, signer

WORLD = World()


class Node:
    """The smallest composer: routes messages by family, turns news into records, tells hello what trust learnt."""

    def __init__(self, net: Net, name: str, trust: TrustStore) -> None:
        self.net, self.name, self.peer, self.trust = net, name, node_id(name), trust
        key: Ed25519Signer = signer(name)
        entropy = SeededEntropy(len(net.nodes))
        self.hello = HelloMachine(trust, key, VERIFIER, entropy, boot_nonce=entropy.random_bytes(8))
        self.records = RecordMachine(trust, key, entropy)
        self.sync = SyncMachine(self.records, trust, key, entropy)
        self.renewal = RenewalMachine(trust, key, entropy)
        self.refusals: list[str] = []

    def connected(self, peer: PeerId) -> None:
        self.perform(self.hello.handle(PeerConnected(peer, inbound=True), self.net.now))

    def disconnected(self, peer: PeerId) -> None:
        for machine in (self.hello, self.records, self.sync):
            self.perform(machine.handle(PeerDisconnected(peer), self.net.now))

    def received(self, peer: PeerId, message: Any) -> None:
        standing = self.hello.standing(peer)
        family, machine = self.route(message)
        if family != "hello" and (standing is None or family not in ALLOWED[standing]):
            machine = self.hello if standing is None else None
        if machine is not None:
            self.perform(machine.handle(Received(peer, message), self.net.now))

    def route(self, message: Any) -> tuple[Any, Any]:
        if isinstance(message, HelloMessage):
            return "hello", self.hello
        if isinstance(message, RenewalMessage):
            return "renewal", self.renewal
        if isinstance(message, SyncMessage):
            return "sync", self.sync
        assert isinstance(message, RecordMessage)
        return "records", self.records

    def publish(self, key: str, body: bytes) -> None:
        self.perform(self.records.handle(Publish(key, body), self.net.now))

    def tick(self) -> None:
        self.renewal.connected_issuers = tuple(
            peer for peer in self.hello.admitted() if self.trust.has_role(peer, "issuer", self.net.now.wall_ms)
        )
        for machine in (self.hello, self.records, self.sync, self.renewal):
            due_ms = machine.deadline_ms()
            if due_ms is not None and due_ms <= self.net.now.mono_ms:  # no machine is asked before, as in a node
                self.perform(machine.handle(Tick(), self.net.now))

    def perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.net.send(self.peer, effect.peer, effect.message)
                case Broadcast():
                    for peer in self.hello.admitted():
                        if peer not in effect.exclude:
                            self.net.send(self.peer, peer, effect.message)
                case Disconnect():
                    self.net.cut(self.peer, effect.peer)
                case Notify():
                    self.noticed(effect.event)
                case _:
                    pass

    def noticed(self, event: object) -> None:
        match event:
            case Admitted():
                for machine in (self.records, self.sync):
                    self.perform(machine.handle(PeerConnected(event.peer, inbound=True), self.net.now))
            case Invited():
                self.publish(*admission_record(event.bundle))
                self.publish(*certificate_record(event.peer, event.certificate))
            case Renewed():
                self.publish(*certificate_record(event.node, event.certificate))
            case TrustLearnt():
                self.perform(self.hello.handle(TrustChanged(), self.net.now))
            case RefusedBy():
                self.refusals.append(event.rule)
            case RecordsMerged() | _:
                pass


class Net:
    def __init__(self) -> None:
        self.nodes: dict[PeerId, Any] = {}
        self.links: dict[frozenset[PeerId], None] = {}
        self.queue: list[tuple[PeerId, PeerId, object]] = []
        self.now = Now(0, WALL_MS)

    def add(self, name: str, trust: TrustStore) -> Node:
        node = Node(self, name, trust)
        self.nodes[node.peer] = node
        return node

    def connect(self, one: PeerId, two: PeerId) -> None:
        self.links[frozenset((one, two))] = None
        for here, there in ((one, two), (two, one)):
            self.nodes[here].connected(there)
        self.run()

    def cut(self, one: PeerId, two: PeerId) -> None:
        if self.links.pop(frozenset((one, two)), 1) is None:
            self.run()  # what was sent before the close arrives
            for here, there in ((one, two), (two, one)):
                self.nodes[here].disconnected(there)

    def send(self, source: PeerId, target: PeerId, message: object) -> None:
        if frozenset((source, target)) in self.links:
            self.queue.append((target, source, message))

    def run(self) -> None:
        while self.queue:
            target, source, message = self.queue.pop(0)
            self.nodes[target].received(source, message)

    def later(self, mono_ms: int, wall_ms: int | None = None) -> None:
        self.now = Now(self.now.mono_ms + mono_ms, self.now.wall_ms + (mono_ms if wall_ms is None else wall_ms))
        for node in list(self.nodes.values()):
            node.tick()
        self.run()


class Joiner:
    """A newcomer with nothing but a pasted line."""

    def __init__(self, net: Net, name: str, invite: Signed) -> None:
        line = read_line(write_line(b"k" * 32, invite, (Address("/ip4/127.0.0.1/tcp/1", node_id("founder")),)))
        self.net, self.peer = net, node_id(name)
        self.machine = JoinMachine(line, signer("invite"), signer(name), VERIFIER, SeededEntropy(9), name=name)
        net.nodes[self.peer] = self

    def connected(self, peer: PeerId) -> None:
        self.perform(self.machine.handle(PeerConnected(peer, inbound=False), self.net.now))

    def received(self, peer: PeerId, message: object) -> None:
        self.perform(self.machine.handle(Received(peer, message), self.net.now))

    def disconnected(self, peer: PeerId) -> None:
        self.perform(self.machine.handle(PeerDisconnected(peer), self.net.now))

    def perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.net.send(self.peer, effect.peer, effect.message)


def join(net: Net, name: str, invite: Signed) -> Node:
    founder = node_id("founder")
    joiner = Joiner(net, name, invite)
    net.connect(founder, joiner.peer)
    joined = joiner.machine.joined
    assert isinstance(joined, Joined)
    net.cut(founder, joiner.peer)
    trust = TrustStore(VERIFIER, joined.genesis)
    trust.learn_credentials(joined.admitted_by_credentials, WALL_MS)
    trust.learn_credentials(joined.credentials, WALL_MS)
    node = net.add(name, trust)
    net.connect(founder, node.peer)
    return node


def mesh() -> tuple[Net, Node, Node]:
    net = Net()
    founder = net.add("founder", WORLD.trust())
    founder.publish(*certificate_record(founder.peer, founder.trust.credentials(founder.peer).certificates[0]))
    first = join(net, "a", WORLD.invite(uses=3))
    return net, founder, first


def test_members_that_joined_separately_learn_of_each_other_by_records_and_meet() -> None:
    net, founder, a = mesh()
    b = join(net, "b", WORLD.invite(uses=3))
    assert a.trust.standing(b.peer, WALL_MS) is Standing.JOINED
    assert b.trust.standing(a.peer, WALL_MS) is Standing.JOINED
    net.connect(a.peer, b.peer)
    assert a.hello.standing(b.peer) is Standing.JOINED
    roots = {node.records.store.trie.root() for node in (founder, a, b)}
    assert len(roots) == 1
    assert len(founder.records.store.entries) == 5
    restarted = TrustStore(VERIFIER, founder.trust.genesis_bytes)
    again = RecordMachine(restarted, signer("a"), SeededEntropy())
    rows = [(b"", encode(entry.signed)) for entry in a.records.store.entries.values()]
    again.restore(rows, net.now)
    assert restarted.standing(b.peer, WALL_MS) is Standing.JOINED
    assert restarted.standing(a.peer, WALL_MS) is Standing.JOINED


def test_a_revoked_node_is_thrown_out_everywhere_and_does_not_come_back() -> None:
    net, founder, a = mesh()
    b = join(net, "b", WORLD.invite(uses=3))
    net.connect(a.peer, b.peer)
    statement = WORLD.revocation("node", signer("b").public_key, last_seq=founder.records.store.last_seq(b.peer))
    revocation = founder.trust.learn_revocation(statement)
    assert not isinstance(revocation, Refusal)
    founder.publish(*revocation_record(revocation, statement))
    founder.perform(founder.hello.handle(TrustChanged(), net.now))
    net.run()
    assert b.refusals
    assert set(b.refusals) == {"hello.revoked"}
    assert founder.hello.standing(b.peer) is a.hello.standing(b.peer) is None
    net.connect(a.peer, b.peer)
    assert b.refusals[-1] == "hello.revoked"
    assert a.hello.standing(b.peer) is None


def test_a_node_renews_over_the_wire_and_all_hear_of_it() -> None:
    net, founder, a = mesh()
    b = join(net, "b", WORLD.invite(uses=3))
    net.later(4_000_000, RENEW_AFTER_MS + DAY_MS)
    net.later(200_000)
    for node in (founder, a, b):
        for subject in (founder, a, b):
            certificate = node.trust.certificate(subject.peer)
            assert certificate is not None
            assert certificate.issued_ms > WALL_MS + RENEW_AFTER_MS


@pytest.mark.parametrize("slept_days", [29, 31, 80])
def test_a_mesh_whose_machines_slept_renews_when_they_wake_up(slept_days: int) -> None:
    net, founder, a = mesh()
    net.later(1_000)  # they have just looked
    net.later(1_000, slept_days * DAY_MS)  # the monotonic clock stood still meanwhile
    for _ in range(3):
        net.later(60_000)
    for node in (founder, a):
        for subject in (founder, a):
            certificate = node.trust.certificate(subject.peer)
            assert certificate is not None
            assert (certificate.issued_ms > WALL_MS + RENEW_AFTER_MS) == (slept_days > 30)


def test_a_stranger_gets_nothing_but_a_refusal() -> None:
    net, founder, _ = mesh()
    stranger = net.add("x", WORLD.trust())
    net.connect(founder.peer, stranger.peer)
    assert stranger.refusals == ["hello.stranger"]
    assert stranger.records.store.entries == {}
    net.links[frozenset((founder.peer, stranger.peer))] = None
    stranger.publish(*certificate_record(stranger.peer, WORLD.certificate("x")))
    held = dict(founder.records.store.entries)
    (entry,) = stranger.records.store.entries.values()
    founder.received(stranger.peer, Push(entry.signed))
    assert founder.records.store.entries == held
