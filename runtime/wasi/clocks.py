"""wasi:clocks: the monotonic clock with its timers, and the wall clock. Not here: timezones (an unstable feature).

Clocks are the machine's own and not shared state, so they are always granted.
"""

from __future__ import annotations

import time
from typing import Final

from runtime.engine.guest import Guest
from runtime.engine.interface import Interface
from runtime.wasi.poll import Pollable

NS_PER_S: Final = 1_000_000_000

monotonic: Final = Interface("wasi:clocks/monotonic-clock")
wall: Final = Interface("wasi:clocks/wall-clock")


class Timer(Pollable):
    """Ready from a moment of the monotonic clock on."""

    __slots__ = ("_at_ns",)

    def __init__(self, at_ns: int) -> None:
        super().__init__()
        self._at_ns = at_ns

    def ready(self) -> bool:
        """Whether the moment has come."""
        return time.monotonic_ns() >= self._at_ns

    def at_s(self) -> float | None:
        """The moment."""
        return self._at_ns / NS_PER_S


@monotonic.function("now")
def _now(guest: Guest) -> int:
    return time.monotonic_ns()


@monotonic.function("resolution")
def _resolution(guest: Guest) -> int:
    return max(1, int(time.get_clock_info("monotonic").resolution * NS_PER_S))


@monotonic.function("subscribe-instant")
def _subscribe_instant(guest: Guest, when: int) -> Pollable:
    return Timer(when)


@monotonic.function("subscribe-duration")
def _subscribe_duration(guest: Guest, duration: int) -> Pollable:
    return Timer(time.monotonic_ns() + duration)


@wall.function("now")
def _wall_now(guest: Guest) -> tuple[int, int]:
    return divmod(time.time_ns(), NS_PER_S)


@wall.function("resolution")
def _wall_resolution(guest: Guest) -> tuple[int, int]:
    return 0, max(1, int(time.get_clock_info("time").resolution * NS_PER_S))
