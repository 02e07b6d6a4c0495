"""Deliveries: a message goes to its handler until that is done with it, and only where its data is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from node.serving import deliveries
from node.serving.deliveries import Deliveries
from protocols.changes.effective import EffectiveApp
from protocols.machine import Now
from runtime.messages import DeliveryFate
from runtime.services import freeze
from runtime.services.sqlite_queue import QueuedMessage, SqliteQueue
from runtime.workers.pool import PoolError

LANE = ("shop", "production")
Call = tuple[str, str, bytes, int]


def handler(*subjects: str, name: str = "worker") -> EffectiveApp:
    return EffectiveApp(name, b"c" * 32, "http", 1_000, 1 << 26, "fresh", subscribe=subjects)


@dataclass
class Here:
    handlers: tuple[EffectiveApp, ...]
    key: str = "r1"


@dataclass
class Office:
    """Deliveries whose workers answer what the test says; the clock runs as fast as the test says."""

    folder: Path
    running: dict[tuple[str, str], Here] = field(default_factory=dict)
    held: set[tuple[str, str]] = field(default_factory=lambda: {LANE})
    calls: list[Call] = field(default_factory=list)
    answers: list[DeliveryFate | PoolError] = field(default_factory=list)
    ahead_ms: int = 0
    hold: asyncio.Event | None = None

    def __post_init__(self) -> None:
        self.queue = SqliteQueue(self.folder, "/".join(LANE))
        self.deliveries = Deliveries(
            lambda: self.running, self.deliver, self.now, self.folder, lambda *lane: lane in self.held
        )

    def now(self) -> Now:
        return Now(0, time.time_ns() // 1_000_000 + self.ahead_ms)

    async def deliver(self, key: str, app: str, message: QueuedMessage, *, timeout_ms: int) -> DeliveryFate:
        self.calls.append((key, app, message.body, message.attempt))
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers.pop(0) if self.answers else "done"
        if isinstance(answer, PoolError):
            raise answer
        return answer

    def publish(self, *bodies: bytes, subject: str = "jobs") -> None:
        for body in bodies:
            self.queue.publish(subject, body, self.now().wall_ms)

    def counts(self) -> dict[str, int]:
        return {count.subject: count.messages for count in self.queue.counts()}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.deliveries.run())
            yield
            task.cancel()


async def until(holds: object, timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end_s, "it did not come"
        await asyncio.sleep(0.01)


async def test_a_message_goes_to_its_handler_and_is_gone(tmp_path: Path) -> None:
    office = Office(tmp_path, {LANE: Here((handler("jobs"), handler("mail", name="mailer")))})
    async with office.open():
        office.publish(b"a", b"b")
        office.publish(b"m", subject="mail")
        await until(lambda: office.counts() == {"jobs": 0, "mail": 0})
    pairs = [("r1", "mailer", b"m", 1), ("r1", "worker", b"a", 1), ("r1", "worker", b"b", 1)]
    assert sorted(office.calls) == pairs
    assert office.deliveries.outcomes == {(*LANE, "jobs", "done"): 2, (*LANE, "mail", "done"): 1}


async def test_a_worker_that_ends_between_delivery_and_answer_loses_nothing(tmp_path: Path) -> None:
    office = Office(tmp_path, {LANE: Here((handler("jobs"),))})
    office.answers = [PoolError("the worker ended"), "failed", "done"]
    async with office.open():
        office.publish(b"a")
        await until(lambda: len(office.calls) == 1)
        office.ahead_ms += 1_000
        await until(lambda: len(office.calls) == 2)
        office.ahead_ms += 2_000
        await until(lambda: office.counts() == {"jobs": 0})
    assert [call[3] for call in office.calls] == [1, 2, 3]


async def test_a_node_that_ends_in_between_delivers_again(tmp_path: Path) -> None:
    office = Office(tmp_path, {LANE: Here((handler("jobs"),))}, hold=asyncio.Event())
    async with office.open():
        office.publish(b"a")
        await until(lambda: office.calls)
    again = Office(tmp_path, {LANE: Here((handler("jobs"),), "r2")}, ahead_ms=deliveries.VISIBILITY_MARGIN_MS + 1_000)
    async with again.open():
        await until(lambda: again.counts() == {"jobs": 0})
    assert again.calls == [("r2", "worker", b"a", 2)]


async def test_what_fails_too_often_becomes_a_dead_letter_that_an_app_can_handle(tmp_path: Path) -> None:
    office = Office(tmp_path, {LANE: Here((handler("jobs"), handler("jobs.dead", name="morgue")))})
    office.answers = ["failed"] * 5
    async with office.open():
        office.publish(b"bad")
        for attempt in range(1, 6):
            await until(lambda attempt=attempt: len(office.calls) >= attempt)
            office.ahead_ms += 60_000
        await until(lambda: office.counts() == {"jobs": 0, "jobs.dead": 0})
    assert office.calls[-1] == ("r1", "morgue", b"bad", 1)
    assert office.deliveries.outcomes[*LANE, "jobs", "dead"] == 1


async def test_an_app_without_room_gets_it_later_as_the_same_attempt(tmp_path: Path) -> None:
    office = Office(tmp_path, {LANE: Here((handler("jobs"),))})
    office.answers = ["refused", "refused", "done"]
    async with office.open():
        office.publish(b"a")
        await until(lambda: office.counts() == {"jobs": 0})
    assert [call[3] for call in office.calls] == [1, 1, 1]


async def test_no_more_than_a_bounded_number_is_under_way(tmp_path: Path) -> None:
    office = Office(tmp_path, {LANE: Here((handler("jobs"),))}, hold=asyncio.Event())
    async with office.open():
        office.publish(*(b"%d" % number for number in range(20)))
        await until(lambda: len(office.calls) == deliveries.AT_ONCE_MAX)
        await asyncio.sleep(0.3)
        assert len(office.calls) == deliveries.AT_ONCE_MAX
        assert office.hold is not None
        office.hold.set()
        await until(lambda: office.counts() == {"jobs": 0})
    assert len(office.calls) == 20


async def test_nothing_is_delivered_or_made_where_the_data_is_not(tmp_path: Path) -> None:
    office = Office(tmp_path, {LANE: Here((handler("jobs"),)), ("shop", "staging"): Here((handler("jobs"),))})
    office.held = {("shop", "staging")}
    async with office.open():
        office.publish(b"a")
        await asyncio.sleep(0.4)
        assert office.calls == []
        assert not (tmp_path / "shop" / "staging").exists()
        office.held = {LANE}
        await until(lambda: office.counts() == {"jobs": 0})
        office.held = set()
        await asyncio.sleep(0.3)
        office.publish(b"b")
        await asyncio.sleep(0.3)
    assert office.counts() == {"jobs": 1}


async def test_frozen_data_is_waited_for(tmp_path: Path) -> None:
    office = Office(tmp_path, {LANE: Here((handler("jobs"),))})
    office.publish(b"a")
    mark = tmp_path / "shop" / "production" / freeze.FROZEN
    mark.touch()
    async with office.open():
        await asyncio.sleep(0.3)
        assert office.calls == []
        mark.unlink()
        await until(lambda: office.counts() == {"jobs": 0})
