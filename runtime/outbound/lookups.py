"""Looking names up for apps: each app waits for its own lookups alone, however slow its names are.

The system's resolver blocks a thread, for as long as a name server that an app chose by its name likes. So each app has its
own few threads, and what it asks beyond them waits for them. Nothing is remembered: the address that was checked is the one
that is connected to. Not here: which names and addresses are allowed (destinations.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final

LOOKUPS_MAX: Final = 4
"""Lookups of one app under way; the app pays, with a thread for each."""

Resolve = Callable[[str, int], list[str]]


class Lookups:
    """Lookups of one worker, by app. Used on one loop."""

    def __init__(self, resolve: Resolve) -> None:
        """Take what blocks until a name's addresses are known; it may raise OSError or UnicodeError."""
        self._resolve = resolve
        self._gates: dict[tuple[str, str], asyncio.Semaphore] = {}
        self._asked: dict[tuple[str, str], int] = {}

    async def addresses(self, app: tuple[str, str], host: str, port: int) -> list[str]:
        """Return a name's addresses. Raises OSError or UnicodeError.

        A caller that gives up leaves its lookup to end: until then it counts against the app.
        """
        gate = self._gates.setdefault(app, asyncio.Semaphore(LOOKUPS_MAX))
        self._asked[app] = self._asked.get(app, 0) + 1
        try:
            await gate.acquire()
        except asyncio.CancelledError:
            self._ended(app)
            raise
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def settle(found: list[str] | Exception) -> None:
            gate.release()
            self._ended(app)
            if answer.done():
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def look_up() -> None:
            outcome: list[str] | Exception
            try:
                outcome = self._resolve(host, port)
            except Exception as error:
                outcome = error
            with contextlib.suppress(RuntimeError):  # the loop ended first
                loop.call_soon_threadsafe(settle, outcome)

        threading.Thread(target=look_up, name=f"lookup of {app[1]}", daemon=True).start()
        return await answer

    def _ended(self, app: tuple[str, str]) -> None:
        """Forget an app that waits for nothing: apps come and go."""
        self._asked[app] -= 1
        if not self._asked[app]:
            del self._asked[app], self._gates[app]
