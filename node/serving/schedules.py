"""Runs scheduled apps: once a minute, whatever is due of the lanes whose schedules the chain put on this node.

A run that is due while the one before still goes is skipped and said. So is one in a minute that the clock was set back
over: no minute is looked at twice. Which minutes were looked at is kept in a file, written before a job starts. What came
due while the node was away is not caught up, except after a pause of less than three hours of a running daemon (a
suspended laptop), when it runs once. A job's end is a line in the log and in its record (job_history.py), as is each minute
that was missed; its own output is in the log as the guest's. Not here: which node runs schedules (the chain,
`place_data`), the sandbox (runtime/).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from node.keys import write_private
from node.serving.job_history import JobHistory, JobRun, Name
from protocols.changes.effective import EffectiveApp
from protocols.envelope import DecodeError, decode, encode
from protocols.machine import Now
from runtime.cron import comes_due, due_minutes, moment, next_due
from runtime.messages import JobDone
from runtime.workers.pool import PoolError

MINUTE_MS = 60_000
CORRECTION_MINUTES = 180
"""A clock that is set forward by more was corrected, it is not time that passed: nothing is caught up (cron(8))."""

MISSED_MAX = 24 * 60
"""Missed minutes counted at one look: a day of them; of a longer absence no more are told."""

LONG_MINUTES = 60
"""A gap whose minutes are counted beside the loop."""

SPANS_MAX = 64
"""Spans of minutes remembered. Each comes of a clock that was set, or of a start; the one furthest from now goes first."""

OUTCOMES = ("succeeded", "failed", "skipped", "lost")
"""`lost`: the worker ended before the job did, or had no room for it."""

BEFORE = "the clock was set back: this minute has run already"

Lane = tuple[str, str]
_log = logging.getLogger("freehold.schedules")


class Scheduled(Protocol):
    """What one lane runs here, as far as schedules go (workloads.Running)."""

    @property
    def schedules(self) -> bool:
        """Whether this node runs the lane's schedules."""
        ...

    @property
    def key(self) -> str:
        """What the workers know the release by."""
        ...

    @property
    def release(self) -> bytes:
        """The release's digest."""
        ...

    @property
    def jobs(self) -> tuple[EffectiveApp, ...]:
        """The apps with a schedule."""
        ...


class JobRunner(Protocol):
    """How a worker is asked to run a command to its end (`WorkerPool.run_job`). Raises PoolError."""

    def __call__(self, key: str, app: str, *, timeout_ms: int, request_id: str) -> Awaitable[JobDone]:
        """Run `app` of the loaded release `key`."""
        ...


