"""Metrics of apps, jobs and rollouts: one series for each thing that is deployed, and no more.

A caller sees those of its own projects. Not here: counting (node/serving/app_counts.py), and metrics of the node itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from node.api.callers.scope import Scope
from node.control import Control
from node.serving.app_counts import FIRST_BUCKET_S
from node.serving.deliveries import DELIVERY_OUTCOMES
from node.serving.schedules import OUTCOMES
from protocols.state.model import Rollout

_APP = ["project", "environment", "app", "release"]
_LANE = ["project", "environment"]
_JOB = [*_LANE, "app"]


async def look(control: Control) -> None:
    """Count what the workers say now."""
    async with control.app_counts.looking:
        loaded = {
            running.key: (*lane, running.release.hex()[:16]) for lane, running in control.workloads.running.items()
        }
        control.app_counts.add(await control.pool.status(), loaded)


def app_metrics(control: Control, scope: Scope) -> Iterable[Metric]:
    """Yield the metrics of apps that this node serves."""
    requests = CounterMetricFamily(
        "freehold_app_answers", "Answers of an app by class of status.", labels=[*_APP, "class"]
    )
    ended = CounterMetricFamily(
        "freehold_app_outcomes", "Requests of an app by how they ended.", labels=[*_APP, "outcome"]
    )
    spent = HistogramMetricFamily("freehold_app_duration_seconds", "How long an app took to answer.", labels=_APP)
    lost = CounterMetricFamily("freehold_app_log_lines_dropped", "Log lines over an app's allowance.", labels=_APP)
    waiting = GaugeMetricFamily("freehold_app_queued", "Requests that wait for an instance.", labels=_APP)
    running = GaugeMetricFamily("freehold_app_in_flight", "Requests that an app works on.", labels=_APP)
    engine = GaugeMetricFamily(
        "freehold_app_engine_info", "1 for the engine that serves an app's plain requests.", labels=[*_APP, "engine"]
    )
    for name, total in sorted(control.app_counts.totals.items()):
        if not scope.sees(name.project, name.environment):
            continue
        labels = [name.project, name.environment, name.app, name.release]
        for status, count in sorted(total.statuses.items()):
            requests.add_metric([*labels, status], count)
        for outcome, count in sorted(total.outcomes.items()):
            ended.add_metric([*labels, outcome], count)
        buckets, sofar = [], 0
        for index, count in enumerate(total.buckets):
            sofar += count
            last = index + 1 == len(total.buckets)
            buckets.append(("+Inf" if last else f"{FIRST_BUCKET_S * 2**index:.6g}", sofar))
        if buckets:
            spent.add_metric(labels, buckets, sum_value=total.latency_sum_us / 1e6)
        lost.add_metric(labels, total.lines_dropped)
        waiting.add_metric(labels, total.queued)
        running.add_metric(labels, total.in_flight)
        engine.add_metric([*labels, total.engine], 1)
    yield from (requests, ended, spent, lost, waiting, running, engine)


def job_metrics(control: Control, scope: Scope) -> Iterable[Metric]:
    """Yield how the runs of each scheduled app ended on this node, since it first ran here, and what was missed."""
    runs = CounterMetricFamily("freehold_job_runs", "Runs of a scheduled app, by end.", labels=[*_JOB, "outcome"])
    missed = CounterMetricFamily("freehold_job_missed_minutes", "Minutes a run was due and none began.", labels=_JOB)
    last = GaugeMetricFamily(
        "freehold_job_last_success_timestamp_seconds", "When a run that succeeded was due.", labels=_JOB
    )
    failing = GaugeMetricFamily("freehold_job_failures_in_a_row", "Of the newest runs, how many failed.", labels=_JOB)
    for name, record in sorted(control.schedules.history.records.items()):
        if not scope.sees(*name[:2]):
            continue
        for outcome in OUTCOMES:
            runs.add_metric([*name, outcome], record.counts.get(outcome, 0))
        missed.add_metric(name, record.missed)
        failing.add_metric(name, record.failing)
        good = [run.due_ms for run in record.runs if run.outcome == "succeeded"]
        if good:
            last.add_metric(name, good[-1] / 1000)
    yield from (runs, missed, last, failing)


def message_metrics(control: Control, scope: Scope) -> Iterable[Metric]:
    """Yield what became of the messages of each queue that this node delivered, since the daemon started."""
    ended = CounterMetricFamily(
        "freehold_messages", "Deliveries of a queue's messages, by end.", labels=[*_LANE, "queue", "outcome"]
    )
    outcomes = control.deliveries.outcomes
    for project, environment, queue in sorted({name[:3] for name in outcomes}):
        if scope.sees(project, environment):
            for outcome in DELIVERY_OUTCOMES:
                ended.add_metric([project, environment, queue, outcome], outcomes[project, environment, queue, outcome])
    yield ended


def lane_metrics(control: Control, scope: Scope) -> Iterable[Metric]:
    """Yield where rollouts stand, and which starts wait for people."""
    stage = GaugeMetricFamily("freehold_rollout_stage", "The open stage of a rollout, from 1.", labels=_LANE)
    opened = GaugeMetricFamily("freehold_rollout_stage_opened_slot", "The decision that opened it.", labels=_LANE)
    due = GaugeMetricFamily(
        "freehold_rollout_stage_due_timestamp_seconds", "By when the open stage should be decided.", labels=_LANE
    )
    paused = GaugeMetricFamily("freehold_rollout_paused", "1 if a rollout is paused.", labels=_LANE)
    frozen = GaugeMetricFamily("freehold_lane_frozen", "1 if nothing may start there.", labels=_LANE)
    held = GaugeMetricFamily("freehold_starts_waiting", "Starts that wait on this node.", labels=_LANE)
    for lane in control.core.state.lanes:
        labels = [lane.project, lane.environment]
        if not scope.sees(*labels):
            continue
        frozen.add_metric(labels, bool(lane.frozen))
        if lane.rollout is not None:
            stage.add_metric(labels, lane.rollout.stage + 1)
            opened.add_metric(labels, lane.rollout.opened)
            paused.add_metric(labels, bool(lane.rollout.paused))
            due.add_metric(labels, due_ms(lane.rollout) / 1000)
    changes = control.core.dossiers.changes
    known = [
        changes[digest]
        for digest, waits in control.starter.starts.items()
        if digest in changes and waits.outcome == "waiting"
    ]
    places = [(proposed.change.project, proposed.change.environment) for proposed in known]
    for place in sorted(set(places)):
        if scope.sees(*place):
            held.add_metric(list(place), places.count(place))
    yield from (stage, opened, due, paused, frozen, held)


def due_ms(rollout: Rollout) -> int:
    """Return by when (wall ms) the open stage of a rollout is decided where all goes well: its times, and its deadline."""
    stage = rollout.stages[rollout.stage]
    return rollout.stage_at_ms + stage.min_healthy_ms + stage.pause_ms + rollout.plan.progress_deadline_ms
