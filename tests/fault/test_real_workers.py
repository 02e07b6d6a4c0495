"""Real guests on real workers under load: instances come and go on many threads while releases and workers change."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from runtime.ingress.proofs import FrontFolder
from runtime.messages import AppLoad, WorkerRoute
from runtime.native.choice import Wanted
from tests.support.runtime.guests import guest, release
from tests.support.runtime.served import ENGINES, REAL, running, until
from tests.support.runtime.stream import Stream


def named(load: AppLoad, key: str) -> AppLoad:
    return msgspec.structs.replace(load, spec=replace(load.spec, release=key))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("instances", ["fresh", "reuse"])
async def test_swaps_under_load_fail_no_request_and_kill_no_worker(
    tmp_path: Path, instances: str, engine: Wanted
) -> None:
    load = await guest("hello", instances=instances)
    async with running(tmp_path, command=REAL, workers=2, engine=engine) as served:
        await served.pool.load(release(named(load, "r1")))
        await served.pool.activate([WorkerRoute(None, "/", "r1", "hello")])
        async with Stream(served, clients=8) as stream:
            for number in range(2, 8):
                await stream.more(100)
                key = f"r{number}"
                await served.pool.load(release(named(load, key), key=key))
                await served.pool.activate([WorkerRoute(None, "/", key, "hello")])
                await served.pool.unload(f"r{number - 1}")
            await stream.more(100)
        assert (stream.failed, stream.lost) == ([], 0)
        assert [slot.starts for slot in served.pool.slots()] == [1, 1]
        for status in await served.pool.status():
            assert [(app.key, app.queued) for app in status.apps] == [("r7", 0)]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_worker_killed_under_load_costs_only_what_was_inside_it(tmp_path: Path, engine: Wanted) -> None:
    load = await guest("hello")
    async with running(tmp_path, command=REAL, workers=2, engine=engine) as served:
        await served.pool.load(release(load))
        await served.pool.activate([WorkerRoute(None, "/", "r1", "hello")])
        async with Stream(served, clients=8) as stream:
            await stream.more(100)
            pid = served.pool.slots()[1].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda: served.pool.slots()[1].pid not in {None, pid}, timeout_s=30)
            await stream.more(100)
        assert stream.failed == []
        assert stream.lost <= 8


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_authority_is_answered_by_the_node_and_never_by_an_app(tmp_path: Path, engine: Wanted) -> None:
    token, folder = "t" * 43, FrontFolder(tmp_path / "run")
    async with running(tmp_path, command=REAL, engine=engine) as served:
        await served.pool.load(release(await guest("hello")))
        thief = WorkerRoute("shop.test", "/.well-known/acme-challenge", "r1", "hello")
        await served.pool.activate([WorkerRoute(None, "/", "r1", "hello"), thief])
        asked = f"/.well-known/acme-challenge/{token}"
        for path in (asked, "/.well-known/pki-validation/file.txt"):
            for host in ("shop.test", "other.test"):
                answer = await served.fetch(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert (answer.status, answer.problem) == (404, "no-route")
        near = await served.fetch(b"GET /.well-known/security.txt HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        assert near.status == 200
        folder.make()
        (folder.http / token).write_bytes(b"the proof")
        answer = await served.fetch(f"GET {asked} HTTP/1.1\r\nHost: shop.test\r\n\r\n".encode())
        assert (answer.status, answer.body) == (200, b"the proof")
