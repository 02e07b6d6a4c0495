"""Scheduled apps in words: how their last runs ended, what is next, what was missed, and what of it is a fault.

Pure judgements on what the node that runs them told. Not here: asking (overview.py, commands/mesh/doctor.py).
"""

from __future__ import annotations

from msgspec.structs import replace

from cli.text.foreign import one_line
from cli.text.units import counted, in_words
from cli.views.finding import Finding
from cli.views.lane_status import ago
from protocols.api_models import JobView, NodeView

MISSED_TOLD_MS = 24 * 3_600_000
"""A minute that was missed longer ago is history."""


def job_words(job: JobView, now_ms: int) -> str:
    """Say where one job stands, in one line."""
    due = f"next in {in_words(job.next_ms - now_ms)}" if job.next_ms else "never due again"
    said = f"{_last_words(job, now_ms)}, {due}" if job.last_outcome else f"has not run on this node yet, {due}"
    return f"job {job.app} {said}{_missed_words(job, now_ms)}"


def jobs(view: NodeView, wall_ms: int) -> list[Finding]:
    """Judge the scheduled apps that a node tells of."""
    findings = []
    for lane in view.jobs:
        for job in lane.jobs:
            findings += _judged(lane.project, lane.environment, job, wall_ms)
    return findings


def _judged(project: str, environment: str, job: JobView, wall_ms: int) -> list[Finding]:
    name = f"{project}/{environment}: job {job.app}"
    logs = f"freehold logs --project {project} --app {job.app}"
    findings = []
    if job.failing:
        findings.append(Finding(True, f"{name} {_last_words(_ended(job), wall_ms)}", logs))
    elif job.last_outcome == "skipped" and "has not ended" in job.last_detail:
        what = f"{name} was due {ago(job.last_ms, wall_ms)} while its run before still went"
        findings.append(Finding(False, what, f"give it a longer schedule or less to do; what it does: {logs}"))
    if missed := _missed_words(job, wall_ms):
        what = f"{name}{missed.replace('; ', ' ')}"
        step = f"freehold project place {project} --env {environment} --schedules NODE"
        findings.append(Finding(False, what, f"if its node is often away, put its schedules on another: {step}"))
    return findings


def _ended(job: JobView) -> JobView:
    """The job as of its newest run that was not skipped."""
    last = next((run for run in job.runs if run.outcome != "skipped"), None)
    if last is None:
        return job
    return replace(job, last_outcome=last.outcome, last_detail=last.detail, last_ms=last.due_ms)


def _last_words(job: JobView, now_ms: int) -> str:
    when = ago(job.last_ms, now_ms)
    if job.last_outcome == "succeeded":
        return f"succeeded {when}"
    word = "got no worker" if job.last_outcome == "lost" else job.last_outcome
    row = f", {counted(job.failing, 'run')} in a row" if job.failing > 1 else ""
    return f"{word} {when} ({one_line(job.last_detail)}){row}"


def _missed_words(job: JobView, now_ms: int) -> str:
    if not job.missed or now_ms - job.missed_last_ms > MISSED_TOLD_MS:
        return ""
    return f"; missed {counted(job.missed, 'minute')}, the last {ago(job.missed_last_ms, now_ms)}"
