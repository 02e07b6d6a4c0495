"""The records one node holds: what is merged, what is refused and why, what is void, what may be forgotten.

Pure state under the key table's rules; a record is validated entirely before anything changes. What is held for a key
is the winner of all versions seen (`record.beats`), so nodes that saw the same records hold the same. Rights and limits
depend on what a node knows at that moment; a record refused for that reason comes again with anti-entropy. Not here:
messages (records.py), the trie conversation (sync.py), disk.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec

from protocols.envelope import DecodeError, Signed, decode, digest, encode, verify
from protocols.machine import PeerId
from protocols.records.credentials import absorb, well_formed_certificate
from protocols.records.hlc import ahead, wall_ms_of
from protocols.records.key_table import BODY_MAX_BYTES, make_key, parse_key
from protocols.records.papers import CHECKED, PAPERS, Paper, PaperCourt, read_paper
from protocols.records.quotas import TRUST_RANK, Quotas, RecordLimits
from protocols.records.record import RECORD_DOMAIN, RECORD_MAX_BYTES, Entry, beats, equivocates, read_record
from protocols.records.trie import Trie, id_of
from protocols.refusal import Refusal
from protocols.trust.revocations import BY_REVOKED
from protocols.trust.store import TrustStore

Check = Callable[[Entry], Refusal | None]
"""Judges one record's body; given by the owner of the kind, by prefix."""


class OfferOutcome(Enum):
    """What became of an offered record."""

    MERGED = "merged"
    KNOWN = "known"
    OUTDATED = "outdated"
    PARKED = "parked"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class OfferResult:
    """The outcome, the entry if it could be read, the refusal if there was one, and a proof of equivocation if any."""

    outcome: OfferOutcome
    entry: Entry | None = None
    refusal: Refusal | None = None
    proof: EquivocationProof | None = None
    gave_way: tuple[Entry, ...] = ()
    """Papers of the same payer that are gone for it."""


class EquivocationProof(msgspec.Struct, frozen=True, array_like=True):
    """Two records of one author under one key and sequence, the lower digest first."""

    one: Signed
    other: Signed


