"""wasi:io/error and wasi:io/poll: what can be waited for, and waiting for any of several without spinning.

Source: wasi:io 0.2 WIT; an empty poll list traps, as the interface says. Not here: the things themselves.
"""

from __future__ import annotations

from typing import Any, Final

from runtime.engine.guest import Guest, GuestTrap, Resource
from runtime.engine.interface import Interface

POLL_MAX: Final = 4_096
"""Pollables in one poll; looking at each costs about a microsecond."""


class IoError(Resource, wit="error", aliases=("io-error",)):
    """An error of a stream; `code` is the `wasi:http` error-code behind it, if there is one."""

    __slots__ = ("code", "text")

    def __init__(self, text: str, code: tuple[str, Any] | None = None) -> None:
        super().__init__()
        self.text = text
        self.code = code


class Pollable(Resource, wit="pollable"):
    """Something that becomes ready. Whoever makes it ready also wakes the call."""

    __slots__ = ()

    def ready(self) -> bool:
        """Whether waiting would end now."""
        raise NotImplementedError

    def at_s(self) -> float | None:
        """When it becomes ready by itself, on the `time.monotonic` scale; None if another thread makes it so."""
        return None


class AlwaysReady(Pollable):
    """Always ready."""

    __slots__ = ()

    def ready(self) -> bool:
        """True."""
        return True


error: Final = Interface("wasi:io/error")

poll: Final = Interface("wasi:io/poll")


@error.function("[method]error.to-debug-string")
def _to_debug_string(guest: Guest, this: IoError) -> str:
    return this.text


@poll.function("[method]pollable.ready")
def _ready(guest: Guest, this: Pollable) -> bool:
    return this.ready()


@poll.function("[method]pollable.block")
def _block(guest: Guest, this: Pollable) -> None:
    wait_for(guest, [this])


@poll.function("poll")
def _poll(guest: Guest, pollables: list[Pollable]) -> list[int]:
    if not pollables:
        raise GuestTrap("poll with an empty list")
    if len(pollables) > POLL_MAX:
        raise GuestTrap(f"poll with more than {POLL_MAX} pollables")
    return wait_for(guest, pollables)


def wait_for(guest: Guest, pollables: list[Pollable]) -> list[int]:
    """Block until at least one is ready; return the indexes of those that are. Raises `CallEnded`."""
    while True:
        ready = [n for n, pollable in enumerate(pollables) if pollable.ready()]
        if ready:
            return ready
        moments = [moment for pollable in pollables if (moment := pollable.at_s()) is not None]
        guest.call.sleep(min(moments, default=None))
