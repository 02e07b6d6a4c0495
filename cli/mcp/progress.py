"""Telling an MCP client how far a long tool is: every few seconds, with the last step that it told. Not: any tool."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar

from cli.text.output import Output

TELL_EVERY_S = 2.0

_last: ContextVar[list[str]] = ContextVar("last_step")

Report = Callable[[float, float | None, str | None], Awaitable[None]]
"""Takes a growing number, how many there will be if that is known, and a message."""


class Told(Output):
    """An output whose steps are what a client is told; the rest goes to standard error, as the protocol wants it."""

    def step(self, app: str, text: str) -> None:
        """Note a step."""
        with contextlib.suppress(LookupError):
            _last.get()[:] = [f"{app}: {text}" if app else text]
        super().step(app, text)


def tell(text: str) -> None:
    """Note a step of the call that goes on."""
    with contextlib.suppress(LookupError):
        _last.get()[:] = [text]


@contextlib.asynccontextmanager
async def telling(report: Report) -> AsyncIterator[None]:
    """Report every few seconds until the block ends. A client that asked for no progress is told nothing."""
    steps: list[str] = []
    token = _last.set(steps)

    async def tick() -> None:
        count = 0
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            count += 1
            await report(float(count), None, steps[0] if steps else "working")

    ticking = asyncio.ensure_future(tick())
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        with contextlib.suppress(ValueError):  # of another context where the call was cancelled
            _last.reset(token)
