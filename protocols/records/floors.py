"""Floors: what each member is known to have seen, so that tombstones can be forgotten without the dead coming back.

A node keeps a vector: for each member, up to which moment (of that member's own clock) it holds all that the member
held. Two nodes with equal sets take the maximum of their vectors, so knowledge travels over any overlay. A node's floor
is the lowest entry over the members; it signs its vector into its floor record. A tombstone that lies below the floors
of all members may go. A member unheard of for `silent_max_ms` is left out; when two nodes meet that left each other
out, the one from the smaller part (then the higher peer id) resyncs wholesale instead of teaching. Source: the matrix
clocks of Wuu and Bernstein (PODC 1984), one row of which travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from protocols.machine import PeerId
from protocols.records.hlc import AHEAD_MAX_MS

MEMBERS_MAX = 1_024
MARGIN_MS = 2 * AHEAD_MAX_MS
"""A record's clock may be this far ahead of its author's wall clock, and ours of theirs."""


class Moment(msgspec.Struct, frozen=True, array_like=True):
    """Everything that `peer` held at `wall_ms` of its clock."""

    peer: PeerId
    wall_ms: int


class FloorVector(msgspec.Struct, frozen=True, array_like=True):
    """A node's vector, in ascending order of peers; the body of its floor record."""

    moments: tuple[Moment, ...]


class Contact(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of itself when a sync starts: its vector, and how many members it has heard of lately.

    `live` is 0 for a node that never finished a sync: a newcomer, or one that lost its disk.
    """

    vector: FloorVector
    live: int


class Floors:
    """One node's vector and what follows from it."""

    def __init__(self, me: PeerId, silent_max_ms: int) -> None:
        """Start as a newcomer."""
        self._me = me
        self._silent_max_ms = silent_max_ms
        self._known: dict[PeerId, int] = {}

    def restore(self, vector: FloorVector) -> None:
        """Continue from this node's own stored floor record."""
        self._known = {moment.peer: moment.wall_ms for moment in vector.moments}

    @property
    def established(self) -> bool:
        """Whether this node ever finished a sync."""
        return bool(self._known)

    def contact(self, members: Sequence[PeerId], wall_ms: int) -> Contact:
        """Return what to tell a peer when a sync starts."""
        heard = [peer for peer in self._live(members, wall_ms) if peer in self._known]
        live = len(heard) if self.established else 0
        return Contact(self.vector(wall_ms), live)

    def vector(self, wall_ms: int) -> FloorVector:
        """Return this node's vector; its own entry is the present."""
        known = {**self._known, self._me: wall_ms}
        return FloorVector(tuple(Moment(peer, known[peer]) for peer in sorted(known)))

    def equal_with(self, theirs: FloorVector, wall_ms: int) -> None:
        """Take over a peer's vector: our sets are the same."""
        for moment in theirs.moments[:MEMBERS_MAX]:
            # A clock that is far ahead must not vouch for a future in which records will still be written.
            at_ms = min(moment.wall_ms, wall_ms + AHEAD_MAX_MS)
            self._known[moment.peer] = max(self._known.get(moment.peer, 0), at_ms)
        self._known[self._me] = wall_ms

    def we_are_stale(self, peer: PeerId, theirs: Contact, members: Sequence[PeerId], wall_ms: int) -> bool | None:
        """Return True if we must resync wholesale from `peer`, False if it must from us, None if neither must."""
        mine = self.contact(members, wall_ms)
        at_their_side = {moment.peer: moment.wall_ms for moment in theirs.vector.moments}
        if abs(at_their_side.get(peer, wall_ms) - wall_ms) > MARGIN_MS:
            return None  # one of the two clocks is wrong: nobody forgets anything by it
        met_ms = max(self._known.get(peer, 0), at_their_side.get(self._me, 0))
        # Who was never heard of was never left out either: it holds every tombstone back, and has all it holds to give.
        if not met_ms or wall_ms - met_ms <= self._silent_max_ms:
            return None
        return (mine.live, peer) < (theirs.live, self._me)

    def common(self, vectors: Mapping[PeerId, FloorVector], members: Sequence[PeerId], wall_ms: int) -> int:
        """Return the moment up to which every member that is not left out has seen everything; 0 if unknown.

        `vectors` are the members' signed floor records.
        """
        live = self._live(members, wall_ms)
        lowest: list[int] = []
        for member in live:
            vector = self.vector(wall_ms) if member == self._me else vectors.get(member)
            known = {moment.peer: moment.wall_ms for moment in vector.moments} if vector is not None else {}
            lowest += [known.get(other, 0) for other in live]
        return max(0, min(lowest, default=0) - MARGIN_MS)

    def _live(self, members: Iterable[PeerId], wall_ms: int) -> list[PeerId]:
        return [
            member
            for member in members
            if member == self._me or wall_ms - self._known.get(member, wall_ms) <= self._silent_max_ms
        ]
