"""The record machine: publishes this node's records, spreads new ones, fetches large ones, keeps all of them durable.

A new record goes out at once: whole up to 1 KiB, else as an announcement that others fetch from. Its author tells all
neighbours; whoever hears of it passes it on to a few, so nothing here needs a full mesh and a record costs each node a
fixed few messages. What gets lost on the way comes with anti-entropy (sync.py); what a node learns by that is old to
many, so it is gathered for a moment and announced in one message. Every accepted batch is one `Persist` before anything
derived from it is sent. Not here: the merge rules (store.py). Source of the spreading: rumour mongering, Demers
et al., PODC 1987.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from protocols.envelope import Signed, encode
from protocols.invariants import ensure
from protocols.keys import peer_id
from protocols.machine import (
    Broadcast,
    Effect,
    Entropy,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Persist,
    Received,
    Reject,
    Send,
    Signer,
    Store,
    Tick,
    Write,
)
from protocols.records.credentials import void_revocation
from protocols.records.hlc import HlcClock
from protocols.records.key_table import parse_key
from protocols.records.papers import PaperCourt
from protocols.records.quotas import RecordLimits
from protocols.records.record import Entry, Record, read_record, sign_record
from protocols.records.store import Check, OfferOutcome, OfferResult, RecordStore, proof_record, signed_records
from protocols.refusal import Refusal
from protocols.trust.store import TrustChanged, TrustStore

RECORD_TABLE = "record"
SEQ_BITS = 8
"""A sequence starts at the wall clock shifted by this, so a node that lost its disk does not repeat its numbers."""

MESSAGE_RECORDS_BYTES = 64 * 1024
"""Records in one message: about 200, whose signatures take some 30 ms; longer would hold up everything else."""

ANNOUNCED_MAX = 64
WANTED_MAX = 2_048
"""Announced records being fetched; more are left to anti-entropy."""

GATHERED_MAX = 1_024
"""Records learnt by comparing sets that wait to be announced; more are left to the comparisons of others."""

SOURCES_MAX = 3
AUTHORS_TRACKED_MAX = 1_024


@dataclass(frozen=True, slots=True)
class RecordsConfig:
    """Times in ms, sizes in bytes."""

    limits: RecordLimits = field(default_factory=RecordLimits)
    eager_max_bytes: int = 1_024
    relay_fanout: int = 4
    """Neighbours that a new record is passed on to; with n nodes about 98 % hear of it before any repair."""
    author_rate_per_s: int = 20
    author_burst: int = 400
    """Pushed records of one author, and announced ones of one author or peer; what exceeds it waits for anti-entropy,
    which has its own bounds."""
    fetch_timeout_ms: int = 2_000
    gather_ms: int = 1_000
    """How long what comparisons taught is gathered: a node that starts compares with everybody in that time."""
    sweep_every_ms: int = 60_000


class Push(msgspec.Struct, frozen=True, tag="push"):
    """A small new record."""

    record: Signed


class AnnouncedRecord(msgspec.Struct, frozen=True, array_like=True):
    """A large record the sender holds: its key, sequence and the digest of its payload."""

    key: str
    seq: int
    digest: bytes


class Announce(msgspec.Struct, frozen=True, tag="announce"):
    """At most ANNOUNCED_MAX large new records."""

    records: tuple[AnnouncedRecord, ...]


class FetchRecords(msgspec.Struct, frozen=True, tag="fetch"):
    """Asks for the current records of these keys, at most ANNOUNCED_MAX."""

    keys: tuple[str, ...]


class Records(msgspec.Struct, frozen=True, tag="records"):
    """Asked-for records, in at most MESSAGE_RECORDS_BYTES (or a single one)."""

    records: tuple[Signed, ...]


RecordMessage = Push | Announce | FetchRecords | Records


@dataclass(frozen=True, slots=True)
class Publish:
    """Event: this node writes a record; the machine adds sequence, clock and signature."""

    key: str
    body: bytes = b""
    artifact: bytes = b""
    ttl_ms: int = 0
    tombstone: bool = False


@dataclass(frozen=True, slots=True)
class RecordsMerged:
    """These records are new here and durable, own ones included; in the order they were merged."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class RecordsVoided:
    """These records of revoked authors no longer count and are gone."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class RecordsForgotten:
    """These records are gone: their lifetime is over, or all have seen their tombstones, or the mesh had moved on."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class PublishRefused:
    """This node may not write that record now."""

    key: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Equivocated:
    """`author` signed two different records with one sequence; the proof is kept and published."""

    author: PeerId


