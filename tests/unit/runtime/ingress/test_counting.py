"""One answer is counted once and whole: its class and its duration in the same moment, whatever its guest still does."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import cast

import pytest

from runtime.exchange import Exchange, ResponseHead
from runtime.ingress.dispatch import Dispatcher, HostedApp
from runtime.ingress.front import Ingress
from runtime.ingress.request_head import Identifiers
from runtime.ingress.routing import Elsewhere, RouteTable
from runtime.ingress.settings import IngressSettings
from runtime.messages import AppLimits, AppLoad, JobDone, RunJob
from runtime.outcome import Cancelled, Completed, Outcome, Trapped
from runtime.services.log_sink import AppLog, LogBuffer, LogOrigin
from runtime.spec import AppSpec


class Tidying:
    """A runner that has answered long before its thread is free again, as one that cleans an instance."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.tidied = threading.Event()

    def handle(self, exchange: Exchange, request_id: str, trace_id: str) -> Outcome:
        if self.outcome == Completed():
            exchange.response.start(ResponseHead(200, (("content-length", b"2"),)))
            exchange.response.write(b"ok")
            exchange.response.finish()
        exchange.close(self.outcome)
        assert self.tidied.wait(10)
        return self.outcome

    def run_job(self, job: RunJob) -> JobDone:
        raise NotImplementedError

    def close(self) -> None:
        return None


async def look_behind_an_answer(runner: Tidying, queue_max: int = 4) -> tuple[bytes, HostedApp, Dispatcher]:
    """Ask once over a socket; return the answer and what was counted when it was there."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    dispatcher = Dispatcher(1)
    load = AppLoad(AppSpec("p", "web", "r", Path("/none"), "0"), AppLimits(1, queue_max))
    app = HostedApp("k", "r", load, AppLog(LogBuffer(), LogOrigin("n", "p", "web", "r")), runner)
    async with asyncio.TaskGroup() as tasks:
        ingress = Ingress(
            settings=IngressSettings(), dispatcher=dispatcher, listeners=[listener], proxies=(),
            identifiers=Identifiers(1), logs=LogBuffer(), node="n", tasks=tasks,
        )  # fmt: skip
        ingress.activate(cast("RouteTable[HostedApp | Elsewhere]", RouteTable([(None, "/", app)])))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        await ingress.drain(5)
    listener.close()
    return answer, app, dispatcher


@pytest.mark.parametrize(
    ("outcome", "status", "hundred"),
    [(Completed(), b"200", "2xx"), (Trapped("x", ""), b"500", "5xx"), (Cancelled(), b"500", "5xx")],
)
async def test_who_has_an_answer_finds_it_counted_with_its_duration(
    outcome: Outcome, status: bytes, hundred: str
) -> None:
    runner = Tidying(outcome)
    answer, app, dispatcher = await look_behind_an_answer(runner)
    assert answer.startswith(b"HTTP/1.1 " + status)
    (seen,) = dispatcher.look([app])
    assert (seen.in_flight, seen.outcomes) == (1, {}), "the guest's thread is not back yet"
    assert seen.statuses == {hundred: 1}
    assert sum(seen.latency_buckets) == 1
    latency_us = seen.latency_sum_us
    runner.tidied.set()
    await dispatcher.idle(app)
    (seen,) = dispatcher.look([app])
    assert (seen.requests, seen.in_flight, sum(seen.outcomes.values())) == (1, 0, 1)
    assert (sum(seen.latency_buckets), seen.latency_sum_us) == (1, latency_us), "it was counted again"
    dispatcher.stop()


async def test_an_answer_without_a_guest_has_a_class_and_no_duration() -> None:
    runner = Tidying(Completed())
    answer, app, dispatcher = await look_behind_an_answer(runner, queue_max=-1)  # full from the beginning
    assert answer.startswith(b"HTTP/1.1 503")
    (seen,) = dispatcher.look([app])
    assert (seen.statuses, sum(seen.latency_buckets), seen.outcomes) == ({"5xx": 1}, 0, {"refused": 1})
