"""Counts of what apps answered, for monitoring: totals that only grow, whichever worker counted and however often it died.

By app, environment, release and class of status, so there are as many as is deployed. Workers count from zero when they
start; the differences are added up. Not here: health verdicts (meter.py), and how counts are shown (api/reports/metrics.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from runtime.messages import AppStatus, Status

FIRST_BUCKET_S = 64e-6
"""A worker's first latency bucket ends here, and each ends at twice the one before; the last has no end."""


@dataclass(frozen=True, slots=True, order=True)
class AppName:
    """One app of one release in one environment; `release` is its digest in hex."""

    project: str
    environment: str
    app: str
    release: str


@dataclass(slots=True)
class AppTotals:
    """What one app came to. Mutable: it grows with every look."""

    statuses: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    buckets: list[int] = field(default_factory=list)
    latency_sum_us: int = 0
    lines_dropped: int = 0
    queued: int = 0
    in_flight: int = 0
    engine: str = ""
    """What serves its plain requests, by the last look; "native+python" where workers differ."""
    engine_reason: str = ""
    """Why not the native engine, in a worker that has it."""


class AppCounts:
    """The totals of everything that is loaded now."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.looking = asyncio.Lock()
        """Held from asking the workers to `add`: an older look that came in later would be counted a second time."""
        self.totals: dict[AppName, AppTotals] = {}
        self.engine = ""
        """What serves in the workers, by the last look."""
        self.engine_reason = ""
        """Why not the native one, if something is to be said."""
        self._seen: dict[tuple[int, str, str], AppStatus] = {}

    def add(self, statuses: Iterable[Status], loaded: Mapping[str, tuple[str, str, str]]) -> None:
        """Take one look at all workers; `loaded` says which project, environment and release each key is."""
        statuses = tuple(statuses)
        self.engine = _joined(status.engine for status in statuses)
        self.engine_reason = next((status.engine_reason for status in statuses if status.engine_reason), "")
        looks = [(status.pid, app) for status in statuses for app in status.apps if app.key in loaded]
        names = {AppName(*loaded[app.key][:2], app.app, loaded[app.key][2]) for _, app in looks}
        self.totals = {name: total for name, total in self.totals.items() if name in names}
        self._seen = {name: seen for name, seen in self._seen.items() if name[1] in loaded}
        for name in names:
            total = self.totals.setdefault(name, AppTotals())
            total.queued = total.in_flight = 0
            total.engine = total.engine_reason = ""
        for pid, app in looks:
            project, environment, release = loaded[app.key]
            total = self.totals[AppName(project, environment, app.app, release)]
            total.engine = _joined({*total.engine.split("+"), app.engine} - {""})
            total.engine_reason = total.engine_reason or app.engine_reason
            _grow(total, app, self._seen.get((pid, app.key, app.app)))
            self._seen[pid, app.key, app.app] = app


def _joined(engines: Iterable[str]) -> str:
    return "+".join(sorted(set(engines)))


def _grow(total: AppTotals, now: AppStatus, before: AppStatus | None) -> None:
    for counted, new, old in (
        (total.statuses, now.statuses, before.statuses if before else {}),
        (total.outcomes, now.outcomes, before.outcomes if before else {}),
    ):
        for name, count in new.items():
            counted[name] = counted.get(name, 0) + max(0, count - old.get(name, 0))
    total.buckets = total.buckets or [0] * len(now.latency_buckets)
    earlier = before.latency_buckets if before else (0,) * len(now.latency_buckets)
    for index, (count, was) in enumerate(zip(now.latency_buckets, earlier, strict=True)):
        total.buckets[index] += max(0, count - was)
    total.latency_sum_us += max(0, now.latency_sum_us - (before.latency_sum_us if before else 0))
    total.lines_dropped += max(0, now.log_lines_dropped - (before.log_lines_dropped if before else 0))
    total.queued += now.queued
    total.in_flight += now.in_flight
