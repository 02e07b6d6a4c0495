"""Workers come, go and change releases under real guests, on both engines; clients notice as little as they may."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from runtime.ingress.listeners import TLS_PREFIX
from runtime.messages import AppLoad, WorkerRoute
from runtime.native.choice import OTHERS_IN_PYTHON, Wanted
from tests.fault.test_ingress_tls import ask, write
from tests.support.runtime.guests import guest, release
from tests.support.runtime.served import ENGINES, REAL, Client, Served, request, running, until

TIMEOUT_MS = 20_000


def named(load: AppLoad, key: str) -> AppLoad:
    return msgspec.structs.replace(load, spec=replace(load.spec, release=key))


async def serve(served: Served, load: AppLoad, key: str) -> None:
    await served.pool.load(release(named(load, key), key=key))
    await served.pool.activate([WorkerRoute(None, "/", key, load.spec.app)])


async def begin(served: Served, path: str, engine: Wanted) -> Client:
    """Send a request, and wait until a guest works on it, in the engine that was asked for."""
    client = await served.connect()
    await client.send(request("GET", path))
    async with asyncio.timeout(20):
        while not any(app.in_flight for app in (await served.pool.status())[0].apps):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (status,) = await served.pool.status()
    assert (status.engine, {app.engine for app in status.apps}) == (engine, {engine})
    return client


@pytest.mark.parametrize("engine", ENGINES)
async def test_draining_finishes_what_is_under_way(tmp_path: Path, engine: Wanted) -> None:
    load = await guest("hostile", timeout_ms=TIMEOUT_MS)
    async with running(tmp_path, command=REAL, engine=engine) as served:
        await serve(served, load, "r1")
        idle = await served.connect()
        assert (await idle.get("/sleep?ms=1")).status == 200
        client = await begin(served, "/sleep?ms=700", engine)
        await served.pool.stop()
        answer = await client.receive()
        assert (answer.status, answer.body) == (200, b"woke\n")
        assert await idle.closed()
        assert await until(lambda: served.pool.slots()[0].last_end) == "exit status 0"


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_request_under_way_ends_in_the_release_it_began_in(tmp_path: Path, engine: Wanted) -> None:
    load = await guest("hostile", timeout_ms=TIMEOUT_MS)
    async with running(tmp_path, command=REAL, engine=engine) as served:
        await serve(served, load, "r1")
        client = await begin(served, "/sleep?ms=1500", engine)
        await serve(served, load, "r2")
        unloading = asyncio.ensure_future(served.pool.unload("r1"))
        assert (await served.get("/sleep?ms=1")).header("freehold-release") == "r2"
        answer = await client.receive()
        assert (answer.status, answer.header("freehold-release")) == (200, "r1")
        await asyncio.wait_for(unloading, 20)
        (status,) = await served.pool.status()
        assert [(app.key, app.engine) for app in status.apps] == [("r2", engine)]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_new_daemon_adopts_workers_and_a_killed_one_comes_back(tmp_path: Path, engine: Wanted) -> None:
    load = await guest("hello")
    async with running(tmp_path, command=REAL, engine=engine, leave=True) as first:
        await serve(first, load, "r1")
        (address,), (slot,) = first.pool.addresses, first.pool.slots()
        client = Client(*await asyncio.open_connection("127.0.0.1", first.port))
    assert (await client.get("/")).status == 200, "nobody is in charge now"
    async with running(tmp_path, command=REAL, engine=engine, listen=(address,)) as second:
        assert second.pool.slots()[0].pid == slot.pid
        await serve(second, load, "r2")
        assert (await client.get("/")).header("freehold-release") == "r2"
        assert slot.pid is not None
        os.kill(slot.pid, signal.SIGABRT)  # as a panic of the engine ends it
        assert await client.closed()
        await until(lambda: second.pool.slots()[0].pid not in {None, slot.pid}, timeout_s=30)
        assert (await second.get("/")).header("freehold-release") == "r2"
        (status,) = await second.pool.status()
        assert status.engine == engine, "the engine is chosen anew, never changed for a crash"
        client.close()


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_worker_that_hangs_is_replaced(tmp_path: Path, engine: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.workers.pool.PING_EVERY_S", 0.1)
    monkeypatch.setattr("runtime.workers.pool.PING_TIMEOUT_S", 2.0)
    load = await guest("hello")
    async with running(tmp_path, command=REAL, engine=engine) as served:
        await serve(served, load, "r1")
        pid = served.pool.slots()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: served.pool.slots()[0].pid not in {None, pid}, timeout_s=30)
        assert (await served.get("/")).body == b"hello world"


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_worker_with_a_tls_address_too_serves_both(tmp_path: Path, engine: Wanted) -> None:
    """The engine has the plain address; what comes by TLS is Python's, with the same apps and one count of them."""
    folder = tmp_path / "certificates"
    trusted = write(folder, "one.pem", "one.test")
    load = await guest("probe", timeout_ms=TIMEOUT_MS)
    listen = ("127.0.0.1:0", f"{TLS_PREFIX}127.0.0.1:0")
    async with running(tmp_path, command=REAL, engine=engine, listen=listen, certificates=folder) as served:
        await serve(served, load, "r1")
        assert "freehold-release: r1" in await ask(served.pool.addresses[1], "one.test", trusted)
        assert (await served.get("/")).body == b"probe\n"
        await serve(served, load, "r2")
        assert "freehold-release: r2" in await ask(served.pool.addresses[1], "one.test", trusted)
        assert (await served.get("/")).header("freehold-release") == "r2"
        (status,) = await served.pool.status()
        assert {app.key: (app.requests, app.engine) for app in status.apps} == {"r1": (2, engine), "r2": (2, engine)}
        assert status.engine_reason == (OTHERS_IN_PYTHON if engine == "native" else "asked for")
