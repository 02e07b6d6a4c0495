"""What counting a request and writing its line with its place in a trace costs the native engine, in its own thread.

The engine runs in this process, over one app that it reuses. Rounds take turns: in one it keeps the line of every answer, in
the other there is no room for lines, so it makes none; the least processor time of its thread by request is taken of each.
Counting goes on in both, and is a part of what the second takes. What Python does with a line comes after the answer, in
another thread. Not here: what a whole request costs (`serving`).
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.rows import Row, at_most
from runtime.ingress.dispatch import HostedApp
from runtime.ingress.load_table import LoadTable
from runtime.ingress.settings import IngressSettings
from runtime.messages import AppLoad
from runtime.native.choice import load_module
from runtime.native.front import NativeFront
from runtime.native.plan import NativePlan
from runtime.sandbox.compile_cache import CompileCache, file_digest
from runtime.services.log_sink import Allowance, AppLog, LogBuffer, LogOrigin
from runtime.spec import AppSpec
from runtime.workers.app_host import SandboxHost
from runtime.workers.settings import LOAD_TABLE, WorkerSettings
from tests.fixtures.build import CACHE, component

HOT_AIM_US: Final = 5.0
LINES: Final = 400
"""Requests of a round; fewer than the lines that the engine keeps."""

FULL: Final = 600
"""More than it keeps."""


def rows(rounds: int) -> Iterator[Row]:
    """The native engine's rows; none where it is not built."""
    module, _ = load_module()
    if module is not None:
        with tempfile.TemporaryDirectory(prefix="fhb-") as folder:
            yield from asyncio.run(_measured(module, Path(folder), rounds))


async def _measured(module: Any, folder: Path, rounds: int) -> list[Row]:
    wide = Allowance(1e12, 1e12, 1e15, 1e15)
    buffer = LogBuffer()
    log = AppLog(buffer, LogOrigin("n0", "", "", ""), wide)
    LoadTable(folder / LOAD_TABLE)
    loop = asyncio.get_running_loop()
    front = NativeFront(
        module, IngressSettings(), guests_max=2, proxies=(), load_table=str(folder / LOAD_TABLE), slot=0,
        access_log=lambda: log, adopt=_refuse,
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        front.start([listener], loop)
        try:
            front.activate([(None, "/", await _served(front, folder, log))])
            asked = http.client.HTTPConnection(*listener.getsockname(), timeout=20)
            spent = {"kept": float("inf"), "left out": float("inf"), "taken": float("inf")}
            for _ in range(rounds):
                front.report()
                spent["kept"] = min(spent["kept"], await asyncio.to_thread(_engine_us, asked, LINES))
                await asyncio.to_thread(_engine_us, asked, FULL)
                spent["left out"] = min(spent["left out"], await asyncio.to_thread(_engine_us, asked, LINES))
                buffer.take(1 << 24)
                began_s = time.perf_counter()
                front.report()
                took_us = (time.perf_counter() - began_s) * 1e6
                spent["taken"] = min(spent["taken"], took_us / len(buffer.take(1 << 24)[0]))
            asked.close()
        finally:
            front.stop(loop)
    note = f"its thread takes {spent['kept']:.1f} us a request with lines and {spent['left out']:.1f} us without"
    more = max(0.0, spent["kept"] - spent["left out"])
    return [
        at_most("the line and the trace, in the native engine's thread", round(more, 2), "us", HOT_AIM_US, note=note),
        Row("such a line, in Python and beside requests", round(spent["taken"], 1), "us"),
    ]


async def _served(front: NativeFront, folder: Path, log: AppLog) -> HostedApp:
    """The smallest component, loaded into the engine as a worker loads it."""
    settings = WorkerSettings(
        0, "bench", "n0", str(folder), str(folder), 0, (), ("127.0.0.1:0",), engine="native"
    )  # fmt: skip
    file = component("hello")
    digest = file_digest(file)
    artifact = await CompileCache(CACHE / "compiled").ensure(file, digest)
    load = AppLoad(AppSpec("bench", "web", digest, artifact, digest, instances="reuse"))
    runner = SandboxHost(settings).prepare(load, log)
    assert isinstance(runner.plan, NativePlan), runner.plan
    app = HostedApp("k", digest, load, log, runner, runner.plan)
    front.load(app, runner.plan)
    return app


def _engine_us(asked: http.client.HTTPConnection, count: int) -> float:
    """Ask `count` times; return what the engine's thread took of a processor for each, in microseconds."""
    before_ns = _engine_ns()
    for _ in range(count):
        asked.request("GET", "/")
        answer = asked.getresponse()
        assert answer.status == 200, answer.status
        answer.read()
    return (_engine_ns() - before_ns) / count / 1000


def _engine_ns() -> int:
    """Processor time of the engine's thread and of those that it began, as Linux accounts it for each thread."""
    threads = [path for path in Path("/proc/self/task").iterdir() if (path / "comm").read_text() == "native-loop\n"]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)


def _refuse(accepted: socket.socket, _early: bytes, _waited_s: float) -> None:
    accepted.close()  # nothing here is for Python, so a call that comes to it fails
