"""What the statements of a stage add up to: pass, fail, inconclusive, or not yet.

Counted over the pinned cohort and its base group, never over live nodes. From rules 2 on (SetRules) no single node's
numbers decide for others: each node of the cohort is compared with its own past first, and may stop the rollout under its
name; pooled numbers come second, with a node's weight capped and a base group's extremes left out; and latencies are
compared only where the same engine served, since one takes a tenth of the other's time. Integers throughout,
so that every voter reaches the same answer bit for bit. Error rates are compared by Wilson score bounds (E. B. Wilson,
1927), one-sided 99 percent, in parts per million rounded outwards; latencies by log2 buckets. The shape (candidate beside
base over the same windows, missing data explicit) follows Kayenta. Not here: one node's verdict (health.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import isqrt

import msgspec

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
"""Smaller cohorts cannot spare a node, and in smaller groups one liar is half of what is said."""
ROBUST_RULES = 2
"""The feature level from which one node's numbers decide for nobody else."""
WEIGHT_MAX = 2
"""Times the median of its group: what a node's requests count at most in pooled numbers."""

GOODBYE_RULES = 2
"""The feature level from which a node that said goodbye in time is not waited for; before, its word reads as pending."""

_Z = 23_263
_Z_SCALE = 10_000
"""z = 2.3263, the normal quantile of 0.99, as an integer ratio."""
_ROOT_SCALE = 1 << 20
"""Scales the square root, so that isqrt keeps about six decimal digits."""
_PPM = 1_000_000


class StageOutcome(Enum):
    """What a stage's statements amount to."""

    PASS = "pass"  # noqa: S105 (a verdict, not a password)
    FAIL = "fail"
    PENDING = "pending"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Assessment:
    """An outcome with its numbers: nodes by verdict, both sides' counts, and the sentence that explains it."""

    outcome: StageOutcome
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


def pooled(counts: Sequence[Counts], engine: str = Counts().engine) -> Counts:
    """Return the sum of counts, as of one engine: the same on both sides wherever engines make no difference."""
    buckets = [0] * LATENCY_BUCKETS
    for entry in counts:
        for bucket, count in enumerate(entry.buckets):
            buckets[bucket] += count
    return Counts(
        sum(count.requests for count in counts), sum(count.errors for count in counts), tuple(buckets), engine
    )


