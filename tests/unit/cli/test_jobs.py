"""Scheduled apps in words, and what of them doctor calls a fault."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from cli.views.jobs import job_words, jobs
from protocols.api_models import JobRunView, JobView, LaneJobsView
from tests.support.protocols.answers import node_view

NOW = 1_800_014_400_000
MINUTE_MS = 60_000


def job(*ends: str, **more: Any) -> JobView:
    """A job whose newest runs ended so, the last first, each a minute before the other."""
    details = {"succeeded": "exit code 0", "failed": "exit code 3", "lost": "no worker is running",
               "skipped": "the run before has not ended"}  # fmt: skip
    runs = [
        JobRunView(due_ms=NOW - (index + 1) * MINUTE_MS, outcome=text, detail=details[text], duration_ms=5)
        for index, text in enumerate(ends)
    ]
    ended = [text for text in ends if text != "skipped"]
    failing = next((index for index, text in enumerate(ended) if text == "succeeded"), len(ended))
    last = runs[0] if runs else JobRunView(due_ms=0, outcome="", detail="", duration_ms=0)
    new_job = JobView(
        "sweep", "* * * * *", NOW + MINUTE_MS, last.due_ms, last.outcome, last.detail, runs=tuple(runs), failing=failing
    )
    return replace(new_job, **more)


def judged(one: JobView) -> list[tuple[bool, str, str]]:
    view = node_view(jobs=(LaneJobsView("shop", "production", (one,)),))
    return [(job.fault, job.what, job.advice) for job in jobs(view, NOW)]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (job(), "job sweep has not run on this node yet, next in 1m"),
        (job("succeeded"), "job sweep succeeded 1m ago, next in 1m"),
        (job("failed", "succeeded"), "job sweep failed 1m ago (exit code 3), next in 1m"),
        (job("failed", "failed"), "job sweep failed 1m ago (exit code 3), 2 runs in a row, next in 1m"),
        (job("lost"), "job sweep got no worker 1m ago (no worker is running), next in 1m"),
        (job("succeeded", missed=3, missed_last_ms=NOW - 3_600_000),
         "job sweep succeeded 1m ago, next in 1m; missed 3 minutes, the last 1h ago"),
        (job("succeeded", next_ms=0), "job sweep succeeded 1m ago, never due again"),
    ],
)  # fmt: skip
def test_a_job_in_words(one: JobView, words: str) -> None:
    assert job_words(one, NOW) == words


@pytest.mark.parametrize("ends", [("succeeded",), ("succeeded", "failed", "failed"), ("skipped", "succeeded"), ()])
def test_a_job_that_works_again_is_no_fault(ends: tuple[str, ...]) -> None:
    assert not any(fault for fault, *_ in judged(job(*ends)))


@pytest.mark.parametrize("ends", [("failed",), ("lost", "succeeded"), ("skipped", "failed", "succeeded")])
def test_a_job_whose_last_run_failed_is_one_with_the_command_that_shows_why(ends: tuple[str, ...]) -> None:
    ((fault, what, advice),) = judged(job(*ends))
    assert fault
    assert what.startswith("shop/production: job sweep ")
    assert ("exit code 3" in what) == ("failed" in ends)
    assert advice == "freehold logs --project shop --app sweep"


def test_minutes_missed_are_told_for_a_day() -> None:
    ((fault, what, advice),) = judged(job("succeeded", missed=1, missed_last_ms=NOW - 3_600_000))
    assert (fault, what) == (False, "shop/production: job sweep missed 1 minute, the last 1h ago")
    assert "freehold project place shop --env production --schedules NODE" in advice
    assert judged(job("succeeded", missed=1, missed_last_ms=NOW - 25 * 3_600_000)) == []


def test_a_node_of_the_release_before_tells_of_no_jobs() -> None:
    assert jobs(node_view(), NOW) == []
