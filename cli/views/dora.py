"""How delivery goes, computed from decisions and changes: the four DORA figures of one project in one environment.

Deployments are starts that were not taken back before the next one; lead time runs from the proposal, since commits
carry no time that anybody signed. Source: dora.dev, the metrics' definitions. Not here: where decisions come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from protocols.api_models import DecisionView

DAY_MS = 86_400_000


class Delivery(msgspec.Struct, frozen=True):
    """The figures; None where there is nothing to compute them from. Times in ms, rates as a share of 1."""

    deployments: int
    failed: int
    days: float
    per_day: float
    lead_time_ms: int | None
    change_fail_rate: float | None
    recovery_time_ms: int | None


@dataclass(slots=True)
class _Deployment:
    change: str
    started_ms: int
    ended_ms: int = 0
    failed_ms: int = 0


def delivery_of(decisions: Sequence[DecisionView], created_ms: Mapping[str, int]) -> Delivery:
    """Return the figures from decisions in any order; `created_ms` is when each change was proposed."""
    rows = sorted(decisions, key=lambda row: row.slot)
    deployments: list[_Deployment] = []
    for row in rows:
        match row.action:
            case "start":
                deployments.append(_Deployment(row.subject, row.at_ms))
            case "promote" if deployments and not deployments[-1].failed_ms:
                deployments[-1].ended_ms = row.at_ms
            case "abort" | "rollback" if deployments and not deployments[-1].failed_ms:
                deployments[-1].failed_ms = row.at_ms
            case _:
                pass
    good = [deployment for deployment in deployments if deployment.ended_ms and not deployment.failed_ms]
    failed = [deployment for deployment in deployments if deployment.failed_ms]
    span_ms = rows[-1].at_ms - rows[0].at_ms if rows else 0
    days = max(1.0, span_ms / DAY_MS)
    leads = [
        deployment.ended_ms - created_ms[deployment.change] for deployment in good if deployment.change in created_ms
    ]
    return Delivery(
        deployments=len(good),
        failed=len(failed),
        days=round(days, 2),
        per_day=round(len(good) / days, 3),
        lead_time_ms=int(median(leads)) if leads else None,
        change_fail_rate=round(len(failed) / (len(good) + len(failed)), 3)
        if deployments and (good or failed)
        else None,
        recovery_time_ms=int(median(deployment.failed_ms - deployment.started_ms for deployment in failed))
        if failed
        else None,
    )
