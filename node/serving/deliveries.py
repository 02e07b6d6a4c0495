"""Brings the messages of the queues that lie here to their handlers, and takes down what became of each.

A message is taken for as long as its handler may run, and gone only when the handler said that it is done: a worker or a
node that ends between the two has it delivered again. One that fails waits longer each time and becomes a dead letter in
the end. Only the node that holds a lane's data delivers, to the release that it runs. Not here: the queue
(runtime/services/sqlite_queue.py), what a handler is given (runtime/ingress/delivery.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from protocols.changes.effective import EffectiveApp
from protocols.machine import Now
from runtime.messages import DeliveryFate
from runtime.providers import ProviderError
from runtime.services.sqlite_file import lane_folder
from runtime.services.sqlite_queue import FILE_NAME, QueuedMessage, SqliteQueue
from runtime.workers.pool import PoolError

LOOK_S = 0.1
"""Between two looks at the queues; a look at one in which nothing changed costs two `stat`."""

VISIBILITY_MARGIN_MS = 30_000
"""How long after its handler's time limit a message is due again, if nobody said what became of it."""

AT_ONCE_MAX = 8
"""Messages of one queue with their handler at once; an app has as many guests."""

AT_ONCE_IN_ALL = 32
"""Of all queues of the node: each may have 1 MiB."""

REFUSED_PAUSE_S = 0.5
THREADS = 8
"""For the queues alone: a write waits while data is frozen, and nothing else of the node may wait with it."""

DELIVERY_OUTCOMES = ("done", "failed", "dead", "refused", "lost")
"""`dead`: it failed for the last time; `refused`: it was not begun; `lost`: what became of it could not be kept."""

Lane = tuple[str, str]
Stamp = tuple[int, ...]
ResultT = TypeVar("ResultT")
_log = logging.getLogger("freehold.deliveries")


class Handling(Protocol):
    """What one lane runs here, as far as messages go (workloads.Running)."""

    @property
    def key(self) -> str:
        """What the workers know the release by."""
        ...

    @property
    def handlers(self) -> tuple[EffectiveApp, ...]:
        """The apps that handle messages."""
        ...


class Deliverer(Protocol):
    """How a worker is asked to have a message handled (`WorkerPool.deliver`). Raises PoolError."""

    def __call__(self, key: str, app: str, message: QueuedMessage, *, timeout_ms: int) -> Awaitable[DeliveryFate]:
        """Have `app` of the loaded release `key` handle it."""
        ...


@dataclass(slots=True)
class LaneQueue:
    """An open queue: what was seen of its files, when its next message is due, and what is under way by subject."""

    queue: SqliteQueue
    folder: Path
    seen: Stamp = ()
    due_ms: int | None = None
    looking: bool = False
    under_way: Counter[str] = field(default_factory=Counter)
    pause_until_s: float = 0.0


