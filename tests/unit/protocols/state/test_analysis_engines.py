"""Latencies are compared within one engine; errors, and the limit on latency that a plan sets, whatever served."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocols.changes.change import Analysis, Plan, Stage
from protocols.changes.statements import LATENCY_BUCKETS, Counts, HealthVerdict
from protocols.envelope import decode, encode
from protocols.machine import PeerId
from protocols.state.analysis import Assessment, StageOutcome, assess
from protocols.state.model import OpenStage, Rollout
from tests.support.protocols.mesh_world import MeshWorld, node_id
from tests.support.protocols.trust_world import WALL_MS

LATE = WALL_MS + 10**9
MIXED = "mixed-0123abcd"


def served(engine: str, bucket: int = 2, errors: int = 1) -> Counts:
    buckets = [0] * LATENCY_BUCKETS
    buckets[bucket] = 1000
    return Counts(1000, errors, tuple(buckets), engine)


FAST, SLOW = 2, 6


def rollout_of(cohort: int, outside: int, limit_ms: int = 0) -> Rollout:
    plan = Plan((Stage("100%"),), analysis=Analysis(max_latency_p99_ms=limit_ms))
    w = MeshWorld().furnish().started(plan=plan)
    order = tuple(PeerId(node_id(f"x{number}")) for number in range(cohort + outside))
    stages = (OpenStage(cohort, 1000, 0, False), OpenStage(cohort + outside, 1000, 0, False))
    return replace(w.rollout, order=order, stages=stages, stage=0)


def assessed(
    rollout: Rollout, inside: list[tuple[Counts, Counts]], outside: list[Counts], rules: int = 2
) -> Assessment:
    pairs = [*inside, *((Counts(), counts) for counts in outside)]
    verdicts = {
        node: HealthVerdict(b"e" * 32, b"r" * 32, 1, 1, "pass" if node in rollout.cohort else "pending", 9999, *pair, 0)
        for node, pair in zip(rollout.order, pairs, strict=True)
    }
    return assess(rollout, verdicts, LATE, rules=rules)


@pytest.mark.parametrize("outside", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(
    ("candidate", "base", "outcome"),
    [
        ("python", "python", StageOutcome.FAIL),
        ("native", "native", StageOutcome.FAIL),
        (MIXED, MIXED, StageOutcome.FAIL),
        ("python", "native", StageOutcome.PASS),
        ("native", "python", StageOutcome.PASS),
        (MIXED, "native", StageOutcome.PASS),
        (MIXED, "mixed-0123abce", StageOutcome.PASS),
    ],
)
def test_a_slower_candidate_fails_beside_a_base_of_the_same_engine_alone(
    candidate: str, base: str, outcome: StageOutcome, outside: int
) -> None:
    rollout = rollout_of(3, outside)
    assessment = assessed(rollout, [(served(candidate, SLOW), served(base, FAST))] * 3, [served(base, FAST)] * outside)
    assert assessment.outcome is outcome, assessment.reason
    assert ("twice as slow" in assessment.reason) is (outcome is StageOutcome.FAIL)


def test_a_base_group_of_another_engine_leaves_the_cohorts_own_past() -> None:
    rollout = rollout_of(3, 3)
    others = [served("native", FAST)] * 3
    steady = assessed(rollout, [(served("python", SLOW), served("python", SLOW))] * 3, others)
    assert steady.outcome is StageOutcome.PASS, steady.reason
    slower = assessed(rollout, [(served("python", SLOW), served("python", FAST))] * 3, others)
    assert slower.outcome is StageOutcome.FAIL


def test_in_a_cohort_of_both_engines_each_is_compared_with_its_own() -> None:
    rollout = rollout_of(4, 6)
    inside = [(served("python", SLOW), served("python", SLOW))] * 2 + [
        (served("native", FAST), served("native", FAST))
    ] * 2
    outside = [served("python", SLOW)] * 3 + [served("native", FAST)] * 3
    assert assessed(rollout, inside, outside).outcome is StageOutcome.PASS
    # The same with native answers as slow as Python's: only the native nodes of the base group can show it.
    inside[2:] = [(served("native", SLOW), Counts(0, 0, (), "native"))] * 2
    assessment = assessed(rollout, inside, outside)
    assert assessment.outcome is StageOutcome.FAIL
    assert "twice as slow" in assessment.reason


def test_errors_are_compared_whatever_served() -> None:
    bad = served("native", FAST, errors=400)
    assessment = assessed(rollout_of(3, 3), [(bad, served("python"))] * 3, [served("python")] * 3)
    assert assessment.outcome is StageOutcome.FAIL
    assert "error rate" in assessment.reason


def test_the_limit_of_a_plan_holds_whatever_served() -> None:
    rollout = rollout_of(3, 3, limit_ms=16)
    assessment = assessed(rollout, [(served("native", SLOW), served("python"))] * 3, [served("python")] * 3)
    assert assessment.outcome is StageOutcome.FAIL
    assert "the limit is 16 ms" in assessment.reason


def test_by_the_rules_of_the_first_release_engines_make_no_difference() -> None:
    """Voters of that release do not know the word, and must reach the same answer."""
    rollout = rollout_of(3, 1)
    assessment = assessed(rollout, [(served("python", SLOW), served("native"))] * 3, [served("native")], rules=1)
    assert assessment.outcome is StageOutcome.FAIL


def test_counts_of_the_release_before_are_of_the_engine_that_it_had() -> None:
    old = encode([7, 1, [7, *[0] * (LATENCY_BUCKETS - 1)]])
    entry = decode(old, Counts)
    assert (entry.requests, entry.engine) == (7, "python")
    assert entry.sound()


@pytest.mark.parametrize(
    "engine", ["", "Native", "native ", "mixed", "mixed-0123abc", "mixed-0123ABCD", "x" * 300, "a\nb"]
)
def test_an_engine_that_nobody_has_is_no_sound_count(engine: str) -> None:
    assert served("native").sound()
    assert served(MIXED).sound()
    assert not served(engine).sound()
