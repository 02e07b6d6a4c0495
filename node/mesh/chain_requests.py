"""Requests to the chain that wait for their end: one future per request id.

Not here: what is asked, and who may ask it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from node.mesh.mesh import Mesh
from protocols.chain.messages import Outcome, Read, ReadDone, Submit, SubmitReset
from protocols.machine import Entropy

REQUESTS_MAX = 1_024
ANSWER_TIMEOUT_S = 45.0
"""Longer than the chain itself waits before it says "unknown"."""

RESET_TIMEOUT_S = 3.0


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


async def begin_era(mesh: Mesh, entry: bytes, number: int) -> bool:
    """Hand a signed reset to the chain; whether it is in force."""
    mesh.post(SubmitReset(entry))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RESET_TIMEOUT_S):
            while mesh.core.chain.position.resets < number:  # noqa: ASYNC110  a refusal is only counted
                await asyncio.sleep(0.05)
    return mesh.core.chain.position.resets >= number
