"""Nothing in a worker outlives the decision that gave it: every file, mapping, socket and object of a lane goes with it.

Not here: what the stores keep (tests/unit/runtime/services).
"""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.messages import AppLoad, WorkerRoute
from runtime.services import freeze
from runtime.services.log_sink import AppLog, LogBuffer, LogOrigin
from runtime.workers.app_host import SandboxHost
from runtime.workers.pool import PoolError
from runtime.workers.worker import WorkerSettings
from tests.support.runtime.guests import guest, release
from tests.support.runtime.served import REAL, Served, request, running, until

GRANTS: dict[str, Any] = {"keyvalue": ("visits",), "config": {"GREETING": "hi"}, "environment": {"SECRET": "s"}}


def held(pid: int) -> Counter[str]:
    """Every open file, socket kind and mapped file of a process, and how many of each."""
    answer: Counter[str] = Counter()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(handle)
        except FileNotFoundError:
            continue
        answer[target.partition(":")[0] if target.startswith(("socket:", "anon_inode:", "pipe:")) else target] += 1
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        path = line[73:].strip()
        if path.startswith("/") and (path.endswith(".cwasm") or "/data/" in path or "(deleted)" in path):
            answer[f"map {path}"] += 1
    return answer


async def warm(served: Served) -> int:
    """Have an app come, answer and go once, so that what a worker makes once for all is made; return the worker."""
    load = await guest("services", **GRANTS)
    await visit(served, named(load, "warm"), "warm")
    await served.pool.activate([])
    await served.pool.unload("warm")
    pid = served.pool.slots()[0].pid
    assert pid is not None
    return pid


def named(load: AppLoad, key: str) -> AppLoad:
    return msgspec.structs.replace(load, spec=replace(load.spec, release=key))


async def visit(served: Served, load: AppLoad, key: str, path: str = "/kv/increment?store=visits&key=n") -> bytes:
    await served.pool.load(release(load, key=key))
    await served.pool.activate([WorkerRoute(None, "/", key, "services")])
    answer = await served.get(path)
    assert answer.status == 200, answer
    return answer.body


async def test_a_worker_holds_nothing_of_a_release_that_it_let_go(tmp_path: Path) -> None:
    load = await guest("services", **GRANTS)
    async with running(tmp_path, command=REAL) as served:
        pid = await warm(served)
        before = held(pid)
        await visit(served, load, "r1")
        during = held(pid)
        assert any(name.endswith("keyvalue.db") for name in during), "the test looks at the wrong process"
        assert any(name.endswith(".cwasm") for name in during)
        await served.hang_up()
        await served.pool.activate([])
        await served.pool.unload("r1")
        try:
            await until(lambda: not held(pid) - before)
        except TimeoutError:
            pytest.fail(f"still held: {held(pid) - before}")


async def test_two_releases_of_a_lane_share_its_stores_until_the_last_one_goes(tmp_path: Path) -> None:
    load = await guest("services", **GRANTS)
    async with running(tmp_path, command=REAL) as served:
        pid = await warm(served)
        await visit(served, named(load, "r1"), "r1")
        await visit(served, named(load, "r2"), "r2")
        await served.pool.unload("r1")
        assert any(name.endswith("keyvalue.db") for name in held(pid)), "the release that stays lost its store"
        assert (await served.get("/kv/get?store=visits&key=n")).body == b"3"
        await served.pool.activate([])
        await served.pool.unload("r2")
        await until(lambda: not any("keyvalue.db" in name for name in held(pid)))


