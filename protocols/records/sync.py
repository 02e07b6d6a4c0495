"""Anti-entropy: two nodes find where their records differ and exchange just those.

One side asks, the other answers from what it holds at that moment and keeps nothing:

    asker                          answerer
    SyncRoot(root)           ->    SyncEqual, or SyncNodes(level 0)         one round if nothing differs
    SyncNodes(level 1)       ->    SyncNodes(level 2)                       hashes of the branches that differ
    SyncLeaves(ids)          ->    SyncAnswer(records, wanted ids)          what the asker lacks, what it may send
    SyncRecords, SyncRoot    ->    SyncEqual                                what the answerer lacked; confirmation

It runs every 30 s with jitter with a random neighbour, and when one connects. Messages are bounded, answers are paid
from a token bucket per peer. Equal sets also exchange floors (floors.py). Not here: merging (store.py), and
spreading what was learnt, which records.py does as for any new record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from protocols.envelope import DecodeError, Signed, decode, encode
from protocols.keys import peer_id
from protocols.machine import (
    Effect,
    Entropy,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Received,
    Reject,
    Send,
    Signer,
    Tick,
)
from protocols.records.floors import Contact, Floors, FloorVector
from protocols.records.gossip import Publish, RecordMachine, RecordsMerged, TokenBucket, batches
from protocols.records.hlc import wall_ms_of
from protocols.records.key_table import BODY_MAX_BYTES, make_key
from protocols.records.record import Entry, read_record
from protocols.records.trie import DEPTH, HASH_BYTES, LEAVES, WIDTH, differing, id_of, leaf_of
from protocols.refusal import Refusal
from protocols.trust.store import TrustStore

LEAVES_ASKED_MAX = 256
"""Leaves in one request: 96 KiB of ids at 100,000 records."""

LEAVES_ASKED_MIN = 8
"""After a partial answer fewer leaves are asked for; this many fill one answer when all of a leaf is missing."""

IDS_MAX_BYTES = 1_024 * HASH_BYTES
"""Of one leaf: forty times what a full store holds there."""

REPEATS_MAX = 3
"""Sessions in a row with one peer while they still find differences; then the timer takes over."""


@dataclass(frozen=True, slots=True)
class SyncConfig:
    """Times in ms, sizes in bytes."""

    interval_ms: int = 30_000
    """Between sessions, times U(0.5, 1.5)."""
    timeout_ms: int = 10_000
    answer_max_bytes: int = 64 * 1024
    """Records in answer to one request, some 30 ms of signatures; what is left is asked for again."""
    serve_bytes_per_s: int = 4 * 1024 * 1024
    serve_burst_bytes: int = 16 * 1024 * 1024
    requests_per_s: int = 50
    requests_burst: int = 400
    floor_every_ms: int = 3_600_000


class SyncRoot(msgspec.Struct, frozen=True, tag="sync_root"):
    """The asker's root hash, and its floors."""

    root: bytes
    contact: Contact


class SyncEqual(msgspec.Struct, frozen=True, tag="sync_equal"):
    """The sets are equal; the answerer's floors."""

    contact: Contact


class SyncBusy(msgspec.Struct, frozen=True, tag="sync_busy"):
    """Not now."""


class NodeHashes(msgspec.Struct, frozen=True, array_like=True):
    """The 16 hashes (256 bytes) below one node of the trie."""

    index: int
    hashes: bytes


class SyncNodes(msgspec.Struct, frozen=True, tag="sync_nodes"):
    """The sender's hashes below nodes of `level`; the answer to a root also carries the answerer's floors."""

    level: int
    nodes: tuple[NodeHashes, ...]
    contact: Contact | None = None


class LeafIds(msgspec.Struct, frozen=True, array_like=True):
    """Ids of one leaf, 16 bytes each, joined."""

    leaf: int
    ids: bytes


class SyncLeaves(msgspec.Struct, frozen=True, tag="sync_leaves"):
    """All ids the asker has in these leaves."""

    leaves: tuple[LeafIds, ...]


class SyncAnswer(msgspec.Struct, frozen=True, tag="sync_answer"):
    """Records the asker lacks in these leaves, and the ids among its own that the answerer lacks.

    `partial` says that the answerer has more records for these leaves than it sent.
    """

    records: tuple[Signed, ...]
    wanted: tuple[LeafIds, ...]
    partial: bool


