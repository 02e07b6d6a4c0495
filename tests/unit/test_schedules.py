"""Schedules: what is due when, and the node's clockwork over a fake clock and over a real worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.schedules import MINUTE_MS, Schedules
from protocols.effective import EffectiveApp
from protocols.machine import Now
from runtime.compile_cache import CompileCache, file_digest
from runtime.control import AppLoad, JobDone, ReleaseLoad
from runtime.cron import comes_due, next_due, schedule_problem
from runtime.spec import AppSpec
from runtime.supervisor import PoolError
from tests.fault.served import REAL, running, until
from tests.unit.wasm_text import module

NOON = 1_800_014_400_000  # 2027-01-15 12:00:00 UTC, a Friday
MINUTE = NOON // MINUTE_MS


@dataclass
class Here:
    """One lane that runs here."""

    jobs: tuple[EffectiveApp, ...]
    schedules: bool = True
    key: str = "r1"
    release: bytes = b"\1" * 32


def job(name: str = "sweep", schedule: str = "* * * * *") -> EffectiveApp:
    return EffectiveApp(name, b"c" * 32, "module", 1_000, 1 << 26, "fresh", schedule=schedule)


def ended(code: int | None = 0, outcome: str = "exited", reason: str = "") -> JobDone:
    return JobDone(1, outcome, code, reason, b"", b"", False, False, 5)


class Clockwork:
    """Schedules whose minutes pass when the test says so: `asyncio.sleep` inside them waits for `pass_minutes`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lanes: dict[tuple[str, str], Here]) -> None:
        self.wall_ms = NOON
        self.lanes = lanes
        self.asked: list[tuple[str, str, str]] = []
        self.answer: Callable[[], JobDone] = ended
        self.hold: asyncio.Event | None = None
        self._slept: asyncio.Queue[None] = asyncio.Queue()
        self._woken: asyncio.Queue[None] = asyncio.Queue()
        monkeypatch.setattr("node.schedules.asyncio.sleep", self._sleep)
        self.schedules = Schedules(lambda: self.lanes, self._run_job, lambda: Now(0, self.wall_ms))

    async def _sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 60
        self._slept.put_nowait(None)
        await self._woken.get()

    async def _run_job(self, key: str, app: str, *, timeout_ms: int, request_id: str) -> JobDone:
        self.asked.append((key, app, request_id))
        if self.hold is not None:
            await self.hold.wait()
        return self.answer()

    async def pass_minutes(self, minutes: int) -> None:
        """Let the clock move, the clockwork look, and what it started go on until it waits."""
        await self._slept.get()
        self.wall_ms += minutes * MINUTE_MS
        self._woken.put_nowait(None)
        await self._slept.get()
        self._slept.put_nowait(None)


@pytest.fixture
async def clockwork(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Clockwork(monkeypatch, {("shop", "production"): Here((job(),))})
    task = asyncio.get_running_loop().create_task(made.schedules.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_five_fields_are_read_as_cron_reads_them() -> None:
    assert comes_due("*/5 * * * *", MINUTE - 1, MINUTE)
    assert not comes_due("*/5 * * * *", MINUTE, MINUTE + 4)
    assert comes_due("0 12 * * 5", MINUTE - 1, MINUTE)
    assert not comes_due("0 12 * * 6", MINUTE - 1, MINUTE)
    assert str(next_due("30 3 1 * *", MINUTE)) == "2027-02-01 03:30:00+00:00"


def test_a_schedule_that_cannot_be_run_says_why() -> None:
    assert not schedule_problem("*/5 * * * *")
    for bad in ("0 0 30 2 *", "61 * * * *", "* * *", "every day", ""):
        assert schedule_problem(bad), bad


async def test_a_due_job_runs_once_a_minute_under_a_name_of_its_own(clockwork: Clockwork) -> None:
    await clockwork.pass_minutes(1)
    await clockwork.pass_minutes(1)
    assert clockwork.asked == [("r1", "sweep", "sweep-20270115T1201Z"), ("r1", "sweep", "sweep-20270115T1202Z")]
    await clockwork.pass_minutes(0)
    assert len(clockwork.asked) == 2
    assert clockwork.schedules.counts["succeeded"] == 2
    assert clockwork.schedules.last["shop", "production", "sweep"].due_ms == NOON + 2 * MINUTE_MS


async def test_a_node_that_the_chain_did_not_name_runs_nothing(clockwork: Clockwork) -> None:
    clockwork.lanes["shop", "production"] = Here((job(),), schedules=False)
    await clockwork.pass_minutes(1)
    assert clockwork.asked == []


async def test_a_run_that_still_goes_is_not_run_beside_itself(clockwork: Clockwork) -> None:
    clockwork.hold = asyncio.Event()
    await clockwork.pass_minutes(1)
    await clockwork.pass_minutes(1)
    assert len(clockwork.asked) == 1
    assert clockwork.schedules.counts["skipped"] == 1
    clockwork.hold.set()
    await clockwork.pass_minutes(1)
    assert len(clockwork.asked) == 2


async def test_what_a_pause_missed_is_run_once_and_a_corrected_clock_catches_nothing_up(clockwork: Clockwork) -> None:
    await clockwork.pass_minutes(90)
    assert len(clockwork.asked) == 1
    clockwork.lanes["shop", "production"] = Here((job(schedule="30 * * * *"),))
    await clockwork.pass_minutes(60 * 24 * 40)
    await clockwork.pass_minutes(-60 * 24 * 40)
    assert len(clockwork.asked) == 3, "13:30 is due after the first jump, and again after the second; nothing between"


async def test_every_end_is_told_apart(clockwork: Clockwork) -> None:
    def lost() -> JobDone:
        raise PoolError("no worker is running")

    for answer, outcome, detail in (
        (lambda: ended(3), "failed", "exit code 3"),
        (lambda: ended(None, "deadline_exceeded"), "failed", "deadline_exceeded"),
        (lost, "lost", "no worker is running"),
        (ended, "succeeded", "exit code 0"),
    ):
        clockwork.answer = answer
        await clockwork.pass_minutes(1)
        last = clockwork.schedules.last["shop", "production", "sweep"]
        assert (last.outcome, last.detail) == (outcome, detail)
    del clockwork.lanes["shop", "production"]
    await clockwork.pass_minutes(1)
    assert clockwork.schedules.last == {}


async def test_a_real_worker_runs_a_job_when_its_minute_comes(tmp_path: Path) -> None:
    path = tmp_path / "job.wasm"
    path.write_bytes(module("(nop)"))
    artifact = await CompileCache(tmp_path / "compiled").ensure(path, file_digest(path))
    spec = AppSpec("shop", "sweep", "r1", artifact, file_digest(path), kind="module")
    async with running(tmp_path, command=REAL, workers=1) as served:
        await served.pool.load(ReleaseLoad("r1", "r1", "shop", (AppLoad(spec),)))
        ahead_ms = MINUTE_MS - int(time.time() * 1000) % MINUTE_MS - 300
        schedules = Schedules(
            lambda: {("shop", "production"): Here((job(),))},
            served.pool.run_job,
            lambda: Now(0, int(time.time() * 1000) + ahead_ms),
        )
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(schedules.run())
            await until(lambda: bool(schedules.last), timeout_s=20)
            task.cancel()
    assert schedules.last["shop", "production", "sweep"].outcome == "succeeded"
    assert msgspec.to_builtins(schedules.counts) == {"succeeded": 1}
