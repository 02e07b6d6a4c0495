"""One record: its form, its signature, and which of two versions of a key stands.

The order of versions is total and needs no clock but the author's own sequence, so merging is commutative, associative
and idempotent. Not here: who may write (records.py, by the key table) and where records are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import msgspec

from protocols.envelope import DIGEST_BYTES, DecodeError, Signed, decode, digest, encode, signing_bytes
from protocols.keys import peer_id
from protocols.machine import Digest, PeerId, Signer
from protocols.records.hlc import HLC_MAX
from protocols.records.key_table import (
    BODY_MAX_BYTES,
    KEY_CHARACTERS_MAX,
    TOMBSTONE_MAX_BYTES,
    ParsedKey,
    RecordKind,
    parse_key,
)
from protocols.refusal import Refusal

RECORD_DOMAIN = "freehold/record/1"
RECORD_MAX_BYTES = TOMBSTONE_MAX_BYTES + KEY_CHARACTERS_MAX + 256
"""The body, the key, and the fixed fields with room to grow."""

CACHED_KEYS = 65_536

_parse = lru_cache(CACHED_KEYS)(parse_key)
_peer_id = lru_cache(1024)(peer_id)


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What an author signed; the mesh is bound by the signature and the author is its key.

    `seq` rises with every record of one author; `hlc` is the author's clock; `prev` is the digest of the version it
    replaces, or empty; `ttl_ms` counts from `hlc`, 0 for ever. `body` holds up to 16 KiB, or is empty and `artifact` is
    the digest of the bytes; a `tombstone` has neither, or as body what entitles to the removal (papers.Ended).
    """

    key: str
    kind: RecordKind
    seq: int
    hlc: int
    prev: bytes = b""
    ttl_ms: int = 0
    body: bytes = b""
    artifact: bytes = b""
    tombstone: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A record with its author, the signature, its parsed key and the digest of its payload.

    `payload` is empty where it is the record as we encode it, which it mostly is: a body is kept once, not twice.
    """

    record: Record
    author: PeerId
    author_key: bytes
    signature: bytes
    payload: bytes
    parsed: ParsedKey
    digest: Digest
    size_bytes: int

    @property
    def signed(self) -> Signed:
        """The record as its author signed it, byte for byte."""
        return Signed(self.payload or encode(self.record), self.author_key, self.signature)


def sign_record(signer: Signer, mesh: bytes, record: Record) -> Signed:
    """Encode and sign a record."""
    payload = encode(record)
    return Signed(payload, signer.public_key, signer.sign(signing_bytes(RECORD_DOMAIN, mesh, payload)))


def read_record(signed: Signed) -> Entry | Refusal:
    """Decode a record and check its form by the key table; the signature is checked by the caller, only if needed."""
    if len(signed.key) != DIGEST_BYTES:
        return Refusal("records.malformed", "the author's key is not 32 bytes")
    try:
        record: Record = decode(signed.payload, Record, RECORD_MAX_BYTES)
    except DecodeError as error:
        return Refusal("records.malformed", str(error))
    parsed = _parse(record.key)
    if isinstance(parsed, Refusal):
        return parsed
    if record.kind != parsed.rule.kind:
        return Refusal("records.kind", f"a {parsed.rule.prefix} record is {parsed.rule.kind}")
    if not (0 <= record.seq <= HLC_MAX and 0 <= record.hlc <= HLC_MAX and record.ttl_ms >= 0):
        return Refusal("records.malformed", "a number is out of range")
    longest = TOMBSTONE_MAX_BYTES if record.tombstone else BODY_MAX_BYTES
    if len(record.body) > longest or len(record.artifact) not in (
        0,
        DIGEST_BYTES,
    ):
        return Refusal("records.malformed", "the body is over 16 KiB, or the artifact's digest is not 32 bytes")
    problem = _content_problem(record, parsed)
    if problem is not None:
        return problem
    size = len(signed.payload) + len(signed.signature) + len(signed.key)
    other = b"" if encode(record) == signed.payload else signed.payload
    author = _peer_id(signed.key)
    return Entry(record, author, signed.key, signed.signature, other, parsed, digest(signed.payload), size)


def _content_problem(record: Record, parsed: ParsedKey) -> Refusal | None:
    rule = parsed.rule
    longest = rule.ttl_max_ms
    if longest and not 0 < record.ttl_ms <= longest:
        return Refusal("records.ttl", f"a {rule.prefix} record lives for at most {longest} ms")
    if record.tombstone:
        if rule.ends == "never":
            return Refusal("records.tombstone", f"a {rule.prefix} record cannot be removed")
        if record.artifact or bool(record.body) != (rule.ends == "author"):
            what = "that holds the paper and its author's statement" if rule.ends == "author" else "that is empty"
            return Refusal("records.tombstone", f"a {rule.prefix} record ends by a tombstone {what}")
        return None
    if bool(record.body) == bool(record.artifact):
        return Refusal("records.malformed", "a record has either a body or an artifact's digest")
    if rule.kind == "immutable":
        content = record.artifact or digest(record.body)
        if content.hex() != parsed.parts[-1]:
            return Refusal("records.digest", "the key does not end in the content's digest")
    return None


def beats(challenger: Entry, holder: Entry) -> bool:
    """Return whether `challenger` replaces `holder`, a different version of the same key.

    Immutable: a tombstone stands against content; else the content is the same, and the lower record digest stands.
    Owned: the higher sequence; at one sequence, which is equivocation, the lower digest. Ephemeral: the later clock.
    """
    new, old = challenger.record, holder.record
    match challenger.parsed.rule.kind:
        case "immutable":
            if new.tombstone != old.tombstone:
                return new.tombstone
        case "owned":
            if new.seq != old.seq:
                return new.seq > old.seq
        case "ephemeral":
            if new.hlc != old.hlc:
                return new.hlc > old.hlc
    return challenger.digest < holder.digest


def equivocates(entry: Entry, other: Entry) -> bool:
    """Return whether two different records prove that their author used one sequence twice for one key."""
    return (
        entry.parsed.rule.kind == "owned"
        and entry.author == other.author
        and entry.record.key == other.record.key
        and entry.record.seq == other.record.seq
        and entry.digest != other.digest
    )
