"""Requests that were made already: what makes a signature good once, on this node, for as long as its date is good.

Nothing is ever evicted: a request that is forgotten while its date still holds could be made again. So each key has a
share, and a key whose share is full waits. Only keys with a grant have one: a stranger's signature opens nothing that
a second use could repeat. Not here: whether a signature verifies (callers.py).
"""

from __future__ import annotations

import hashlib

NONCES_PER_KEY_MAX = 16_384
"""Signed requests of one key within the two minutes of their dates: over 100 a second. The key pays."""

NONCES_MAX = 131_072
"""Of all keys together, 20 MiB; beyond it a key that has used up its reserve waits."""

NONCES_RESERVED_PER_KEY = 256
"""What each key may use when all the others have filled the rest."""

SWEEP_S = 10.0
NAME_BYTES = 16


class Nonces:
    """The requests of each key whose dates still hold."""

    def __init__(self) -> None:
        """Begin with none: a node refuses what was signed before it started."""
        self._by_key: dict[bytes, dict[bytes, float]] = {}
        self._count = 0
        self._swept_s = 0.0

    def take(self, key: bytes, once: str, until_s: float, now_s: float) -> bool | None:
        """Remember a request until `until_s`; False if it was made before, None if there is no room for this key."""
        name = hashlib.blake2b(once.encode(), digest_size=NAME_BYTES).digest()
        mine = self._by_key.get(key, {})
        self._forget_old(mine, now_s)
        if now_s - self._swept_s > SWEEP_S:
            self._sweep(now_s)
        if name in mine:
            return False
        full = self._count >= NONCES_MAX and len(mine) >= NONCES_RESERVED_PER_KEY
        if full or len(mine) >= NONCES_PER_KEY_MAX:
            return None
        mine[name] = until_s
        self._by_key[key] = mine
        self._count += 1
        return True

    def _forget_old(self, mine: dict[bytes, float], now_s: float) -> None:
        """Drop from the oldest on what no date makes good any more; one out of order only stays a little longer."""
        while mine and mine[first := next(iter(mine))] < now_s:
            del mine[first]
            self._count -= 1

    def _sweep(self, now_s: float) -> None:
        self._swept_s = now_s
        for key in list(self._by_key):
            self._forget_old(self._by_key[key], now_s)
            if not self._by_key[key]:
                del self._by_key[key]
