"""The only loop that drives a protocol machine: inbox and deadline in, effects out, in order.

One Pump owns one machine; nobody else may touch it, so there are no locks. A `Persist` is durable before any later
effect of the machine is performed; writes in a row are handed over together, and those to `state.db` share one commit.
A failed `Persist` ends the process: the machine already believes what the disk does not hold. Not here: what effects
mean to the network (transport/) and to the node (`on_notify`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol, assert_never

from protocols.machine import (
    Broadcast,
    Disconnect,
    Effect,
    Machine,
    Notify,
    Now,
    PeerId,
    Persist,
    Reject,
    Send,
    Store,
    Tick,
)

INBOX_MAX = 10_000
"""Events that wait for the machine; beyond it senders wait, which is back-pressure on the peers' streams."""

BATCH_MAX = 64
"""Events handled before their effects are performed: enough to share a commit, few enough to answer quickly."""


def system_now() -> Now:
    """The operating system's two clocks."""
    return Now(time.monotonic_ns() // 1_000_000, time.time_ns() // 1_000_000)


class Outlet(Protocol):
    """What a Pump needs of the network; none of these wait for the network."""

    def send(self, peer: PeerId, message: Any) -> None:
        """Queue one message to a connected peer."""
        ...

    def broadcast(self, message: Any, exclude: tuple[PeerId, ...]) -> None:
        """Queue one message to every admitted peer but those excluded."""
        ...

    def disconnect(self, peer: PeerId, reason: str) -> None:
        """Close the connection to a peer."""
        ...

    def reject(self, peer: PeerId, rule: str, detail: str) -> None:
        """Count and log a peer's misbehaviour."""
        ...


class Persisting(Protocol):
    """What makes writes durable."""

    async def __call__(self, *effects: Persist) -> None:
        """Return when all are durable, in order. Raises StorageError."""
        ...


class Pump:
    """Drives one machine."""

    def __init__(
        self,
        machine: Machine[Any, Effect],
        outlet: Outlet,
        persist: Persisting,
        on_notify: Callable[[Any], None],
        clock: Callable[[], Now] = system_now,
    ) -> None:
        """Take the machine and what performs its effects; `on_notify` must not block."""
        self._machine = machine
        self._outlet = outlet
        self._persist = persist
        self._on_notify = on_notify
        self._clock = clock
        self._inbox: asyncio.Queue[Any] = asyncio.Queue(INBOX_MAX)
        self._ahead = False
        """Whether the machine is ahead of what was performed: it believes what the disk may not hold yet."""
        self._readers: list[asyncio.Future[None]] = []
        self._ended = False
        self.event_count = 0

    def post(self, event: Any) -> bool:
        """Queue one event; False if the inbox is full and the event was dropped."""
        try:
            self._inbox.put_nowait(event)
        except asyncio.QueueFull:
            return False
        return True

    async def put(self, event: Any) -> None:
        """Queue one event, waiting while the inbox is full."""
        await self._inbox.put(event)

    async def performed(self) -> None:
        """Return when everything that the machine has done is performed: what is read of it at once is durable."""
        while self._ahead:
            reader = asyncio.get_running_loop().create_future()
            self._readers.append(reader)
            if self._ended:
                self._release_readers()
            await reader

    async def run(self) -> None:
        """Run until cancelled. Raises StorageError if a durable write fails."""
        try:
            while True:
                await self._perform(await self._next_effects())
                self._ahead = False
                if self._readers:
                    self._release_readers()
                    await asyncio.sleep(0)  # they read before the machine goes on
        finally:
            self._ended = True
            self._release_readers()

    def _release_readers(self) -> None:
        """Let them look again; those who left are done. What is ahead for good, since the disk failed, none must read."""
        for reader in self._readers:
            if self._ahead:
                reader.cancel()
            elif not reader.done():
                reader.set_result(None)
        self._readers.clear()

    async def _next_effects(self) -> list[Effect]:
        effects: list[Effect] = []
        effects.extend(self._handle(await self._next_event()))
        for _ in range(BATCH_MAX - 1):
            if self._inbox.empty():
                break
            effects.extend(self._handle(self._inbox.get_nowait()))
        return effects

    def _handle(self, event: Any) -> list[Effect]:
        self.event_count += 1
        self._ahead = True
        return list(self._machine.handle(event, self._clock()))

    async def _next_event(self) -> Any:
        if not self._inbox.empty():
            return self._inbox.get_nowait()
        due_ms = self._machine.deadline_ms()
        if due_ms is None:
            return await self._inbox.get()
        wait_ms = due_ms - self._clock().mono_ms
        if wait_ms <= 0:
            # A tick that is always due must not starve the event loop.
            await asyncio.sleep(0)
            return Tick()
        try:
            async with asyncio.timeout(wait_ms / 1000):
                return await self._inbox.get()
        except TimeoutError:
            return Tick()

    async def _perform(self, effects: list[Effect]) -> None:
        waiting: list[Persist] = []
        for effect in share_commits(effects):
            if isinstance(effect, Persist):
                waiting.append(effect)
                continue
            if waiting:
                await self._persist(*waiting)
                waiting = []
            match effect:
                case Send(peer, message):
                    self._outlet.send(peer, message)
                case Broadcast(message, exclude):
                    self._outlet.broadcast(message, exclude)
                case Disconnect(peer, reason):
                    self._outlet.disconnect(peer, reason)
                case Reject(peer, rule, detail):
                    self._outlet.reject(peer, rule, detail)
                case Notify(event):
                    self._on_notify(event)
                case _:
                    assert_never(effect)
        if waiting:
            await self._persist(*waiting)


def share_commits(effects: list[Effect]) -> list[Effect]:
    """Move writes into an earlier commit of the same database, as far as that is safe; earlier always is for a write.

    All writes to `state.db` share one commit. Those to `vote.db` share one up to the next fence: each promise or vote
    brings its own fence, so no commit holds two of them, and the database is never two statements ahead of the fence.
    """
    kept: list[Effect] = []
    place: dict[Store, int] = {}
    for effect in effects:
        if not isinstance(effect, Persist):
            kept.append(effect)
            continue
        if effect.store is Store.FENCE:
            place.pop(Store.VOTE, None)
        elif effect.store in place:
            shared = kept[place[effect.store]]
            assert isinstance(shared, Persist)
            kept[place[effect.store]] = Persist(effect.store, shared.writes + effect.writes)
            continue
        else:
            place[effect.store] = len(kept)
        kept.append(effect)
    return kept
