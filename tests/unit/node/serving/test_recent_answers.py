"""What is recent of totals that only grow."""

from __future__ import annotations

from node.serving.app_counts import AppCounts, AppName, AppTotals
from node.serving.recent_answers import LOOK_EVERY_S, SPAN_S, Recent, RecentAnswers

NAME = AppName("shop", "production", "web", "r1")


def totals(good: int, bad: int, **ends: int) -> AppTotals:
    return AppTotals({"2xx": good, "5xx": bad}, {"completed": good, **ends})


def test_only_the_last_minutes_count() -> None:
    counts = AppCounts()
    recent = RecentAnswers(counts)
    assert recent.recent() == {}
    counts.totals = {NAME: totals(100, 7, trapped=7)}
    recent.take()
    assert recent.recent() == {NAME: Recent(0, 0, {})}
    counts.totals = {NAME: totals(103, 9, trapped=8, cancelled=1)}
    recent.take()
    assert recent.recent() == {NAME: Recent(5, 2, {"trapped": 1, "cancelled": 1})}
    for _ in range(int(SPAN_S / LOOK_EVERY_S)):
        recent.take()
    assert recent.recent() == {NAME: Recent(0, 0, {})}


def test_an_app_that_is_new_counts_from_its_first_answer_and_one_that_left_does_not() -> None:
    counts = AppCounts()
    recent = RecentAnswers(counts)
    recent.take()
    counts.totals = {NAME: totals(0, 2)}
    assert recent.recent() == {NAME: Recent(2, 2, {})}
    counts.totals = {}
    assert recent.recent() == {}
