"""Worker processes come and go; clients do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.messages import WorkerRoute
from runtime.workers.pool import PoolError, WorkerPool
from runtime.workers.pool_settings import PoolSettings
from tests.support.runtime import daemon as daemon_program
from tests.support.runtime.served import STUB, Client, request, running, stub_release, until
from tests.support.runtime.stream import Stream


async def test_a_killed_worker_comes_back_while_the_others_serve_on(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as served:
        await served.serve(stub_release("r1", "hello"))
        async with Stream(served) as stream:
            await stream.more(50)
            before = [slot.pid for slot in served.pool.slots()]
            assert before[0] is not None
            os.kill(before[0], signal.SIGKILL)
            await stream.more(50)
            await until(lambda: served.pool.slots()[0].pid not in {None, before[0]})
            await stream.more(50)
        slots = served.pool.slots()
        assert slots[1].pid == before[1]
        assert (slots[0].starts, slots[0].last_end) == (2, "exit status -9")
        assert stream.failed == []
        assert stream.lost <= 4  # the requests that were inside the killed process, one per client at most
        statuses = await served.pool.status()
        assert all([app.key for app in status.apps] == ["r1"] for status in statuses)


async def test_a_release_is_swapped_under_load_without_a_failed_request(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as served:
        await served.serve(stub_release("r1", "hello"))
        async with Stream(served) as stream:
            await stream.more(50)
            for number in range(2, 6):
                await served.serve(stub_release(f"r{number}", "hello"))
                await served.pool.unload(f"r{number - 1}")
                await stream.more(20)
        assert stream.failed == []
        assert stream.lost == 0
        assert sorted(stream.releases) == ["r1", "r2", "r3", "r4", "r5"]
        for status in await served.pool.status():
            assert [app.key for app in status.apps] == ["r5"]


async def test_a_request_under_way_ends_in_the_release_it_began_in(tmp_path: Path) -> None:
    async with running(tmp_path) as served:
        await served.serve(stub_release("r1", "wait"))
        client = await served.connect()
        await client.send(request("GET", "/wait?400"))
        await asyncio.sleep(0.1)
        await served.serve(stub_release("r2", "wait"))
        unloading = asyncio.ensure_future(served.pool.unload("r1"))
        assert (await served.get("/wait?0")).header("freehold-release") == "r2"
        answer = await client.receive()
        assert (answer.status, answer.header("freehold-release")) == (200, "r1")
        await unloading


async def test_draining_finishes_what_is_under_way(tmp_path: Path) -> None:
    async with running(tmp_path) as served:
        await served.serve(stub_release("r1", "wait", "hello"))
        idle = await served.connect()
        await idle.get("/hello")
        client = await served.connect()
        await client.send(request("GET", "/wait?500"))
        await asyncio.sleep(0.1)
        await served.pool.stop()
        answer = await client.receive()
        assert (answer.status, answer.body) == (200, b"hello")
        assert await idle.closed()
        assert await until(lambda: served.pool.slots()[0].last_end) == "exit status 0"


async def test_a_burst_of_connections_is_shared_between_workers(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as served:
        await served.serve(stub_release("r1", "hello"))
        clients = await asyncio.gather(*(served.connect() for _ in range(16)))
        for client in clients:
            assert (await client.get("/hello")).body == b"hello"
        held = [status.connections for status in await served.pool.status()]
        assert sum(held) == 16
        assert min(held) >= 4


async def test_a_route_that_cannot_stand_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as served:
        await served.serve(stub_release("r1", "hello"))
        with pytest.raises(PoolError, match="reserved"):
            await served.pool.activate([WorkerRoute(None, "/.freehold/x", "r1", "hello")])
        with pytest.raises(PoolError, match="not loaded"):
            await served.pool.activate([WorkerRoute(None, "/", "r9", "hello")])
        with pytest.raises(PoolError, match="claimed twice"):
            await served.pool.activate([WorkerRoute("a", "/", "r1", "hello"), WorkerRoute("A.", "/", "r1", "hello")])
        with pytest.raises(PoolError, match="still name"):
            await served.pool.unload("r1")
        assert (await served.get("/hello")).body == b"hello"


async def test_a_release_that_cannot_be_loaded_is_refused_whole(tmp_path: Path) -> None:
    async with running(tmp_path) as served:
        await served.serve(stub_release("r1", "hello"))
        with pytest.raises(PoolError, match="no app missing"):
            await served.pool.load(stub_release("r2", "hello", "missing"))
        (status,) = await served.pool.status()
        assert [app.key for app in status.apps] == ["r1"]
        assert (await served.get("/hello")).body == b"hello"


async def test_a_new_pool_adopts_workers_and_sockets_and_clients_notice_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2, leave=True) as first:
        await first.serve(stub_release("r1", "hello"))
        address = first.pool.addresses[0]
        pids = [slot.pid for slot in first.pool.slots()]
        connection = await asyncio.open_connection("127.0.0.1", first.port)
    client = Client(*connection)
    assert (await client.get("/hello")).body == b"hello"  # nobody is in charge now
    async with running(tmp_path, workers=2, listen=(address,)) as second:
        assert [slot.pid for slot in second.pool.slots()] == pids
        assert (await client.get("/hello")).body == b"hello"
        await second.serve(stub_release("r2", "hello"))
        assert (await client.get("/hello")).header("freehold-release") == "r2"
        assert pids[0] is not None
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: second.pool.slots()[0].pid not in {None, pids[0]})
        assert (await second.get("/hello")).header("freehold-release") == "r2"
        client.writer.transport.abort()


async def test_a_release_that_a_new_pool_loads_while_the_one_before_lets_it_go_stays(tmp_path: Path) -> None:
    async with running(tmp_path, leave=True) as first:
        await first.serve(stub_release("r1", "wait"))
        reader, writer = await asyncio.open_connection("127.0.0.1", first.port)
        writer.write(request("GET", "/wait?2000"))
        async with asyncio.timeout(10):
            while not any(app.in_flight for app in (await first.pool.status())[0].apps):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await first.serve(stub_release("r2", "hello"))
        letting_go = asyncio.ensure_future(first.pool.unload("r1"))
        await asyncio.sleep(0.1)
        addresses = first.pool.addresses
    async with running(tmp_path, listen=addresses) as second:
        await letting_go
        assert second.pool.slots()[0].starts == 0, "the worker was adopted"
        await second.pool.load(stub_release("r1", "wait"))
        assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()
        for _ in range(10):  # until the worker has let the old one go, which nobody announces
            assert "r1" in {app.key for app in (await second.pool.status())[0].apps}
            await asyncio.sleep(0.1)
        await second.serve(stub_release("r1", "wait"))
        assert (await second.get("/wait?1")).status == 200


@pytest.mark.parametrize("knocks", [0, 8])
async def test_a_worker_that_hangs_when_a_new_pool_comes_is_replaced_and_its_addresses_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knocks: int
) -> None:
    """After so many knocks of daemons that gave up, nobody can even connect to it."""
    async with running(tmp_path, leave=True) as first:
        await first.serve(stub_release("r1", "hello"))
        addresses, pid = first.pool.addresses, first.pool.slots()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        (control,) = (tmp_path / "run").glob("worker-*.sock")
        for _ in range(knocks):
            with socket.socket(socket.AF_UNIX) as knocking, contextlib.suppress(BlockingIOError):
                knocking.setblocking(False)
                knocking.connect(str(control))
        monkeypatch.setattr("runtime.workers.link.GREETING_TIMEOUT_S", 5.0)
        async with running(tmp_path, listen=addresses) as second:
            await second.serve(stub_release("r1", "hello"))
            assert second.pool.addresses == addresses
            assert (await second.get("/hello")).body == b"hello"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_workers_of_another_build_are_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, leave=True) as first:
        await first.serve(stub_release("r1", "hello"))
        address = first.pool.addresses[0]
        (old,) = [slot.pid for slot in first.pool.slots()]
    async with running(tmp_path, listen=(address,), build="newer") as second:
        await second.serve(stub_release("r1", "hello"))
        assert [slot.pid for slot in second.pool.slots()] != [old]
        await until(lambda: not Path(f"/proc/{old}").exists() or "(zombie)" in _state(old))
        assert (await second.get("/hello")).body == b"hello"


def _state(pid: int | None) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text().split("State:")[1].split("\n")[0]
    except FileNotFoundError:
        return "(zombie)"


async def test_workers_that_nobody_comes_back_for_end_by_themselves(tmp_path: Path) -> None:
    async with running(tmp_path, leave=True, orphan_limit_s=0.5) as first:
        (pid,) = [slot.pid for slot in first.pool.slots()]
    await until(lambda: "zombie" in _state(pid))


async def test_a_worker_that_hangs_is_killed_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.workers.pool.PING_EVERY_S", 0.1)
    monkeypatch.setattr("runtime.workers.pool.PING_TIMEOUT_S", 1.0)
    async with running(tmp_path) as served:
        await served.serve(stub_release("r1", "hello"))
        (pid,) = [slot.pid for slot in served.pool.slots()]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: served.pool.slots()[0].pid not in {None, pid})
        assert served.pool.slots()[0].last_end == "exit status -9: no answer in time"
        assert (await served.get("/hello")).body == b"hello"


async def test_a_worker_that_cannot_start_is_tried_again_ever_more_slowly(tmp_path: Path) -> None:
    settings = PoolSettings(
        ("127.0.0.1:0",), tmp_path / "run", tmp_path / "data", "test", workers=1,
        command=(sys.executable, "-c", "raise SystemExit(3)"),
    )  # fmt: skip
    pool = WorkerPool(settings, on_logs=lambda batch: None, jitter=lambda: 1.0)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pool.run())
        with pytest.raises(PoolError, match=r"workers do not start: .*exit status 3"):
            await pool.started()
        await until(lambda: pool.slots()[0].starts >= 5)
        assert pool.slots()[0].pid is None
        assert "3" in pool.slots()[0].last_end
        await pool.stop()


async def test_a_second_daemon_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path):
        settings = PoolSettings(("127.0.0.1:0",), tmp_path / "run", tmp_path / "data", "test", command=STUB)
        with pytest.raises(PoolError, match="another daemon"):
            await WorkerPool(settings, on_logs=lambda batch: None).run()


async def test_a_busy_port_is_named(tmp_path: Path) -> None:
    async with running(tmp_path / "one") as served:
        settings = PoolSettings(served.pool.addresses, tmp_path / "two", tmp_path / "data", "test", command=STUB)
        with pytest.raises(PoolError, match=served.pool.addresses[0]):
            await WorkerPool(settings, on_logs=lambda batch: None).run()


async def test_a_folder_too_deep_for_sockets_is_refused_at_once(tmp_path: Path) -> None:
    settings = PoolSettings(("127.0.0.1:0",), tmp_path / ("x" * 90), tmp_path / "data", "test", command=STUB)
    with pytest.raises(PoolError, match="too long"):
        await WorkerPool(settings, on_logs=lambda batch: None).run()


async def test_the_runtime_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    async with running(tmp_path):
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
        (control,) = (tmp_path / "run").glob("worker-*.sock")
        assert control.stat().st_mode & 0o777 == 0o600


async def test_workers_outlive_a_daemon_that_is_killed_and_the_next_one_takes_them_over(tmp_path: Path) -> None:
    script = Path(daemon_program.__file__)
    daemon = subprocess.Popen([sys.executable, "-P", script, tmp_path, *STUB], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert daemon.stdout is not None
    with daemon.stdout as lines:
        address = (await asyncio.to_thread(lines.readline)).strip()
    host, _, port = address.rpartition(":")
    client = Client(*await asyncio.open_connection(host, int(port)))
    assert (await client.get("/")).body == b"hello"
    daemon.kill()
    await asyncio.to_thread(daemon.wait)
    assert (await client.get("/")).body == b"hello"
    async with running(tmp_path, workers=2, listen=(address,)) as served:
        assert [slot.starts for slot in served.pool.slots()] == [0, 0]
        assert (await client.get("/")).body == b"hello"
        await served.serve(stub_release("r2", "hello"))
        await served.pool.unload("r1")
        assert (await client.get("/hello")).header("freehold-release") == "r2"
        client.writer.transport.abort()
