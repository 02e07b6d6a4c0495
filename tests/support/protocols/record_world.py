"""Nodes that hold records, on an instant or lossy network under virtual time, with hashes in place of signatures."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from protocols.envelope import Signed, decode, digest, encode
from protocols.keys import peer_id
from protocols.machine import (
    Broadcast,
    Disconnect,
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
)
from protocols.records.gossip import Publish, RecordMachine, RecordMessage, RecordsConfig
from protocols.records.key_table import make_key
from protocols.records.papers import Paper, PaperCourt
from protocols.records.record import Entry, Record, sign_record
from protocols.records.store import Check
from protocols.records.sync import SyncConfig, SyncMachine, SyncMessage
from protocols.refusal import Refusal
from protocols.trust.certificates import issue
from protocols.trust.genesis import Genesis
from protocols.trust.store import TrustStore
from tests.support.protocols.trust_world import DAY_MS, WALL_MS, SeededEntropy


class FastSigner:
    """Signs with a hash of a key derived from its name; only for tests."""

    def __init__(self, name: str) -> None:
        self.public_key = hashlib.sha256(b"key" + name.encode()).digest()

    def sign(self, message: bytes) -> bytes:
        return hashlib.sha512(self.public_key + message).digest()


class FastVerifier:
    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return hashlib.sha512(public_key + message).digest() == signature

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        return self.verify(point, message, signature)


def fast_id(name: str) -> PeerId:
    return peer_id(FastSigner(name).public_key)


ADMIN = FastSigner("admin")
GENESIS = encode(
    Genesis("home", b"n" * 16, (ADMIN.public_key,), 1, fast_id("n0"), b"s" * 16, b"", WALL_MS - 1000 * DAY_MS)
)
MESH = digest(GENESIS)


def certificate(name: str, wall_ms: int = WALL_MS, serial: int = 1) -> Signed:
    roles = ("issuer", "voter", "worker")
    return issue(ADMIN, MESH, fast_id(name), roles=roles, labels=(), serial=serial, wall_ms=wall_ms)  # type: ignore[arg-type]


def trust_of(names: Sequence[str], wall_ms: int = WALL_MS, confirmed: Sequence[str] | None = None) -> TrustStore:
    trust = TrustStore(FastVerifier(), GENESIS)
    for name in names:
        trust.learn_certificate(certificate(name, wall_ms), wall_ms)
    trust.chain_decided(trust.admins, 1, [fast_id(name) for name in (names if confirmed is None else confirmed)])
    return trust


def hlc(wall_ms: int, counter: int = 0) -> int:
    return (wall_ms << 16) + counter


def immutable(
    author: str, prefix: str = "evidence", body: bytes = b"body", at_ms: int = WALL_MS, **fields: Any
) -> Signed:
    if "key" not in fields:
        fields["key"] = make_key(prefix, "scope", digest(body).hex())
    values = {"kind": "immutable", "seq": 1, "hlc": hlc(at_ms), "body": body} | fields
    return sign_record(FastSigner(author), MESH, Record(**values))


def owned(author: str, seq: int, body: bytes = b"body", at_ms: int = WALL_MS, **fields: Any) -> Signed:
    values = {"key": make_key("status", fast_id(author)), "kind": "owned", "seq": seq, "hlc": hlc(at_ms), "body": body}
    return sign_record(FastSigner(author), MESH, Record(**(values | fields)))


class AnyBody(PaperCourt):
    """Takes every body: for tests of merging and spreading, to which a record is bytes. Papers have tests of their own."""

    def check(self, entry: Entry, wall_ms: int) -> Refusal | None:
        return None

    def paper_of(self, entry: Entry) -> Paper | None:
        return None


class Node:
    """One node's record and sync machine with its disk."""

    def __init__(self, name: str, trust: TrustStore, seed: int, config: FleetConfig) -> None:
        self.name, self.peer, self.trust, self.seed, self.config = name, fast_id(name), trust, seed, config
        self.disk: dict[bytes, bytes] = {}
        self.events: list[object] = []
        self.rejects: list[str] = []
        self.sent_bytes = 0
        self.sent_messages: list[object] = []
        self.boot(Now(0, WALL_MS))

    def boot(self, now: Now) -> list[Effect]:
        entropy = SeededEntropy(self.seed)
        signer = FastSigner(self.name)
        self.records = RecordMachine(
            self.trust, signer, entropy, self.config.records, checks=self.config.checks, court=AnyBody(self.trust)
        )
        effects = self.records.restore(self.disk.items(), now)
        self.sync = SyncMachine(self.records, self.trust, signer, entropy, self.config.sync)
        return effects

    def held_keys(self) -> list[str]:
        return sorted(self.records.store.entries)

    def root(self) -> bytes:
        return self.records.store.trie.root()


