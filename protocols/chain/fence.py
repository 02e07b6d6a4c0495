"""The fence: a second, tiny witness of how far a store's promises and votes went, in a file of two checksummed slots.

SQLite's write-ahead log can lose acknowledged commits without a word (one damaged page drops all behind it), and a
forgotten promise breaks agreement. So after each database commit of a promise or vote, its counter and digest go into
the fence slot that is not the newest; only then is the statement sent. At start the two witnesses are compared. Pure
functions: bytes and values. Not here: the file (one slot per write, in node/), and what quarantine means (chain.py).

Source: R. Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage" (FAST 2018), section 2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from protocols.chain.ballots import STORE_ID_BYTES
from protocols.envelope import DIGEST_BYTES, digest
from protocols.machine import Persist, Store, Write

FENCE_TABLE = "fence"
SLOT_KEYS = (b"0", b"1")
BOOT_LEAP = 1 << 32
"""A boot read lifts a store's counter by this much: more statements than the forgotten life can have made."""
_MAGIC = b"FHF1"
_BODY = struct.Struct(f">4s{STORE_ID_BYTES}sQ{DIGEST_BYTES}s")
SLOT_BYTES = _BODY.size + DIGEST_BYTES
"""One slot's size in bytes, checksum included; the two slots lie in different disk sectors."""


@dataclass(frozen=True, slots=True)
class Fence:
    """What the newest good slot says: the store, its counter, and the digest of what it said with it."""

    store_id: bytes
    counter: int
    digest: bytes


def encode_slot(fence: Fence) -> bytes:
    """Return one slot's bytes: magic, store id, counter, digest, and the SHA-256 of all that."""
    body = _BODY.pack(_MAGIC, fence.store_id, fence.counter, fence.digest)
    return body + digest(body)


def decode_slot(data: bytes) -> Fence | None:
    """Return what a slot says, or None if it is torn, damaged or not a slot."""
    if len(data) != SLOT_BYTES:
        return None
    body, checksum = data[: _BODY.size], data[_BODY.size :]
    magic, store_id, counter, said = _BODY.unpack(body)
    if magic != _MAGIC or digest(body) != checksum:
        return None
    return Fence(store_id, counter, said)


def newest_fence(slots: Mapping[bytes, bytes]) -> Fence | None:
    """Return the good slot with the highest counter, or None if neither is good."""
    fences = [fence for key in SLOT_KEYS if (fence := decode_slot(slots.get(key, b""))) is not None]
    return max(fences, key=lambda fence: fence.counter, default=None)


def advance_fence(fence: Fence) -> Persist:
    """Return the write of this fence into the older slot: counters alternate between the two."""
    return Persist(Store.FENCE, (Write(FENCE_TABLE, SLOT_KEYS[fence.counter % 2], encode_slot(fence)),))


def renew_fence(fence: Fence) -> Persist:
    """Return the write of a new store's first fence into both slots."""
    slot = encode_slot(fence)
    return Persist(Store.FENCE, tuple(Write(FENCE_TABLE, key, slot) for key in SLOT_KEYS))


def distrust_of(database: Fence | None, fence: Fence | None) -> str:
    """Return why a store must be quarantined, or "" when database and fence agree.

    The database may be one statement ahead: the process ended between the two writes, and nothing was sent.
    """
    if database is None:
        return "the vote database is unreadable"
    if fence is None:
        return "the fence is unreadable"
    if fence.store_id != database.store_id:
        return "the fence belongs to another store"
    if database.counter < fence.counter:
        return f"the database is behind the fence: {database.counter} < {fence.counter}"
    if database.counter - fence.counter not in (0, 1, BOOT_LEAP + 1):
        return f"the fence is behind the database: {fence.counter} < {database.counter}"
    if database.counter == fence.counter and database.digest != fence.digest:
        return "database and fence disagree about the last statement"
    return ""


def is_same_boot(runtime_copy: bytes, slots: Mapping[bytes, bytes]) -> bool:
    """Return whether a copy kept in the volatile runtime folder shows that the fence was not taken back since.

    The node writes the copy, without fsync, after each fence write. It is gone after a reboot; after a restore of the
    disk it is ahead. A copy one statement behind only means that the process ended between the two writes.
    """
    copy, fence = decode_slot(runtime_copy), newest_fence(slots)
    return copy is not None and fence is not None and copy.store_id == fence.store_id and copy.counter <= fence.counter
