"""Filing a record and waiting until it is durable here, for whatever asks this node to write one.

Not here: what the record says and who may have it written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from node.errors import NotDoneError, NotNowError
from protocols.records.gossip import Publish, PublishRefused, RecordsMerged
from protocols.records.store import RecordStore
from protocols.refusal import Refusal

TIMEOUT_S = 10.0


class Filing:
    """Publishes records, and tells each caller how it ended."""

    def __init__(self, store: RecordStore, post: Callable[[Any], bool]) -> None:
        """Take the records to read, and where events for the core go."""
        self._store = store
        self._post = post
        self._expected: dict[str, dict[asyncio.Future[str], None]] = {}

    def holds(self, key: str) -> bool:
        """Whether a record is here and durable, as far as anybody still waits for it to be."""
        return key in self._store.entries and key not in self._expected

    async def file(self, key: str, body: bytes, *, tombstone: bool = False) -> None:
        """Write one record and wait for it; one that is here already is left alone.

        Raises NotNowError, or NotDoneError if the records' rules say no, or the share of whoever signed it is used up.
        """
        if self.holds(key) and not tombstone:
            return
        if not tombstone and (refusal := self._store.quota_problem(key, body)) is not None:
            raise NotDoneError(refusal, "end what is no longer needed, or wait until it expires")
        settled = self._expect(key)
        if not self._post(Publish(key, body, tombstone=tombstone)):
            settled.cancel()
            raise NotNowError(Refusal("node.busy", "its inbox is full"), "try again")
        try:
            problem = await asyncio.wait_for(settled, TIMEOUT_S)
        except TimeoutError:
            raise NotNowError(Refusal("node.busy", "the record is not filed yet"), "try again") from None
        if problem:
            rule, _, detail = problem.partition(": ")
            raise NotDoneError(Refusal(rule, detail))

    def hear(self, event: Any) -> None:
        """Take one of the core's notices: a record is durable now, or refused."""
        match event:
            case RecordsMerged(entries):
                for entry in entries:
                    self._settle(entry.record.key, "")
            case PublishRefused(key, refusal):
                self._settle(key, f"{refusal.rule}: {refusal.detail}")
            case _:
                pass

    def _expect(self, key: str) -> asyncio.Future[str]:
        """A future that ends when a record is durable here ("") or refused (why); several may wait for one."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._expected.setdefault(key, {})[future] = None
        future.add_done_callback(lambda done: self._forget(key, done))
        return future

    def _forget(self, key: str, future: asyncio.Future[str]) -> None:
        waiting = self._expected.get(key, {})
        waiting.pop(future, None)
        if not waiting:
            self._expected.pop(key, None)

    def _settle(self, key: str, problem: str) -> None:
        for future in self._expected.pop(key, {}):
            if not future.done():
                future.set_result(problem)
