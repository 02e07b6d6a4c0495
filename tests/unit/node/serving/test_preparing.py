"""A release whose bytes are nowhere for a while is tried again; one that is broken is reported at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.serving import workloads
from node.serving.meter import since
from node.serving.releases import LaterError, PreparationError
from node.serving.workloads import Workloads
from protocols.chain.messages import EntryStored
from protocols.machine import Digest
from protocols.rollout.orders import PreparationDone
from runtime.messages import AppStatus, Status
from runtime.workers.pool import SlotStatus
from tests.support.runtime.served import until

CHANGE = Digest(b"c" * 32)


class Releases:
    """Releases that fail with these errors, one after the other, and then succeed."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def prepare(self, *_parts: Any) -> Any:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        return SimpleNamespace(from_source=False)

    async def manifest(self, _release: bytes) -> None:
        await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def expecting_smoke(self) -> AsyncIterator[None]:
        yield

    async def smoke(self, _prepared: Any) -> bool:
        return False


async def test_however_much_is_decided_while_a_release_loads_one_look_at_the_routes_is_enough() -> None:
    new_workloads = Workloads(None, None, None, Path("unused"), lambda _event: True)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        new_workloads._tasks = tasks
        for _ in range(2 * workloads.ORDERS_MAX):
            new_workloads.order(EntryStored(1, None))  # type: ignore[arg-type]
    assert new_workloads._orders.qsize() == 1


def counted(requests: int) -> Status:
    app = AppStatus("k", "web", requests, 0, 0, {}, {}, (requests, *[0] * 23), 0, 0)
    return Status(1, 1, 0, 0, 0, 0, 0, 0, {}, (app,))


async def test_a_release_that_is_let_go_is_counted_to_its_end_and_from_nothing_when_it_comes_back() -> None:
    last_request = asyncio.Event()

    async def unload(_key: str) -> None:
        await last_request.wait()

    async def activate(_routes: list[Any]) -> None:
        return None

    pool: Any = SimpleNamespace(unload=unload, activate=activate, slots=tuple)
    core: Any = SimpleNamespace(state=SimpleNamespace(lanes=()))
    new_workloads = Workloads(core, None, pool, Path("unused"), lambda _event: True)  # type: ignore[arg-type]
    new_workloads._loaded["k"] = SimpleNamespace()  # type: ignore[assignment]
    async with asyncio.TaskGroup() as tasks:
        new_workloads._tasks = tasks
        new_workloads._meter.add([counted(1_000)])
        await new_workloads._switch()
        new_workloads._meter.add([counted(1_000)])  # a look while its last request goes on
        last_request.set()
    opened = new_workloads._meter.tally("k").counts()  # loaded anew, as its next rollout opens
    new_workloads._meter.add([counted(5)])
    counts = since(new_workloads._meter.tally("k").counts(), opened)
    assert counts.requests == 5
    assert counts.sound()


async def test_the_first_crash_of_a_worker_that_another_daemon_started_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = [SlotStatus(0, 7, 0, "")]  # adopted: this daemon never started it

    async def status() -> tuple[Status, ...]:
        return ()

    pool: Any = SimpleNamespace(status=status, slots=lambda: tuple(slots))
    new_workloads = Workloads(None, None, pool, Path("unused"), lambda _event: True)  # type: ignore[arg-type]
    crashes: list[int] = []
    monkeypatch.setattr(new_workloads, "_look", lambda _lane, _running, _alive, count: crashes.append(count))
    new_workloads.running["site", "production"] = SimpleNamespace()  # type: ignore[assignment]
    await new_workloads._look_around()
    slots[0] = SlotStatus(0, 8, 1, "exit status -9")
    await new_workloads._look_around()
    await new_workloads._look_around()
    assert crashes == [0, 1, 0]


async def outcome(
    monkeypatch: pytest.MonkeyPatch,
    releases: Releases,
    *,
    state: Any = SimpleNamespace(lanes=(), lane=lambda *_name: None),  # noqa: B008
    on_sleep: Callable[[int, dict[Digest, Any]], None] = lambda _count, _changes: None,
) -> tuple[list[Any], Workloads, list[float]]:
    """Prepare a change and pass over every wait; return what was posted, the workloads, and how long each wait was."""
    posted: list[Any] = []
    change = SimpleNamespace(
        project="site", environment="production", release=b"r", configuration=b"e", secrets=(), base=b""
    )
    changes = {CHANGE: SimpleNamespace(change=change)}
    core: Any = SimpleNamespace(dossiers=SimpleNamespace(changes=changes), state=state)
    post: Any = posted.append
    new_workloads = Workloads(core, releases, None, Path("unused"), post)  # type: ignore[arg-type]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
            assert new_workloads.failures[CHANGE].endswith(workloads.AGAIN)
            on_sleep(len(slept), changes)

    monkeypatch.setattr("node.serving.workloads.asyncio.sleep", sleep)
    await new_workloads._prepare(CHANGE)
    assert new_workloads._unready == set()
    return posted, new_workloads, slept


