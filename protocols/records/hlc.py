"""A hybrid logical clock: one 64-bit number, 48 bits of wall milliseconds and 16 bits of counter.

It stays close to the wall clock, never runs backwards unless that was set back by more than 120 s, and is later than
everything this node has seen, except from peers whose clocks are further ahead: those never move it. Nothing is decided
by it that needs exclusivity. Source: Kulkarni et al., "Logical Physical Clocks", OPODIS 2014; one number in place of
the pair, as the counter may carry into the milliseconds.
"""

from __future__ import annotations

AHEAD_MAX_MS = 120_000
"""How far ahead of the local wall clock a record may be: further ones are parked until their time has come."""

COUNTER_BITS = 16
HLC_MAX = (1 << 63) - 1
"""The largest number every implementation of MessagePack and SQLite can hold."""


class HlcClock:
    """The clock of one node."""

    def __init__(self, last: int = 0) -> None:
        """Continue after `last`, the highest number this node has used."""
        self.last = last

    def tick(self, wall_ms: int) -> int:
        """Return a number later than all before, for something that happens now.

        Unless this node's own clock was far ahead and was set back: then the count starts anew, since nobody, this node
        included, takes a number from a future that is 120 s away or more.
        """
        now = wall_ms << COUNTER_BITS
        self.last = now if ahead(self.last + 1, wall_ms) else max(self.last + 1, now)
        return self.last

    def observe(self, hlc: int, wall_ms: int) -> bool:
        """Take note of a peer's number; return False, unmoved, if it is too far ahead."""
        if ahead(hlc, wall_ms):
            return False
        self.last = max(self.last, hlc)
        return True


def wall_ms_of(hlc: int) -> int:
    """Return the wall milliseconds in a number."""
    return hlc >> COUNTER_BITS


def ahead(hlc: int, wall_ms: int) -> bool:
    """Return whether a number is more than AHEAD_MAX_MS ahead of this wall clock."""
    return wall_ms_of(hlc) > wall_ms + AHEAD_MAX_MS
