"""The only loop that drives a protocol machine: inbox and deadline in, effects out, in order.

One Pump owns one machine; nobody else may touch it, so there are no locks. A `Persist` is durable before any later
effect of the machine is performed; writes in a row are handed over together, and those to `state.db` share one commit.
Whoever reads what was decided waits until it is durable; for records it does not wait, which their authors are told of
once they are, and which come again from others. A failed `Persist` ends the process: the machine already believes what
the disk does not hold. Not here: what effects mean to the network (transport/) and to the node (`on_notify`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, assert_never

from node.loop_time import LoopTime
from node.mesh.inbox import Inbox, InboxItem
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

BATCH_MAX = 64
"""Events handled before their effects are performed: enough to share a commit, few enough to answer quickly."""

STEP_MAX_S: Final = 0.002
"""After so long the others that use the loop have their turn, between two events and between two effects."""


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
        loop_time: LoopTime | None = None,
    ) -> None:
        """Take the machine and what performs its effects; `on_notify` must not block. Peers pay from `loop_time`."""
        self._machine = machine
        self._outlet = outlet
        self._persist = persist
        self._on_notify = on_notify
        self._clock = clock
        self._loop_time = loop_time or LoopTime()
        self._inbox = Inbox(self._loop_time)
        self._step_began_s = 0.0
        self._ticked = False
        self._ahead = False
        """Whether the machine is ahead of what was performed: it knows of decisions that the disk may not hold yet."""
        self._readers: list[asyncio.Future[None]] = []
        self._ended = False
        self.event_count = 0

    def post(self, event: Any) -> bool:
        """Queue one event of this node; False if too many wait and it was dropped."""
        return self._inbox.post(event)

    async def put(self, event: Any) -> None:
        """Queue one event of this node, waiting while too many wait."""
        while not self._inbox.post(event):
            await self._inbox.room()

    def put_for(self, peer: PeerId, event: Any, done: Callable[[], None] | None = None) -> None:
        """Queue what a peer caused; `done` is called once it was handled."""
        self._inbox.put_for(peer, event, done)

    async def performed(self) -> None:
        """Return when every decision that the machine knows of is performed: what is read of it at once is durable."""
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
        """Handle what waits, up to a batch; whoever waits for it to be performed ends it early."""
        effects = self._handle(await self._next_event())
        for _ in range(BATCH_MAX - 1):
            await self._let_others()
            if self._readers or (waiting := self._inbox.take()) is None:
                break
            effects.extend(self._handle(waiting))
        return effects

    def _handle(self, waiting: InboxItem) -> list[Effect]:
        self.event_count += 1
        began_s = self._loop_time.clock()
        effects = list(self._machine.handle(waiting.event, self._clock()))
        self._ahead = self._ahead or any(
            isinstance(effect, Persist) and effect.store is not Store.STATE for effect in effects
        )
        if waiting.peer:
            self._loop_time.account(waiting.peer).spend(self._loop_time.clock() - began_s)
        if waiting.done is not None:
            waiting.done()
        return effects

    async def _let_others(self) -> None:
        """Give the loop away if this has held it for long."""
        if self._loop_time.clock() - self._step_began_s > STEP_MAX_S:
            await asyncio.sleep(0)
            self._step_began_s = self._loop_time.clock()

    async def _next_event(self) -> InboxItem:
        while True:
            due_ms = self._machine.deadline_ms()
            wait_ms = None if due_ms is None else due_ms - self._clock().mono_ms
            ticks = wait_ms is not None and wait_ms <= 0
            if not (ticks and not self._ticked) and (waiting := self._inbox.take()) is not None:
                self._ticked = False
                return waiting
            if ticks:
                # A tick that is always due must starve neither the event loop nor the events.
                await asyncio.sleep(0)
                self._step_began_s = self._loop_time.clock()
                self._ticked = True
                return InboxItem(Tick())
            waits_s = [
                number
                for number in (self._inbox.wait_s(), None if wait_ms is None else wait_ms / 1000)
                if number is not None
            ]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(waits_s, default=None)):
                    await self._inbox.arrival()
            self._step_began_s = self._loop_time.clock()

    async def _perform(self, effects: list[Effect]) -> None:
        waiting: list[Persist] = []
        for effect in share_commits(effects):
            if isinstance(effect, Persist):
                waiting.append(effect)
                continue
            if waiting:
                await self._persist(*waiting)
                waiting = []
                self._step_began_s = self._loop_time.clock()
            await self._let_others()
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
    entries: list[Effect] = []
    place: dict[Store, int] = {}
    for effect in effects:
        if not isinstance(effect, Persist):
            entries.append(effect)
            continue
        if effect.store is Store.FENCE:
            place.pop(Store.VOTE, None)
        elif effect.store in place:
            shared = entries[place[effect.store]]
            assert isinstance(shared, Persist)
            entries[place[effect.store]] = Persist(effect.store, shared.writes + effect.writes)
            continue
        else:
            place[effect.store] = len(entries)
        entries.append(effect)
    return entries
