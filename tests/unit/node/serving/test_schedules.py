"""Schedules: what is due when, and the node's clockwork over a fake clock and over a real worker."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.serving.job_history import JOBS_MAX, RUNS_KEPT, JobHistory, JobRecord, JobRun
from node.serving.schedules import BEFORE, MINUTE_MS, MISSED_MAX, SPANS_MAX, Minutes, Schedules
from protocols.changes.effective import EffectiveApp
from protocols.machine import Now
from runtime.cron import comes_due, due_minutes, next_due, schedule_problem
from runtime.messages import AppLoad, JobDone, ReleaseLoad
from runtime.sandbox.compile_cache import CompileCache, file_digest
from runtime.spec import AppSpec
from runtime.workers.pool import PoolError
from tests.support.runtime.served import REAL, running, until
from tests.support.runtime.wasm_text import module

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

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lanes: dict[tuple[str, str], Here], memory: Path) -> None:
        self.wall_ms = NOON
        self.lanes = lanes
        self.asked: list[tuple[str, str, str]] = []
        self.answer: Callable[[], JobDone] = ended
        self.hold: asyncio.Event | None = None
        self._slept: asyncio.Queue[None] = asyncio.Queue()
        self._woken: asyncio.Queue[None] = asyncio.Queue()
        monkeypatch.setattr("node.serving.schedules.asyncio.sleep", self._sleep)
        self.memory = memory
        self.schedules = self._make()
        self._task = asyncio.get_running_loop().create_task(self.schedules.run())

    def _make(self) -> Schedules:
        history = JobHistory(self.memory.with_name("jobs"))
        return Schedules(lambda: self.lanes, self._run_job, lambda: Now(0, self.wall_ms), self.memory, history)

    @property
    def counts(self) -> Counter[str]:
        return sum((Counter(record.counts) for record in self.schedules.history.records.values()), Counter())

    async def written(self, runs: int) -> JobRecord:
        """Return the job as it stands in the file, once that has so many runs."""
        for _ in range(500):
            job_record = JobHistory(self.memory.with_name("jobs")).records.get(("shop", "production", "sweep"))
            if job_record is not None and len(job_record.runs) == runs:
                return job_record
            await asyncio.to_thread(time.sleep, 0.01)
        raise AssertionError(f"{runs} runs are not written down")

    def record(self, app: str = "sweep") -> JobRecord:
        return self.schedules.history.records["shop", "production", app]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def restart(self) -> None:
        """End this life and begin another, which knows what is in the file."""
        await self.stop()
        self._slept, self._woken = asyncio.Queue(), asyncio.Queue()
        self.schedules = self._make()
        self._task = asyncio.get_running_loop().create_task(self.schedules.run())

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
async def clockwork(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    new_clockwork = Clockwork(monkeypatch, {("shop", "production"): Here((job(),))}, tmp_path / "schedules")
    yield new_clockwork
    await new_clockwork.stop()


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
    assert clockwork.counts["succeeded"] == 2
    assert [run.due_ms for run in clockwork.record().runs] == [NOON + MINUTE_MS, NOON + 2 * MINUTE_MS]


async def test_a_node_that_the_chain_did_not_name_runs_nothing(clockwork: Clockwork) -> None:
    clockwork.lanes["shop", "production"] = Here((job(),), schedules=False)
    await clockwork.pass_minutes(1)
    assert clockwork.asked == []


async def test_a_run_that_still_goes_is_not_run_beside_itself(clockwork: Clockwork) -> None:
    clockwork.hold = asyncio.Event()
    await clockwork.pass_minutes(1)
    await clockwork.pass_minutes(1)
    assert len(clockwork.asked) == 1
    assert clockwork.counts["skipped"] == 1
    clockwork.hold.set()
    await clockwork.pass_minutes(1)
    assert len(clockwork.asked) == 2


async def test_what_a_pause_missed_is_run_once_and_a_corrected_clock_catches_nothing_up(clockwork: Clockwork) -> None:
    await clockwork.pass_minutes(90)
    assert len(clockwork.asked) == 1
    clockwork.lanes["shop", "production"] = Here((job(schedule="30 * * * *"),))
    await clockwork.pass_minutes(60 * 24 * 40)
    await clockwork.pass_minutes(-60 * 24 * 40)
    assert len(clockwork.asked) == 2, "13:30 is due after the first jump; nothing between, and no minute a second time"
    await clockwork.pass_minutes(60)
    assert len(clockwork.asked) == 3, "a clock that was set back holds up nothing that was not run yet"


@pytest.mark.parametrize("back", [1, 2, 30, 60 * 24])
async def test_a_clock_that_is_set_back_runs_no_minute_a_second_time(clockwork: Clockwork, back: int) -> None:
    clockwork.lanes["shop", "production"] = Here((job(), job("hourly", "0 * * * *")))
    for _ in range(3):
        await clockwork.pass_minutes(1)
    await clockwork.pass_minutes(57)
    await clockwork.pass_minutes(-back)
    for _ in range(back + 1):
        await clockwork.pass_minutes(1)
    names = [name for _, _, name in clockwork.asked]
    assert len(names) == len(set(names)), names
    assert names[-1] == "sweep-20270115T1301Z", "the first minute that had not come before"
    assert "hourly-20270115T1300Z" in names


async def test_neither_does_one_that_is_set_back_while_the_node_restarts(clockwork: Clockwork) -> None:
    for _ in range(3):
        await clockwork.pass_minutes(1)
    await clockwork.stop()
    clockwork.wall_ms -= 3 * MINUTE_MS
    await clockwork.restart()
    for _ in range(4):
        await clockwork.pass_minutes(1)
    assert [name for _, _, name in clockwork.asked] == [f"sweep-20270115T120{minute}Z" for minute in (1, 2, 3, 4)]


async def test_jobs_run_though_the_minutes_cannot_be_written_down_or_read(clockwork: Clockwork) -> None:
    clockwork.memory.with_name("schedules.new").mkdir()
    await clockwork.pass_minutes(1)
    clockwork.memory.write_bytes(b"no minutes")
    await clockwork.restart()
    await clockwork.pass_minutes(1)
    assert len(clockwork.asked) == 2
    clockwork.memory.unlink()
    clockwork.memory.mkdir()
    await clockwork.restart()
    await clockwork.pass_minutes(1)
    assert len(clockwork.asked) == 3


async def test_what_does_not_run_since_its_minute_was_here_before_is_said(clockwork: Clockwork) -> None:
    clockwork.lanes["shop", "production"] = Here((job(), job("hourly", "0 * * * *")))
    for minutes in (60, -60):  # an hour ahead, then corrected
        await clockwork.pass_minutes(minutes)
    counts = clockwork.counts
    assert (counts["succeeded"], counts["skipped"]) == (4, 0), "12:00 was not looked at before"
    await clockwork.pass_minutes(1)
    counts = clockwork.counts
    assert (counts["succeeded"], counts["skipped"]) == (4, 1)
    assert clockwork.record().runs[-1] == JobRun(NOON + MINUTE_MS, "skipped", BEFORE, 0)
    await clockwork.pass_minutes(61)  # half of this pause came before, half did not
    counts = clockwork.counts
    assert (counts["succeeded"], counts["skipped"]) == (5, 2)
    assert clockwork.record("hourly").runs[-1].detail == BEFORE, "13:00 was in the half that came before"


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 30)), max_size=40))
def test_every_minute_is_taken_once(looks: list[tuple[int, int]]) -> None:
    minutes, seen = Minutes(), set[int]()
    for after, count in looks:
        fresh = [index for first, last in minutes.take(after, after + count) for index in range(first + 1, last + 1)]
        wanted = set(range(after + 1, after + count + 1))
        assert set(fresh) == wanted - seen
        assert len(fresh) == len(set(fresh))
        seen |= wanted
    assert {index for first, last in minutes.spans for index in range(first + 1, last + 1)} == seen


def test_of_too_many_spans_the_one_furthest_from_now_is_forgotten() -> None:
    minutes = Minutes()
    for number in range(10 * SPANS_MAX):
        minutes.take(10 * number, 10 * number + 1)
    assert minutes.spans[0] == (10 * 9 * SPANS_MAX, 10 * 9 * SPANS_MAX + 1)
    assert len(minutes.spans) == SPANS_MAX


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
        last = clockwork.record().runs[-1]
        assert (last.outcome, last.detail) == (outcome, detail)
    del clockwork.lanes["shop", "production"]
    await clockwork.pass_minutes(1)
    assert clockwork.schedules.history.records == {}


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
            tmp_path / "schedules",
            JobHistory(tmp_path / "jobs"),
        )
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(schedules.run())
            await until(lambda: any(record.runs for record in schedules.history.records.values()), timeout_s=90)
            task.cancel()
    assert schedules.history.records["shop", "production", "sweep"].counts == {"succeeded": 1}


async def test_what_a_job_did_is_known_after_a_restart_and_its_missed_minutes_too(clockwork: Clockwork) -> None:
    clockwork.lanes["shop", "production"] = Here((job(), job("hourly", "0 * * * *")))
    for code in (0, 3, 3):
        clockwork.answer = lambda code=code: ended(code)  # type: ignore[misc]
        await clockwork.pass_minutes(1)
    await clockwork.written(3)
    assert clockwork.record().failing == 2
    await clockwork.stop()
    clockwork.wall_ms += 65 * MINUTE_MS  # 12:04 to 13:08 pass without this node
    lanes, clockwork.lanes = clockwork.lanes, {}
    await clockwork.restart()
    await clockwork.pass_minutes(1)
    assert clockwork.record().missed == 0, "its lanes are not here yet, which is no reason to forget them"
    clockwork.lanes.update(lanes)
    await clockwork.pass_minutes(1)
    record = await clockwork.written(4)
    assert (record.missed, record.missed_last_ms) == (66, NOON + 69 * MINUTE_MS), "12:04 to 13:09; 13:10 ran"
    assert [run.detail for run in record.runs] == ["exit code 0", "exit code 3", "exit code 3", "exit code 3"]
    assert (record.counts, record.failing) == ({"succeeded": 1, "failed": 3}, 3)
    assert (clockwork.record("hourly").missed, clockwork.record("hourly").missed_last_ms) == (1, NOON + 60 * MINUTE_MS)
    await clockwork.pass_minutes(1)
    assert clockwork.record().missed == 66, "told once"


async def test_a_pause_that_is_caught_up_by_one_run_misses_the_others(clockwork: Clockwork) -> None:
    await clockwork.pass_minutes(1)
    await clockwork.pass_minutes(90)
    assert (len(clockwork.asked), clockwork.record().missed) == (2, 89)
    await clockwork.pass_minutes(60 * 24 * 40)
    assert clockwork.record().missed == 89 + MISSED_MAX, "of a long absence a day is counted"


async def test_what_another_node_ran_is_not_missed_here(clockwork: Clockwork) -> None:
    await clockwork.pass_minutes(1)
    clockwork.lanes["shop", "production"] = Here((job(),), schedules=False)
    for _ in range(3):
        await clockwork.pass_minutes(1)
    assert clockwork.schedules.history.records == {}
    clockwork.lanes["shop", "production"] = Here((job(),))
    await clockwork.pass_minutes(1)
    assert (clockwork.record().missed, len(clockwork.asked)) == (0, 2)


async def test_a_clock_set_back_makes_no_minute_missed(clockwork: Clockwork) -> None:
    for minutes in (1, 30, -20, 1, 25, -60 * 24 * 400, 1, 1):
        await clockwork.pass_minutes(minutes)
    assert clockwork.record().missed == 29 + 5, (
        "of the first leap, and what the fifth had that was new, less one run each"
    )


async def test_a_run_is_written_down_as_it_ends(clockwork: Clockwork) -> None:
    clockwork.answer = lambda: ended(4)
    await clockwork.pass_minutes(1)
    record = await clockwork.written(1)
    assert [run.detail for run in record.runs] == ["exit code 4"]


async def test_the_records_have_a_limit_and_outlive_a_damaged_file(tmp_path: Path) -> None:
    history = JobHistory(tmp_path / "jobs")
    for number in range(JOBS_MAX + 5):
        for _ in range(RUNS_KEPT + 3):
            history.ended(
                ("shop", "production", f"job-{number:04}"), JobRun(number * MINUTE_MS, "failed", "x" * 900, 1)
            )
    assert len(history.records) == JOBS_MAX
    assert ("shop", "production", "job-0004") not in history.records
    await history.save()
    again = JobHistory(tmp_path / "jobs")
    assert again.records == history.records
    assert all(len(record.runs) == RUNS_KEPT for record in again.records.values())
    (tmp_path / "jobs").write_bytes(b"no records")
    assert JobHistory(tmp_path / "jobs").records == {}
    (tmp_path / "jobs").unlink()
    (tmp_path / "jobs").mkdir()
    broken = JobHistory(tmp_path / "jobs")
    broken.ended(("shop", "production", "sweep"), JobRun(0, "failed", "", 1))
    await broken.save()  # says so, and costs no run


def test_due_minutes_are_those_behind_one_up_to_another() -> None:
    assert due_minutes("* * * * *", MINUTE, MINUTE + 3, 10) == [MINUTE + 1, MINUTE + 2, MINUTE + 3]
    assert due_minutes("*/2 * * * *", MINUTE, MINUTE + 5, 10) == [MINUTE + 2, MINUTE + 4]
    assert due_minutes("* * * * *", MINUTE, MINUTE + 30, 4) == [MINUTE + text for text in (1, 2, 3, 4)]
    assert due_minutes("* * * * *", MINUTE, MINUTE, 4) == due_minutes("* * * * *", MINUTE + 1, MINUTE, 4) == []