async def test_what_is_away_is_asked_for_again_ever_more_seldom_and_never_reported_as_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = [LaterError("nowhere"), OSError(28, "No space left on device"), *[LaterError("nowhere")] * 98]
    posted, new_workloads, slept = await outcome(monkeypatch, Releases(*errors))
    assert posted == [PreparationDone(CHANGE, True, "absent")]
    assert new_workloads.failures == {}
    assert len(slept) == 100
    assert slept[:6] == [5, 10, 20, 40, 60, 60]
    assert slept[-1] == workloads.PREPARE_AGAIN_MAX_S


async def test_what_is_broken_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    releases = Releases(PreparationError("bad"), PreparationError("unused"))
    posted, new_workloads, slept = await outcome(monkeypatch, releases)
    assert [entry.ok for entry in posted] == [False]
    assert new_workloads.failures[CHANGE] == posted[0].reason
    assert (len(releases.errors), slept) == (1, [])


async def test_a_change_that_may_not_start_now_waits_without_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    base = SimpleNamespace(change=Digest(b"o" * 32), release=b"another")
    lane = SimpleNamespace(rollout=None, base=base, retained=())
    state = SimpleNamespace(lanes=(lane,), lane=lambda *_name: lane)
    releases = Releases(LaterError("nowhere"))

    def on_sleep(count: int, _changes: dict[Digest, Any]) -> None:
        assert releases.errors == []
        if count == 5:
            base.release = b""

    posted, _, slept = await outcome(monkeypatch, releases, state=state, on_sleep=on_sleep)
    assert slept == [5] * 5
    assert [entry.ok for entry in posted] == [True]


async def test_a_change_that_nobody_knows_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    posted, _, slept = await outcome(
        monkeypatch, Releases(*[LaterError("nowhere")] * 9), on_sleep=lambda _count, changes: changes.clear()
    )
    assert [entry.ok for entry in posted] == [False]
    assert slept == [5]


async def test_what_may_not_start_now_gives_way_to_what_may(monkeypatch: pytest.MonkeyPatch) -> None:
    old = [Digest(bytes([n]) * 32) for n in range(workloads.PREPARE_WAITING_MAX)]
    changes = {}
    for change, against in (*((digest, b"old") for digest in old), (CHANGE, b"new")):
        proposed = SimpleNamespace(
            project="site", environment="production", release=b"r", configuration=b"e", secrets=(), base=against
        )
        changes[change] = SimpleNamespace(change=proposed)
    base = SimpleNamespace(change=Digest(b"o" * 32), release=b"old")
    lane = SimpleNamespace(rollout=None, base=base, retained=())
    core: Any = SimpleNamespace(
        dossiers=SimpleNamespace(changes=changes), state=SimpleNamespace(lanes=(lane,), lane=lambda *_name: lane)
    )
    releases, posted = Releases(*[LaterError("nowhere")] * 10_000), list[Any]()
    new_workloads = Workloads(core, releases, None, Path("unused"), posted.append)  # type: ignore[arg-type]
    monkeypatch.setattr(workloads, "PREPARE_AGAIN_S", 0.01)
    monkeypatch.setattr(workloads, "PREPARE_AGAIN_MAX_S", 0.01)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(new_workloads._prepare(digest)) for digest in old]
        await until(lambda: len(new_workloads._unready) == len(old))
        base.release = b"new"  # another release was decided: what was proposed against the old one may not start
        waiting.append(tasks.create_task(new_workloads._prepare(CHANGE)))
        await until(lambda: bool(posted))
        assert CHANGE in new_workloads._unready, "it waits, though as many others wait as may"
        assert CHANGE not in [entry.change for entry in posted]
        assert len(new_workloads._unready) == len(old)
        releases.errors.clear()
        await until(lambda: posted[-1] == PreparationDone(CHANGE, True, "absent"))
        assert len(posted) == 2, "the others wait for their base to come back"
        for task in waiting:
            task.cancel()