class SyncRecords(msgspec.Struct, frozen=True, tag="sync_records"):
    """Records the answerer lacked."""

    records: tuple[Signed, ...]


SyncMessage = SyncRoot | SyncEqual | SyncBusy | SyncNodes | SyncLeaves | SyncAnswer | SyncRecords


@dataclass(frozen=True, slots=True)
class Synced:
    """A session with `peer` ended: both hold the same (`equal`), or not yet."""

    peer: PeerId
    equal: bool
    rounds: int
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class AnsweredEqual:
    """This node, asked by `peer`, found that both hold the same: the answerer's side of a session that ended equal."""

    peer: PeerId


@dataclass(slots=True)
class _Session:
    """The asker's side of one conversation. Mutable: it lives for a few messages and nobody else sees it."""

    peer: PeerId
    heard_ms: int
    rounds: int = 1
    repeats: int = 0
    received: int = 0
    sent: int = 0
    resync: bool = False
    not_before_ms: int = 0
    asked: tuple[int, ...] = ()
    open_leaves: list[int] = field(default_factory=list)
    width: int = LEAVES_ASKED_MAX


SyncEvent = PeerConnected | PeerDisconnected | Received[SyncMessage] | Tick


class SyncMachine:
    """Asks one peer at a time, answers all."""

    def __init__(
        self,
        records: RecordMachine,
        trust: TrustStore,
        signer: Signer,
        entropy: Entropy,
        config: SyncConfig | None = None,
    ) -> None:
        """Take the node's record machine, whose store it reads and feeds; call after `records.restore`."""
        self._records = records
        self._store = records.store
        self._trust = trust
        self._entropy = entropy
        self._config = config or SyncConfig()
        self._self = peer_id(signer.public_key)
        self._floors = Floors(self._self, self._store.limits.silent_max_ms)
        own = self._floor_vector(self._self)
        if own is not None:
            self._floors.restore(own)
        self._connected: dict[PeerId, None] = {}
        self._eager: list[PeerId] = []
        self._session: _Session | None = None
        self._next_ms = 0
        self._floor_ms = 0
        self._serving: dict[PeerId, TokenBucket] = {}
        self._requests: dict[PeerId, TokenBucket] = {}
        self._expected: dict[PeerId, set[bytes]] = {}
        """Ids of the records that each peer was asked for, and no others are taken."""
        self._not_before: dict[PeerId, int] = {}

    def handle(self, event: SyncEvent, now: Now) -> Sequence[Effect]:
        """Consume one event; `PeerConnected` means admitted by hello."""
        match event:
            case PeerConnected():
                return self._peer_connected(event.peer, now)
            case PeerDisconnected():
                return self._peer_disconnected(event.peer, now)
            case Received():
                return self._received(event.peer, event.message, now)
            case Tick():
                return self._tick(now)

    def deadline_ms(self) -> int | None:
        """When the next session, timeout or floor is due."""
        if self._session is not None:
            return min(self._session.heard_ms + self._config.timeout_ms, self._floor_ms)
        return min(self._next_ms, self._floor_ms)

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _peer_connected(self, peer: PeerId, now: Now) -> list[Effect]:
        self._connected[peer] = None
        burst = float(self._config.serve_burst_bytes)
        requests = float(self._config.requests_burst)
        self._serving[peer] = TokenBucket(self._config.serve_bytes_per_s, burst, burst, now.mono_ms)
        self._requests[peer] = TokenBucket(self._config.requests_per_s, requests, requests, now.mono_ms)
        if self._self < peer and peer not in self._eager:  # one of the two asks
            self._eager.append(peer)
            if self._session is None:
                return self._start(self._eager.pop(0), now)
        return []

    def _peer_disconnected(self, peer: PeerId, now: Now) -> list[Effect]:
        self._connected.pop(peer, None)
        self._serving.pop(peer, None)
        self._requests.pop(peer, None)
        self._expected.pop(peer, None)
        self._not_before.pop(peer, None)
        if peer in self._eager:
            self._eager.remove(peer)
        if self._session is None or self._session.peer != peer:
            return []
        self._session = None
        return self._start(self._eager.pop(0), now) if self._eager else []

    def _start(self, peer: PeerId, now: Now, repeats: int = 0, rounds: int = 1) -> list[Effect]:
        old = self._session
        self._session = _Session(peer, now.mono_ms, rounds=rounds, repeats=repeats)
        if old is not None:
            self._session.received, self._session.sent = old.received, old.sent
        return [Send(peer, SyncRoot(self._store.trie.root(), self._contact(now)))]

    def _end(self, session: _Session, equal: bool, now: Now) -> list[Effect]:
        self._session = None
        done = Notify(Synced(session.peer, equal, session.rounds, session.received, session.sent))
        if self._eager:
            return [done, *self._start(self._eager.pop(0), now)]
        self._next_ms = now.mono_ms + int(self._config.interval_ms * self._entropy.uniform(0.5, 1.5))
        return [done]

    def _tick(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        session = self._session
        if session is not None and now.mono_ms >= session.heard_ms + self._config.timeout_ms:
            effects += self._end(session, equal=False, now=now)
        if self._session is None and now.mono_ms >= self._next_ms:
            self._next_ms = now.mono_ms + int(self._config.interval_ms * self._entropy.uniform(0.5, 1.5))
            if self._connected:
                peers = list(self._connected)
                effects += self._start(peers[int(self._entropy.uniform(0, len(peers)))], now)
        if now.mono_ms >= self._floor_ms:
            self._floor_ms = now.mono_ms + self._config.floor_every_ms
            effects += self._publish_floor(now)
        return effects

    # --- messages -----------------------------------------------------------------------------------------------------

    def _received(self, peer: PeerId, message: object, now: Now) -> list[Effect]:
        if peer not in self._connected:
            return [Reject(peer, "sync.not-connected")]
        match message:
            case SyncRoot() | SyncLeaves():
                return self._asked(peer, message, now)
            case SyncNodes() if message.level == 1:
                return self._asked(peer, message, now)
            case SyncRecords():
                return self._take(peer, message, now)
            case SyncEqual() | SyncBusy() | SyncNodes() | SyncAnswer():
                session = self._session
                if session is None or session.peer != peer:
                    return [Reject(peer, "sync.unasked", "an answer without a question")]
                session.heard_ms = now.mono_ms
                return self._answered(session, message, now)
            case _:
                return [Reject(peer, "sync.unknown-message")]

    # --- the answerer -------------------------------------------------------------------------------------------------

    def _asked(self, peer: PeerId, message: SyncRoot | SyncNodes | SyncLeaves, now: Now) -> list[Effect]:
        if not self._requests[peer].take(1, now.mono_ms):
            return [Send(peer, SyncBusy()), Reject(peer, "sync.rate", "too many sync requests")]
        match message:
            case SyncRoot():
                return self._compare_roots(peer, message, now)
            case SyncNodes():
                return self._compare_nodes(peer, message)
            case SyncLeaves():
                return self._compare_leaves(peer, message, now)

    def _compare_roots(self, peer: PeerId, message: SyncRoot, now: Now) -> list[Effect]:
        mine = self._contact(now)
        if message.root == self._store.trie.root():
            self._equal_with(peer, message.contact, now)
            return [Send(peer, SyncEqual(mine)), Notify(AnsweredEqual(peer))]
        stale = self._floors.we_are_stale(peer, message.contact, self._trust.nodes(), now.wall_ms)
        if stale:
            # We must not teach but learn: ask ourselves.
            ours = self._start(peer, now) if self._session is None else []
            return [Send(peer, SyncBusy()), *ours]
        self._not_before[peer] = 0 if stale is None else now.wall_ms - self._store.limits.tombstone_keep_ms
        return [Send(peer, SyncNodes(0, (NodeHashes(0, self._store.trie.children(0, 0)),), mine))]

    def _compare_nodes(self, peer: PeerId, message: SyncNodes) -> list[Effect]:
        below: list[NodeHashes] = []
        for node in message.nodes[:WIDTH]:
            if not 0 <= node.index < WIDTH or len(node.hashes) != WIDTH * HASH_BYTES:
                return [Reject(peer, "sync.nodes", "an index or a list of hashes is out of range")]
            for child in differing(self._store.trie.children(1, node.index), node.hashes):
                index = node.index * WIDTH + child
                below.append(NodeHashes(index, self._store.trie.children(2, index)))
        return [Send(peer, SyncNodes(2, tuple(below)))]

    def _compare_leaves(self, peer: PeerId, message: SyncLeaves, now: Now) -> list[Effect]:
        if len(message.leaves) > LEAVES_ASKED_MAX:
            return [Reject(peer, "sync.leaves", f"more than {LEAVES_ASKED_MAX} leaves in one request")]
        wanted: list[LeafIds] = []
        lacking: list[Entry] = []
        for leaf in message.leaves:
            if not _sound(leaf):
                return [Reject(peer, "sync.leaves", "a leaf or its ids are out of range")]
            theirs = dict.fromkeys(_split(leaf.ids))
            mine = self._store.trie.leaf_items(leaf.leaf)
            held = {item_id for item_id, _ in mine}
            lacking += [self._store.entries[key] for item_id, key in mine if item_id not in theirs]
            refused = self._store.quotas.remembered
            missing = b"".join(digest for digest in theirs if digest not in held and not refused(digest, now.wall_ms))
            if missing:
                wanted.append(LeafIds(leaf.leaf, missing))
        lacking.sort(key=lambda entry: entry.parsed.rule.rank)
        sending: list[Signed] = []
        used = 0
        for entry in lacking:
            used += entry.size_bytes
            if (sending and used > self._config.answer_max_bytes) or not self._serving[peer].take(
                entry.size_bytes, now.mono_ms
            ):
                break
            sending.append(entry.signed)
        self._expected[peer] = {item_id for leaf in wanted for item_id in _split(leaf.ids)}
        return [Send(peer, SyncAnswer(tuple(sending), tuple(wanted), len(sending) < len(lacking)))]

    # --- the asker ----------------------------------------------------------------------------------------------------

    def _answered(
        self, session: _Session, message: SyncEqual | SyncBusy | SyncNodes | SyncAnswer, now: Now
    ) -> list[Effect]:
        match message:
            case SyncEqual():
                self._equal_with(session.peer, message.contact, now)
                return self._end(session, equal=True, now=now)
            case SyncBusy():
                return self._end(session, equal=False, now=now)
            case SyncNodes():
                return self._descend(session, message, now)
            case SyncAnswer():
                return self._leaves_answered(session, message, now)

    def _descend(self, session: _Session, message: SyncNodes, now: Now) -> list[Effect]:
        peer, trie = session.peer, self._store.trie
        if message.level not in (0, DEPTH - 1) or len(message.nodes) > WIDTH**message.level:
            return [Reject(peer, "sync.nodes", "a level that was not asked for")]
        numbers: list[int] = []
        for node in message.nodes:
            if not 0 <= node.index < WIDTH**message.level or len(node.hashes) != WIDTH * HASH_BYTES:
                return [Reject(peer, "sync.nodes", "an index or a list of hashes is out of range")]
            mine = trie.children(message.level, node.index)
            numbers += [node.index * WIDTH + child for child in differing(mine, node.hashes)]
        session.rounds += 1
        if message.level == 0:
            if message.contact is not None:
                stale = self._floors.we_are_stale(peer, message.contact, self._trust.nodes(), now.wall_ms)
                session.resync = stale is True
                keep_ms = self._store.limits.tombstone_keep_ms
                session.not_before_ms = now.wall_ms - keep_ms if stale is False else 0
            return [Send(peer, SyncNodes(1, tuple(NodeHashes(index, trie.children(1, index)) for index in numbers)))]
        session.open_leaves = numbers
        return self._ask_leaves(session, now)

    def _ask_leaves(self, session: _Session, now: Now) -> list[Effect]:
        if not session.open_leaves:
            if session.repeats >= REPEATS_MAX:
                return self._end(session, equal=False, now=now)
            return self._start(session.peer, now, session.repeats + 1, session.rounds)
        session.asked = tuple(session.open_leaves[: session.width])
        leaves = tuple(LeafIds(leaf, b"".join(self._store.trie.leaf_ids(leaf))) for leaf in session.asked)
        return [Send(session.peer, SyncLeaves(leaves))]

    def _leaves_answered(self, session: _Session, message: SyncAnswer, now: Now) -> list[Effect]:
        if not session.asked:
            return [Reject(session.peer, "sync.unasked", "an answer without a question")]
        for signed in message.records:
            entry = read_record(signed)
            if not isinstance(entry, Refusal) and leaf_of(entry.record.key) not in session.asked:
                return [
                    Reject(session.peer, "sync.unasked", "a record of another leaf than was asked for"),
                    *self._end(session, equal=False, now=now),
                ]
        effects = self._records.learn(session.peer, message.records, now, session.not_before_ms)
        received = _merged(effects)
        session.received += received
        effects += self._give(session, message, now)
        if message.partial and not received:
            # Busy, or it keeps sending what we must refuse: asking again at once would not end.
            return [*effects, *self._end(session, equal=False, now=now)]
        if message.partial:
            session.width = max(LEAVES_ASKED_MIN, session.width // 4)
        else:
            del session.open_leaves[: len(session.asked)]
            session.width = min(LEAVES_ASKED_MAX, session.width * 2)
        session.rounds += 1
        return [*effects, *self._ask_leaves(session, now)]

    def _give(self, session: _Session, message: SyncAnswer, now: Now) -> list[Effect]:
        """Send what the answerer lacks; in a wholesale resync forget what is old and unknown there instead."""
        keys: list[str] = []
        for leaf in message.wanted[:LEAVES_ASKED_MAX]:
            if leaf.leaf in session.asked:
                held = dict(self._store.trie.leaf_items(leaf.leaf))
                keys += [held[item_id] for item_id in _split(leaf.ids) if item_id in held]
        entries = [self._store.entries[key] for key in dict.fromkeys(keys)]
        entries.sort(key=lambda entry: entry.parsed.rule.rank)
        effects: list[Effect] = []
        if session.resync:
            before_ms = now.wall_ms - self._store.limits.tombstone_keep_ms
            old = [entry for entry in entries if wall_ms_of(entry.record.hlc) < before_ms]
            entries = [entry for entry in entries if wall_ms_of(entry.record.hlc) >= before_ms]
            for entry in old:
                self._store.remove(entry)
            effects += self._records.forget(old)
        session.sent += len(entries)
        return [*effects, *(Send(session.peer, SyncRecords(batch)) for batch in batches(entries))]

    # --- both ---------------------------------------------------------------------------------------------------------

    def _take(self, peer: PeerId, message: SyncRecords, now: Now) -> list[Effect]:
        expected = self._expected.get(peer, set())
        for signed in message.records:
            entry = read_record(signed)
            item_id = id_of(entry.record.key, entry.digest) if not isinstance(entry, Refusal) else b""
            if item_id not in expected:
                return [Reject(peer, "sync.unasked", "a record that was not asked for")]
            expected.discard(item_id)
        return self._records.learn(peer, message.records, now, self._not_before.get(peer, 0))

    def _contact(self, now: Now) -> Contact:
        return self._floors.contact(self._trust.nodes(), now.wall_ms)

    def _equal_with(self, peer: PeerId, theirs: Contact, now: Now) -> None:
        self._floors.equal_with(theirs.vector, now.wall_ms)
        # At once, not by the hour: who drops tombstones that its peers still show would differ from them until then.
        self._settle_floor(now)

    def _settle_floor(self, now: Now) -> None:
        members = self._trust.nodes()
        vectors = {member: vector for member in members if (vector := self._floor_vector(member)) is not None}
        self._store.floor_ms = self._floors.common(vectors, members, now.wall_ms)

    def _publish_floor(self, now: Now) -> list[Effect]:
        self._settle_floor(now)
        if not self._connected or not self._floors.established:
            return []
        body = encode(self._floors.vector(now.wall_ms))
        if len(body) > BODY_MAX_BYTES:
            return []  # more members than one body names: tombstones then stay
        return list(self._records.handle(Publish(make_key("floor", self._self), body), now))

    def _floor_vector(self, member: PeerId) -> FloorVector | None:
        entry = self._store.entries.get(make_key("floor", member))
        if entry is None:
            return None
        try:
            vector: FloorVector = decode(entry.record.body, FloorVector, BODY_MAX_BYTES)
        except DecodeError:
            return None
        return vector


def _sound(leaf: LeafIds) -> bool:
    return 0 <= leaf.leaf < LEAVES and len(leaf.ids) % HASH_BYTES == 0 and len(leaf.ids) <= IDS_MAX_BYTES


def _merged(effects: Sequence[Effect]) -> int:
    events = [effect.event for effect in effects if isinstance(effect, Notify)]
    return sum(len(event.entries) for event in events if isinstance(event, RecordsMerged))


def _split(ids: bytes) -> list[bytes]:
    return [ids[start : start + HASH_BYTES] for start in range(0, len(ids), HASH_BYTES)]
