"""What the statements of a stage add up to: pass, fail, inconclusive, or not yet.

Counted over the pinned cohort, never over live nodes. Integers throughout, so that every voter reaches the same answer
bit for bit. Error rates are compared by Wilson score bounds (E. B. Wilson, 1927), one-sided 99 percent, in parts per
million rounded outwards; latencies by log2 buckets. The shape (candidate beside base over the same windows, missing
data explicit) follows Kayenta. Not here: one node's verdict (health.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import isqrt

from protocols.changes.change import Analysis
from protocols.changes.statements import LATENCY_BUCKETS, Counts, HealthVerdict
from protocols.machine import PeerId
from protocols.state.model import Rollout

MARGIN_PPM = 5_000
"""Half a percentage point: a candidate this much worse than the base is a nuisance, not yet a failure."""
P99_MIN_REQUESTS = 500
"""Under 500 requests the 99th percentile rests on fewer than five of them."""
SETTLE_PERIODS = 3
"""After this many times `min_healthy_ms`, who has not spoken counts as unreached and no traffic as none to come."""
LARGE_COHORT = 3
"""Smaller cohorts cannot spare a node."""

_Z = 23_263
_Z_SCALE = 10_000
"""z = 2.3263, the normal quantile of 0.99, as an integer ratio."""
_ROOT_SCALE = 1 << 20
"""Scales the square root, so that isqrt keeps about six decimal digits."""
_PPM = 1_000_000


class Outcome(Enum):
    """What a stage's statements amount to."""

    PASS = "pass"  # noqa: S105 (a verdict, not a password)
    FAIL = "fail"
    PENDING = "pending"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Assessment:
    """An outcome with its numbers: nodes by verdict, both sides' counts, and the sentence that explains it."""

    outcome: Outcome
    reason: str
    passed: int
    failed: int
    pending: int
    unreached: int
    candidate: Counts
    base: Counts