class FleetConfig:
    def __init__(
        self,
        records: RecordsConfig | None = None,
        sync: SyncConfig | None = None,
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        self.records, self.sync, self.checks = records, sync, checks


class Fleet:
    """Some nodes, fully linked unless `cut`; messages pass through their encoding."""

    def __init__(
        self, names: Sequence[str], config: FleetConfig | None = None, loss: float = 0.0, seed: int = 0
    ) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.config = config or FleetConfig()
        self.names = list(names)
        self.nodes = {
            fast_id(name): Node(name, trust_of(names), seed * 100 + index, self.config)
            for index, name in enumerate(names)
        }
        self.links: set[frozenset[PeerId]] = set()
        self.queue: list[tuple[int, int, PeerId, PeerId, bytes, bool]] = []
        self.counter = itertools.count()
        self.mono_ms = 0
        self.wall_offset_ms: dict[PeerId, int] = {}
        self.base_wall_ms = WALL_MS
        self.reorder = False
        self.last_at_ms: dict[tuple[PeerId, PeerId], int] = {}

    def __getitem__(self, name: str) -> Node:
        return self.nodes[fast_id(name)]

    def now(self, peer: PeerId) -> Now:
        return Now(self.mono_ms, self.base_wall_ms + self.mono_ms + self.wall_offset_ms.get(peer, 0))

    def connect_all(self) -> None:
        for text, two in itertools.combinations(self.names, 2):
            self.connect(text, two)

    def connect(self, one: str, two: str) -> None:
        first, second = fast_id(one), fast_id(two)
        self.links.add(frozenset((first, second)))
        for here, there in ((first, second), (second, first)):
            for machine in (self.nodes[here].records, self.nodes[here].sync):
                self.perform(here, machine.handle(PeerConnected(there, inbound=False), self.now(here)))

    def disconnect(self, one: str, two: str) -> None:
        first, second = fast_id(one), fast_id(two)
        self.links.discard(frozenset((first, second)))
        for here, there in ((first, second), (second, first)):
            for machine in (self.nodes[here].records, self.nodes[here].sync):
                self.perform(here, machine.handle(PeerDisconnected(there), self.now(here)))

    def publish(self, name: str, key: str, body: bytes = b"", **fields: Any) -> None:
        peer = fast_id(name)
        self.perform(peer, self.nodes[peer].records.handle(Publish(key, body, **fields), self.now(peer)))

    def take(self, name: str, *records: Signed) -> None:
        peer = fast_id(name)
        self.perform(peer, self.nodes[peer].records.learn(peer, records, self.now(peer)))

    def neighbours(self, peer: PeerId) -> list[PeerId]:
        return [other for other in self.nodes if frozenset((peer, other)) in self.links]

    def perform(self, peer: PeerId, effects: Sequence[Effect]) -> None:
        node = self.nodes[peer]
        for effect in effects:
            match effect:
                case Persist():
                    for write in effect.writes:
                        if write.value is None:
                            node.disk.pop(write.key, None)
                        else:
                            node.disk[write.key] = write.value
                case Send():
                    self.send(peer, effect.peer, effect.message)
                case Broadcast():
                    for other in self.neighbours(peer):
                        if other not in effect.exclude:
                            self.send(peer, other, effect.message)
                case Notify():
                    node.events.append(effect.event)
                case Reject():
                    node.rejects.append(effect.rule)
                case Disconnect():
                    raise AssertionError(effect)

    def send(self, source: PeerId, target: PeerId, message: object) -> None:
        wire = encode(message)
        self.nodes[source].sent_bytes += len(wire)
        self.nodes[source].sent_messages.append(message)
        linked = frozenset((source, target)) in self.links
        if linked and self.random.random() >= self.loss:
            at_ms = self.mono_ms + self.random.randint(5, 50)
            if not self.reorder:
                at_ms = self.last_at_ms[source, target] = max(at_ms, self.last_at_ms.get((source, target), 0))
            is_sync = isinstance(message, SyncMessage)
            heapq.heappush(self.queue, (at_ms, next(self.counter), target, source, wire, is_sync))

    def run(self, duration_ms: int) -> None:
        until_ms = self.mono_ms + duration_ms
        while self.mono_ms < until_ms:
            due = [node.records.deadline_ms() for node in self.nodes.values()]
            due += [node.sync.deadline_ms() for node in self.nodes.values()]
            next_ms = min(
                [until_ms, *(index for index in due if index is not None), *(item[0] for item in self.queue[:1])]
            )
            self.mono_ms = max(self.mono_ms, next_ms)
            while self.queue and self.queue[0][0] <= self.mono_ms:
                _, _, target, source, wire, is_sync = heapq.heappop(self.queue)
                node, now = self.nodes[target], self.now(target)
                machine: Any = node.sync if is_sync else node.records
                message = decode(wire, SyncMessage if is_sync else RecordMessage)
                self.perform(target, machine.handle(Received(source, message), now))
            for peer, node in self.nodes.items():
                for machine in (node.records, node.sync):
                    position = machine.deadline_ms()
                    if position is not None and position <= self.mono_ms:
                        self.perform(peer, machine.handle(Tick(), self.now(peer)))
                        later = machine.deadline_ms()
                        assert later is None or later > self.mono_ms, f"{machine} does not move on"

    def settle(self) -> None:
        """Deliver what is under way, without letting timers run."""
        while self.queue:
            self.mono_ms = max(self.mono_ms, self.queue[0][0])
            _, _, target, source, wire, is_sync = heapq.heappop(self.queue)
            node = self.nodes[target]
            machine: Any = node.sync if is_sync else node.records
            message = decode(wire, SyncMessage if is_sync else RecordMessage)
            self.perform(target, machine.handle(Received(source, message), self.now(target)))

    def roots(self) -> set[bytes]:
        return {node.root() for node in self.nodes.values()}


def fill(fleet: Fleet, name: str, records: list[Signed]) -> None:
    fleet.take(name, *records)
