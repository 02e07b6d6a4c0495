"""Shares of the record store: who pays for each record, how much a payer may have, and what gives way when it is full.

A node pays for what it says itself: its audit entries, its words, and the trust records that it carries. A paper is paid
for by the key that signed it and by its project, whichever node carries it. Limits are counts first: a payer over its
share of papers keeps the oldest by signed time and digest, so that equal inputs end in equal sets whatever their order of
arrival; what a decision pins never gives way. Not here: judging a paper (papers.py), and the API's refusal by quota.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from protocols.records.credentials import delegator_of
from protocols.records.key_table import DAY_MS, KeyRule
from protocols.records.papers import Paper
from protocols.records.record import Entry
from protocols.records.trie import id_of
from protocols.refusal import Refusal

TRUST_RANK = 1
"""Rows of the key table up to this rank are about trust and prove themselves."""

URGENT_BYTES = 1_024
"""What an urgent record takes: certificates and revocations less, admissions a little more."""

REFUSED_MAX = 4_096
REFUSED_FOR_MS = 600_000
"""A version that a quota refused is not looked at again for ten minutes: it costs its sender more than this node."""

Order = tuple[int, str, str]
"""Signed time, the paper's digest, the record's key."""

Budget = Literal["trust", "audit", "words", "moments", "principal", "project", "delegations"]
"""`trust`, `audit`, `words`, `moments`: of the node that wrote the record. `principal`: of the key that signed the paper.
`project`: of all keys that write papers in one project. `delegations`: of the principal whose right a grant to another
key, or a revocation, rests on; beside `trust`, for it is asked where one is filed."""


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """How much is kept, and who pays. The simulator and the benchmarks change them."""

    records_max: int = 250_000
    """All that is replicated: some 400 MB of memory when full. Nobody pays: the shares below keep it from filling up."""
    urgent_extra: int = 10_000
    """Room above every limit, for certificates, revocations and grants: space must never refuse them."""
    reserve_max: int = 4_096
    """Of each node's audit entries, and of each admin's papers: so many find room in a store that others have filled."""
    node_audit_max: int = 150_000
    """A node pays for the writes that it takes down: 400 days of 20 reviewed deploys a day are under half of it."""
    node_words_max: int = 8_192
    """A node pays for its status, address, floor, prepared releases, verdicts, boxes and proofs."""
    node_words_bytes_max: int = 16 * 1024 * 1024
    """A node pays: what a node says takes half a KiB, so all of it takes a quarter of this."""
    node_trust_max: int = 16_384
    """A node pays for the certificates, admissions, revocations and grants that it was the first to carry."""
    node_moments_max: int = 512
    """A node pays for the health of its apps and its load."""
    node_bytes_max: int = 128 * 1024 * 1024
    """A node pays: all of the above together."""
    principal_papers_max: int = 12_288
    """The key that signed pays, whichever node carries it: 90 days of 20 deploys a day are under half of it."""
    principal_bytes_max: int = 64 * 1024 * 1024
    """The key that signed pays."""
    project_papers_max: int = 24_576
    """The project pays, for the papers of all keys but the admins'; asked where a paper is filed."""
    project_bytes_max: int = 128 * 1024 * 1024
    """The project pays; asked where a paper is filed."""
    delegations_max: int = 1_024
    """The principal whose right they rest on pays, for the grants and revocations of all its keys; asked where one is filed.
    Without it one token filled a node's share of trust records, where operators' own must find room."""
    delegations_bytes_max: int = 4 * 1024 * 1024
    """The same principal pays; asked where one is filed."""
    ephemeral_max: int = 16_384
    parked_max: int = 1_024
    """Records from the future, of all nodes."""
    node_parked_max: int = 128
    """A node pays for its clock."""
    tombstone_keep_ms: int = 30 * DAY_MS
    silent_max_ms: int = 60 * DAY_MS
    """A member whose floor is older no longer holds tombstones back; when it returns it resyncs wholesale."""


@dataclass(frozen=True, slots=True)
class Payer:
    """Who pays: a budget, and the node, key (hex) or project that it is of."""

    budget: Budget
    name: str


@dataclass(slots=True)
class _Account:
    """What one payer has: how many records, of how many bytes, and its papers in the order in which they are kept."""

    count: int = 0
    size_bytes: int = 0
    order: list[Order] = field(default_factory=list)


Pinned = Callable[[Paper], bool]


def budget_of(rule: KeyRule) -> Budget:
    """The budget of a node that a record of this row counts against, unless it is a paper of somebody known."""
    if rule.rank <= TRUST_RANK:
        return "trust"
    if rule.kind == "ephemeral":
        return "moments"
    return "audit" if rule.prefix == "audit" else "words"


def node_payer(entry: Entry) -> Payer:
    """Who pays for a record that is no paper: the node that wrote it."""
    return Payer(budget_of(entry.parsed.rule), entry.author)