def wilson_ppm(errors: int, requests: int) -> tuple[int, int]:
    """Return the one-sided 99 % lower and upper Wilson bounds of errors/requests, in ppm, rounded outwards.

    No requests give (0, 1,000,000): nothing is known.
    """
    assert 0 <= errors <= requests
    if requests == 0:
        return 0, _PPM
    z2, s2 = _Z * _Z, _Z_SCALE * _Z_SCALE
    centre = (2 * errors * s2 + z2) * _ROOT_SCALE
    radicand = 4 * s2 * errors * (requests - errors) + requests * z2
    root = isqrt(radicand * _ROOT_SCALE * _ROOT_SCALE // requests)
    scale = 2 * (requests * s2 + z2) * _ROOT_SCALE
    lower = (centre - _Z * (root + 1)) * _PPM // scale
    upper = -(-(centre + _Z * (root + 1)) * _PPM // scale)
    return max(0, lower), min(_PPM, upper)


def p99_bucket(counts: Counts) -> int:
    """Return the bucket that holds the 99th percentile, -1 when nothing was measured."""
    total = sum(counts.buckets)
    seen = 0
    for bucket, count in enumerate(counts.buckets):
        seen += count
        if total and seen * 100 >= total * 99:
            return bucket
    return -1


def pooled(counts: Sequence[Counts]) -> Counts:
    """Return the sum of counts."""
    buckets = [0] * LATENCY_BUCKETS
    for one in counts:
        for bucket, count in enumerate(one.buckets):
            buckets[bucket] += count
    return Counts(sum(one.requests for one in counts), sum(one.errors for one in counts), tuple(buckets))


def percent(ppm: int) -> str:
    """Return parts per million for people, to two decimals, rounded down; integers only, so that all voters agree."""
    hundredths = ppm // 100
    whole, rest = divmod(hundredths, 100)
    return f"{whole}.{rest:02d}".rstrip("0").rstrip(".") + " %"


def comparison_failure(candidate: Counts, base: Counts, limits: Analysis) -> str:
    """Return why the candidate is worse than its limits or than the base allow; "" when it is not shown to be."""
    lower, _ = wilson_ppm(candidate.errors, candidate.requests)
    if limits.max_error_ppm and candidate.requests >= limits.min_requests and lower > limits.max_error_ppm:
        return f"error rate at least {percent(lower)}, the limit is {percent(limits.max_error_ppm)}"
    if min(candidate.requests, base.requests) >= limits.min_requests:
        _, upper = wilson_ppm(base.errors, base.requests)
        if lower > upper + MARGIN_PPM:
            return f"error rate at least {percent(lower)}, the base's is at most {percent(upper)}"
    mine, its = p99_bucket(candidate), p99_bucket(base)
    if sum(candidate.buckets) >= P99_MIN_REQUESTS:
        if limits.max_latency_p99_ms and mine > 0 and (1 << (mine - 1)) >= limits.max_latency_p99_ms:
            return f"p99 is {1 << (mine - 1)} ms or more, the limit is {limits.max_latency_p99_ms} ms"
        if sum(base.buckets) >= P99_MIN_REQUESTS and mine > its + 1:
            return f"p99 is in latency bucket {mine}, the base's in {its}: over twice as slow"
    return ""


def unreached_allowed(cohort: int, first: bool) -> int:
    """Return how many silent nodes a stage may have: none at first, then one or a tenth for three and more."""
    return 0 if first or cohort < LARGE_COHORT else max(1, cohort // 10)


def assess(
    rollout: Rollout,
    verdicts: Mapping[PeerId, HealthVerdict],
    at_ms: int,
    *,
    timed_out: bool = False,
    vanished: Collection[PeerId] = (),
) -> Assessment:
    """Return what `verdicts`, all of this stage, amount to at `at_ms` (wall, the decision's).

    `timed_out` says that a majority of voters gave up waiting: who took the candidate and never passed has failed.
    `vanished` are the nodes that a majority of voters lost sight of: whatever they said before, the candidate may have
    killed them.
    """
    cohort, first = rollout.cohort, rollout.stage == 0
    said = [verdicts[node] for node in cohort if node in verdicts]
    words = [_word(verdicts.get(node), timed_out=timed_out, lost=node in vanished) for node in cohort]
    passed, failed, pending, unreached = (words.count(word) for word in ("pass", "fail", "pending", ""))
    candidate = pooled([one.candidate for one in said])
    outside = [one.base for node, one in sorted(verdicts.items()) if node not in cohort and node in rollout.order]
    base = pooled(outside or [one.base for one in said])

    def result(outcome: Outcome, reason: str) -> Assessment:
        return Assessment(outcome, reason, passed, failed, pending, unreached, candidate, base)

    limits = rollout.plan.analysis
    budget = 0 if first else limits.failure_limit
    allowed = unreached_allowed(len(cohort), first)
    stage = rollout.stages[rollout.stage]
    settled = timed_out or at_ms >= rollout.stage_at_ms + SETTLE_PERIODS * stage.min_healthy_ms
    if failed > budget:
        return result(Outcome.FAIL, f"{failed} of {len(cohort)} nodes failed, {budget} may")
    worse = comparison_failure(candidate, base, limits)
    if worse:
        return result(Outcome.FAIL, worse)
    if timed_out and unreached > allowed:
        return result(Outcome.FAIL, f"{unreached} of {len(cohort)} nodes were never reached, {allowed} may be")
    if pending or unreached > (allowed if settled else 0):
        return result(Outcome.PENDING, f"{passed} of {len(cohort)} nodes passed")
    doubted = candidate.requests < limits.min_requests and _doubtful(candidate, base, limits)
    if _measured(rollout, said, candidate) and not doubted:
        return result(Outcome.PASS, f"{passed} of {len(cohort)} nodes passed")
    if settled and doubted:
        few = f"{candidate.errors} of {candidate.requests} requests failed"
        return result(Outcome.INCONCLUSIVE, f"{few}, too many to go on and too few to judge by")
    if settled:
        return result(Outcome.INCONCLUSIVE, "ready, but neither traffic nor a smoke check says that it works")
    return result(Outcome.PENDING, "ready; waiting for traffic")


def _word(said: HealthVerdict | None, *, timed_out: bool, lost: bool) -> str:
    """Return what a node counts as; "" when it was never reached, or was lost before it took the candidate."""
    if said is None:
        return ""
    gone = lost or (timed_out and said.verdict == "pending")
    if gone:
        return "fail" if said.taken or said.verdict == "fail" else ""
    return said.verdict


def _doubtful(candidate: Counts, base: Counts, limits: Analysis) -> bool:
    """Whether the few requests there were speak against the candidate: a passed smoke check does not outweigh them."""
    lower, _ = wilson_ppm(candidate.errors, candidate.requests)
    _, upper = wilson_ppm(base.errors, base.requests)
    return lower > min(limits.max_error_ppm or _PPM, upper + MARGIN_PPM)


def _measured(rollout: Rollout, said: Sequence[HealthVerdict], candidate: Counts) -> bool:
    if rollout.plan.probe_only or candidate.requests >= rollout.plan.analysis.min_requests:
        return True
    return all(one.smoke_runs > 0 for one in said if one.verdict == "pass") and bool(said)
