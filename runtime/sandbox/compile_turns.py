"""Whose turn it is to compile: what nobody has approved yet costs its project, and no other project waits behind it.

A payer has one compiler at a time and so much processor time an hour; all payers together have a few. Work without a
payer, for what was decided, waits for nobody. Not here: what one compilation may cost (compiler.py, code_size.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from runtime.sandbox.component import CompilerEndedError

COMPILERS_MAX: Final = 2
"""Compilers at work for all payers together."""

CPU_MAX_S: Final = 600.0
"""Processor time of one payer within WINDOW_S: fifty Python components, or two hundred of Rust."""

WINDOW_S: Final = 3_600.0


class TurnRefusedError(CompilerEndedError):
    """The payer has used what it may; another try, later, is taken."""


class Turn:
    """One compilation; `cpu_s` is what it cost, once that is known."""

    __slots__ = ("cpu_s",)

    def __init__(self) -> None:
        self.cpu_s = 0.0


class _Share:
    """What one payer does and has used."""

    __slots__ = ("lock", "used", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.used: deque[tuple[float, float]] = deque()
        self.users = 0


class CompileTurns:
    """The turns of one node."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the clock, in seconds."""
        self._clock = clock
        self._shares: dict[str, _Share] = {}
        self._all = asyncio.Semaphore(COMPILERS_MAX)

    @asynccontextmanager
    async def take(self, payer: str) -> AsyncIterator[Turn]:
        """Wait for a turn; nobody pays for an empty `payer`. Raises TurnRefusedError."""
        turn = Turn()
        if not payer:
            yield turn
            return
        self._forget()
        share = self._shares.setdefault(payer, _Share())
        share.users += 1
        try:
            async with share.lock, self._all:
                self._check(payer, share)
                try:
                    yield turn
                finally:
                    share.used.append((self._clock(), turn.cpu_s))
        finally:
            share.users -= 1

    def _check(self, payer: str, share: _Share) -> None:
        now_s = self._clock()
        while share.used and share.used[0][0] <= now_s - WINDOW_S:
            share.used.popleft()
        if sum(cost_s for _, cost_s in share.used) >= CPU_MAX_S:
            wait_s = share.used[0][0] + WINDOW_S - now_s
            raise TurnRefusedError(
                f"Project {payer} has used its {CPU_MAX_S:.0f} s of processor time an hour for compiling what is not "
                f"approved; it may compile again in {max(1, round(wait_s / 60))} min."
            )

    def _forget(self) -> None:
        now_s = self._clock()
        for payer, share in list(self._shares.items()):
            if not share.users and (not share.used or share.used[-1][0] <= now_s - WINDOW_S):
                del self._shares[payer]
