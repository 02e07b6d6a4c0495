"""Connections by who pays for them: a principal holds so many at once, whatever it has asked on them.

Each connection holds a descriptor, its buffers and what TLS needs, and one call after the other. When a principal opens
one too many, the one on which it was silent longest ends. Not here: connections on which no known key has signed anything
yet (listening.py), and calls under way (shares.py).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

CONNECTIONS_MAX = 64
"""Of one principal: more than the calls and streams that it may have under way. The principal pays with its oldest."""


class Closable(Protocol):
    """What drives one connection; aiohttp's RequestHandler is one."""

    transport: asyncio.Transport | None

    def force_close(self) -> None:
        """End the connection."""
        ...


class Connections:
    """Which connections each principal uses, the one that was silent longest first."""

    def __init__(self) -> None:
        """Begin with none."""
        self._of: dict[str, dict[Closable, None]] = {}

    def use(self, payer: str, connection: Closable) -> None:
        """Count a connection on which a principal asked something just now; end the oldest if they are too many."""
        mine = self._of.setdefault(payer, {})
        if mine.pop(connection, True):
            self._forget_ended()
        mine[connection] = None
        self._of[payer] = mine
        while len(mine) > CONNECTIONS_MAX:
            oldest = next(iter(mine))
            del mine[oldest]
            oldest.force_close()

    def _forget_ended(self) -> None:
        """Forget what ended by itself, of everybody: a new connection costs more than this look."""
        for payer, held in list(self._of.items()):
            for connection in [entry for entry in held if entry.transport is None]:
                del held[connection]
            if not held:
                del self._of[payer]
