"""What a guest can do to the node it runs on: nothing, and each way of failing has its own outcome and a plain answer.

All guests are real components in a real worker; after every abuse another app must still answer.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtime.messages import WorkerRoute
from runtime.workers.pool import PoolError
from tests.support.runtime.guests import guest, moved, release
from tests.support.runtime.served import ENGINES, REAL, Served, request, running

MEMORY = 32 * 1024 * 1024
TIMEOUT_MS = 700


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def served(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with running(tmp_path_factory.mktemp("served"), command=REAL, engine=request.param) as served:
        apps = [
            await guest("hello"),
            await guest("hostile", timeout_ms=TIMEOUT_MS, memory_max_bytes=MEMORY),
            await guest("probe", timeout_ms=TIMEOUT_MS, memory_max_bytes=MEMORY),
            await guest("services", keyvalue=("visits",), config={"GREETING": "hi"}, environment={"SECRET": "s"}),
            await guest("command", kind="command", timeout_ms=TIMEOUT_MS),
            await guest("command-preview1", kind="module", timeout_ms=TIMEOUT_MS),
        ]
        await served.pool.load(release(*apps))
        names = [load.spec.app for load in apps if load.spec.kind == "http"]
        await served.pool.activate([WorkerRoute(f"{name}.test", "/", "r1", name) for name in names])
        yield served


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def assert_unharmed(served: Served) -> None:
    answer = await served.fetch(request("GET", "/", host="hello.test"))
    assert (answer.status, answer.body) == (200, b"hello world")
    assert served.pool.slots()[0].starts == 1, "the worker itself died"


@pytest.mark.parametrize(
    ("host", "path", "status", "outcome"),
    [
        ("hostile", "/spin", 504, "deadline_exceeded"),
        ("hostile", "/sleep", 504, "deadline_exceeded"),
        ("hostile", "/allocate", 500, "memory_refused"),
        ("hostile", "/recurse", 500, "trapped"),
        ("hostile", "/handles", 500, "trapped"),
        ("hostile", "/exit?code=1", 500, "exited"),
        ("probe", "/trap", 500, "trapped"),
        ("probe", "/nothing", 500, "no_response"),
        ("probe", "/drop", 500, "no_response"),
    ],
)
async def test_a_guest_that_fails_is_answered_for_plainly(
    served: Served, host: str, path: str, status: int, outcome: str
) -> None:
    answer = await served.fetch(request("GET", path, host=f"{host}.test"))
    assert answer.status == status
    assert answer.problem == ("app-timeout" if status == 504 else "app-failed")
    assert json.loads(answer.body).keys() <= {"type", "title", "status", "request_id", "next"}
    entry = await served.logged("request", request_id=answer.header("x-request-id"))
    assert entry["outcome"] == outcome
    await assert_unharmed(served)


@pytest.mark.parametrize(("host", "path"), [("probe", "/trap"), ("hostile", "/allocate"), ("hostile", "/recurse")])
async def test_a_trap_is_in_the_log_with_the_guests_backtrace(served: Served, host: str, path: str) -> None:
    answer = await served.fetch(request("GET", path, host=f"{host}.test"))
    request_id = answer.header("x-request-id")
    outcome = (await served.logged("request", request_id=request_id))["outcome"]
    entry = await served.logged(f"app.{outcome}", request_id=request_id)
    assert "wasm backtrace" in entry["backtrace"]
    assert entry["reason"]


async def test_a_guest_that_answers_twice_is_held_to_its_first_answer_and_trapped(served: Served) -> None:
    answer = await served.fetch(request("GET", "/twice", host="probe.test"))
    assert (answer.status, answer.body, answer.whole) == (200, b"first\n", True)
    entry = await served.logged("request", request_id=answer.header("x-request-id"))
    assert entry["outcome"] == "trapped"
    await assert_unharmed(served)


@pytest.mark.parametrize("path", ["/trap-in-body", "/unfinished"])
async def test_a_response_broken_off_never_looks_whole(served: Served, path: str) -> None:
    answer = await served.fetch(request("GET", path, host="probe.test"))
    assert (answer.status, answer.whole) == (200, False)
    await assert_unharmed(served)


async def test_an_endless_response_ends_with_its_deadline(served: Served) -> None:
    answer = await served.fetch(request("GET", "/endless", host="hostile.test"))
    assert (answer.status, answer.whole) == (200, False)
    await assert_unharmed(served)


async def test_a_guest_that_never_reads_its_body_answers_all_the_same(served: Served) -> None:
    client = await served.connect()
    await client.send(request("POST", "/unread", "Content-Length: 50000000", host="probe.test") + b"x" * 100_000)
    answer = await client.receive()
    assert answer.status == 200
    await assert_unharmed(served)


@pytest.mark.parametrize("path", ["/flood?n=100000", "/flood?n=100000&stderr=1"])
async def test_a_flood_of_output_is_cut_counted_and_costs_nobody_else(served: Served, path: str) -> None:
    served.logs.clear()
    await served.fetch(request("GET", path, host="hostile.test"))
    await served.logged("log.dropped", app="hostile")
    lines = [entry for entry in served.logs if entry["event"] == "guest"]
    assert len(lines) < 3000
    assert all(entry["stream"] == "guest" and len(str(entry)) < 20_000 for entry in lines)
    await assert_unharmed(served)


async def test_spinning_guests_take_no_more_threads_than_their_app_may(served: Served) -> None:
    clients = [await served.connect() for _ in range(16)]
    for client in clients:
        await client.send(request("GET", "/spin", host="hostile.test"))
    await asyncio.sleep(0.05)
    await assert_unharmed(served)
    answers = [await client.receive() for client in clients]
    assert {answer.status for answer in answers} == {504}
    await assert_unharmed(served)


async def test_services_answer_through_the_worker(served: Served) -> None:
    async def get(path: str) -> bytes:
        return (await served.fetch(request("GET", path, host="services.test"))).body

    first = await get("/kv/increment?store=visits&key=n&by=2")
    second = await get("/kv/increment?store=visits&key=n&by=2")
    assert int(second.split()[-1]) - int(first.split()[-1]) == 2
    await get("/log")
    entry = await served.logged("guest", app="services")
    assert entry["stream"] == "guest"
    assert entry["request_id"]
    assert entry["trace_id"]


@pytest.mark.parametrize(
    ("app", "code"),
    [("command", 1), ("command-preview1", 7)],  # wasi:cli/run knows only success and failure
)
async def test_a_job_returns_what_it_printed_and_how_it_ended(served: Served, app: str, code: int) -> None:
    done = await served.pool.run_job("r1", app, ["7", "x"], timeout_ms=5_000, request_id=f"job-{app}")
    assert (done.outcome, done.exit_code) == ("exited", code)
    assert b"arg 7\narg x\n" in done.stdout
    assert done.stderr == b"to stderr\n"
    assert (done.stdout_truncated, done.stderr_truncated) == (False, False)
    await served.logged("guest", app=app, request_id=f"job-{app}", message="to stderr")


@pytest.mark.parametrize(("argument", "outcome"), [("0", "exited"), ("trap", "trapped"), ("spin", "deadline_exceeded")])
async def test_a_job_that_fails_says_how(served: Served, argument: str, outcome: str) -> None:
    done = await served.pool.run_job("r1", "command", [argument], timeout_ms=5_000)
    assert done.outcome == outcome
    assert done.exit_code == (0 if argument == "0" else None)
    await assert_unharmed(served)


async def test_a_job_on_an_app_that_answers_requests_is_refused(served: Served) -> None:
    with pytest.raises(PoolError, match="not loaded as a command"):
        await served.pool.run_job("r1", "hello", timeout_ms=1_000)
    with pytest.raises(PoolError, match="does not answer requests"):
        await served.pool.activate([WorkerRoute(None, "/", "r1", "command")])
    await assert_unharmed(served)


async def test_a_tampered_artifact_is_never_loaded(served: Served, tmp_path: Path) -> None:
    load = await guest("hello")
    original = load.spec.artifact
    for path in original.parent.glob(original.stem + ".*"):
        shutil.copy(path, tmp_path / path.name)
    copy = tmp_path / original.name
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(PoolError, match="does not match"):
        await served.pool.load(release(moved(load, copy), key="r2"))
    await assert_unharmed(served)


async def test_an_artifact_that_is_gone_is_a_clear_refusal(served: Served, tmp_path: Path) -> None:
    load = await guest("hello")
    with pytest.raises(PoolError, match="r2"):
        await served.pool.load(release(moved(load, tmp_path / "gone.cwasm"), key="r2"))
    await assert_unharmed(served)
