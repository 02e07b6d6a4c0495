"""A 16-ary hash trie of depth 3 over the current records: what two nodes compare to find where they differ.

A record lives in the leaf named by the first three hex digits of its key's digest, under an id made of key and record
digest. A leaf's hash covers its sorted ids, an inner node's the hashes of its 16 children, the root all. Hashes are
computed when asked for, so a burst of changes costs one pass. Pure data; the conversation is sync.py's. 4096 leaves
hold 24 records each at 100,000. A Merkle tree as in Merkle (CRYPTO 1987); fixed shape, so that nodes agree on it.
"""

from __future__ import annotations

from hashlib import sha256

DEPTH = 3
WIDTH = 16
LEAVES = WIDTH**DEPTH
HASH_BYTES = 16
"""128 bits: nobody finds two records with one id, and a level of the trie stays small on the wire."""

EMPTY = bytes(HASH_BYTES)


def leaf_of(key: str) -> int:
    """Return the leaf (0 to 4095) in which a key lives."""
    return int.from_bytes(sha256(key.encode()).digest()[:2], "big") >> 4


def id_of(key: str, record_digest: bytes) -> bytes:
    """Return the 16-byte id of one version of one key."""
    return sha256(record_digest + key.encode()).digest()[:HASH_BYTES]


class Trie:
    """The ids of all current records, with hashes per level (0 is the root, 3 the leaves)."""

    def __init__(self) -> None:
        """Start empty."""
        self._ids: list[dict[str, bytes]] = [{} for _ in range(LEAVES)]
        self._hashes: list[list[bytes]] = [[EMPTY] * WIDTH**level for level in range(DEPTH + 1)]
        self._dirty: dict[int, None] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, key: str, record_digest: bytes) -> None:
        """Make this the current version of `key`."""
        leaf = leaf_of(key)
        ids = self._ids[leaf]
        self._count += key not in ids
        ids[key] = id_of(key, record_digest)
        self._dirty[leaf] = None

    def remove(self, key: str) -> None:
        """Forget `key`; unknown keys are no error."""
        leaf = leaf_of(key)
        if self._ids[leaf].pop(key, None) is not None:
            self._count -= 1
            self._dirty[leaf] = None

    def root(self) -> bytes:
        """Return the hash over everything, 16 bytes; zeros when empty."""
        self._refresh()
        return self._hashes[0][0]

    def children(self, level: int, index: int) -> bytes:
        """Return the 16 hashes below node `index` of `level` (0 to 2), joined: 256 bytes."""
        assert 0 <= level < DEPTH
        assert 0 <= index < WIDTH**level
        self._refresh()
        return b"".join(self._hashes[level + 1][index * WIDTH : (index + 1) * WIDTH])

    def leaf_ids(self, leaf: int) -> list[bytes]:
        """Return the sorted ids in one leaf."""
        return sorted(self._ids[leaf].values())

    def leaf_items(self, leaf: int) -> list[tuple[bytes, str]]:
        """Return (id, key) for each record of one leaf, in order of id."""
        return sorted((item_id, key) for key, item_id in self._ids[leaf].items())

    def _refresh(self) -> None:
        changed = self._dirty
        if not changed:
            return
        self._dirty = {}
        leaves = self._hashes[DEPTH]
        for leaf in changed:
            ids = self.leaf_ids(leaf)
            leaves[leaf] = sha256(b"".join(ids)).digest()[:HASH_BYTES] if ids else EMPTY
        for level in range(DEPTH - 1, -1, -1):
            changed = {index // WIDTH: None for index in changed}
            below = self._hashes[level + 1]
            for index in changed:
                hashes = b"".join(below[index * WIDTH : (index + 1) * WIDTH])
                empty = not any(hashes)
                self._hashes[level][index] = EMPTY if empty else sha256(hashes).digest()[:HASH_BYTES]


def differing(mine: bytes, theirs: bytes) -> list[int]:
    """Return which of the 16 children differ between two answers of `children`."""
    return [
        child
        for child in range(WIDTH)
        if mine[child * HASH_BYTES : (child + 1) * HASH_BYTES] != theirs[child * HASH_BYTES : (child + 1) * HASH_BYTES]
    ]
