"""Audit entries: every write through a node's API as one link of a hash chain, signed by that node.

Each entry names the digest of the one before it, so a removed, altered or reordered entry shows; every node holds
every other's entries as records, so a node cannot rewrite its own past unseen. What a chain cannot show is a cut-off
end: compare what other nodes hold. Not here: taking entries down (node/journal/audit.py), and what they add up to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import msgspec

from protocols.envelope import PUBLIC_KEY_BYTES, DecodeError, Signed, decode, digest, sign, verify
from protocols.keys import peer_id
from protocols.machine import Digest, PeerId, Signer, Verifier
from protocols.records.key_table import DAY_MS, make_key

AUDIT_DOMAIN = "freehold/audit/1"
ENTRY_MAX_BYTES = 4 * 1024
KEPT_MS = 400 * DAY_MS
"""As the key table allows: over a year, so that a yearly review sees a whole year."""

FAULTS_MAX = 1_000
"""Of one node: a lying one may claim a number that leaves a gap of a billion, and nobody reads further than this."""

TEXT_MAX = 300
NUMBER_DIGITS = 12


class AuditEntry(msgspec.Struct, frozen=True, tag="audit_entry"):
    """One write: `caller` reached the API, `signers` (keys in hex) signed what was handed over.

    `lineage` are all keys that stand behind the signers' grants. `digest` is that of the paper or command; `target` is
    what it is about, in words. `result` is "done" or the rule that refused. `previous` is the digest of the entry
    before, empty in the first. `oldest` is the first entry the node held when it wrote this one, made at `oldest_at_ms`:
    so an entry missing at the beginning shows, too, for as long as it cannot have expired. `count` is how many calls of the
    caller the entry tells of, the first of them at `first_ms`: refused ones are told together.
    """

    number: int
    at_ms: int
    previous: bytes
    caller: str
    signers: tuple[str, ...]
    lineage: tuple[str, ...]
    verb: str
    target: str
    digest: bytes
    result: str
    request: str
    oldest: int = 1
    oldest_at_ms: int = 0
    count: int = 1
    first_ms: int = 0


@dataclass(frozen=True, slots=True)
class ChainedEntry:
    """An entry as held: by whom, where in the chain its key says it is, and its signed bytes.

    An entry that may not be read here has `withheld`, the digest of what was signed, in place of the payload: that it stands
    where it should still shows by the entry behind it.
    """

    node: PeerId
    number: int
    signed: Signed
    withheld: bytes = b""

    @property
    def digest(self) -> Digest:
        """What the next entry names as `previous`."""
        return Digest(self.withheld) if self.withheld else entry_digest(self.signed)


@dataclass(frozen=True, slots=True)
class AuditFault:
    """An entry that is not as it should be: "removed", "altered", "reordered" or "foreign"."""

    node: PeerId
    number: int
    what: str


def entry_key(node: PeerId, number: int) -> str:
    """The record key of one entry; numbers are padded, so that keys sort as they do."""
    return make_key("audit", node, f"{number:0{NUMBER_DIGITS}}")


def sign_entry(signer: Signer, mesh: bytes, entry: AuditEntry) -> Signed:
    """Sign an entry with the node's key."""
    return sign(signer, AUDIT_DOMAIN, mesh, entry)


def read_entry(signed: Signed) -> AuditEntry:
    """Return the entry in signed bytes, unverified. Raises DecodeError."""
    entry: AuditEntry = decode(signed.payload, AuditEntry, ENTRY_MAX_BYTES)
    return entry


def entry_digest(signed: Signed) -> Digest:
    """What the next entry names as `previous`."""
    return digest(signed.payload)


def chain_faults(
    verifier: Verifier, mesh: bytes, links: Iterable[ChainedEntry], wall_ms: int
) -> tuple[AuditFault, ...]:
    """Return the first FAULTS_MAX faults of each chain at `wall_ms`, by node and number.

    Only entries that have expired may be missing.
    """
    by_node: dict[PeerId, dict[int, ChainedEntry]] = {}
    for link in links:
        by_node.setdefault(link.node, {})[link.number] = link
    return tuple(
        fault
        for node in sorted(by_node)
        for fault in islice(_node_faults(verifier, mesh, node, by_node[node], wall_ms), FAULTS_MAX)
    )


def _node_faults(
    verifier: Verifier, mesh: bytes, node: PeerId, held: dict[int, ChainedEntry], wall_ms: int
) -> Iterable[AuditFault]:
    last = max(held)
    first = _first_due(held[last], min(held), wall_ms)
    before: ChainedEntry | None = None
    for number in range(first, last + 1):
        link = held.get(number)
        if link is None:
            yield AuditFault(node, number, "removed")
            before = None
            continue
        fault = "" if link.withheld else _fault(verifier, mesh, node, number, link.signed, before)
        if fault:
            yield AuditFault(node, number, fault)
        before = link


def _first_due(newest: ChainedEntry, first_held: int, wall_ms: int) -> int:
    """Return the first entry that must still be there, by the word of the newest one."""
    try:
        said = read_entry(newest.signed)
    except DecodeError:
        return first_held
    return min(said.oldest, first_held) if wall_ms < said.oldest_at_ms + KEPT_MS else first_held


def _fault(
    verifier: Verifier, mesh: bytes, node: PeerId, number: int, signed: Signed, before: ChainedEntry | None
) -> str:
    if len(signed.key) != PUBLIC_KEY_BYTES or peer_id(signed.key) != node:
        return "foreign"
    try:
        entry = read_entry(signed)
    except DecodeError:
        return "altered"
    if not verify(verifier, AUDIT_DOMAIN, mesh, signed):
        return "altered"
    if entry.number != number:
        return "reordered"
    if number == 1 and entry.previous:
        return "altered"
    if before is not None and entry.previous != before.digest:
        return "altered"
    return ""
