"""A release whose bytes are nowhere for a moment is waited for; one that is broken is reported at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node import workloads
from node.meter import since
from node.releases import AbsentError, PreparationError
from node.workloads import Workloads
from protocols.chain_messages import EntryStored
from protocols.machine import Digest
from protocols.workloads import PreparationDone
from runtime.control import AppStatus, Status
from runtime.supervisor import SlotStatus

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

    @contextlib.asynccontextmanager
    async def expecting_smoke(self) -> AsyncIterator[None]:
        yield

    async def smoke(self, _prepared: Any) -> bool:
        return False


async def test_however_much_is_decided_while_a_release_loads_one_look_at_the_routes_is_enough() -> None:
    made = Workloads(None, None, None, Path("unused"), lambda _event: True)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        made._tasks = tasks
        for _ in range(2 * workloads.ORDERS_MAX):
            made.order(EntryStored(1, None))  # type: ignore[arg-type]
    assert made._orders.qsize() == 1


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
    made = Workloads(core, None, pool, Path("unused"), lambda _event: True)  # type: ignore[arg-type]
    made._loaded["k"] = SimpleNamespace()  # type: ignore[assignment]
    async with asyncio.TaskGroup() as tasks:
        made._tasks = tasks
        made._meter.add([counted(1_000)])
        await made._switch()
        made._meter.add([counted(1_000)])  # a look while its last request goes on
        last_request.set()
    opened = made._meter.tally("k").counts()  # loaded anew, as its next rollout opens
    made._meter.add([counted(5)])
    counts = since(made._meter.tally("k").counts(), opened)
    assert counts.requests == 5
    assert counts.sound()


async def test_the_first_crash_of_a_worker_that_another_daemon_started_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = [SlotStatus(0, 7, 0, "")]  # adopted: this daemon never started it

    async def status() -> tuple[Status, ...]:
        return ()

    pool: Any = SimpleNamespace(status=status, slots=lambda: tuple(slots))
    made = Workloads(None, None, pool, Path("unused"), lambda _event: True)  # type: ignore[arg-type]
    crashes: list[int] = []
    monkeypatch.setattr(made, "_look", lambda _lane, _running, _alive, count: crashes.append(count))
    made.running["site", "production"] = SimpleNamespace()  # type: ignore[assignment]
    await made._look_around()
    slots[0] = SlotStatus(0, 8, 1, "exit status -9")
    await made._look_around()
    await made._look_around()
    assert crashes == [0, 1, 0]


async def outcome(releases: Releases) -> tuple[list[Any], Workloads]:
    posted: list[Any] = []
    change = SimpleNamespace(release=b"r", configuration=b"e", secrets=(), base=b"")
    core: Any = SimpleNamespace(
        dossiers=SimpleNamespace(changes={CHANGE: SimpleNamespace(change=change)}), state=SimpleNamespace(lanes=())
    )
    post: Any = posted.append
    made = Workloads(core, releases, None, Path("unused"), post)  # type: ignore[arg-type]
    await made._prepare(CHANGE)
    return posted, made


async def test_bytes_that_nobody_has_now_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "PREPARE_AGAIN_S", 0)
    posted, made = await outcome(Releases(AbsentError("nowhere"), AbsentError("nowhere")))
    assert posted == [PreparationDone(CHANGE, True, "absent")]
    assert made.failures == {}


async def test_what_stays_away_too_long_and_what_is_broken_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "PREPARE_AGAIN_S", 0)
    monkeypatch.setattr(workloads, "PREPARE_TRIES", 3)
    for releases, left in ((Releases(*[AbsentError("nowhere")] * 4), 1), (Releases(PreparationError("bad")), 0)):
        posted, made = await outcome(releases)
        assert [one.ok for one in posted] == [False]
        assert made.failures[CHANGE] == posted[0].reason
        assert len(releases.errors) == left
