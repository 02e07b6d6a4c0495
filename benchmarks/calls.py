"""What one host call costs, and how a request's processor time divides between the worker and the guest.

Host calls are timed from inside the guest: a compiled component makes N of them in a loop and reads the monotonic clock
before and after, so the number holds everything between guest code and guest code. The peer is the same component under
`wasmtime serve`.

The worker's share is measured on the minimal compiled component, reused, at 32 connections and one worker: processor
time of the worker process per request, less what `App.handle` costs per call in a bare loop in one thread with a request
made ahead (guest code, its eight host calls, the exchange). What is left is everything a node adds: sockets, HTTP,
routing, queueing, the hand-over between threads, the access log, counters. The event loop's thread is also shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.load import load
from benchmarks.processes import thread_cpu_s, threads_cpu_s
from benchmarks.rows import Row, at_most
from runtime.exchange import Exchange, RequestHead
from runtime.outbound.client import Outbound
from runtime.outcome import Completed
from runtime.providers import Providers
from runtime.sandbox.compile_cache import CompileCache, file_digest
from runtime.sandbox.sandbox import Sandbox
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from runtime.spec import AppSpec
from tests.conformance import peer
from tests.conformance.ours import serve_ours
from tests.conformance.wire import Ask, exchange
from tests.fixtures.build import CACHE, component

STRING_CALL_AIM_US: Final = 8
SHARE_AIM_US: Final = 120
CALLS: Final = (
    ("/now", "a call without arguments (monotonic-clock.now)", None),
    ("/has", "a call with a handle and a string (fields.has)", STRING_CALL_AIM_US),
    ("/random", "a call that returns 16 bytes (get-random-bytes)", None),
)
CALLS_PER_ROUND: Final = 1_000
ROUNDS: Final = 150
"""Many short rounds: on a machine with other work some of them run undisturbed, and the least one counts."""
LOOP_CALLS: Final = 3_000


def run(quick: bool) -> Iterator[Row]:
    yield from host_calls(quick)
    yield from worker_share(quick)


def host_calls(quick: bool) -> Iterator[Row]:
    """Nanoseconds per call as the guest's own clock says; the least of several rounds, as others use the machine too."""
    binary, file = peer.wasmtime(build=not quick), component("bench")
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(serve_ours(file)).port]
        if binary is not None:
            ports.append(stack.enter_context(peer.wasmtime_serve(binary, file)).port)
        for path, name, aim in CALLS:
            asked, times = Ask(f"{path}?n={CALLS_PER_ROUND}"), ROUNDS // (5 if quick else 1)
            best = [min(int(exchange(port, asked).body) for _ in range(times)) / 1000 for port in ports]
            value, theirs = round(best[0], 2), f"{peer.wasmtime_version(binary)} serve: {best[1]:g}" if binary else ""
            ratio = round(best[0] / best[1], 1) if binary else None
            if aim is None:
                yield Row(f"host call: {name}", value, "us", peer=theirs, ratio=ratio)
            else:
                yield at_most(f"host call: {name}", value, "us", aim, peer=theirs)._replace(ratio=ratio)


def worker_share(quick: bool) -> Iterator[Row]:
    """Processor time per request of the worker, of `App.handle` alone, and the difference."""
    bare = [float(_bare_loop(mode)) for mode in ("reuse", "fresh")]
    yield from _shares(quick, bare, "")
    with awake():
        yield from _shares(quick, bare, ", cores kept awake")


def _shares(quick: bool, bare: list[float], how: str) -> Iterator[Row]:
    for mode, handle_us in zip(("reuse", "fresh"), bare, strict=True):
        whole, loop = [], []
        with serve_ours(component("hello"), workers=1, instances=mode) as server:
            worker = server.workers[0]
            load(server.port, 32, 0.5)
            for _ in range(1 if quick else 5):
                before, before_loop = threads_cpu_s(worker), thread_cpu_s(worker)
                seen = load(server.port, 32, 0.5 if quick else 1.0)
                whole.append((threads_cpu_s(worker) - before) * 1e6 / seen.requests)
                loop.append((thread_cpu_s(worker) - before_loop) * 1e6 / seen.requests)
        worker_us = median(whole)
        name = f"minimal C, {mode}{how}"
        yield Row(f"{name}: the worker's CPU per request", round(worker_us, 1), "us")
        yield Row(f"{name}: the sandbox's part of it (App.handle in a bare loop)", round(handle_us, 1), "us")
        yield Row(f"{name}: the event loop's thread", round(median(loop), 1), "us")
        yield at_most(f"{name}: the worker's own share", round(worker_us - handle_us, 1), "us", SHARE_AIM_US)


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep every core from halting with a process that yields to anything else (SCHED_IDLE, sched(7)).

    A thread that wakes another on a core that sleeps pays for the wake-up, on a virtual core with an exit to the host:
    an idle machine charges twice what a busy one does for the same work.
    """
    spin = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile os.getppid() != 1: pass"
    spinners = [subprocess.Popen([sys.executable, "-c", spin]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def _bare_loop(mode: str) -> str:
    """Measure in a process of its own, so that nothing else runs in it."""
    command = [sys.executable, "-m", "benchmarks.calls", json.dumps({"instances": mode})]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


class _NoLog:
    def emit(self, level: str, context: str, message: str) -> bool:
        """Guests of this measurement say nothing."""
        return True

    def keep(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Guests of this measurement say nothing."""


async def _handle_cost(instances: str) -> float:
    """Processor time of one `App.handle` in microseconds, the least of several rounds."""
    file = component("hello")
    digest = file_digest(file)
    artifact = await CompileCache(CACHE / "compiled").ensure(file, digest)
    spec = AppSpec("bench", "app", digest, artifact, digest, instances="fresh" if instances == "fresh" else "reuse")
    sandbox = Sandbox(Providers(SqliteKeyValue(Path(os.devnull).parent, "bench")), Outbound())
    app = sandbox.load(spec, _NoLog())
    app.prepare()
    head = RequestHead("GET", "http", "127.0.0.1", "/", (("host", b"127.0.0.1"),))
    best = float("inf")
    for _ in range(5):
        exchanges = [Exchange(head, deadline_s=time.monotonic() + 60, loop=None) for _ in range(LOOP_CALLS)]
        for entry in exchanges:
            entry.body.feed_end()
        before_s = time.process_time()
        for entry in exchanges:
            assert isinstance(app.handle(entry), Completed)
        best = min(best, (time.process_time() - before_s) * 1e6 / LOOP_CALLS)
    return best


if __name__ == "__main__":
    print(asyncio.run(_handle_cost(json.loads(sys.argv[1])["instances"])))
