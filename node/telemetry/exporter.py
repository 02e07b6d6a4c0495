"""One signal's way to a collector: a bounded queue, batches, and what to do when they are not taken.

Telemetry never costs the node more than its queue: what does not fit is dropped, the oldest first, and counted. A batch
that a collector could take later (429, 502, 503, 504, no answer) is tried again with growing patience; one that it
refuses is dropped and counted. Not here: what is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from node.reaching import Sending

QUEUE_MAX_BYTES: Final = 8 << 20
BATCH_MAX: Final = 512
BATCH_MAX_BYTES: Final = 1 << 20
EVERY_S: Final = 1.0
PATIENCE_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
LATER: Final = ("status 429", "status 502", "status 503", "status 504")
"""What a collector says that could take the batch later; any other status is about the batch."""

_log = logging.getLogger("freehold.telemetry")
Item = bytes
Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[Sending]]


class Writes(Protocol):
    """Makes a request's body of items."""

    def __call__(self, items: list[Item]) -> bytes:
        """Return the body; b"" if nothing of them is to be sent."""
        ...


class Exporter:
    """See the module. `put` is called by whatever happens; `run` sends."""

    def __init__(self, name: str, url: str, fields: Mapping[str, str], write: Writes, post: Post) -> None:
        """Take the signal's name, where it goes, the HTTP fields that go with it, and how a body is made and sent."""
        self.name, self._url, self._write, self._post = name, url, write, post
        self._fields = {**fields, "Content-Type": "application/json", "Content-Encoding": "gzip"}
        self._queue: deque[Item] = deque()
        self._held = 0
        self._under_way: list[Item] = []
        self._woken = asyncio.Event()
        self.sent = 0
        self.dropped = 0
        self.problem = ""
        """Why the newest batch was not delivered, "" if it was."""

    @property
    def waiting(self) -> int:
        """Items that are not sent yet."""
        return len(self._queue) + len(self._under_way)

    def put(self, item: Item) -> None:
        """Take one item; the oldest give way where there is no room."""
        self._queue.append(item)
        self._held += len(item)
        while self._held > QUEUE_MAX_BYTES:
            self._held -= len(self._queue.popleft())
            self.dropped += 1
        if len(self._queue) >= BATCH_MAX:
            self._woken.set()

    async def run(self) -> None:
        """Send what comes until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), EVERY_S)
            self._woken.clear()
            tries = 0
            while self._queue or self._under_way:
                attempt = await self.send_batch()
                if attempt is None:
                    tries = 0
                    continue
                await asyncio.sleep(max(attempt.again_s, PATIENCE_S[min(tries, len(PATIENCE_S) - 1)]))
                tries += 1

    async def flush(self, limit_s: float) -> None:
        """Send what is left, once, within a time; after `run` has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while (self._queue or self._under_way) and await self.send_batch() is None:
                    pass

    async def send_batch(self) -> Sending | None:
        """Send the next batch; return None when it is done with, else how it failed: it is tried again."""
        if not self._under_way:
            self._take()
        body = self._write(self._under_way)
        if body:
            packed = await asyncio.to_thread(gzip.compress, body, 1)
            attempt = await self._post(self._url, packed, self._fields)
            if not attempt.delivered and (attempt.result in LATER or not attempt.result.startswith("status ")):
                self._tell(attempt.result)
                return attempt
            if attempt.delivered:
                self.sent += len(self._under_way)
            else:
                self.dropped += len(self._under_way)
            self._tell("" if attempt.delivered else attempt.result)
        self._under_way = []
        return None

    def _take(self) -> None:
        size = 0
        while self._queue and len(self._under_way) < BATCH_MAX and size < BATCH_MAX_BYTES:
            item = self._queue.popleft()
            size += len(item)
            self._under_way.append(item)
        self._held -= size

    def _tell(self, problem: str) -> None:
        """Note how the newest batch ended; the log hears of a change alone, for it is sent by the same way."""
        if bool(problem) != bool(self.problem):
            level, said = (logging.WARNING, problem) if problem else (logging.INFO, "it takes them again")
            _log.log(level, "%s are not taken by the collector: %s", self.name, said, extra={"event": "telemetry.sent"})
        self.problem = problem