class Deliveries:
    """The node's postman. `outcomes` counts messages by project, environment, subject and what became of them."""

    def __init__(
        self,
        running: Callable[[], Mapping[Lane, Handling]],
        deliver: Deliverer,
        clock: Callable[[], Now],
        data: Path,
        holds: Callable[[str, str], bool],
    ) -> None:
        """Take what runs here now, how a message is handled, the clock, the data's folder, and whose data is here."""
        self._running = running
        self._deliver = deliver
        self._clock = clock
        self._data = data
        self._holds = holds
        self._queues: dict[Lane, LaneQueue] = {}
        self._room = AT_ONCE_IN_ALL
        self._wake = asyncio.Event()
        self._threads = ThreadPoolExecutor(THREADS, "queue")
        self.outcomes: Counter[tuple[str, str, str, str]] = Counter()

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is delivered again."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._wake.clear()
                    self._look(tasks)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await self._wake.wait()
        finally:
            for queue in self._queues.values():
                queue.queue.close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _look(self, tasks: asyncio.TaskGroup) -> None:
        here = {
            lane: running for lane, running in dict(self._running()).items() if running.handlers and self._holds(*lane)
        }
        for lane in self._queues.keys() - here.keys():
            self._queues.pop(lane).queue.close()  # it outlives no decision; what is under way there is delivered again
        for lane, running in here.items():
            lane_queue = self._queues.get(lane) or self._open(lane)
            if lane_queue is not None and not lane_queue.looking and self._is_due(lane_queue):
                lane_queue.looking = True
                tasks.create_task(self._take(tasks, lane, running, lane_queue))

    def _open(self, lane: Lane) -> LaneQueue | None:
        """The lane's queue, if anything was ever put into it: to look is no reason to make a file."""
        owner = "/".join(lane)
        folder = lane_folder(self._data, owner)
        if not (folder / FILE_NAME).exists():
            return None
        lane_queue = self._queues[lane] = LaneQueue(SqliteQueue(self._data, owner), folder)
        return lane_queue

    def _is_due(self, found: LaneQueue) -> bool:
        if self._room <= 0 or asyncio.get_running_loop().time() < found.pause_until_s:
            return False
        stamp = _stamp(found.folder)
        changed, found.seen = stamp != found.seen, stamp
        return changed or (found.due_ms is not None and found.due_ms <= self._clock().wall_ms)

    async def _take(self, tasks: asyncio.TaskGroup, lane: Lane, running: Handling, found: LaneQueue) -> None:
        """Take what is due of a lane's queues, as far as there is room, and start its delivery."""
        try:
            subjects = {subject: app for app in running.handlers for subject in app.queues[1]}
            for subject, app in subjects.items():
                room = min(AT_ONCE_MAX - found.under_way[subject], self._room)
                if room <= 0:
                    continue
                self._room -= room
                taken: list[QueuedMessage] = []
                try:
                    visibility_ms = app.timeout_ms + VISIBILITY_MARGIN_MS
                    now_ms = self._clock().wall_ms
                    if await self._in_thread(found.queue.next_due_ms, [subject], now_ms) is not None:
                        taken = list(await self._in_thread(found.queue.take, subject, room, visibility_ms, now_ms))
                finally:
                    self._room += room - len(taken)
                found.under_way[subject] += len(taken)
                for message in taken:
                    tasks.create_task(self._handle(lane, running.key, app, found, message))
            found.due_ms = await self._in_thread(found.queue.next_due_ms, list(subjects), self._clock().wall_ms)
        except ProviderError as error:  # frozen, gone to another node, or a full disk: it is looked at again
            found.due_ms = 0
            self._pause(found)
            _log.info("messages wait: %s", error, extra={"event": "messages.waiting", "project": lane[0]})
        finally:
            found.looking = False

    async def _handle(self, lane: Lane, key: str, app: EffectiveApp, found: LaneQueue, message: QueuedMessage) -> None:
        queue, outcome = found.queue, "failed"
        try:
            try:
                fate = await self._deliver(key, app.name, message, timeout_ms=app.timeout_ms)
            except PoolError:  # the worker ended, or does not answer: nobody knows whether it was handled
                fate = "failed"
            if fate == "done":
                await self._in_thread(queue.done, message)
                outcome = "done"
            elif fate == "refused":
                await self._in_thread(queue.give_back, message, self._clock().wall_ms)
                self._pause(found)
                outcome = "refused"
            elif await self._in_thread(queue.failed, message, self._clock().wall_ms):
                outcome = "dead"
        except ProviderError as error:  # what became of it cannot be kept: it is delivered again
            outcome = "lost"
            _log.warning("message not taken down: %s", error, extra={"event": "message.lost", "project": lane[0]})
        finally:
            self._room += 1
            found.under_way[message.subject] -= 1
            found.due_ms = 0  # there is room again: look at once
            self._wake.set()
        self.outcomes[*lane, message.subject, outcome] += 1
        if outcome in {"failed", "dead"}:
            self._say(lane, app, message, outcome)

    def _pause(self, found: LaneQueue) -> None:
        found.pause_until_s = asyncio.get_running_loop().time() + REFUSED_PAUSE_S

    async def _in_thread(self, call: Callable[..., ResultT], *arguments: object) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*arguments))

    def _say(self, lane: Lane, app: EffectiveApp, message: QueuedMessage, outcome: str) -> None:
        dead = outcome == "dead"
        _log.log(
            logging.ERROR if dead else logging.WARNING,
            "message %d of %s failed %d times and is a dead letter" if dead else "message %d of %s failed, attempt %d",
            message.id,
            message.subject,
            message.attempt,
            extra={"event": f"message.{outcome}", "project": lane[0], "app": app.name},
        )


def _stamp(folder: Path) -> Stamp:
    """Something that changes with every write: SQLite appends to the log beside the file, or writes the file."""
    numbers: list[int] = []
    for name in (FILE_NAME, FILE_NAME + "-wal"):
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        numbers += (status.st_ino, status.st_mtime_ns, status.st_size)
    return tuple(numbers)
