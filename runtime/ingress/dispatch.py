"""Who runs next: a bounded queue per app, fair turns between apps, a bounded set of guest threads per worker.

The loop submits; guest threads take tickets themselves, one app after the other, so that handing on the next request
costs the loop nothing, and no app can hold more threads than its limit. Not here: HTTP (the connection's), running
guests (the sandbox's). A ticket is waiting, then running, then ended, or it is withdrawn while waiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from enum import Enum
from queue import SimpleQueue
from typing import Final, Protocol

from runtime.exchange import Exchange
from runtime.messages import AppLoad, AppStatus, JobDone, RunJob
from runtime.outcome import (
    BodyAborted,
    Cancelled,
    Completed,
    DeadlineExceeded,
    ErrorResponse,
    Exited,
    HostFailed,
    MemoryRefused,
    NoResponse,
    Outcome,
    Trapped,
)
from runtime.services.log_sink import AppLog

GUEST_THREADS_MAX: Final = 32
"""Guests that run or wait at once in a worker: waiting ones (outbound calls, slow clients) cost a stack, not a core."""

LATENCY_UNIT_US: Final = 64
"""Upper bound of the first latency bucket; a warm compiled guest answers in about this."""

LATENCY_BUCKETS: Final = 24
"""Each bucket doubles the one before; the last begins at 268 s, beyond any sensible timeout."""

STUCK_AFTER_S: Final = 10.0
"""A guest this far past its deadline ignores the epoch; only a new process gets its thread back."""

_KINDS: Final[dict[type[Outcome], str]] = {
    Completed: "completed",
    Exited: "exited",
    ErrorResponse: "error_response",
    BodyAborted: "body_aborted",
    NoResponse: "no_response",
    Trapped: "trapped",
    DeadlineExceeded: "deadline_exceeded",
    MemoryRefused: "memory_refused",
    Cancelled: "cancelled",
    HostFailed: "host_failed",
}


class HostingError(Exception):
    """An app cannot be hosted, or a request to the worker cannot stand; the text says why, for the operator."""


class Runner(Protocol):
    """What runs one app: the sandbox, or in tests anything else. Every method blocks its thread."""

    def handle(self, exchange: Exchange, request_id: str, trace_id: str) -> Outcome:
        """Run a guest to its end and close the exchange."""
        ...

    def run_job(self, job: RunJob) -> JobDone:
        """Run a command to its end."""
        ...

    def close(self) -> None:
        """Free what the app holds; it has no requests any more."""
        ...


class EngineCounts(Protocol):
    """Counters that another engine keeps of an app."""

    def add_to(self, status: AppStatus) -> AppStatus:
        """Return `status` with them."""
        ...


class TicketState(Enum):
    """Where a ticket stands."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    WITHDRAWN = "withdrawn"


class Ticket:
    """One request's place in the queue. Only the dispatcher changes it."""

    __slots__ = ("app", "exchange", "request_id", "since_s", "state", "trace_id")

    def __init__(self, app: HostedApp, exchange: Exchange, since_s: float, request_id: str, trace_id: str) -> None:
        self.app = app
        self.exchange = exchange
        self.since_s = since_s
        self.request_id = request_id
        self.trace_id = trace_id
        self.state = TicketState.WAITING


