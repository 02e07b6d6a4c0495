"""What apps answered in the last minutes, for doctor: how many requests, how many of them failed, how they ended.

Totals are looked at every few seconds; the difference to the oldest look still held is what is recent. Not here: the
totals (app_counts.py), judging them (cli/views/apps.py), and health verdicts of a rollout (meter.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from node.serving.app_counts import AppCounts, AppName

LOOK_EVERY_S = 5.0
SPAN_S = 300.0
GOOD_END = "completed"


@dataclass(frozen=True, slots=True)
class Recent:
    """One app's answers in the last minutes: all, those of 5xx, and what was not an orderly end, by its name."""

    requests: int
    failed: int
    ends: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Look:
    answers: dict[AppName, dict[str, int]] = field(default_factory=dict)
    ends: dict[AppName, dict[str, int]] = field(default_factory=dict)


class RecentAnswers:
    """The looks of the last minutes."""

    def __init__(self, counts: AppCounts) -> None:
        """Take the totals; nothing is recent before the first look."""
        self._counts = counts
        self._looks: deque[_Look] = deque(maxlen=int(SPAN_S / LOOK_EVERY_S) + 1)

    async def run(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look until cancelled; `look` brings the totals up to date."""
        while True:
            await look()
            self.take()
            await asyncio.sleep(LOOK_EVERY_S)

    def take(self) -> None:
        """Remember the totals as they are."""
        totals = self._counts.totals
        self._looks.append(
            _Look(
                {name: dict(total.statuses) for name, total in totals.items()},
                {name: dict(total.outcomes) for name, total in totals.items()},
            )
        )

    def recent(self) -> dict[AppName, Recent]:
        """Return what each app that is loaded answered since the oldest look."""
        if not self._looks:
            return {}
        before = self._looks[0]
        by_app = {}
        for name, total in self._counts.totals.items():
            answers = _grown(total.statuses, before.answers.get(name, {}))
            ends = _grown(total.outcomes, before.ends.get(name, {}))
            ends.pop(GOOD_END, None)
            by_app[name] = Recent(sum(answers.values()), answers.get("5xx", 0), ends)
        return by_app


def _grown(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in now.items() if count > before.get(name, 0)}
