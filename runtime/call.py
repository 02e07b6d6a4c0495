"""One run of guest code: its deadline, its cancellation and the one thing its thread ever sleeps on.

A guest runs on a plain thread and may wait for a body, a clock, an outbound answer, or several of them at once. All of
those wake the same `Waker`, so waiting is always: look at everything, sleep until woken or until the nearest clock,
look again. Nothing spins and nothing sleeps past the deadline. Not here: what is being waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

SLEEP_MAX_S: Final = 3600.0
"""Longest single sleep; `Lock.acquire` overflows far above it, and a guest that waits longer just sleeps again."""


class CallEnded(Exception):  # noqa: N818 - an order to stop, not an error
    """The guest must stop now; raised in a host call and carried out through the trap it causes."""


class CallCancelled(CallEnded):
    """The client went away, or the worker is stopping."""


class DeadlinePassed(CallEnded):
    """The wall-clock time of this call is used up."""


class Waker:
    """A binary semaphore: any thread wakes, one thread waits; a wake before the wait is not lost."""

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token = threading.Lock()
        self._token.acquire()

    def wake(self) -> None:
        """Let the waiting thread, or the next wait, go on."""
        if self._token.locked():
            try:
                self._token.release()
            except RuntimeError:  # another thread woke it between the look and the release
                return

    def wait(self, timeout_s: float) -> None:
        """Sleep until woken or for `timeout_s`; may return early, so look again."""
        self._token.acquire(timeout=min(max(timeout_s, 0.0), SLEEP_MAX_S))


class GuestCall:
    """Deadline, cancellation and waker of one guest run. `deadline_s` is on the `time.monotonic` scale."""

    __slots__ = ("_before_sleep", "cancelled", "deadline_s", "waker")

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.cancelled = False
        self.waker = Waker()
        self._before_sleep: Callable[[], None] | None = None

    def before_sleep(self, action: Callable[[], None]) -> None:
        """Run `action` whenever the guest is about to wait, and at each tick while it computes."""
        self._before_sleep = action

    def cancel(self) -> None:
        """Stop the guest at its next host wait or epoch tick (any thread)."""
        self.cancelled = True
        self.waker.wake()

    def tick(self) -> None:
        """Let delayed output go out and raise `CallEnded` if the call is over; called at every epoch tick."""
        if self._before_sleep is not None:
            self._before_sleep()
        self.check()

    def check(self) -> None:
        """Raise `CallCancelled` or `DeadlinePassed` if the guest must stop."""
        if self.cancelled:
            raise CallCancelled
        if time.monotonic() >= self.deadline_s:
            raise DeadlinePassed

    def sleep(self, until_s: float | None = None) -> None:
        """Sleep until woken, until `until_s`, or until the call is over, which raises `CallEnded`."""
        if self._before_sleep is not None:
            self._before_sleep()
        if self.cancelled:
            raise CallCancelled
        end_s = self.deadline_s if until_s is None else min(until_s, self.deadline_s)
        self.waker.wait(end_s - time.monotonic())
        self.check()
