"""What scheduled apps did on this node, across its restarts: their last runs, how often each ended how, what was missed.

A minute is missed when a job was due and no run was begun: the node was away, or slept longer than it catches up. Where a
lane's schedules went to another node and came back while this one was away, what that one ran counts as missed here.
Not here: what is due and running it (schedules.py), and how it is shown (api/reports/views.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

import msgspec

from node.keys import write_private
from protocols.envelope import DecodeError, decode, encode

RUNS_KEPT = 10
JOBS_MAX = 256
"""Jobs remembered; of more, those whose minute was looked at longest ago go first."""

DETAIL_MAX_CHARS = 200
_log = logging.getLogger("freehold.schedules")

Name = tuple[str, str, str]
"""Project, environment and app."""


class JobRun(msgspec.Struct, frozen=True, array_like=True):
    """How one run of an app ended here, and the minute (wall ms) it was due."""

    due_ms: int
    outcome: str
    detail: str
    duration_ms: int


class JobRecord(msgspec.Struct, array_like=True):
    """One job. Mutable: it grows with every run. `upto` is the last minute of the Unix clock that was looked at for it."""

    upto: int
    runs: list[JobRun] = []
    """The newest last."""
    counts: dict[str, int] = {}
    """By outcome."""
    missed: int = 0
    missed_last_ms: int = 0
    """The newest minute missed (wall ms); 0 for none."""

    @property
    def failing(self) -> int:
        """How many of the newest runs failed or were lost, one after the other."""
        ended = [run for run in reversed(self.runs) if run.outcome != "skipped"]
        return next((index for index, run in enumerate(ended) if run.outcome == "succeeded"), len(ended))


class JobHistory:
    """The records of the jobs of this node, in a file."""

    def __init__(self, path: Path) -> None:
        """Take the file; what an earlier life wrote there is read."""
        self._path = path
        self._writing = asyncio.Lock()
        self.records: dict[Name, JobRecord] = dict(_read(path))

    def record(self, name: Name, seen: int) -> JobRecord:
        """Return the record of a job, looked at up to the minute `seen` if it is new."""
        job_record = self.records.get(name)
        if job_record is None:
            job_record = self.records[name] = JobRecord(seen)
            while len(self.records) > JOBS_MAX:
                del self.records[min(self.records, key=lambda one: self.records[one].upto)]
        return job_record

    def ended(self, name: Name, run: JobRun) -> None:
        """Take down how a run ended."""
        record = self.record(name, run.due_ms // 60_000)
        job_run = msgspec.structs.replace(run, detail=run.detail[:DETAIL_MAX_CHARS])
        record.runs = [*record.runs, job_run][-RUNS_KEPT:]
        record.counts[run.outcome] = record.counts.get(run.outcome, 0) + 1

    def forget(self, names: Collection[Name]) -> None:
        """Forget jobs that run elsewhere now, or nowhere."""
        for name in names:
            self.records.pop(name, None)

    async def save(self) -> None:
        """Write everything down, durably; a disk that refuses costs the history of this moment and no run."""
        async with self._writing:
            data = encode(tuple(self.records.items()))
            try:
                await asyncio.to_thread(write_private, self._path, data)
            except OSError as error:
                _log.error("jobs not remembered: %s", error, extra={"event": "jobs.not-remembered"})


def _read(path: Path) -> tuple[tuple[Name, JobRecord], ...]:
    """The records of an earlier life; none if there was none, or the file is damaged or cannot be read."""
    try:
        return decode(path.read_bytes(), tuple[tuple[Name, JobRecord], ...])
    except FileNotFoundError:
        return ()
    except (OSError, DecodeError) as error:
        _log.error("jobs not remembered: %s", error, extra={"event": "jobs.not-remembered"})
        return ()
