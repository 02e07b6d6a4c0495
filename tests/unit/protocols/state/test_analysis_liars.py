"""Analysis that one liar cannot turn: every count that one node may say, in every place, beside honest others."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from protocols.changes.change import Plan, Stage
from protocols.changes.statements import COUNT_MAX, LATENCY_BUCKETS, Counts, HealthVerdict
from protocols.machine import PeerId
from protocols.state.analysis import LARGE_COHORT, StageOutcome, assess, capped
from protocols.state.commands import SetRules
from protocols.state.model import MeshState, OpenStage, Rollout
from tests.support.protocols.mesh_world import MeshWorld, node_id, signer
from tests.support.protocols.trust_world import WALL_MS

LATE = WALL_MS + 10**9


def counts(requests: int, errors: int = 0, bucket: int = 5) -> Counts:
    buckets = [0] * LATENCY_BUCKETS
    buckets[bucket] = requests
    return Counts(requests, errors, tuple(buckets))


BASE = counts(1000, 1)
GOOD, BAD, SLOW = counts(1000, 1), counts(1000, 400), counts(1000, 1, 9)
LIES = [
    counts(number, errors, bucket)
    for number in (0, 1, 19, 20, 1000, 10**6, 1 << 30, COUNT_MAX)
    for errors in sorted({0, number // 1000, number // 2, number})
    for bucket in (0, 5, LATENCY_BUCKETS - 1)
] + [Counts(1000, 0), Counts(0, 0, counts(1000).buckets)]
LIES += [replace(lie, engine=engine) for lie in LIES[-8:] for engine in ("native", "mixed-00000000")]


def rollout_of(cohort: int, outside: int) -> Rollout:
    w = MeshWorld().furnish().started(plan=Plan((Stage("100%"),)))
    order = tuple(PeerId(node_id(f"x{number}")) for number in range(cohort + outside))
    stages = (OpenStage(cohort, 1000, 0, False), OpenStage(max(cohort + outside, cohort), 1000, 0, False))
    return replace(w.rollout, order=order, stages=stages, stage=0)


def said(candidate: Counts, base: Counts = BASE, word: str = "pass") -> HealthVerdict:
    era, rollout = b"e" * 32, b"r" * 32
    return HealthVerdict(era, rollout, 1, 1, word, 9999, candidate, base, 0, True, "")  # type: ignore[arg-type]


def verdicts(rollout: Rollout, candidate: Counts) -> dict[PeerId, HealthVerdict]:
    inside = {node: said(candidate) for node in rollout.cohort}
    return inside | {node: said(Counts(), BASE, "pending") for node in rollout.order if node not in inside}


SIZES = [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2), (3, 3), (4, 5)]


@pytest.mark.parametrize(("cohort", "outside"), SIZES)
@pytest.mark.parametrize(
    ("candidate", "outcome"), [(GOOD, StageOutcome.PASS), (BAD, StageOutcome.FAIL), (SLOW, StageOutcome.FAIL)]
)
def test_nobody_outside_the_cohort_stops_or_passes_it_whatever_it_says(
    cohort: int, outside: int, candidate: Counts, outcome: StageOutcome
) -> None:
    rollout = rollout_of(cohort, outside)
    honest = verdicts(rollout, candidate)
    assert assess(rollout, honest, LATE).outcome is outcome
    liar = rollout.order[-1]
    for lie, word in itertools.product(LIES, ("pass", "pending", "fail")):
        assessment = assess(rollout, honest | {liar: said(lie, lie, word)}, LATE)
        assert assessment.outcome is outcome, (lie, word, assessment.reason)


@pytest.mark.parametrize(("cohort", "outside"), [size for size in SIZES if size[0] >= LARGE_COHORT])
@pytest.mark.parametrize("candidate", [BAD, SLOW])
def test_no_node_of_three_in_the_cohort_makes_a_failing_candidate_pass(
    cohort: int, outside: int, candidate: Counts
) -> None:
    rollout = rollout_of(cohort, outside)
    honest = verdicts(rollout, candidate)
    for lie, base, word in itertools.product(LIES, (BASE, Counts(), counts(COUNT_MAX, COUNT_MAX)), ("pass", "pending")):
        assessment = assess(rollout, honest | {rollout.cohort[0]: said(lie, base, word)}, LATE)
        assert assessment.outcome is not StageOutcome.PASS, (lie, base, word)


def test_a_node_of_the_cohort_stops_the_rollout_under_its_name() -> None:
    rollout = rollout_of(3, 3)
    liar = rollout.cohort[1]
    assessment = assess(rollout, verdicts(rollout, GOOD) | {liar: said(BAD)}, LATE)
    assert assessment.outcome is StageOutcome.FAIL
    assert str(liar) in assessment.reason


def test_a_nodes_weight_is_at_most_twice_the_median_and_its_rates_stay() -> None:
    shares = capped([counts(1000, 400), counts(1000, 400), counts(1 << 47, 1 << 46)])
    assert [share.requests for share in shares] == [1000, 1000, 2000]
    assert (shares[2].errors, sum(shares[2].buckets)) == (1000, 2000)
    assert capped([Counts(), counts(8)])[1].requests == 8
    assert [entry.requests for entry in capped([Counts(0, 0, counts(9).buckets)])] == [0]


def test_a_mesh_at_the_rules_of_the_release_before_counts_as_that_did() -> None:
    rollout = rollout_of(3, 1)
    liar = rollout.order[-1]
    assessment = assess(rollout, verdicts(rollout, GOOD) | {liar: said(Counts(), counts(1 << 30, 0, 0))}, LATE, rules=1)
    assert assessment.outcome is StageOutcome.FAIL, (
        "this is what rules 2 ended; voters of both releases must agree until then"
    )


def test_the_admins_raise_the_rules_and_never_lower_them() -> None:
    w = MeshWorld().furnish()
    answer = w.govern(SetRules(2), w.admin)
    assert isinstance(answer, MeshState)
    assert answer.rules_version == 2
    assert not isinstance(w.govern(SetRules(1), w.admin), MeshState)
    assert not isinstance(w.govern(SetRules(2), signer("bob")), MeshState)
