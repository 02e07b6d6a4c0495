"""The dispatcher: fair turns, limits that hold, tickets that are withdrawn, counters that add up."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from runtime.exchange import Exchange, RequestHead
from runtime.ingress.dispatch import LATENCY_BUCKETS, Dispatcher, HostedApp, Ticket, TicketState, latency_bucket
from runtime.messages import AppLimits, AppLoad, JobDone, RunJob
from runtime.outcome import Cancelled, Completed, Outcome
from runtime.services.log_sink import AppLog, LogBuffer, LogOrigin
from runtime.spec import AppSpec

REQUEST = RequestHead("GET", "http", "a", "/", ())


class Gate:
    """A runner whose calls wait until the test lets them go, and that remembers who ran at once."""

    def __init__(self, order: list[str], name: str, *, fail: bool = False) -> None:
        self.order = order
        self.name = name
        self.fail = fail
        self.open = threading.Event()
        self.running = threading.Semaphore(0)
        self.at_once = 0
        self.at_once_max = 0
        self._lock = threading.Lock()

    def handle(self, exchange: Exchange, request_id: str, trace_id: str) -> Outcome:
        with self._lock:
            self.at_once += 1
            self.at_once_max = max(self.at_once, self.at_once_max)
            self.order.append(self.name)
        self.running.release()
        assert self.open.wait(10)
        with self._lock:
            self.at_once -= 1
        if self.fail:
            raise RuntimeError("a defect")
        outcome = Completed()
        exchange.close(outcome)
        return outcome

    def run_job(self, job: RunJob) -> JobDone:
        raise NotImplementedError

    def close(self) -> None:
        return None


def hosted(gate: Gate, *, concurrency: int = 1, queue_max: int = 10) -> HostedApp:
    load = AppLoad(AppSpec("p", gate.name, "r", Path("/none"), "0"), AppLimits(concurrency, queue_max))
    return HostedApp("k", "r", load, AppLog(LogBuffer(), LogOrigin("n", "p", gate.name, "r")), gate)


def ticket(app: HostedApp, deadline_s: float | None = None) -> Ticket:
    now_s = time.monotonic()
    exchange = Exchange(REQUEST, deadline_s=deadline_s or now_s + 60, loop=asyncio.get_running_loop())
    return Ticket(app, exchange, now_s, "r", "t")


async def settle(*apps: HostedApp, dispatcher: Dispatcher) -> None:
    async with asyncio.timeout(10):
        for app in apps:
            await dispatcher.idle(app)


async def test_an_app_never_runs_more_at_once_than_its_limit_and_runs_all() -> None:
    gate = Gate([], "a")
    app = hosted(gate, concurrency=3, queue_max=100)
    dispatcher = Dispatcher(8)
    gate.open.set()
    tickets = [ticket(app) for _ in range(50)]
    assert all(dispatcher.submit(ticket) for ticket in tickets)
    for entry in tickets:
        assert (await entry.exchange.take()).outcome == Completed()
    await settle(app, dispatcher=dispatcher)
    assert gate.at_once_max <= 3
    assert (app.requests, app.outcomes, app.active) == (50, {"completed": 50}, 0)
    dispatcher.stop()


async def test_a_full_queue_refuses_and_keeps_nothing() -> None:
    gate = Gate([], "a")
    app = hosted(gate, concurrency=1, queue_max=2)
    dispatcher = Dispatcher(4)
    assert [dispatcher.submit(ticket(app)) for _ in range(5)] == [True, True, True, False, False]
    assert app.outcomes == {"refused": 2}
    gate.open.set()
    await settle(app, dispatcher=dispatcher)
    assert app.outcomes == {"refused": 2, "completed": 3}
    dispatcher.stop()


async def test_apps_take_turns_however_long_ones_queue_is() -> None:
    order: list[str] = []
    first, greedy, modest = Gate(order, "first"), Gate(order, "greedy"), Gate(order, "modest")
    apps = [hosted(gate, concurrency=1) for gate in (first, greedy, modest)]
    dispatcher = Dispatcher(1)
    greedy.open.set()
    modest.open.set()
    dispatcher.submit(ticket(apps[0]))
    await asyncio.to_thread(first.running.acquire)  # the one thread is busy; the others queue up
    for _ in range(4):
        dispatcher.submit(ticket(apps[1]))
    for _ in range(2):
        dispatcher.submit(ticket(apps[2]))
    first.open.set()
    await settle(*apps, dispatcher=dispatcher)
    assert order == ["first", "greedy", "modest", "greedy", "modest", "greedy", "greedy"]
    dispatcher.stop()


async def test_a_blocked_app_leaves_threads_to_the_others() -> None:
    blocked, quick = Gate([], "blocked"), Gate([], "quick")
    apps = [hosted(gate, concurrency=2) for gate in (blocked, quick)]
    dispatcher = Dispatcher(3)
    quick.open.set()
    for _ in range(6):
        dispatcher.submit(ticket(apps[0]))
    waiting = ticket(apps[1])
    dispatcher.submit(waiting)
    async with asyncio.timeout(10):
        assert (await waiting.exchange.take()).outcome == Completed()
    assert blocked.at_once_max <= 2
    blocked.open.set()
    await settle(*apps, dispatcher=dispatcher)
    dispatcher.stop()


async def test_a_waiting_ticket_can_be_withdrawn_and_a_running_one_cannot() -> None:
    gate = Gate([], "a")
    app = hosted(gate)
    dispatcher = Dispatcher(1)
    running, waiting = ticket(app), ticket(app)
    dispatcher.submit(running)
    await asyncio.to_thread(gate.running.acquire)
    dispatcher.submit(waiting)
    assert dispatcher.withdraw(waiting, "cancelled")
    assert not dispatcher.withdraw(waiting, "cancelled")
    assert not dispatcher.withdraw(running, "cancelled")
    gate.open.set()
    await settle(app, dispatcher=dispatcher)
    assert app.outcomes == {"cancelled": 1, "completed": 1}
    assert (running.state, waiting.state) == (TicketState.ENDED, TicketState.WITHDRAWN)
    dispatcher.stop()


async def test_only_overdue_tickets_expire() -> None:
    gate = Gate([], "a")
    app = hosted(gate)
    dispatcher = Dispatcher(1)
    dispatcher.submit(ticket(app))
    await asyncio.to_thread(gate.running.acquire)
    now_s = time.monotonic()
    late, early = ticket(app, now_s + 1), ticket(app, now_s + 3)
    dispatcher.submit(late)
    dispatcher.submit(early)
    assert dispatcher.expired(app, now_s) == []
    assert dispatcher.expired(app, now_s + 2) == [late]
    late.exchange.close(Cancelled())
    gate.open.set()
    await settle(app, dispatcher=dispatcher)
    assert app.outcomes == {"expired": 1, "completed": 2}
    dispatcher.stop()


async def test_a_guest_far_past_its_deadline_counts_as_stuck() -> None:
    gate = Gate([], "a")
    app = hosted(gate)
    dispatcher = Dispatcher(1)
    now_s = time.monotonic()
    dispatcher.submit(ticket(app, now_s + 1))
    await asyncio.to_thread(gate.running.acquire)
    assert (dispatcher.stuck(now_s + 5), dispatcher.stuck(now_s + 60)) == (0, 1)
    gate.open.set()
    await settle(app, dispatcher=dispatcher)
    assert dispatcher.stuck(now_s + 60) == 0
    dispatcher.stop()


async def test_a_defect_of_the_runner_ends_its_request_and_not_the_thread() -> None:
    broken, sound = Gate([], "broken", fail=True), Gate([], "sound")
    apps = [hosted(gate) for gate in (broken, sound)]
    dispatcher = Dispatcher(1)
    broken.open.set()
    sound.open.set()
    first, second = ticket(apps[0]), ticket(apps[1])
    dispatcher.submit(first)
    assert "a defect" in str((await first.exchange.take()).outcome)
    dispatcher.submit(second)
    assert (await second.exchange.take()).outcome == Completed()
    await settle(*apps, dispatcher=dispatcher)
    assert apps[0].outcomes == {"host_failed": 1}
    dispatcher.stop()


@pytest.mark.parametrize(
    ("latency_us", "bucket"), [(0, 0), (63, 0), (64, 1), (127, 1), (128, 2), (10**6, 14), (10**12, LATENCY_BUCKETS - 1)]
)
def test_a_latency_falls_into_the_bucket_whose_bound_it_is_below(latency_us: int, bucket: int) -> None:
    assert latency_bucket(latency_us) == bucket
