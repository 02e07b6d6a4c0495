"""Who observes whom: up to a few observers of each member, by rendezvous hash, the same on every node.

A member that comes or goes changes the observers of few others (Thaler and Ravishankar, 1998), so they are kept and
changed, which costs a hash or two for each member instead of one for each pair. Not here: what an observer does
(liveness.py).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence

from protocols.envelope import digest
from protocols.machine import Digest, PeerId


def observers_of(node: PeerId, members: Sequence[PeerId], count: int) -> tuple[PeerId, ...]:
    """Return the up to `count` members that observe `node`: the rule, from nothing but the members."""
    return tuple(peer for _, peer in _nearest(node, members, count))


class Observers:
    """The observers of every member, up to `count` each, kept as members come and go."""

    def __init__(self, count: int) -> None:
        """Start without members."""
        self._count = count
        self._nearest: dict[PeerId, list[tuple[Digest, PeerId]]] = {}

    def of(self, node: PeerId) -> tuple[PeerId, ...]:
        """Return who observes a member. Raises KeyError for others."""
        return tuple(peer for _, peer in self._nearest[node])

    def set(self, members: Iterable[PeerId]) -> None:
        """Let these be the members."""
        wanted = dict.fromkeys(members)
        gone = {peer for peer in self._nearest if peer not in wanted}
        for peer in gone:
            del self._nearest[peer]
        for node, nearest in self._nearest.items():
            if any(peer in gone for _, peer in nearest):
                self._nearest[node] = _nearest(node, tuple(self._nearest), self._count)
        for peer in wanted:
            if peer not in self._nearest:
                self._add(peer)

    def _add(self, peer: PeerId) -> None:
        for node, nearest in self._nearest.items():
            place = _place(node, peer)
            if len(nearest) < self._count or place < nearest[-1][0]:
                insort(nearest, (place, peer))
                del nearest[self._count :]
        self._nearest[peer] = _nearest(peer, tuple(self._nearest), self._count)


def _place(node: PeerId, peer: PeerId) -> Digest:
    return digest(f"{node}/{peer}".encode())


def _nearest(node: PeerId, members: Iterable[PeerId], count: int) -> list[tuple[Digest, PeerId]]:
    return sorted((_place(node, peer), peer) for peer in members if peer != node)[:count]
