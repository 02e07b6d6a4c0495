"""The native engine under requests that nobody wrote: it answers as the Python path does, never ends, and keeps nothing.

The corpus of the ingress and sound requests are mutated by a seeded generator (mutations.py) and sent to one worker of each
engine; the guest calls every host function of the engine. Skipped where the engine is not built.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
from pathlib import Path

import pytest

from benchmarks.load import load
from runtime.messages import AppLimits, Status, WorkerRoute
from runtime.native.choice import load_module
from runtime.native.front import PATIENCE_MAX_S
from tests.support.runtime.guests import guest, release
from tests.support.runtime.mutations import mutated, seeds
from tests.support.runtime.served import REAL, Served, request, running

MODULE, WHY = load_module()
pytestmark = pytest.mark.skipif(MODULE is None, reason=WHY or "built")

STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
CLIENTS = 4
ANSWER_TIMEOUT_S = 30.0
GROWN_MAX_BYTES = 24 << 20
TIMEOUT_MS = 20_000


async def answers(served: Served, data: bytes) -> tuple[int, ...]:
    """Send one input and the end of it; return the statuses that came back."""
    client = await served.connect()
    said = bytearray()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                await client.send(data)
                client.writer.write_eof()
                while piece := await client.reader.read(1 << 16):
                    said.extend(piece)
    finally:
        client.writer.transport.abort()
        served.forget(client)
    return tuple(int(status) for status in STATUS.findall(said))


def alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether both mean the same: as many answers, and the same ones.

    What is wrong in the last body may be seen before its answer began or after; that answer alone may be 400 instead.
    """
    return one == other or (len(one) == len(other) > 0 and one[:-1] == other[:-1] and 400 in {one[-1], other[-1]})


async def fuzz(native: Served, python: Served, seed: int, seconds: float) -> int:
    """Send inputs to both for so long; return how many. Fails on the first that they answer differently, which it names."""
    corpus, source, until_s, count = seeds(), random.Random(seed), time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal count
        while time.monotonic() < until_s:
            data = mutated(source, corpus)
            numbers, wanted = await asyncio.gather(answers(native, data), answers(python, data))
            assert alike(numbers, wanted), (seed, data, numbers, wanted)
            count += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(client())
    return count


async def status_of(served: Served) -> Status:
    (status,) = await served.pool.status()
    return status


async def start(served: Served) -> None:
    probe = await guest("probe", timeout_ms=TIMEOUT_MS, limits=AppLimits(request_body_max_bytes=100_000))
    await served.pool.load(release(probe))
    await served.pool.activate([WorkerRoute(None, "/", "r1", "probe")])


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seed", "seconds"), [(1, 10.0), pytest.param(2, 600.0, marks=pytest.mark.long)], ids=["short", "long"]
)
async def test_requests_that_nobody_wrote_are_answered_alike_and_leave_nothing(
    tmp_path: Path, seed: int, seconds: float
) -> None:
    async with (
        running(tmp_path / "n", command=REAL, engine="native") as native,
        running(tmp_path / "p", command=REAL, engine="python") as python,
    ):
        for served in (native, python):
            await start(served)
        await fuzz(native, python, 0, 2.0)
        before = await status_of(native)
        count = await fuzz(native, python, seed, seconds)
        await asyncio.sleep(PATIENCE_MAX_S)
        after = await status_of(native)
        assert count >= seconds, "hardly anything was sent"
        assert (native.pool.slots()[0].starts, after.pid) == (1, before.pid), "the engine ended"
        (app,) = after.apps
        assert (after.engine, app.engine, app.in_flight, app.queued) == ("native", "native", 0, 0)
        assert app.requests > before.apps[0].requests
        assert "host_failed" not in app.outcomes, app.outcomes
        assert after.resident_bytes - before.resident_bytes < GROWN_MAX_BYTES
        assert (await native.fetch(request("GET", "/"))).body == b"probe\n"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("instances", "requests", "round_s"),
    [
        ("reuse", 20_000, 1.0),
        pytest.param("fresh", 1_000_000, 10.0, marks=pytest.mark.long),
        pytest.param("reuse", 1_000_000, 10.0, marks=pytest.mark.long),
    ],
    ids=["short", "a-million-fresh", "a-million-reuse"],
)
async def test_memory_is_flat_over_many_requests(tmp_path: Path, instances: str, requests: int, round_s: float) -> None:
    async with running(tmp_path, command=REAL, engine="native") as served:
        hello = await guest("hello", instances=instances)
        await served.pool.load(release(hello))
        await served.pool.activate([WorkerRoute(None, "/", "r1", "hello")])
        asked, sizes = 0, []
        while asked < requests or len(sizes) < 4:
            seen = await asyncio.to_thread(load, served.port, 32, round_s)
            asked += seen.requests
            assert (seen.errors, seen.not_ok) == (0, 0)
            status = await status_of(served)
            assert status.engine == "native"
            sizes.append(status.resident_bytes)
            handles = len(os.listdir(f"/proc/{status.pid}/fd"))
            assert handles < 200, handles
        assert max(sizes[1:]) - sizes[1] < GROWN_MAX_BYTES, sizes


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((200,), (200,), True),
        ((200, 200), (200, 400), True),
        ((), (400,), False),
        ((200,), (200, 200), False),
        ((400, 200), (200, 200), False),
        ((200,), (404,), False),
    ],
)
def test_answers_are_alike_that_may_not_differ(one: tuple[int, ...], other: tuple[int, ...], same: bool) -> None:
    assert alike(one, other) is alike(other, one) is same