@dataclass(frozen=True, slots=True)
class TrustLearnt:
    """Merged records changed the trust store: pass `TrustChanged` to hello."""


@dataclass(slots=True)
class TokenBucket:
    """A token bucket; `level` may be spent, and refills with time. Mutable: spent on every message."""

    rate_per_s: float
    burst: float
    level: float
    at_ms: int

    def take(self, count: float, mono_ms: int) -> bool:
        """Spend `count` tokens if there are as many."""
        self.level = min(self.burst, self.level + self.rate_per_s * (mono_ms - self.at_ms) / 1000)
        self.at_ms = mono_ms
        if count > self.level:
            return False
        self.level -= count
        return True


@dataclass(frozen=True, slots=True)
class _Wanted:
    digest: bytes
    sources: tuple[PeerId, ...]
    asked_ms: int


RecordEvent = Publish | Received[RecordMessage] | PeerConnected | PeerDisconnected | TrustChanged | Tick


class RecordMachine:
    """The records of one node, and their way to and from its neighbours."""

    def __init__(
        self,
        trust: TrustStore,
        signer: Signer,
        entropy: Entropy,
        config: RecordsConfig | None = None,
        *,
        checks: Mapping[str, Check] | None = None,
        court: PaperCourt | None = None,
    ) -> None:
        """Take the node's trust store and key; `checks` judge the bodies of other modules' kinds, by prefix."""
        self.config = config or RecordsConfig()
        self.store = RecordStore(trust, self.config.limits, checks, court)
        self._trust = trust
        self._signer = signer
        self._entropy = entropy
        self._self = peer_id(signer.public_key)
        self._clock = HlcClock()
        self._last_seq = 0
        self._connected: dict[PeerId, None] = {}
        self._wanted: dict[str, _Wanted] = {}
        self._buckets: dict[PeerId, TokenBucket] = {}
        self._gathered: dict[str, tuple[Entry, PeerId]] = {}
        """What comparing sets taught, and from whom, to be announced at `_announce_ms`."""
        self._announce_ms: int | None = None
        self._trust_version = trust.version
        self._sweep_ms = 0
        self._parked_check_ms: int | None = None

    def restore(self, rows: Iterable[tuple[bytes, bytes]], now: Now) -> list[Effect]:
        """Take back the rows of RECORD_TABLE at start; return what to do about those no longer valid."""
        for signed in signed_records(rows):
            entry = self.store.restore(signed, now.wall_ms)
            if entry is not None and entry.author == self._self:
                self._last_seq = max(self._last_seq, entry.record.seq)
                self._clock.observe(entry.record.hlc, now.wall_ms)
        self._trust_version = self._trust.version
        gone = [*self.store.remove_expired(now.wall_ms), *self.store.remove_ended(now.wall_ms)]
        return [*self._void(now), *self.forget(gone)]

    def handle(self, event: RecordEvent, now: Now) -> Sequence[Effect]:
        """Consume one event; `PeerConnected` means admitted by hello."""
        effects = self._consume(event, now)
        self._check_invariants()
        return effects

    def _check_invariants(self) -> None:
        """What strangers can make this machine remember is bounded, whatever they announce."""
        ensure(len(self._wanted) <= WANTED_MAX, "no more records are wanted than WANTED_MAX")
        ensure(len(self._gathered) <= GATHERED_MAX, "no more records are gathered than GATHERED_MAX")
        ensure(len(self._buckets) <= AUTHORS_TRACKED_MAX, "no more authors are metered than AUTHORS_TRACKED_MAX")
        ensure(self._last_seq >= 0 and self._trust_version <= self._trust.version, "numbers of ours only rise")

    def _consume(self, event: RecordEvent, now: Now) -> Sequence[Effect]:
        match event:
            case Received():
                return self._received(event.peer, event.message, now)
            case Publish():
                return self._publish(event, now)
            case PeerConnected():
                self._connected[event.peer] = None
                return []
            case PeerDisconnected():
                self._connected.pop(event.peer, None)
                return []
            case TrustChanged():
                return self._void(now)
            case Tick():
                return self._tick(now)

    def deadline_ms(self) -> int | None:
        """When the next sweep, fetch timeout, announcement or look at parked records is due."""
        due_ms = self._sweep_ms
        if self._wanted:
            due_ms = min(due_ms, next(iter(self._wanted.values())).asked_ms + self.config.fetch_timeout_ms)
        for later_ms in (self._parked_check_ms, self._announce_ms):
            if later_ms is not None:
                due_ms = min(due_ms, later_ms)
        return due_ms

    # --- own records --------------------------------------------------------------------------------------------------

    def _publish(self, event: Publish, now: Now) -> list[Effect]:
        parsed = parse_key(event.key)
        if isinstance(parsed, Refusal):
            return [Notify(PublishRefused(event.key, parsed))]
        held = (self.store.ephemeral if parsed.rule.kind == "ephemeral" else self.store.entries).get(event.key)
        if held is not None and parsed.rule.kind == "immutable" and held.record.tombstone == event.tombstone:
            return []  # the same content is there already
        void = void_revocation(self._trust, event.body) if parsed.rule.prefix == "revocation" else None
        if void is not None:
            return [Notify(PublishRefused(event.key, void))]
        self._last_seq = max(self._last_seq + 1, now.wall_ms << SEQ_BITS)
        record = Record(
            key=event.key,
            kind=parsed.rule.kind,
            seq=self._last_seq,
            hlc=self._clock.tick(now.wall_ms),
            prev=held.digest if held is not None else b"",
            ttl_ms=event.ttl_ms,
            body=event.body,
            artifact=event.artifact,
            tombstone=event.tombstone,
        )
        signed = sign_record(self._signer, self._trust.mesh, record)
        offered = self.store.offer(signed, now.wall_ms)
        if offered.refusal is not None:
            return [Notify(PublishRefused(event.key, offered.refusal))]
        if offered.outcome is not OfferOutcome.MERGED or offered.entry is None:
            return [Notify(PublishRefused(event.key, Refusal("records.outdated", "a newer version is held")))]
        effects = [*self._store((offered.entry,)), *self.forget(offered.gave_way)]
        effects.append(Broadcast(self._news(offered.entry)))
        return [*effects, *self._after_trust(now)]

    # --- others' records ----------------------------------------------------------------------------------------------

    def _received(self, peer: PeerId, message: object, now: Now) -> list[Effect]:
        match message:
            case Push():
                return self._pushed(peer, message.record, now)
            case Announce():
                return self._announced(peer, message, now)
            case FetchRecords():
                return self.serve(peer, message.keys)
            case Records():
                return self._fetched(peer, message.records, now)
            case _:
                return [Reject(peer, "records.unknown-message")]

    def _pushed(self, peer: PeerId, signed: Signed, now: Now) -> list[Effect]:
        entry = read_record(signed)
        if isinstance(entry, Refusal):
            return [Reject(peer, entry.rule, entry.detail)]
        held = self.store.holder(entry)
        if held is not None and held.digest == entry.digest:
            return []
        if not entry.parsed.rule.urgent and not self._bucket(entry.author, now).take(1, now.mono_ms):
            return [Reject(peer, "records.rate", "the author writes faster than this node takes pushes")]
        return self._take(peer, (signed,), now)

    def _announced(self, peer: PeerId, message: Announce, now: Now) -> list[Effect]:
        if len(message.records) > ANNOUNCED_MAX:
            return [Reject(peer, "records.announce", f"more than {ANNOUNCED_MAX} records in one announcement")]
        asked: list[str] = []
        late: list[Effect] = []
        for item in message.records:
            held = self.store.entries.get(item.key) or self.store.ephemeral.get(item.key)
            if held is not None and (held.digest == item.digest or held.record.seq > item.seq):
                continue
            wanted = self._wanted.get(item.key)
            if wanted is not None and wanted.digest == item.digest:
                sources = tuple(dict.fromkeys((*wanted.sources, peer)))[:SOURCES_MAX]
                self._wanted[item.key] = _Wanted(item.digest, sources, wanted.asked_ms)
            elif len(self._wanted) < WANTED_MAX and not isinstance(parsed := parse_key(item.key), Refusal):
                # Who said it is not known before it is here; where the key does not tell, the peer answers for it.
                if not parsed.rule.urgent and not self._bucket(parsed.owner or peer, now).take(1, now.mono_ms):
                    late = [Reject(peer, "records.rate", "more is announced than this node fetches at this pace")]
                    continue
                self._wanted.pop(item.key, None)
                self._wanted[item.key] = _Wanted(item.digest, (peer,), now.mono_ms)
                asked.append(item.key)
        return [*([Send(peer, FetchRecords(tuple(asked)))] if asked else []), *late]

    def _fetched(self, peer: PeerId, records: tuple[Signed, ...], now: Now) -> list[Effect]:
        asked: list[Signed] = []
        for signed in records:
            entry = read_record(signed)
            if isinstance(entry, Refusal):
                return [Reject(peer, entry.rule, entry.detail)]
            wanted = self._wanted.get(entry.record.key)
            # From whom it was asked in vain it may still come, and is what the next one is being asked for.
            if wanted is not None and (peer in wanted.sources or entry.digest == wanted.digest):
                del self._wanted[entry.record.key]
                asked.append(signed)
        taken = self._take(peer, asked, now)
        if len(asked) < len(records):
            return [Reject(peer, "records.unasked", "a record that was not asked for"), *taken]
        return taken

    def learn(self, peer: PeerId, records: Sequence[Signed], now: Now, not_before_ms: int = 0) -> list[Effect]:
        """Merge records that comparing sets with `peer` brought; what was new is announced a moment later.

        `not_before_ms` refuses records older than that (wall): from a peer that was silent too long.
        """
        return self._take(peer, records, now, not_before_ms, gather=True)

    def _take(
        self, peer: PeerId, records: Sequence[Signed], now: Now, not_before_ms: int = 0, *, gather: bool = False
    ) -> list[Effect]:
        """Merge records from `peer`, make them durable, pass on what was new."""
        offered = [self.store.offer(signed, now.wall_ms, not_before_ms) for signed in _by_rank(records)]
        effects: list[Effect] = []
        rejected: dict[str, str] = {}
        merged: list[Entry] = []
        for item in offered:
            if item.refusal is not None:
                rejected.setdefault(item.refusal.rule, item.refusal.detail)
            if item.outcome is OfferOutcome.PARKED and self._parked_check_ms is None:
                self._parked_check_ms = now.mono_ms + self.config.sweep_every_ms
            if item.outcome is OfferOutcome.MERGED and item.entry is not None:
                merged.append(item.entry)
                self._clock.observe(item.entry.record.hlc, now.wall_ms)
                if item.entry.author == self._self:
                    # Written before a disk was lost: never use that sequence again.
                    self._last_seq = max(self._last_seq, item.entry.record.seq)
        effects += [Reject(peer, rule, detail) for rule, detail in rejected.items()]
        effects += self._store(tuple(merged))
        effects += self.forget([gone for item in offered for gone in item.gave_way])
        effects += self._gather(merged, peer, now) if gather else self._spread([(entry, peer) for entry in merged])
        effects += self._convict(offered, now)
        return [*effects, *self._after_trust(now)]

    def serve(self, peer: PeerId, keys: Sequence[str]) -> list[Effect]:
        """Return the effects that send the current records of these keys, in messages of bounded size."""
        if len(keys) > ANNOUNCED_MAX:
            return [Reject(peer, "records.fetch", f"more than {ANNOUNCED_MAX} keys in one request")]
        entries = [self.store.entries.get(key) or self.store.ephemeral.get(key) for key in keys]
        return [Send(peer, Records(batch)) for batch in batches([entry for entry in entries if entry is not None])]

    # --- spreading ----------------------------------------------------------------------------------------------------

    def _store(self, entries: tuple[Entry, ...]) -> list[Effect]:
        if not entries:
            return []
        writes = tuple(
            Write(RECORD_TABLE, entry.record.key.encode(), encode(entry.signed))
            for entry in entries
            if entry.parsed.rule.kind != "ephemeral"
        )
        effects: list[Effect] = [Persist(Store.STATE, writes)] if writes else []
        return [*effects, Notify(RecordsMerged(entries))]

    def _news(self, entry: Entry) -> Push | Announce:
        if entry.size_bytes <= self.config.eager_max_bytes:
            return Push(entry.signed)
        return Announce((AnnouncedRecord(entry.record.key, entry.record.seq, entry.digest),))

    def _spread(self, news: Sequence[tuple[Entry, PeerId]]) -> list[Effect]:
        """Pass records on to a few peers, each without what it told itself: a small one whole, several by name."""
        effects: list[Effect] = []
        peers = [peer for peer in self._connected if any(heard_from != peer for _, heard_from in news)]
        for _ in range(min(self.config.relay_fanout, len(peers))):
            pick = peers.pop(int(self._entropy.uniform(0, len(peers))))
            entries = [entry for entry, heard_from in news if heard_from != pick]
            if len(entries) == 1:
                effects.append(Send(pick, self._news(entries[0])))
                continue
            for start in range(0, len(entries), ANNOUNCED_MAX):
                named = (
                    AnnouncedRecord(entry.record.key, entry.record.seq, entry.digest)
                    for entry in entries[start:][:ANNOUNCED_MAX]
                )
                effects.append(Send(pick, Announce(tuple(named))))
        return effects

    def _gather(self, merged: Sequence[Entry], heard_from: PeerId, now: Now) -> list[Effect]:
        for entry in merged:
            if len(self._gathered) < GATHERED_MAX or entry.record.key in self._gathered:
                self._gathered[entry.record.key] = entry, heard_from
        if self._gathered and self._announce_ms is None:
            self._announce_ms = now.mono_ms + self.config.gather_ms
        return []

    def _announce_gathered(self) -> list[Effect]:
        news = [
            (entry, heard_from)
            for entry, heard_from in self._gathered.values()
            if (held := self.store.holder(entry)) is not None and held.digest == entry.digest
        ]
        self._gathered, self._announce_ms = {}, None
        return self._spread(news)

    def _convict(self, offered: Sequence[OfferResult], now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for item in offered:
            if item.proof is not None and item.entry is not None:
                effects.append(Notify(Equivocated(item.entry.author)))
                record = proof_record(item.entry.author, item.proof)
                if record is not None:
                    effects += self._publish(Publish(*record), now)
        return effects

    def _bucket(self, author: PeerId, now: Now) -> TokenBucket:
        bucket = self._buckets.get(author)
        if bucket is None:
            if len(self._buckets) >= AUTHORS_TRACKED_MAX:
                del self._buckets[next(iter(self._buckets))]
            burst = float(self.config.author_burst)
            bucket = TokenBucket(self.config.author_rate_per_s, burst, burst, now.mono_ms)
            self._buckets[author] = bucket
        return bucket

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def _after_trust(self, now: Now) -> list[Effect]:
        if self._trust.version == self._trust_version:
            return []
        return [Notify(TrustLearnt()), *self._void(now)]

    def _void(self, now: Now) -> list[Effect]:
        self._trust_version = self._trust.version
        voided = [*self.store.void_revoked(now.wall_ms), *self.store.remove_ended(now.wall_ms)]
        return [*_erase(voided), Notify(RecordsVoided(tuple(voided)))] if voided else []

    def pin(self, pins: frozenset[bytes], now: Now) -> list[Effect]:
        """Take what the chain pins now; papers that nothing pins any more go when their life is over."""
        if pins == self.store.court.pins:
            return []
        self.store.court.pins = pins
        self.store.quotas.reconsider()
        return self.forget(self.store.remove_ended(now.wall_ms))

    def forget(self, entries: Sequence[Entry]) -> list[Effect]:
        """Return the effects that make it known and durable that the store no longer holds these."""
        return [*_erase(entries), Notify(RecordsForgotten(tuple(entries)))] if entries else []

    def _tick(self, now: Now) -> list[Effect]:
        effects = self._ask_others(now)
        if self._parked_check_ms is not None and now.mono_ms >= self._parked_check_ms:
            due = self.store.release_parked(now.wall_ms)
            self._parked_check_ms = now.mono_ms + self.config.sweep_every_ms if self.store.parked else None
            effects += self._take(self._self, due, now) if due else []
        if self._announce_ms is not None and now.mono_ms >= self._announce_ms:
            effects += self._announce_gathered()
        if now.mono_ms >= self._sweep_ms:
            self._sweep_ms = now.mono_ms + self.config.sweep_every_ms
            effects += self.forget([*self.store.remove_expired(now.wall_ms), *self.store.remove_ended(now.wall_ms)])
            effects += self.forget(self.store.remove_tombstones(now.wall_ms))
        return effects

    def _ask_others(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        late = [
            key for key, item in self._wanted.items() if now.mono_ms >= item.asked_ms + self.config.fetch_timeout_ms
        ]
        for key in late:
            wanted = self._wanted.pop(key)
            sources = wanted.sources[1:]
            if sources:
                self._wanted[key] = _Wanted(wanted.digest, sources, now.mono_ms)
                effects.append(Send(sources[0], FetchRecords((key,))))
        return effects


def _erase(entries: Sequence[Entry]) -> list[Effect]:
    writes = tuple(
        Write(RECORD_TABLE, entry.record.key.encode(), None)
        for entry in entries
        if entry.parsed.rule.kind != "ephemeral"
    )
    return [Persist(Store.STATE, writes)] if writes else []


def _by_rank(records: Sequence[Signed]) -> list[Signed]:
    """Put certificates before what their subjects wrote; unreadable ones last, to be refused by name."""
    if len(records) == 1:
        return list(records)

    def rank(signed: Signed) -> int:
        entry = read_record(signed)
        return 9 if isinstance(entry, Refusal) else entry.parsed.rule.rank

    return sorted(records, key=rank)


def batches(entries: Sequence[Entry]) -> list[tuple[Signed, ...]]:
    """Split records into messages of at most MESSAGE_RECORDS_BYTES, each with at least one."""
    done: list[tuple[Signed, ...]] = []
    current: list[Signed] = []
    used = 0
    for entry in entries:
        if current and used + entry.size_bytes > MESSAGE_RECORDS_BYTES:
            done.append(tuple(current))
            current, used = [], 0
        current.append(entry.signed)
        used += entry.size_bytes
    return [*done, tuple(current)] if current else done