class RecordStore:
    """All records of one node: `entries` are current and replicated, `ephemeral` are of the moment."""

    def __init__(
        self,
        trust: TrustStore,
        limits: RecordLimits | None = None,
        checks: Mapping[str, Check] | None = None,
        court: PaperCourt | None = None,
    ) -> None:
        """Start empty; `checks` maps prefixes to what their bodies must satisfy, beside what the court judges."""
        self.trust = trust
        self.court = court or PaperCourt(trust)
        self.quotas = Quotas(limits or RecordLimits(), lambda key: key in trust.every_admin())
        self.entries: dict[str, Entry] = {}
        self.ephemeral: dict[str, Entry] = {}
        self.trie = Trie()
        self.proofs: dict[PeerId, EquivocationProof] = {}
        self.parked: dict[bytes, Entry] = {}
        self.floor_ms = 0
        """What every member is known to have seen, in wall ms; sync.py raises it."""
        self._checks = dict(checks or {})
        self._keys_of: dict[PeerId, dict[str, None]] = {}
        self._parked_of: Counter[PeerId] = Counter()
        self._expiries: list[tuple[int, str, bytes]] = []
        self._tombstones: dict[str, None] = {}
        self._papers: dict[str, Paper] = {}
        """What is known of each held paper: its author, its life, and what pins it."""

    @property
    def limits(self) -> RecordLimits:
        """How much is kept; tests and benchmarks change it."""
        return self.quotas.limits

    @limits.setter
    def limits(self, limits: RecordLimits) -> None:
        self.quotas.limits = limits

    # --- offering -----------------------------------------------------------------------------------------------------

    def offer(self, signed: Signed, wall_ms: int, not_before_ms: int = 0) -> OfferResult:
        """Merge a record, or say why not; `not_before_ms` refuses older ones (from a peer that was silent too long)."""
        entry = read_record(signed)
        if isinstance(entry, Refusal):
            return OfferResult(OfferOutcome.REFUSED, None, entry)
        holder = self.holder(entry)
        stands = holder is not None and (entry.digest == holder.digest or not self._replaces(entry, holder))
        same_seq = holder is not None and equivocates(entry, holder)
        if stands and not same_seq:
            assert holder is not None
            return OfferResult(OfferOutcome.KNOWN if entry.digest == holder.digest else OfferOutcome.OUTDATED, entry)
        if self.quotas.remembered(id_of(entry.record.key, entry.digest), wall_ms, entry.author):
            return OfferResult(
                OfferOutcome.REFUSED, entry, Refusal("quota.again", "a quota refused this a short while ago")
            )
        problem = self._time_problem(entry, wall_ms, not_before_ms)
        if problem is None and not verify(self.trust.verifier, RECORD_DOMAIN, self.trust.mesh, signed):
            problem = Refusal("records.signature", "the record's signature does not verify in this mesh")
        if problem is None and ahead(entry.record.hlc, wall_ms) and not entry.parsed.rule.timeless:
            return self._park(entry)
        problem = problem or self._author_problem(entry, wall_ms) or self._body_problem(entry, wall_ms)
        if problem is not None:
            return OfferResult(OfferOutcome.REFUSED, entry, problem)
        proof = self._prove(entry, holder) if same_seq and holder is not None else None
        if stands:
            return OfferResult(OfferOutcome.OUTDATED, entry, None, proof)
        paper = self._paper_of(entry)
        room = self._room(entry, paper, holder)
        if isinstance(room, Refusal):
            self.quotas.remember(entry, wall_ms)
            return OfferResult(OfferOutcome.REFUSED, entry, room)
        for gone in room:
            self.remove(gone)
            self.quotas.remember(gone, wall_ms)
        self._put(entry, paper)
        return OfferResult(OfferOutcome.MERGED, entry, None, proof, tuple(room))

    def restore(self, signed: Signed, wall_ms: int) -> Entry | None:
        """Take back a record this node had verified and stored, expired or not; None if its form is no longer valid.

        Signatures are not checked again, except those inside trust records, which the trust store learns from.
        """
        entry = read_record(signed)
        if isinstance(entry, Refusal):
            return None
        if entry.parsed.rule.rank <= TRUST_RANK:
            absorb(self.trust, entry, wall_ms)
        self._put(entry, self._paper_of(entry))
        return entry

    def quota_problem(self, key: str, body: bytes) -> Refusal | None:
        """Return why whoever signed this paper may file no more, or None: asked of whoever hands one over, not of gossip."""
        parsed = parse_key(key)
        if isinstance(parsed, Refusal):
            return None
        if parsed.rule.prefix not in PAPERS:
            return self.quotas.delegation_problem(parsed.rule.prefix, body)
        paper = read_paper(self.trust.verifier, self.trust.mesh, parsed.rule.prefix, parsed.parts, body)
        if isinstance(paper, Refusal):
            return None  # the court says it better
        return self.quotas.paper_problem(paper, self.court.family(paper.author), len(body))

    def holder(self, entry: Entry) -> Entry | None:
        """Return what is held under this entry's key."""
        return self._table(entry).get(entry.record.key)

    def last_seq(self, author: PeerId) -> int:
        """Return the highest sequence held of an author, -1 if none: the cutoff to put into its revocation."""
        keys = self._keys_of.get(author, ())
        return max(((self.entries.get(key) or self.ephemeral[key]).record.seq for key in keys), default=-1)

    def release_parked(self, wall_ms: int) -> list[Signed]:
        """Return the parked records whose time has come; they are offered again."""
        due = [key for key, entry in self.parked.items() if not ahead(entry.record.hlc, wall_ms)]
        self._parked_of.subtract(self.parked[key].author for key in due)
        self._parked_of += Counter()
        return [self.parked.pop(key).signed for key in due]

    # --- removing -----------------------------------------------------------------------------------------------------

    def void_revoked(self, wall_ms: int) -> list[Entry]:
        """Remove and return what revoked authors wrote above their cutoffs; believed trust records stay."""
        removed: list[Entry] = []
        for peer in self.trust.revoked_nodes():
            cutoff = self.trust.cutoff(peer)
            assert cutoff is not None
            for key in list(self._keys_of.get(peer, ())):
                entry = self.entries.get(key) or self.ephemeral[key]
                if entry.record.seq > cutoff.last_seq and not self._proves_itself(entry, wall_ms):
                    self.remove(entry)
                    removed.append(entry)
        return removed

    def remove_expired(self, wall_ms: int) -> list[Entry]:
        """Remove and return the records whose lifetime is over."""
        removed: list[Entry] = []
        while self._expiries and self._expiries[0][0] <= wall_ms:
            _, key, record_digest = heapq.heappop(self._expiries)
            entry = self.entries.get(key) or self.ephemeral.get(key)
            if entry is not None and entry.digest == record_digest:
                self.remove(entry)
                removed.append(entry)
        return removed

    def remove_ended(self, wall_ms: int) -> list[Entry]:
        """Remove and return the papers whose life is over or whose author was revoked, and what ends a pinned one."""
        removed: list[Entry] = []
        for key, paper in list(self._papers.items()):
            entry = self.entries[key]
            if self._ended(entry, paper, wall_ms) is not None:
                self.remove(entry)
                removed.append(entry)
        if removed:
            self.quotas.reconsider()
        return removed

    def remove_tombstones(self, wall_ms: int) -> list[Entry]:
        """Remove and return the tombstones that are 30 days old and known to every member."""
        removed = [entry for key in self._tombstones if self._collectable(entry := self.entries[key], wall_ms)]
        for entry in removed:
            self.remove(entry)
        return removed

    def remove(self, entry: Entry) -> None:
        """Forget a held record."""
        key = entry.record.key
        del self._table(entry)[key]
        self.trie.remove(key)
        self._tombstones.pop(key, None)
        self.quotas.refund(entry, self._papers.pop(key, None))
        if entry.parsed.rule.prefix == "grant":
            self.court.forget_grant(entry)
        del self._keys_of[entry.author][key]

    def next_expiry_ms(self) -> int | None:
        """Return the wall time at which the next lifetime ends."""
        return self._expiries[0][0] if self._expiries else None

    # --- rules --------------------------------------------------------------------------------------------------------

    def _time_problem(self, entry: Entry, wall_ms: int, not_before_ms: int) -> Refusal | None:
        record = entry.record
        if record.ttl_ms and wall_ms_of(record.hlc) + record.ttl_ms <= wall_ms:
            return Refusal("records.expired", "the record's lifetime is over")
        if wall_ms_of(record.hlc) < not_before_ms:
            return Refusal("records.stale", "an old record from a node that was away too long")
        if self._collectable(entry, wall_ms) and self.holder(entry) is None:
            return Refusal("records.collected", "a tombstone that every member has seen and dropped")
        return None

    def _proves_itself(self, entry: Entry, wall_ms: int) -> bool:
        return entry.parsed.rule.rank <= TRUST_RANK and absorb(self.trust, entry, wall_ms) is None

    def _author_problem(self, entry: Entry, wall_ms: int) -> Refusal | None:
        rule, author = entry.parsed.rule, entry.author
        if rule.rank <= TRUST_RANK:
            problem = absorb(self.trust, entry, wall_ms)
            if problem is None:
                return None
            # A void revocation is held as others are: who heard of it before what voids it holds it too.
            waits = rule.prefix == "certificate" and well_formed_certificate(self.trust, entry)
            if not waits and problem.rule != BY_REVOKED:
                return problem
        cutoff = self.trust.cutoff(author)
        if cutoff is not None and entry.record.seq > cutoff.last_seq:
            return Refusal("records.revoked", "the author was revoked before it wrote this")
        certificate = self.trust.certificate(author)
        if certificate is None:
            return Refusal("records.unknown-author", "no certificate of the author is known")
        if certificate.expired(wall_ms_of(entry.record.hlc)):
            return Refusal("records.author-expired", "the author's certificate had run out when it wrote this")
        if self.trust.contested(entry.author_key):
            return Refusal("records.limited", "another node was admitted for the same use of the author's invite")
        match rule.writer:
            case "joined":
                return None
            case "member":
                if self.trust.confirmed(author):
                    return None
                return Refusal("records.unconfirmed", "the chain has not confirmed the author yet")
            case "owner":
                if entry.parsed.owner == author:
                    return None
                return Refusal("records.not-owner", "only the node named in the key may write it")

    def _replaces(self, entry: Entry, holder: Entry) -> bool:
        """Whether a version of the same key stands instead of the one held: as `beats`, but nothing ends what is pinned."""
        paper = self._papers.get(holder.record.key)
        if paper is not None and holder.record.tombstone and not entry.record.tombstone and self.court.pinned(paper):
            return True
        return beats(entry, holder)

    def _ended(self, entry: Entry, paper: Paper, wall_ms: int) -> Refusal | None:
        """Return why a paper, or its tombstone, is not kept (any more), or None."""
        if entry.record.tombstone:
            pinned = self.court.pinned(paper)
            return Refusal("records.pinned", "a release that is kept names the paper") if pinned else None
        return self.court.standing(paper) or self.court.over(paper, wall_ms)

    def _body_problem(self, entry: Entry, wall_ms: int) -> Refusal | None:
        prefix = entry.parsed.rule.prefix
        if prefix == "equivocation":
            return self._proof_problem(entry)
        check = self._checks.get(prefix)
        try:
            problem = check(entry) if check is not None else None
            if problem is None and prefix in CHECKED:
                problem = self.court.check(entry, wall_ms)
            return problem
        except Exception as error:
            # One record must never stop the fleet: every node would meet it again at every start.
            return Refusal("records.check-failed", f"the check of the body failed: {type(error).__name__}")

    def _proof_problem(self, entry: Entry) -> Refusal | None:
        broken = Refusal("records.proof", "this does not prove that the named node used a sequence twice")
        try:
            proof: EquivocationProof = decode(entry.record.body, EquivocationProof, BODY_MAX_BYTES)
        except DecodeError:
            return broken
        answer, other = read_record(proof.one), read_record(proof.other)
        if isinstance(answer, Refusal) or isinstance(other, Refusal) or not equivocates(answer, other):
            return broken
        signed = all(
            verify(self.trust.verifier, RECORD_DOMAIN, self.trust.mesh, item) for item in (proof.one, proof.other)
        )
        return None if signed and answer.author == entry.parsed.owner else broken

    def _room(self, entry: Entry, paper: Paper | None, holder: Entry | None) -> Refusal | list[Entry]:
        """Return the papers that give way to a record, mostly none, or why there is no room for it."""
        limits, rule = self.limits, entry.parsed.rule
        table = self._table(entry)
        extra = limits.urgent_extra if rule.urgent else 0
        most = extra + (limits.ephemeral_max if rule.kind == "ephemeral" else limits.records_max)
        if paper is None:
            held = self._papers.get(entry.record.key)
            room: Refusal | list[Entry] | None = self.quotas.node_problem(entry, holder, held)
        else:
            room = self.quotas.giving_way(entry, paper, self.entries, self._papers, self.court.pinned)
        if isinstance(room, Refusal):
            return room
        if holder is None and not room and len(table) >= most and not self.quotas.reserved(entry, paper):
            return Refusal("records.full", f"this node holds {most} records, its limit; nobody's share is used up")
        return room or []

    def _collectable(self, entry: Entry, wall_ms: int) -> bool:
        at_ms = wall_ms_of(entry.record.hlc)
        return entry.record.tombstone and at_ms + self.limits.tombstone_keep_ms < wall_ms and at_ms < self.floor_ms

    # --- state --------------------------------------------------------------------------------------------------------

    def _table(self, entry: Entry) -> dict[str, Entry]:
        return self.ephemeral if entry.parsed.rule.kind == "ephemeral" else self.entries

    def _put(self, entry: Entry, paper: Paper | None) -> None:
        key, record = entry.record.key, entry.record
        holder = self.holder(entry)
        if holder is not None:
            self.remove(holder)
        self._table(entry)[key] = entry
        if entry.parsed.rule.kind != "ephemeral":
            self.trie.put(key, entry.digest)
        if record.tombstone:
            self._tombstones[key] = None
        if record.ttl_ms:
            heapq.heappush(self._expiries, (wall_ms_of(record.hlc) + record.ttl_ms, key, entry.digest))
        if entry.parsed.rule.prefix == "grant":
            self.court.learn_grant(entry)
        if paper is not None:
            self._papers[key] = paper
        self.quotas.charge(entry, paper)
        self._keys_of.setdefault(entry.author, {})[key] = None

    def _paper_of(self, entry: Entry) -> Paper | None:
        return self.court.paper_of(entry) if entry.parsed.rule.prefix in PAPERS else None

    def _park(self, entry: Entry) -> OfferResult:
        if entry.digest in self.parked:
            return OfferResult(OfferOutcome.PARKED, entry)
        most = self._parked_of[entry.author] >= self.limits.node_parked_max
        if most or len(self.parked) >= self.limits.parked_max:
            return OfferResult(
                OfferOutcome.REFUSED, entry, Refusal("records.ahead", "too many records wait for their time")
            )
        self.parked[entry.digest] = entry
        self._parked_of[entry.author] += 1
        return OfferResult(OfferOutcome.PARKED, entry)

    def _prove(self, entry: Entry, holder: Entry) -> EquivocationProof | None:
        if entry.author in self.proofs:
            return None  # one proof convicts; more would let a liar fill the store
        chosen_entry, other = sorted((entry, holder), key=lambda item: item.digest)
        proof = EquivocationProof(chosen_entry.signed, other.signed)
        self.proofs[entry.author] = proof
        return proof


def proof_record(author: PeerId, proof: EquivocationProof) -> tuple[str, bytes] | None:
    """Return key and body of a proof's record, None if the two records are too long for one body."""
    body = encode(proof)
    if len(body) > BODY_MAX_BYTES:
        return None
    return make_key("equivocation", author, digest(body).hex()), body


def signed_records(rows: Iterable[tuple[bytes, bytes]]) -> list[Signed]:
    """Decode stored rows, trust records first; rows that cannot be decoded are left out and come again by sync."""
    pairs: list[tuple[int, Signed]] = []
    for _, value in rows:
        try:
            signed: Signed = decode(value, Signed, RECORD_MAX_BYTES + 256)
        except DecodeError:
            continue
        entry = read_record(signed)
        if not isinstance(entry, Refusal):
            pairs.append((entry.parsed.rule.rank, signed))
    return [signed for _, signed in sorted(pairs, key=lambda item: item[0])]