class Minutes:
    """Which minutes of the Unix clock were looked at: disjoint spans, each (before its first, its last), ascending."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        """Take the spans of an earlier life."""
        self.spans = sorted(spans)

    def take(self, after: int, upto: int) -> list[tuple[int, int]]:
        """Mark the minutes behind `after` up to `upto`; return the spans of those that were not marked before."""
        fresh = [(after, upto)]
        for first, last in self.spans:
            fresh = [part for pair in fresh for part in _less(pair, first, last)]
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.spans, (after, upto)]):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        if len(merged) > SPANS_MAX:
            merged.remove(max(merged, key=lambda span: max(span[0] - upto, upto - span[1])))
        self.spans = merged
        return fresh


class Schedules:
    """The node's clockwork for jobs."""

    def __init__(
        self,
        running: Callable[[], Mapping[Lane, Scheduled]],
        run_job: JobRunner,
        clock: Callable[[], Now],
        memory: Path,
        history: JobHistory,
    ) -> None:
        """Take what runs here now, how a job is run, the clock, the file that remembers the minutes, and the records."""
        self._running = running
        self._run_job = run_job
        self._clock = clock
        self._memory = memory
        self._minutes = Minutes(_read(memory))
        self._busy: dict[Name, None] = {}
        self._here: frozenset[Name] = frozenset()
        self.history = history

    async def run(self) -> None:
        """Look once a minute until cancelled; jobs under way are then cut off with the workers."""
        seen = self._minute()
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep((MINUTE_MS - self._clock().wall_ms % MINUTE_MS) / 1000)
                now = self._minute()
                if not 0 <= now - seen <= CORRECTION_MINUTES:
                    seen = now - 1
                fresh = self._minutes.take(seen, now) if now > seen else []
                due = self._due(fresh)
                changed = await self._account(seen, now, {(*lane, app.name) for lane, _, app in due})
                if now > seen and fresh != [(seen, now)]:
                    self._say_skipped([pair for pair in self._due([(seen, now)]) if pair not in due], now)
                if due:
                    await asyncio.to_thread(self._remember)
                if due or changed:
                    await self.history.save()
                for lane, running, app in due:
                    tasks.create_task(self._job(lane, running, app, now))
                seen = now

    def next_ms(self, app: EffectiveApp) -> int:
        """When an app is due next (wall ms); 0 for never."""
        answer = next_due(app.schedule, self._minute())
        return int(answer.timestamp() * 1000) if answer is not None else 0

    def _minute(self) -> int:
        return self._clock().wall_ms // MINUTE_MS

    def _due(self, spans: list[tuple[int, int]]) -> list[tuple[Lane, Scheduled, EffectiveApp]]:
        """What is due in a minute of these spans."""
        return [
            (lane, scheduled, app)
            for lane, scheduled in dict(self._running()).items()
            if scheduled.schedules
            for app in scheduled.jobs
            if any(comes_due(app.schedule, after, upto) for after, upto in spans)
        ]

    async def _account(self, seen: int, now: int, due: Collection[Name]) -> bool:
        """Take down the minutes up to `now` that were missed; return whether there is something new to write down."""
        running = dict(self._running())
        mine = {
            (*lane, app.name): app
            for lane, scheduled in running.items()
            if scheduled.schedules
            for app in scheduled.jobs
        }
        records = self.history.records
        # A lane that is not here yet, as after a start, may still come; one that was here and left is another node's.
        gone = [name for name in records if name not in mine and (name[:2] in running or name in self._here)]
        self.history.forget(gone)
        changed = bool(gone) or not records.keys() >= mine.keys()
        self._here = frozenset(mine)
        for name, app in mine.items():
            record = self.history.record(name, seen)
            after = record.upto
            if now > after or after - now > CORRECTION_MINUTES:
                record.upto = now
            asked = (app.schedule, after, now, MISSED_MAX + (name in due))
            minutes = (
                await asyncio.to_thread(due_minutes, *asked) if now - after > LONG_MINUTES else due_minutes(*asked)
            )
            missed = minutes[:-1] if name in due else minutes
            if missed:
                record.missed += len(missed)
                record.missed_last_ms = missed[-1] * MINUTE_MS
                changed = True
                self._say_missed(name, len(missed), missed[-1])
        return changed

    def _say_missed(self, name: Name, count: int, minute: int) -> None:
        _log.warning(
            "job %s missed %d of its minutes, the last at %s",
            name[2],
            count,
            f"{moment(minute):%Y-%m-%dT%H:%MZ}",
            extra={"event": "job.missed", "project": name[0], "app": name[2], "count": count},
        )

    def _say_skipped(self, due: Iterable[tuple[Lane, Scheduled, EffectiveApp]], minute: int) -> None:
        """Say of what was due in minutes that come again that it does not run, which may be so for hours."""
        for lane, running, app in due:
            self._end((*lane, app.name), running, JobRun(minute * MINUTE_MS, "skipped", BEFORE, 0))

    def _remember(self) -> None:
        """Write down the minutes before a job starts; without it, one more look back in time runs it again, no more."""
        try:
            write_private(self._memory, encode(tuple(self._minutes.spans)))
        except OSError as error:
            _log.error("schedules not remembered: %s", error, extra={"event": "schedules.not-remembered"})

    async def _job(self, lane: Lane, running: Scheduled, app: EffectiveApp, minute: int) -> None:
        name = (*lane, app.name)
        if name in self._busy:
            self._end(name, running, JobRun(minute * MINUTE_MS, "skipped", "the run before has not ended", 0))
            return
        self._busy[name] = None
        try:
            request_id = f"{app.name}-{moment(minute):%Y%m%dT%H%MZ}"
            done = await self._run_job(running.key, app.name, timeout_ms=app.timeout_ms, request_id=request_id)
        except PoolError as error:
            run = JobRun(minute * MINUTE_MS, "lost", str(error), 0)
        else:
            good = (done.outcome, done.exit_code) == ("exited", 0)
            detail = f"exit code {done.exit_code}" if done.outcome == "exited" else f"{done.outcome} {done.reason}"
            run = JobRun(minute * MINUTE_MS, "succeeded" if good else "failed", detail.strip(), done.duration_ms)
        finally:
            del self._busy[name]
        self._end(name, running, run)
        await self.history.save()

    def _end(self, name: Name, running: Scheduled, run: JobRun) -> None:
        assert run.outcome in OUTCOMES
        self.history.ended(name, run)
        _log.log(
            logging.INFO if run.outcome == "succeeded" else logging.WARNING,
            "job %s %s after %d ms",
            name[2],
            run.outcome,
            run.duration_ms,
            extra={
                "event": f"job.{run.outcome}",
                "project": name[0],
                "app": name[2],
                "release": running.release.hex(),
                "detail": run.detail,
            },
        )


def _less(span: tuple[int, int], first: int, last: int) -> list[tuple[int, int]]:
    """What of a span lies outside another."""
    parts = ((span[0], min(span[1], first)), (max(span[0], last), span[1]))
    return [(after, upto) for after, upto in parts if after < upto]


def _read(memory: Path) -> tuple[tuple[int, int], ...]:
    """The minutes of an earlier life; none if there was none, or the file is damaged or cannot be read."""
    try:
        spans: tuple[tuple[int, int], ...] = decode(memory.read_bytes(), tuple[tuple[int, int], ...])
    except FileNotFoundError:
        return ()
    except (OSError, DecodeError) as error:  # it is no reason to run no app at all
        _log.error("schedules not remembered: %s", error, extra={"event": "schedules.not-remembered"})
        return ()
    return spans
