"""One host's clocks over the world's: a monotonic one that starts at boot and may drift, a wall one that may jump."""

from __future__ import annotations

from protocols.machine import Now

PARTS_PER_MILLION = 1_000_000
WALL_START_MS = 1_800_000_000_000
"""Where virtual wall time begins (January 2027); any fixed moment would do."""


class HostClock:
    """Maps world milliseconds to this host's `Now`, and monotonic deadlines back; integers only, so runs agree."""

    def __init__(self) -> None:
        self._anchor_world_ms = 0
        self._anchor_mono_ms = 0
        self.drift_ppm = 0
        self.wall_offset_ms = 0
        self.was_wrong = False
        """Whether the wall clock ever jumped: what was dated then may be decided later."""

    def now(self, world_ms: int) -> Now:
        """Return this host's clocks at a world time."""
        mono_ms = self._anchor_mono_ms + self._scale(world_ms - self._anchor_world_ms)
        return Now(mono_ms, WALL_START_MS + world_ms + self.wall_offset_ms)

    def world_ms(self, mono_ms: int) -> int:
        """Return the first world time at which the monotonic clock shows at least `mono_ms`."""
        ahead_ms = mono_ms - self._anchor_mono_ms
        rate = PARTS_PER_MILLION + self.drift_ppm
        return self._anchor_world_ms + -(-ahead_ms * PARTS_PER_MILLION // rate)

    def jump(self, offset_ms: int) -> None:
        """Set the wall clock wrong by so much more."""
        self.wall_offset_ms += offset_ms
        self.was_wrong = True

    def set_drift(self, world_ms: int, drift_ppm: int) -> None:
        """Run fast (positive) or slow from now on; the monotonic clock does not jump."""
        self._anchor_mono_ms += self._scale(world_ms - self._anchor_world_ms)
        self._anchor_world_ms = world_ms
        self.drift_ppm = drift_ppm

    def _scale(self, world_ms: int) -> int:
        return world_ms * (PARTS_PER_MILLION + self.drift_ppm) // PARTS_PER_MILLION