class Quotas:
    """The accounts of one store. Mutable: `charge` and `refund` follow every record that is put or removed."""

    def __init__(self, limits: RecordLimits, admin: Callable[[bytes], bool]) -> None:
        """Start with nothing held; `admin` says whether a key is or was an admin's, whom no project's share binds."""
        self.limits = limits
        self._admin = admin
        self._accounts: dict[Payer, _Account] = {}
        self._node_bytes: dict[str, int] = {}
        self._charged: dict[str, tuple[Payer, ...]] = {}
        """Who paid for each held paper, by key: whoever became an admin since pays as before."""
        self._refused: dict[bytes, tuple[str, int]] = {}

    # --- accounts -----------------------------------------------------------------------------------------------------

    def paper_payers(self, paper: Paper) -> tuple[Payer, ...]:
        """Who pays for a paper, whichever node carries it."""
        signer = signer_of(paper)
        if not paper.project or self._admin(paper.author):
            return (signer,)
        return (signer, Payer("project", paper.project))

    def held(self, payer: Payer) -> tuple[int, int]:
        """How many records a payer has, and how many bytes they take."""
        account = self._accounts.get(payer)
        return (account.count, account.size_bytes) if account is not None else (0, 0)

    def node_used(self, node: str) -> float:
        """How much of what a node may write is used up, of its audit entries or of its bytes; 1 is all."""
        limits = self.limits
        entries = self.held(Payer("audit", node))[0] / max(1, limits.node_audit_max)
        return max(entries, self._node_bytes.get(node, 0) / max(1, limits.node_bytes_max))

    def charge(self, entry: Entry, paper: Paper | None) -> None:
        """Count a record that was put."""
        if paper is None:
            self._count(node_payer(entry), entry, 1)
            self._node_bytes[entry.author] = self._node_bytes.get(entry.author, 0) + entry.size_bytes
            if by := delegator_of(entry.parsed.rule.prefix, entry.record.body):
                self._count(Payer("delegations", by.hex()), entry, 1)
            return
        payers = self._charged[entry.record.key] = self.paper_payers(paper)
        for payer in payers:
            insort(self._count(payer, entry, 1).order, order_of(entry, paper))

    def refund(self, entry: Entry, paper: Paper | None) -> None:
        """Count a record no more that was removed."""
        if paper is None:
            self._count(node_payer(entry), entry, -1)
            self._node_bytes[entry.author] -= entry.size_bytes
            if by := delegator_of(entry.parsed.rule.prefix, entry.record.body):
                self._count(Payer("delegations", by.hex()), entry, -1)
            return
        for payer in self._charged.pop(entry.record.key):
            order = self._accounts[payer].order
            del order[bisect_left(order, order_of(entry, paper))]
            self._count(payer, entry, -1)

    def _count(self, payer: Payer, entry: Entry, sign: int) -> _Account:
        account = self._accounts.setdefault(payer, _Account())
        account.count += sign
        account.size_bytes += sign * entry.size_bytes
        if not account.count:
            del self._accounts[payer]
        return account

    # --- limits -------------------------------------------------------------------------------------------------------

    def most(self, budget: Budget) -> tuple[int, int]:
        """How many records of a budget one payer may have, and how many bytes; 0 where only the node's total counts."""
        limits = self.limits
        match budget:
            case "trust":
                return limits.node_trust_max, 0
            case "audit":
                return limits.node_audit_max, 0
            case "words":
                return limits.node_words_max, limits.node_words_bytes_max
            case "moments":
                return limits.node_moments_max, 0
            case "principal":
                return limits.principal_papers_max, limits.principal_bytes_max
            case "project":
                return limits.project_papers_max, limits.project_bytes_max
            case "delegations":
                return limits.delegations_max, limits.delegations_bytes_max

    def refusal(self, payer: Payer) -> Refusal:
        """The refusal that names the limit and who pays."""
        count, size_bytes = self.most(payer.budget)
        who = {
            "principal": "the key that signed this", "project": f"project {payer.name}",
            "delegations": "the principal that this rests on",
        }.get(payer.budget, f"node {payer.name}")  # fmt: skip
        room = f" and {size_bytes >> 20} MiB" if size_bytes else ""
        return Refusal(
            f"quota.{payer.budget}", f"{who} has used up its share: {count} records{room}; old ones expire, or end some"
        )

    def paper_problem(self, paper: Paper, family: Collection[bytes], size_bytes: int) -> Refusal | None:
        """Return why no new paper of this size is taken from its signer, or None: what the API asks before it files one.

        `family` are the keys of the signer's principal: whoever makes keys as it likes has one share with all of them.
        """
        for payer in self.paper_payers(paper):
            answer = payer.budget == "principal"
            accounts = {Payer("principal", key.hex()) for key in (*family, paper.author)} if answer else {payer}
            refusal = self._full(payer, accounts, size_bytes)
            if refusal is not None:
                return refusal
        return None

    def delegation_problem(self, prefix: str, body: bytes) -> Refusal | None:
        """Return why no new grant or revocation is taken from whom it rests on, or None: what the API asks."""
        by = delegator_of(prefix, body)
        payer = Payer("delegations", by.hex())
        return self._full(payer, {payer}, len(body)) if by and not self._admin(by) else None

    def _full(self, payer: Payer, accounts: Collection[Payer], size_bytes: int) -> Refusal | None:
        most, most_bytes = self.most(payer.budget)
        held = [self.held(account) for account in accounts]
        count, held_bytes = sum(pair[0] for pair in held), sum(pair[1] for pair in held)
        return self.refusal(payer) if count >= most or held_bytes + size_bytes > most_bytes else None

    def node_problem(self, entry: Entry, holder: Entry | None, holder_paper: Paper | None) -> Refusal | None:
        """Return why a node's own share does not take a record, or None; `holder` is what it replaces."""
        rule = entry.parsed.rule
        extra = self.limits.urgent_extra if rule.urgent else 0
        payer = node_payer(entry)
        freed = holder is not None and holder_paper is None and holder.author == entry.author
        count, size_bytes = self.held(payer)
        most, most_bytes = self.most(payer.budget)
        if not freed and count >= most + extra:
            return self.refusal(payer)
        more = entry.size_bytes - (holder.size_bytes if freed and holder else 0)
        if most_bytes and size_bytes + more > most_bytes + extra * URGENT_BYTES:
            return self.refusal(payer)
        used = self._node_bytes.get(entry.author, 0) + more
        if used > self.limits.node_bytes_max + extra * URGENT_BYTES:
            return Refusal(
                "quota.bytes",
                f"node {entry.author} has used up its share: {self.limits.node_bytes_max >> 20} MiB of its own records",
            )
        return None

    def reserved(self, entry: Entry, paper: Paper | None) -> bool:
        """Whether a record finds room in a store that others have filled: of a node's audit, or of an admin's papers."""
        payer = node_payer(entry) if paper is None else self.paper_payers(paper)[0]
        if self.held(payer)[0] >= self.limits.reserve_max:
            return False
        return payer.budget == "audit" or (paper is not None and self._admin(paper.author))

    def giving_way(
        self, entry: Entry, paper: Paper, entries: Mapping[str, Entry], papers: Mapping[str, Paper], pinned: Pinned
    ) -> Refusal | list[Entry]:
        """Return the papers that give way to one more, or the refusal if it would be the first to give way.

        `entries` and `papers` are what is held, by key. A paper that is `pinned` finds room always. Only papers of the same key
        give way: a project's share is asked before a paper is filed, for here a key could push out another's by its dates.
        """
        leaving: dict[str, Entry] = {}
        stays, mine = pinned(paper), order_of(entry, paper)
        holder = entries.get(entry.record.key)
        payer = signer_of(paper)
        most, most_bytes = self.most(payer.budget)
        count, size_bytes = self.held(payer)
        count, size_bytes = count + 1, size_bytes + entry.size_bytes
        if holder is not None and payer in self._charged.get(entry.record.key, ()):
            count, size_bytes = count - 1, size_bytes - holder.size_bytes
        account = self._accounts.get(payer)
        later = reversed(account.order if account is not None else [])
        while count > most or size_bytes > most_bytes:
            place = next((pair for pair in later if pair[2] != mine[2] and not pinned(papers[pair[2]])), None)
            if place is None or place < mine:
                if stays:
                    break
                return self.refusal(payer)
            leaving[place[2]] = entries[place[2]]
            count, size_bytes = count - 1, size_bytes - entries[place[2]].size_bytes
        return list(leaving.values())

    # --- what was refused ---------------------------------------------------------------------------------------------

    def remember(self, entry: Entry, wall_ms: int) -> None:
        """Do not look at this record again for a while."""
        item_id = id_of(entry.record.key, entry.digest)
        self._refused.pop(item_id, None)
        self._refused[item_id] = entry.author, wall_ms + REFUSED_FOR_MS
        while len(self._refused) > REFUSED_MAX:
            del self._refused[next(iter(self._refused))]

    def remembered(self, item_id: bytes, wall_ms: int, author: str = "") -> bool:
        """Whether a quota refused this version, by this node if one is given, a short while ago."""
        who, until_ms = self._refused.get(item_id, ("", 0))
        return author in ("", who) and until_ms - REFUSED_FOR_MS <= wall_ms < until_ms

    def reconsider(self) -> None:
        """Look at everything anew: room was made, or what is pinned changed."""
        self._refused.clear()


def signer_of(paper: Paper) -> Payer:
    """The key that signed a paper, as the payer of it."""
    return Payer("principal", paper.author.hex())


def order_of(entry: Entry, paper: Paper) -> Order:
    """The place of a paper among those of its payer: signed time, then digest; the record's key makes it its own."""
    return paper.signed_ms, entry.parsed.parts[-1], entry.record.key
