"""What it costs to be watched and asked: metrics and tracing in the request path, the API, webhooks and events.

A request pays by what the line of its answer says more, and by being counted; both are measured alone, in one thread, with
the same call without them beside. The API is asked over the Unix socket by one client, one call after another, beside an
aiohttp handler in a process of its own that answers as many bytes. Webhooks go one after another to a receiver in the
measuring process, signed; events go to one watcher. Not here: the native engine (watching_native), and what a
whole request costs (`serving`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final, cast

import aiohttp

from benchmarks import fleet, watching_native
from benchmarks.rows import Row, at_most, beside
from node.feed import Feed
from node.keys import SystemEntropy
from node.mesh.pump import system_now
from node.telemetry.lines import fields_of, span_of
from node.telemetry.otlp import Span, body_of
from node.webhooks.model import HookFile, Message, Webhook
from node.webhooks.occasions import Sight
from node.webhooks.webhooks import Webhooks
from protocols.core import NodeCore
from protocols.liveness import Belief, BeliefChanged
from protocols.machine import PeerId
from runtime.ingress.dispatch import HostedApp
from runtime.messages import AppLoad
from runtime.services.log_sink import Allowance, AppLog, LogBuffer, LogOrigin
from runtime.spec import AppSpec
from tests.fixtures.build import component
from tests.support.mesh.nodes import Machine, until
from tests.support.mesh.receiver import a_receiver

HOT_AIM_US: Final = 5.0
CALLS: Final = 50_000
ROUNDS: Final = 20
ASKED: Final = 1_000
TOLD: Final = 200
LINE: Final[dict[str, object]] = {
    "request_id": "0123456789ab-1f", "trace_id": "0af7651916cd43dd8448eb211c80319c", "client": "127.0.0.1",
    "method": "GET", "path": "/orders/17", "status": 200, "bytes_in": 0, "bytes_out": 512, "duration_ms": 0.412,
    "outcome": "completed", "project": "shop", "app": "web", "release": "a" * 64,
}  # fmt: skip
TRACED: Final[dict[str, object]] = {**LINE, "span_id": "b7ad6b7169203331", "parent_id": "00f067aa0ba902b7"}


def run(quick: bool) -> Iterator[Row]:
    scale = 10 if quick else 1
    yield from _request_path(CALLS // scale)
    yield from watching_native.rows(ROUNDS // scale)
    yield from asyncio.run(_webhooks(TOLD // scale))
    yield from asyncio.run(_events(CALLS // scale))
    yield from _api(ASKED // scale)


def _per_call_us(calls: int, *timed: Callable[[], object]) -> list[float]:
    """The least that a call of each took, of rounds that take turns."""
    best = [float("inf")] * len(timed)
    for _ in range(ROUNDS):
        for number, call in enumerate(timed):
            began_s = time.perf_counter()
            for _ in range(calls // ROUNDS):
                call()
            best[number] = min(best[number], (time.perf_counter() - began_s) / (calls // ROUNDS) * 1e6)
    return best


def _request_path(calls: int) -> Iterator[Row]:
    wide = Allowance(1e12, 1e12, 1e15, 1e15)
    buffer = LogBuffer()
    log = AppLog(buffer, LogOrigin("n0", "", "", ""), wide)
    lines: list[bytes] = []

    def write(fields: dict[str, object]) -> None:
        log.write_admitted("info", "request", "host", dict(fields))
        lines[:] = buffer.take(1 << 20)[0]

    plain, traced = _per_call_us(calls, lambda: write(LINE), lambda: write(TRACED))
    note = f"the line of an answer takes {plain:.2f} us without and {traced:.2f} us with its place in a trace"
    yield at_most("tracing, in the path of a request", round(max(0.0, traced - plain), 2), "us", HOT_AIM_US, note=note)
    app = HostedApp("k", "r", AppLoad(AppSpec("p", "web", "r", Path("/none"), "0")), log, cast(Any, None))
    (counted,) = _per_call_us(calls, lambda: app.answered(200, 0.0004))
    yield at_most("metrics, in the path of a request", round(counted, 2), "us", HOT_AIM_US, note="one answer counted")
    line = lines[0]

    def export() -> None:
        spans = [cast(Span, span_of(fields_of(line) or {})) for _ in range(100)]
        body_of({"service.name": "freehold"}, "1", "traces", spans)

    spent = _per_call_us(max(calls // 100, ROUNDS), export)[0] / 100
    yield Row(
        "a span, in the daemon and beside requests", round(spent, 1), "us", note="from its line to OTLP, 100 a batch"
    )


class _Nothing:
    """Occasions of a node where nothing happens: the messages are there already."""

    def standing(self, _wall_ms: int) -> Sight:
        return Sight()

    def since(self, _file: HookFile, _standing: object, _wall_ms: int) -> list[Message]:
        return []


async def _webhooks(count: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        async with a_receiver() as receiver:
            hooks = Webhooks(Path(folder) / "webhooks", system_now, SystemEntropy())
            file = HookFile(Webhook("ops", receiver.url, b"s" * 32, private=True), 0)
            now_ms = system_now().wall_ms
            for number in range(count):
                file.queue(Message(f"msg_{number}", "rollout.started", now_ms, {"project": "shop"}), now_ms)
            hooks.files["ops"] = file
            began_s = time.perf_counter()
            task = asyncio.ensure_future(hooks.run(cast(Any, _Nothing()), "home"))
            while file.pending:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            took_s = time.perf_counter() - began_s
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert len(receiver.came) == count
    return [Row("webhooks delivered, one receiver", round(count / took_s), "1/s", note="signed, in their order")]


async def _events(count: int) -> list[Row]:
    feed = Feed(cast(NodeCore, _Still()))
    heard = 0

    async def watch() -> None:
        nonlocal heard
        async for _ in feed.watch(lambda kind, _fields: kind == "member"):
            heard += 1

    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(0)
    began_s = time.perf_counter()
    for number in range(count):
        feed.hear(BeliefChanged(PeerId("12D3KooW"), Belief.DOWN, number, ""))
        if number % 500 == 0:
            await asyncio.sleep(0)
            while heard <= number:  # noqa: ASYNC110
                await asyncio.sleep(0)
    while heard < count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    took_s = time.perf_counter() - began_s
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return [Row("events to a watcher", round(count / took_s), "1/s")]


class _Still:
    """A core in which nothing goes on."""

    class state:  # noqa: N801
        lanes: tuple[()] = ()


def _api(count: int) -> Iterator[Row]:
    with fleet.running(1) as (machine,):
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "site", "--owner", "me")
        yield from asyncio.run(_asked(machine, count))


async def _asked(machine: Machine, count: int) -> list[Row]:
    path = str(next(machine.runtime.glob("*/api.sock")))
    rows = []
    async with _session(path) as session:
        code = component("hello").read_bytes()
        named = hashlib.sha256(code).hexdigest()
        fields = {"Idempotency-Key": named[:20], "Content-Type": "application/octet-stream"}
        async with session.put(f"/v1/artifacts/{named}", data=code, headers=fields) as answer:
            assert answer.status == 204, await answer.text()
        draft = {
            "kind": "change", "project": "site", "environment": "production", "request": "greet",
            "author": fleet.admin(machine).public_key.hex(),
            "apps": [{"name": "web", "component": named, "routes": ["site.test"]}],
            "smoke": [{"app": "web", "path": "/"}], "plan": {"stages": [{"nodes": "100%", "min_healthy_ms": 0}]},
        }  # fmt: skip

        async def read() -> int:
            async with session.get("/v1/lanes") as answer:
                assert answer.status == 200
                return len(await answer.read())

        async def drafted() -> int:
            async with session.post(
                "/v1/drafts", json=draft, headers={"Idempotency-Key": secrets.token_urlsafe(12)}
            ) as answer:
                body = await answer.read()
                assert answer.status in {200, 201}, body
                return len(body)

        for name, call, times in (("GET /v1/lanes", read, count), ("POST /v1/drafts", drafted, count // 4)):
            size = await call()
            spent_ms = await _timed(call, times)
            with _bare(size) as other:
                async with _session(other) as peer:

                    async def bare(peer: aiohttp.ClientSession = peer) -> int:
                        async with peer.get("/") as answer:
                            return len(await answer.read())

                    theirs_ms = await _timed(bare, times)
            note = f"{times} calls, one after another; {size} bytes"
            for word, of in (("p50", median), ("p99", _p99)):
                rows.append(
                    beside(
                        f"{name}: {word}", round(of(spent_ms), 2), "ms", "aiohttp", round(of(theirs_ms), 2), note=note
                    )
                )
    return rows


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


async def _timed(call: Callable[[], Awaitable[int]], times: int) -> list[float]:
    spent = []
    for _ in range(times):
        began_s = time.perf_counter()
        await call()
        spent.append((time.perf_counter() - began_s) * 1000)
    return spent


def _session(path: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession("http://node", connector=aiohttp.UnixConnector(path))


BARE: Final = """
import sys
from aiohttp import web
application = web.Application()
async def answer(request):
    return web.Response(body=b"x" * int(sys.argv[2]), content_type="application/json")
application.router.add_get("/", answer)
web.run_app(application, path=sys.argv[1], print=None, access_log=None)
"""


@contextlib.contextmanager
def _bare(size: int) -> Iterator[str]:
    """An aiohttp handler in a process of its own that answers `size` bytes; yield its socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/bare.sock"
        process = subprocess.Popen([sys.executable, "-c", BARE, path, str(size)])
        try:
            until(lambda: Path(path).exists(), 20, "the peer to listen")
            yield path
        finally:
            process.terminate()
            process.wait()
