"""The time of the event loop, shared between those who cause its work: a principal's calls, a member's messages.

One thread does everything for everybody, so whoever has it do much makes all others wait. Each payer has an account.
Every step of its work, from one wait to the next, is charged with what it took, and whoever has nothing left waits
between two steps, as long as the loop then belongs to others. Payers with nothing left share a part of the loop equally,
and leave one more share where anybody else is at work at all. Not here: how many calls go on at once (api/callers/shares.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

LOOP_SHARE: Final = 0.6
"""Of the loop's time, for all who have used up what they had; the rest is the node's own, and for whoever comes now."""

STRANGERS_SHARE: Final = 0.3
"""The same for addresses from which calls come that no principal stands for: however many they are, principals have theirs."""

SAVED_MAX_S: Final = 0.25
"""What a payer may use at once after a pause: a person's command, or a deploy, needs less."""

FORGET_EVERY_S: Final = 1.0


class CallLater(Protocol):
    """Has something called later."""

    def __call__(self, delay_s: float, callback: Callable[[], None], /) -> object:
        """Call back once, after so many seconds."""
        ...


def call_later(delay_s: float, callback: Callable[[], None]) -> object:
    """Have the running loop call back."""
    return asyncio.get_running_loop().call_later(delay_s, callback)


class LoopTime:
    """All accounts of one loop. Those that are full again are forgotten."""

    def __init__(
        self, share: float = LOOP_SHARE, clock: Callable[[], float] = time.perf_counter, later: CallLater = call_later
    ) -> None:
        """Take the part to share, a clock in seconds, and what calls back later; tests bring their own."""
        self.clock, self.later = clock, later
        self._share = share
        self.debtor_count = 0
        """How many accounts have nothing left."""
        self._accounts: dict[str, LoopAccount] = {}
        self._forgot_s = clock()

    def account(self, payer: str) -> LoopAccount:
        """Return the account of a payer, a full one if it has used nothing for a while."""
        now_s = self.clock()
        if now_s - self._forgot_s > FORGET_EVERY_S:
            self._forgot_s = now_s
            for name in [name for name, account in self._accounts.items() if account.full(now_s)]:
                del self._accounts[name]
        loop_account = self._accounts.get(payer)
        if loop_account is None:
            loop_account = self._accounts[payer] = LoopAccount(self)
        return loop_account

    def rate(self) -> float:
        """What an account gains, in seconds of the loop a second."""
        return self._share / max(1, min(len(self._accounts), self.debtor_count + 1))


class LoopAccount:
    """What one payer has left, and its steps that wait for more."""

    def __init__(self, loop_time: LoopTime) -> None:
        """Begin with all that can be saved."""
        self._of = loop_time
        self._left_s = SAVED_MAX_S
        self._at_s = loop_time.clock()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._due = False

    def full(self, now_s: float) -> bool:
        """Whether nothing waits, and all that can be saved is there again."""
        self._gain(now_s)
        return not self._waiting and self._left_s >= SAVED_MAX_S

    def wait_s(self) -> float:
        """How long until the payer has something left; 0 if it has."""
        self._gain(self._of.clock())
        return 0.0 if self._left_s > 0 else max(1e-3, -self._left_s / self._of.rate())

    def spend(self, used_s: float) -> None:
        """Charge what a step took, and let the next one that waits have its turn when there is something left."""
        self._gain(self._of.clock())
        self._set(self._left_s - used_s)
        self._let_next()

    def turn(self) -> Generator[Any, None, None]:
        """Wait until the payer has something left, behind those of its steps that waited before."""
        if not self._waiting and self.wait_s() == 0:
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._let_next()
        yield from turn

    def _gain(self, now_s: float) -> None:
        self._set(min(SAVED_MAX_S, self._left_s + (now_s - self._at_s) * self._of.rate()))
        self._at_s = now_s

    def _set(self, left_s: float) -> None:
        self._of.debtor_count += (left_s <= 0) - (self._left_s <= 0)
        self._left_s = left_s

    def _let_next(self) -> None:
        if self._waiting and not self._due:
            self._due = True
            self._of.later(self.wait_s(), self._serve)

    def _serve(self) -> None:
        """Let one step go on; it is charged before the next one does. Those that were given up are passed over."""
        self._due = False
        if self.wait_s() > 0:
            self._let_next()
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class Metered:
    """Has a coroutine done step by step at the expense of a payer, once it is known who that is."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin with nobody who pays."""
        self._clock = clock
        self._of: LoopTime | None = None
        self._used_s = 0.0
        self.payer = ""
        """Who pays, or nobody yet."""

    def pays(self, payer: str, loop_time: LoopTime) -> None:
        """Have this payer pay, of this time: for what was done so far, too."""
        self._of, self.payer = loop_time, payer
        loop_time.account(payer).spend(self._used_s)

    @coroutine
    def run(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Do the work, each step in the payer's turn, and return what it returns. Its own task goes on doing it."""
        step: Callable[[], Any] = partial(work.send, None)
        while True:
            try:
                if self._of is not None:
                    yield from self._of.account(self.payer).turn()
            except BaseException as error:  # it was cancelled while it waited; that is the work's to hear
                step = partial(work.throw, error)
            began_s = self._clock()
            try:
                waits_for = step()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                self._charge(self._clock() - began_s)
            try:
                step = partial(work.send, (yield waits_for))
            except BaseException as error:
                step = partial(work.throw, error)

    def _charge(self, used_s: float) -> None:
        if self._of is not None:
            self._of.account(self.payer).spend(used_s)
        else:
            self._used_s += used_s