async def test_the_databases_of_a_lane_are_closed_with_its_last_release(tmp_path: Path) -> None:
    load = await guest("data", sql=("main",), blobs=("uploads",), timeout_ms=30_000)
    async with running(tmp_path, command=REAL) as served:
        pid = await warm(served)
        await served.pool.load(release(named(load, "r1"), key="r1"))
        await served.pool.activate([WorkerRoute(None, "/", "r1", "data")])
        body = b'{"kind": "sql", "name": "main", "sql": "CREATE TABLE t (x)"}'
        answer = await served.fetch(request("POST", "/", body=body))
        assert (answer.status, answer.body) == (200, b"[]"), answer
        answer = await served.fetch(
            request("POST", "/", body=b'{"kind": "blob", "name": "uploads", "do": "put", "object": "a", "data": "x"}')
        )
        assert answer.status == 200, answer
        assert any(name.endswith("sql/main.db") for name in held(pid)), "the test looks at the wrong process"
        assert any(name.endswith("blobs.db") for name in held(pid)), "the test looks at the wrong process"
        await served.hang_up()
        await served.pool.activate([])
        await served.pool.unload("r1")
        await until(lambda: not any("main.db" in name or "blobs" in name for name in held(pid)))


async def test_what_a_load_that_failed_had_opened_is_closed(tmp_path: Path) -> None:
    load = await guest("services", **GRANTS)
    missing = msgspec.structs.replace(load, spec=replace(load.spec, app="other", artifact=tmp_path / "none.cwasm"))
    async with running(tmp_path, command=REAL) as served:
        pid = await warm(served)
        before = held(pid)
        with pytest.raises(PoolError):
            await served.pool.load(release(load, missing))
        await until(lambda: not held(pid) - before)


async def test_a_copy_put_in_the_place_of_a_store_is_what_the_app_reads_and_writes(tmp_path: Path) -> None:
    load = await guest("services", **GRANTS)
    folder = tmp_path / "data" / "project"
    async with running(tmp_path, command=REAL) as served:
        await visit(served, load, "r1")
        pid = served.pool.slots()[0].pid
        assert pid is not None
        other = tmp_path / "other"
        shutil.copytree(folder, other)
        shutil.rmtree(folder)
        assert (await served.get("/kv/get?store=visits&key=n")).status == 503, (
            "a store that is gone was served as if empty"
        )
        other.rename(folder)
        for expected in range(2, 52):
            body = (await served.get("/kv/increment?store=visits&key=n")).body
            assert body == b"%d" % expected
        assert not any("keyvalue.db" in name and "(deleted)" in name for name in held(pid))
    async with running(tmp_path, command=REAL) as served:
        assert await visit(served, load, "r1") == b"52"


async def test_no_object_of_a_release_is_left_in_the_process(tmp_path: Path) -> None:
    load = await guest("services", **GRANTS)
    settings = WorkerSettings(0, "test", "node", str(tmp_path), str(tmp_path / "data"), -1, (), ())
    host = SandboxHost(settings)
    log = AppLog(LogBuffer(), LogOrigin("node", "project", "services", "r1"), redacted={})
    runner = host.prepare(load, log)
    theirs = load.spec
    assert any(entry is theirs for entry in gc.get_objects() if type(entry) is type(theirs)), "the walk sees nothing"
    runner.close()
    del runner, log
    gc.collect()
    keepers = [type(entry).__name__ for entry in gc.get_objects() if _keeps(entry, theirs)]
    assert keepers == [], keepers
    grown = {name: value for name, value in vars(host).items() if hasattr(value, "__len__") and len(value)}
    assert grown == {}


def _keeps(one: Any, spec: Any) -> bool:
    """Whether an object of ours refers to the spec (the test's own `AppLoad` apart)."""
    ours = str(type(one).__module__).startswith("runtime.") and not isinstance(one, AppLoad)
    return ours and any(referent is spec for referent in gc.get_referents(one))


async def test_an_app_that_fails_for_want_of_frozen_data_says_when_to_try_again(tmp_path: Path) -> None:
    load = await guest("services", **GRANTS, timeout_ms=20_000)
    async with running(tmp_path, command=REAL) as served:
        await visit(served, load, "r1")
        freeze.freeze(tmp_path / "data" / "project", b"")
        answer = await served.get("/kv/increment?store=visits&key=n")
        assert (answer.status, answer.header("retry-after")) == (503, "2")
        assert (await served.get("/kv/get?store=visits&key=n")).body == b"1"
        denied = await served.get("/kv/increment?store=other&key=n")
        assert (denied.status, denied.header("retry-after")) == (500, None), "a failure of another kind stays one"
