"""Counts per release from the workers' counters: totals that survive a worker's restart, since a stage opened.

Workers count from zero when they start; the meter adds up the differences. Latencies become the log2 millisecond
buckets of a health verdict. Not here: what the numbers mean (protocols/state/analysis.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from protocols.changes.statements import LATENCY_BUCKETS, Counts
from runtime.messages import Status

WORKER_BUCKETS_BELOW_1_MS = 4
"""A worker's bucket i ends at 64 us * 2**i: buckets 0 to 4 are (nearly) below one millisecond."""


@dataclass(slots=True)
class Tally:
    """Totals of one loaded release. Mutable: it grows with every look."""

    requests: int = 0
    errors: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)
    served: set[tuple[str, str]] = field(default_factory=set)
    """Of the apps whose answers took a measured time: each, and the engine that its plain requests go to."""

    def counts(self) -> Counts:
        """The totals as a statement carries them."""
        return Counts(self.requests, self.errors, tuple(self.buckets), self.engine)

    @property
    def engine(self) -> str:
        """The engine whose latencies these are; of several a name that is equal where each app had the same one."""
        engines = {engine for _, engine in self.served}
        if len(engines) > 1:
            return f"mixed-{hashlib.sha256(repr(sorted(self.served)).encode()).hexdigest()[:8]}"
        return engines.pop() if engines else Counts().engine


class Meter:
    """The tallies of every loaded release, by the key it was loaded under."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self._seen: dict[tuple[int, str, str], tuple[int, int, tuple[int, ...]]] = {}

    def add(self, statuses: Iterable[Status]) -> None:
        """Take one look at all workers."""
        for status in statuses:
            for app in status.apps:
                errors = app.statuses.get("5xx", 0)
                name = (status.pid, app.key, app.app)
                before = self._seen.get(name, (0, 0, (0,) * len(app.latency_buckets)))
                self._seen[name] = (app.requests, errors, app.latency_buckets)
                tally = self._tallies.setdefault(app.key, Tally())
                tally.requests += app.requests - before[0]
                tally.errors += errors - before[1]
                for index, count in enumerate(app.latency_buckets):
                    bucket = min(max(index - WORKER_BUCKETS_BELOW_1_MS, 0), LATENCY_BUCKETS - 1)
                    tally.buckets[bucket] += count - before[2][index]
                if any(app.latency_buckets):
                    tally.served.add((app.app, app.engine))

    def tally(self, key: str) -> Tally:
        """The totals of a release so far."""
        return self._tallies.get(key, Tally())

    def forget(self, key: str) -> None:
        """Forget a release that was unloaded."""
        self._tallies.pop(key, None)
        self._seen = {name: seen for name, seen in self._seen.items() if name[1] != key}


def since(now: Counts, then: Counts) -> Counts:
    """The difference of two looks at one tally; whatever they saw of a request that was under way, a sound one.

    A worker counts a request when it begins and its latency when it ends: one that spans the first look would otherwise
    have a latency and be no request, and every voter would reject the numbers.
    """
    earlier = then.buckets or (0,) * len(now.buckets)
    buckets = tuple(max(0, bucket - other) for bucket, other in zip(now.buckets, earlier, strict=True))
    requests = max(0, now.requests - then.requests, sum(buckets))
    return Counts(requests, min(max(0, now.errors - then.errors), requests), buckets, now.engine)
