"""What a node asks of its own core and waits for: a command that is decided, a read of the chain, a record that is filed.

Each is an event for the pump and a future that the core's notice ends. Not here: what is asked, what a record says, and
who may ask it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from node.errors import NotDoneError, NotNowError
from node.mesh.mesh import Mesh
from node.mesh.paper_pace import PaperPace
from protocols.chain.messages import Outcome, Read, ReadDone, Submit, SubmitReset
from protocols.machine import Entropy
from protocols.records.gossip import Publish, PublishRefused, RecordsMerged
from protocols.records.store import RecordStore
from protocols.refusal import Refusal

REQUESTS_MAX = 1_024
ANSWER_TIMEOUT_S = 45.0
"""Longer than the chain itself waits before it says "unknown"."""

RESET_TIMEOUT_S = 3.0
FILING_TIMEOUT_S = 10.0


class BusyChainError(Exception):
    """Too many requests wait, or the core's inbox is full; nothing was submitted."""


class ChainRequests:
    """Submits commands and reads, and hands each its answer."""

    def __init__(self, post: Callable[[Any], bool], entropy: Entropy) -> None:
        """Take where events go, and randomness for request ids."""
        self._post = post
        self._entropy = entropy
        self._waiting: dict[bytes, asyncio.Future[Any]] = {}

    def hear(self, event: Any) -> None:
        """Take one of the core's notices."""
        if isinstance(event, Outcome | ReadDone):
            future = self._waiting.get(event.request_id)
            if future is not None and not future.done():
                future.set_result(event)

    async def submit(self, command: bytes, material: tuple[bytes, ...]) -> Outcome:
        """Have a command decided. Raises BusyChainError."""
        answer = await self._ask(lambda request_id: Submit(request_id, command, material))
        assert isinstance(answer, Outcome)
        return answer

    async def read(self) -> int:
        """Return the slot that is sure to hold everything decided before now; -1 if no majority answers."""
        answer = await self._ask(Read)
        assert isinstance(answer, ReadDone)
        return answer.slot

    async def _ask(self, event: Callable[[bytes], Any]) -> Any:
        request_id = b"api/" + self._entropy.random_bytes(12)
        if len(self._waiting) >= REQUESTS_MAX:
            raise BusyChainError("too many requests wait for the chain")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            if not self._post(event(request_id)):
                raise BusyChainError("the node is too busy")
            try:
                return await asyncio.wait_for(future, ANSWER_TIMEOUT_S)
            except TimeoutError:
                return Outcome(request_id, "unknown") if isinstance(event(b""), Submit) else ReadDone(request_id, -1)
        finally:
            del self._waiting[request_id]


class Filing:
    """Publishes records, and tells each caller how it ended."""

    def __init__(self, store: RecordStore, post: Callable[[Any], bool]) -> None:
        """Take the records to read, and where events for the core go."""
        self._store = store
        self._post = post
        self._pace = PaperPace()
        self._expected: dict[str, dict[asyncio.Future[str], None]] = {}

    def holds(self, key: str) -> bool:
        """Whether a record is here and durable, as far as anybody still waits for it to be."""
        return key in self._store.entries and key not in self._expected

    async def file(self, key: str, body: bytes, *, tombstone: bool = False, payer: str = "") -> None:
        """Write one record and wait for it; one that is here already is left alone.

        `payer` is the principal that asked for it, if one did: it has a pace. Raises NotNowError, or NotDoneError if the
        records' rules say no, the share of whoever signed it is used up, or the payer files too fast.
        """
        if self.holds(key) and not tombstone:
            return
        if payer and (refusal := self._pace.take(payer, len(body))) is not None:
            raise NotDoneError(refusal, "the same again after that time")
        if not tombstone and (refusal := self._store.quota_problem(key, body)) is not None:
            raise NotDoneError(refusal, "end what is no longer needed, or wait until it expires")
        settled = self._expect(key)
        if not self._post(Publish(key, body, tombstone=tombstone)):
            settled.cancel()
            raise NotNowError(Refusal("node.busy", "its inbox is full"), "try again")
        try:
            problem = await asyncio.wait_for(settled, FILING_TIMEOUT_S)
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


async def begin_era(mesh: Mesh, entry: bytes, number: int) -> bool:
    """Hand a signed reset to the chain; whether it is in force."""
    mesh.post(SubmitReset(entry))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RESET_TIMEOUT_S):
            while mesh.core.chain.position.resets < number:  # noqa: ASYNC110  a refusal is only counted
                await asyncio.sleep(0.05)
    return mesh.core.chain.position.resets >= number