class HostedApp:
    """One app of one loaded release: what runs it, its queue and its counters.

    The dispatcher's lock guards what becomes of requests: `requests`, `outcomes`, `waiting`, `active`. The loop alone counts
    what visitors were answered: `statuses` and latencies, of one answer together.
    """

    def __init__(self, key: str, digest: str, load: AppLoad, log: AppLog, runner: Runner, plan: object = None) -> None:
        """Take what the app is and what runs it; `plan` is what another engine is told of it."""
        self.plan = plan
        self.engine_reason = ""
        """Why the worker's native engine does not serve it, where there is one."""
        self.key = key
        self.digest = digest
        self.load = load
        self.spec = load.spec
        self.limits = load.limits
        self.log = log
        self.runner = runner
        self.timeout_s = load.spec.timeout_ms / 1000
        self.waiting: deque[Ticket] = deque()
        self.active = 0
        self.ready = False
        self.requests = 0
        self.outcomes: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.latency_buckets = [0] * LATENCY_BUCKETS
        self.latency_sum_us = 0
        self.on_idle: Callable[[], None] | None = None
        self.native: EngineCounts | None = None
        """Of the native engine, where it serves this app too."""

    def answered(self, status: int, latency_s: float | None) -> None:
        """Count one answer (loop only); `latency_s` is from its coming to the guest's end, None where no guest was asked."""
        self.statuses[status // 100] += 1
        if latency_s is not None:
            latency_us = max(0, int(latency_s * 1_000_000))
            self.latency_buckets[latency_bucket(latency_us)] += 1
            self.latency_sum_us += latency_us

    def status(self) -> AppStatus:
        """Return the counters as they are now; `Dispatcher.look` calls it under the lock."""
        status = AppStatus(
            key=self.key,
            app=self.spec.app,
            requests=self.requests,
            in_flight=self.active,
            queued=len(self.waiting),
            outcomes=dict(self.outcomes),
            statuses={f"{hundred}xx": count for hundred, count in self.statuses.items()},
            latency_buckets=tuple(self.latency_buckets),
            latency_sum_us=self.latency_sum_us,
            log_lines_dropped=self.log.dropped_total,
            engine_reason=self.engine_reason,
        )
        return self.native.add_to(status) if self.native is not None else status


def latency_bucket(latency_us: int) -> int:
    """Return the index of the log2 bucket for a latency."""
    return min((latency_us // LATENCY_UNIT_US).bit_length(), LATENCY_BUCKETS - 1)


def outcome_kind(outcome: Outcome) -> str:
    """Return the counter's name for an outcome: "completed", "trapped", "deadline_exceeded", ..."""
    return _KINDS[type(outcome)]


class Dispatcher:
    """The queues and threads of one worker. `submit`, `withdraw` and `expire` are the loop's; threads do the rest."""

    def __init__(self, threads_max: int = GUEST_THREADS_MAX) -> None:
        self._threads_max = threads_max
        self._lock = threading.Lock()
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._ready: deque[HostedApp] = deque()
        self._running: dict[Ticket, None] = {}
        self._threads = 0
        self._idle = 0

    def submit(self, ticket: Ticket) -> bool:
        """Queue a ticket; False when the app's queue is full (nothing was kept)."""
        app = ticket.app
        with self._lock:
            app.requests += 1
            if len(app.waiting) + app.active >= app.limits.queue_max + app.limits.concurrency:
                app.outcomes["refused"] += 1
                return False
            app.waiting.append(ticket)
            self._make_ready(app)
            summon = self._summon()
        if summon is not None:
            asyncio.get_running_loop().call_soon(summon)
        return True

    def withdraw(self, ticket: Ticket, kind: str) -> bool:
        """Take a ticket back that no thread has begun, counted as `kind`; False if it runs or has run."""
        with self._lock:
            if ticket.state is not TicketState.WAITING:
                return False
            ticket.state = TicketState.WITHDRAWN
            app = ticket.app
            app.waiting.remove(ticket)
            app.outcomes[kind] += 1
            self._tell_idle(app)
            return True

    def expired(self, app: HostedApp, now_s: float) -> list[Ticket]:
        """Withdraw and return the tickets whose deadline passed while they waited; their exchanges are still open."""
        with self._lock:
            late = []
            while app.waiting and app.waiting[0].exchange.call.deadline_s <= now_s:
                ticket = app.waiting.popleft()
                ticket.state = TicketState.WITHDRAWN
                app.outcomes["expired"] += 1
                late.append(ticket)
            if late:
                self._tell_idle(app)
            return late

    def look(self, apps: Iterable[HostedApp]) -> tuple[AppStatus, ...]:
        """Return the counters of apps, all of one moment (loop only)."""
        with self._lock:
            return tuple(app.status() for app in apps)

    def stuck(self, now_s: float) -> int:
        """Count guests that are far past their deadline and still hold a thread."""
        with self._lock:
            return sum(now_s > ticket.exchange.call.deadline_s + STUCK_AFTER_S for ticket in self._running)

    async def idle(self, app: HostedApp) -> None:
        """Wait until `app` has neither waiting nor running tickets; it must get no new ones."""
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        with self._lock:
            if not app.active and not app.waiting:
                return
            app.on_idle = lambda: _set_from_thread(loop, event)
        await event.wait()

    def stop(self) -> None:
        """Let idle threads end; busy ones end after their guest."""
        with self._lock:
            self._threads_max = 0
            for _ in range(self._idle):
                self._wake.put(False)
            self._idle = 0

    def _make_ready(self, app: HostedApp) -> None:
        if app.waiting and not app.ready and app.active < app.limits.concurrency:
            app.ready = True
            self._ready.append(app)

    def _tell_idle(self, app: HostedApp) -> None:
        if app.on_idle is not None and not app.active and not app.waiting:
            app.on_idle()
            app.on_idle = None

    def _summon(self) -> Callable[[], None] | None:
        """Under the lock: decide how to get one more thread to look, if a ticket is ready and a thread can be had.

        A thread that is looking already summons the next one itself, so a burst wakes threads one by one as they are
        needed, and a thread that has just ended a guest takes the next ticket without waking anybody.
        """
        if not self._ready or self._threads - self._idle - len(self._running) > 0:
            return None
        if self._idle:
            self._idle -= 1
            return self._wake_one
        if self._threads < self._threads_max:
            self._threads += 1
            return threading.Thread(target=self._serve, name=f"guest-{self._threads}", daemon=True).start
        return None

    def _wake_one(self) -> None:
        self._wake.put(True)

    def _take(self) -> Ticket | None:
        """Under the lock: the next ticket in turn."""
        while self._ready:
            app = self._ready.popleft()
            app.ready = False
            if not app.waiting:  # its tickets were withdrawn
                continue
            ticket = app.waiting.popleft()
            ticket.state = TicketState.RUNNING
            app.active += 1
            self._running[ticket] = None
            self._make_ready(app)
            return ticket
        return None

    def _serve(self) -> None:
        """One guest thread: run tickets while there are any, then sleep until summoned."""
        while True:
            with self._lock:
                ticket = self._take()
                if ticket is None:
                    if self._threads > self._threads_max:
                        self._threads -= 1
                        return
                    self._idle += 1
                    summon = None
                else:
                    summon = self._summon()
            if ticket is None:
                if not self._wake.get():
                    return
                continue
            if summon is not None:
                summon()
            self._run(ticket)

    def _run(self, ticket: Ticket) -> None:
        app = ticket.app
        try:
            outcome = app.runner.handle(ticket.exchange, ticket.request_id, ticket.trace_id)
        except Exception as error:  # a defect of the sandbox; the thread must live on
            outcome = HostFailed(repr(error), "")
            ticket.exchange.close(outcome)
        with self._lock:
            ticket.state = TicketState.ENDED
            del self._running[ticket]
            app.active -= 1
            app.outcomes[outcome_kind(outcome)] += 1
            self._make_ready(app)
            self._tell_idle(app)


def _set_from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)