def capped(counts: Sequence[Counts]) -> list[Counts]:
    """Return counts of which none has over WEIGHT_MAX times the median requests of those that had any; rates stay."""
    measured = sorted(count.requests for count in counts if count.requests)
    if not measured:
        return [Counts() for _ in counts]
    most = WEIGHT_MAX * measured[(len(measured) - 1) // 2]
    return [_scaled(count, most) for count in counts]


def _scaled(counts: Counts, most: int) -> Counts:
    """Return counts of at most `most` requests and as many latencies, in the proportions they had."""
    requests, timed = counts.requests, sum(counts.buckets)
    if max(requests, timed) <= most:
        return counts
    buckets = tuple(count * min(most, timed) // timed for count in counts.buckets) if timed else counts.buckets
    number = min(most, requests)
    return Counts(number, counts.errors * number // requests if requests else 0, buckets, counts.engine)


def percent(ppm: int) -> str:
    """Return parts per million for people, to two decimals, rounded down; integers only, so that all voters agree."""
    hundredths = ppm // 100
    whole, rest = divmod(hundredths, 100)
    return f"{whole}.{rest:02d}".rstrip("0").rstrip(".") + " %"


def comparison_failure(candidate: Counts, base: Counts, limits: Analysis) -> str:
    """Return why the candidate is worse than its limits or than the base allow; "" when it is not shown to be."""
    return _errs_more(candidate, base, limits) or _too_slow(candidate, limits) or _slower(candidate, base)


def _errs_more(candidate: Counts, base: Counts, limits: Analysis) -> str:
    lower, _ = wilson_ppm(candidate.errors, candidate.requests)
    if limits.max_error_ppm and candidate.requests >= limits.min_requests and lower > limits.max_error_ppm:
        return f"error rate at least {percent(lower)}, the limit is {percent(limits.max_error_ppm)}"
    if min(candidate.requests, base.requests) >= limits.min_requests:
        _, upper = wilson_ppm(base.errors, base.requests)
        if lower > upper + MARGIN_PPM:
            return f"error rate at least {percent(lower)}, the base's is at most {percent(upper)}"
    return ""


def _too_slow(candidate: Counts, limits: Analysis) -> str:
    mine, most = p99_bucket(candidate), limits.max_latency_p99_ms
    if sum(candidate.buckets) >= P99_MIN_REQUESTS and most and mine > 0 and (1 << (mine - 1)) >= most:
        return f"p99 is {1 << (mine - 1)} ms or more, the limit is {most} ms"
    return ""


def _slower(candidate: Counts, base: Counts) -> str:
    mine, its = p99_bucket(candidate), p99_bucket(base)
    enough = min(sum(candidate.buckets), sum(base.buckets)) >= P99_MIN_REQUESTS
    if candidate.engine == base.engine and enough and mine > its + 1:
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
    rules: int = ROBUST_RULES,
) -> Assessment:
    """Return what `verdicts`, all of this stage, amount to at `at_ms` (wall, the decision's).

    `timed_out` says that a majority of voters gave up waiting: who took the candidate and never passed has failed.
    `vanished` are the nodes that a majority of voters lost sight of: whatever they said before, the candidate may have
    killed them. `rules` is the mesh's feature level.
    """
    cohort, first, robust = rollout.cohort, rollout.stage == 0, rules >= ROBUST_RULES
    limits = rollout.plan.analysis
    said = [verdicts[node] for node in cohort if node in verdicts]
    words = [_word(verdicts.get(node), timed_out=timed_out, lost=node in vanished, rules=rules) for node in cohort]
    silent = sum(not left(verdicts.get(node), rules) for node, word in zip(cohort, words, strict=True) if not word)
    worse_alone = _worse_alone(cohort, verdicts, limits) if robust else {}
    words = ["fail" if node in worse_alone else word for node, word in zip(cohort, words, strict=True)]
    passed, failed, pending, unreached = (words.count(word) for word in ("pass", "fail", "pending", ""))
    outside = [
        verdict.base for node, verdict in sorted(verdicts.items()) if node not in cohort and node in rollout.order
    ]
    mine, its = (
        [health_verdict.candidate for health_verdict in said],
        outside or [health_verdict.base for health_verdict in said],
    )
    candidate = pooled(capped(mine) if robust else mine)
    base = pooled(capped(its) if robust else its)

    def result(outcome: StageOutcome, reason: str) -> Assessment:
        return Assessment(outcome, reason, passed, failed, pending, unreached, candidate, base)

    budget = 0 if first else limits.failure_limit
    allowed = unreached_allowed(len(cohort), first)
    stage = rollout.stages[rollout.stage]
    settled = timed_out or at_ms >= rollout.stage_at_ms + SETTLE_PERIODS * stage.min_healthy_ms
    if failed > budget:
        named = "".join(f"; {node}: {why}" for node, why in list(worse_alone.items())[:1])
        return result(StageOutcome.FAIL, f"{failed} of {len(cohort)} nodes failed, {budget} may{named}")
    worse = _worse_together(said, outside, limits) if robust else comparison_failure(candidate, base, limits)
    if worse:
        return result(StageOutcome.FAIL, worse)
    if timed_out and unreached > allowed:
        return result(StageOutcome.FAIL, f"{unreached} of {len(cohort)} nodes were never reached, {allowed} may be")
    if pending or unreached > allowed or (silent and not settled):
        return result(StageOutcome.PENDING, f"{passed} of {len(cohort)} nodes passed")
    compared = _compared([health_verdict.base for health_verdict in said], outside)[0] if robust else base
    doubted = candidate.requests < limits.min_requests and _doubtful(candidate, compared, limits)
    if _measured(rollout, said, candidate) and not doubted:
        return result(StageOutcome.PASS, f"{passed} of {len(cohort)} nodes passed")
    if settled and doubted:
        few = f"{candidate.errors} of {candidate.requests} requests failed"
        return result(StageOutcome.INCONCLUSIVE, f"{few}, too many to go on and too few to judge by")
    if settled:
        return result(StageOutcome.INCONCLUSIVE, "ready, but neither traffic nor a smoke check says that it works")
    return result(StageOutcome.PENDING, "ready; waiting for traffic")


def _worse_alone(
    cohort: Sequence[PeerId], verdicts: Mapping[PeerId, HealthVerdict], limits: Analysis
) -> dict[PeerId, str]:
    """Return which nodes of the cohort say of themselves that the candidate is worse than their own past, and why."""
    pairs = ((node, verdicts[node]) for node in cohort if node in verdicts)
    return {
        node: why
        for node, health_verdict in pairs
        if (why := comparison_failure(health_verdict.candidate, health_verdict.base, limits))
    }


def _worse_together(said: Sequence[HealthVerdict], outside: Sequence[Counts], limits: Analysis) -> str:
    """Return why the cohort's numbers together are worse than the base group's, whatever one node of that group says.

    Of three and more in the group the best and the worst are left out; of two both must say so; one alone says nothing
    of others, and the cohort's own past stands in, where there are enough of the cohort.
    """
    mine, past = [health_verdict.candidate for health_verdict in said], [health_verdict.base for health_verdict in said]
    candidate = pooled(capped(mine))
    worse = _errs_more(candidate, _compared(past, outside)[0], limits) or _too_slow(candidate, limits)
    by_engine = {engine: _of(engine, mine) for engine in sorted({counts.engine for counts in mine})}
    for engine, served in by_engine.items():
        alike = [[counts for counts in group if counts.engine == engine] for group in (past, outside)]
        worse = worse or _slower(served, msgspec.structs.replace(_compared(*alike)[1], engine=engine))
    group = [counts for counts in outside if counts.requests]
    if worse or len(group) != LARGE_COHORT - 1:
        return worse
    against = [
        _errs_more(candidate, counts, limits) or _slower(by_engine.get(counts.engine, Counts()), counts)
        for counts in group
    ]
    return against[0] if all(against) else ""


def _of(engine: str, counts: Sequence[Counts]) -> Counts:
    """Return the sum, by their weights, of those that one engine served."""
    return pooled(capped([count for count in counts if count.engine == engine]), engine)


def _compared(past: Sequence[Counts], outside: Sequence[Counts]) -> tuple[Counts, Counts]:
    """Return what a cohort is compared with, for error rates and for latencies.

    That is the base group without its extremes, or `past`: what the cohort's nodes say of their own.
    """
    group = [counts for counts in outside if counts.requests]
    if len(group) < LARGE_COHORT:
        own = pooled(capped(past))
        return own, own
    by_rate = sorted(group, key=lambda one: (one.errors * _PPM // one.requests, one.requests))
    by_p99 = sorted(group, key=lambda one: (p99_bucket(one), one.requests))
    return pooled(capped(by_rate[1:-1])), pooled(capped(by_p99[1:-1]))


def _word(said: HealthVerdict | None, *, timed_out: bool, lost: bool, rules: int) -> str:
    """Return what a node counts as; "" when it was never reached, or was lost or left before it took the candidate."""
    if said is None or left(said, rules):
        return ""
    gone = lost or (timed_out and said.verdict == "pending")
    if gone:
        return "fail" if said.taken or said.verdict == "fail" else ""
    return said.verdict


def left(said: HealthVerdict | None, rules: int) -> bool:
    """Return whether a node said goodbye before it took the candidate; one that took it may have been killed by it."""
    return rules >= GOODBYE_RULES and said is not None and said.leaving and not said.taken and said.verdict == "pending"


def _doubtful(candidate: Counts, base: Counts, limits: Analysis) -> bool:
    """Whether the few requests there were speak against the candidate: a passed smoke check does not outweigh them."""
    lower, _ = wilson_ppm(candidate.errors, candidate.requests)
    _, upper = wilson_ppm(base.errors, base.requests)
    return lower > min(limits.max_error_ppm or _PPM, upper + MARGIN_PPM)


def _measured(rollout: Rollout, said: Sequence[HealthVerdict], candidate: Counts) -> bool:
    if rollout.plan.probe_only or candidate.requests >= rollout.plan.analysis.min_requests:
        return True
    return all(health_verdict.smoke_runs > 0 for health_verdict in said if health_verdict.verdict == "pass") and bool(
        said
    )
