"""Verdicts of one node, the arithmetic of comparison, cohorts and placement: pure functions over integers."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocols.changes.change import Analysis, Plan, Stage
from protocols.changes.statements import (
    COUNT_MAX,
    LATENCY_BUCKETS,
    STATEMENT_DOMAIN,
    Counts,
    HealthVerdict,
    Prepared,
    Said,
    TimeoutVote,
    open_statement,
    state_it,
)
from protocols.envelope import Signed, digest, encode, sign, signing_bytes
from protocols.machine import PeerId
from protocols.refusal import Refusal
from protocols.rollout.health import HealthLimits, NodeHealth, Observation, observe, reopened
from protocols.state.analysis import (
    GOODBYE_RULES,
    StageOutcome,
    assess,
    comparison_failure,
    p99_bucket,
    pooled,
    unreached_allowed,
    wilson_ppm,
)
from protocols.state.apply import apply
from protocols.state.cohort import plan_cohorts, scored
from protocols.state.commands import Promote
from protocols.state.model import Deployed, Environment, Lane, MeshState
from protocols.state.placement import eligible, pinned_size, placed, rendezvous, selects
from tests.support.protocols.mesh_world import MeshWorld, node_id, refused, signer
from tests.support.protocols.trust_world import VERIFIER, WALL_MS

LIMITS = HealthLimits(10_000, 60_000, 5_000)
READY, DOWN = Observation(True), Observation(False)


def watched(*steps: tuple[int, Observation], start: NodeHealth | None = None) -> NodeHealth:
    health = start or NodeHealth(0)
    for at_ms, seen in steps:
        health = observe(health, seen, at_ms, LIMITS)
    return health


# --- one node ---------------------------------------------------------------------------------------------------------


def test_pass_comes_after_readiness_held_long_enough() -> None:
    assert watched((0, READY), (9_999, READY)).verdict == "pending"
    health = watched((0, READY), (10_000, READY))
    assert health.verdict == "pass"
    assert health.healthy_ms(12_000) == 12_000
    assert NodeHealth(0).healthy_ms(5) == 0


def test_a_restart_or_a_gap_starts_the_time_anew() -> None:
    assert watched((0, READY), (9_000, Observation(True, 1)), (12_000, READY)).verdict == "pending"
    assert watched((0, READY), (9_000, DOWN), (9_500, READY), (15_000, READY)).verdict == "pending"
    passed = watched((0, READY), (10_000, READY))
    assert watched((11_000, Observation(True, 1)), start=passed).verdict == "pending"


def test_never_ready_by_the_deadline_fails() -> None:
    assert watched((59_999, DOWN)).verdict == "pending"
    late = watched((60_000, DOWN))
    assert late.verdict == "fail"
    assert "60000 ms" in late.reason
    assert watched((55_000, READY), (60_000, READY)).verdict == "fail"


def test_readiness_lost_for_three_windows_fails_what_had_passed() -> None:
    passed = watched((0, READY), (10_000, READY))
    assert watched((20_000, DOWN), (34_999, DOWN), start=passed).verdict == "pass"
    assert watched((20_000, DOWN), (35_000, DOWN), start=passed).verdict == "fail"


def test_three_crashes_within_five_minutes_fail_and_old_ones_are_forgotten() -> None:
    assert watched((0, Observation(True, 3))).verdict == "fail"
    spread = watched((0, Observation(True, 1)), (10_000, Observation(True, 1)), (30_000, Observation(True, 1)))
    assert spread.reason.startswith("crash loop")
    node_health = watched((0, Observation(True, 2)), (20_000, READY))
    assert watched((300_000, Observation(True, 1)), start=node_health).verdict != "fail"


def test_a_failure_may_heal_once_but_the_second_flip_sticks() -> None:
    health = watched((0, READY), (10_000, READY), (20_000, DOWN), (35_000, DOWN))
    assert (health.verdict, health.flips) == ("fail", 1)
    health = watched((40_000, READY), (50_000, READY), start=health)
    assert health.verdict == "pass"
    health = watched((51_000, DOWN), (66_000, DOWN), start=health)
    assert health.sticky
    assert watched((70_000, READY), (99_000, READY), start=health).verdict == "fail"
    assert reopened(health, 100_000).verdict == "fail"


def test_the_next_stage_asks_for_health_again() -> None:
    passed = watched((0, READY), (10_000, READY))
    again = reopened(passed, 50_000)
    assert (again.verdict, again.ready_ms, again.started_ms) == ("pending", 50_000, 50_000)
    assert watched((60_000, READY), start=again).verdict == "pass"
    assert reopened(NodeHealth(0), 5).ready_ms is None


@given(
    st.lists(
        st.tuples(st.integers(0, 30_000), st.booleans(), st.integers(0, 2)).map(
            lambda t: (t[0], Observation(t[1], t[2]))
        ),
        max_size=20,
    )
)
def test_whatever_is_observed_a_verdict_follows_by_the_deadline(steps: list[tuple[int, Observation]]) -> None:
    health, at_ms = NodeHealth(0), 0
    for wait_ms, seen in steps:
        at_ms += wait_ms
        was_sticky = health.sticky
        health = observe(health, seen, at_ms, LIMITS)
        assert not was_sticky or health.verdict == "fail"
    first = observe(NodeHealth(0), Observation(health.ready_ms is not None), 60_000, LIMITS)
    assert first.verdict == "fail", "nothing passes at its first sight at the deadline"


# --- arithmetic -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_hold_the_rate_and_agree_with_floating_point(pair: tuple[int, int]) -> None:
    errors, requests = pair
    lower, upper = wilson_ppm(errors, requests)
    assert 0 <= lower <= upper <= 1_000_000
    assert Fraction(lower, 1_000_000) <= Fraction(errors, requests) <= Fraction(upper, 1_000_000)
    z, p = 2.3263, errors / requests
    spread = z * sqrt(p * (1 - p) / requests + z * z / (4 * requests * requests))
    centre, scale = p + z * z / (2 * requests), 1 + z * z / requests
    assert lower == pytest.approx(max(0.0, (centre - spread) / scale) * 1e6, abs=3)
    assert upper == pytest.approx(min(1.0, (centre + spread) / scale) * 1e6, abs=3)


def test_nothing_is_known_without_requests() -> None:
    assert wilson_ppm(0, 0) == (0, 1_000_000)


def test_wilson_bounds_are_exact_numbers_that_every_voter_gets() -> None:
    assert wilson_ppm(1, 100) == (1376, 68936)
    assert wilson_ppm(50, 1000) == (36250, 68595)


def _latencies(*pairs: tuple[int, int]) -> Counts:
    buckets = [0] * LATENCY_BUCKETS
    for bucket, count in pairs:
        buckets[bucket] = count
    return Counts(sum(buckets), 0, tuple(buckets))


def test_the_99th_percentile_lies_in_the_bucket_that_reaches_it() -> None:
    assert p99_bucket(Counts()) == -1
    assert p99_bucket(_latencies((3, 99), (7, 1))) == 3
    assert p99_bucket(_latencies((3, 98), (7, 2))) == 7
    assert pooled([_latencies((3, 1)), _latencies((3, 2)), Counts(5, 1)]) == Counts(8, 1, _latencies((3, 3)).buckets)


def test_comparison_fails_only_on_what_the_numbers_show() -> None:
    limits = Analysis()
    assert comparison_failure(Counts(1000, 100), Counts(1000, 1), limits).startswith("error rate at least")
    assert not comparison_failure(Counts(1000, 12), Counts(1000, 10), limits)
    assert not comparison_failure(Counts(10, 10), Counts(1000, 1), limits), "too few requests"
    slow, fast = _latencies((9, 1000)), _latencies((7, 1000))
    assert "p99" in comparison_failure(slow, fast, limits)
    assert not comparison_failure(_latencies((8, 1000)), fast, limits), "one bucket is noise"
    assert not comparison_failure(slow, _latencies((7, 10)), limits)


def test_absolute_limits_need_no_base() -> None:
    assert "limit is 1 %" in comparison_failure(Counts(1000, 100), Counts(), Analysis(max_error_ppm=10_000))
    assert not comparison_failure(Counts(1000, 1), Counts(), Analysis(max_error_ppm=10_000))
    limit = Analysis(max_latency_p99_ms=256)
    assert "limit is 256 ms" in comparison_failure(_latencies((9, 1000)), Counts(), limit)
    assert not comparison_failure(_latencies((8, 1000)), Counts(), limit)


def test_silence_is_allowed_to_few_and_never_at_first() -> None:
    assert [unreached_allowed(n, first=False) for n in (1, 2, 3, 10, 20, 32)] == [0, 0, 1, 1, 2, 3]
    assert unreached_allowed(32, first=True) == 0


def test_assessment_counts_the_pinned_cohort_and_nobody_else() -> None:
    w = MeshWorld().furnish().started(plan=Plan((Stage("100%"),)))
    rollout = w.rollout
    good = w.verdict()
    everyone = dict.fromkeys(rollout.cohort, good)
    assert assess(rollout, everyone, WALL_MS).outcome is StageOutcome.PASS
    extra = {**everyone, node_id("stranger"): w.verdict("fail")}
    assert assess(rollout, extra, WALL_MS).outcome is StageOutcome.PASS
    partial = dict(list(everyone.items())[:2])
    assert assess(rollout, partial, WALL_MS + 10**6).unreached == 1
    lost = assess(rollout, everyone, WALL_MS, vanished=(rollout.cohort[0],))
    assert (lost.outcome, lost.failed) == (StageOutcome.FAIL, 1)
    waiting = {**everyone, rollout.cohort[0]: w.verdict("pending", taken=False)}
    assert assess(rollout, waiting, WALL_MS, vanished=(rollout.cohort[0],)).unreached == 1
    assert assess(rollout, waiting, WALL_MS).outcome is StageOutcome.PENDING
    assert assess(rollout, {}, WALL_MS, timed_out=True).outcome is StageOutcome.FAIL
    assert assess(rollout, everyone, WALL_MS, timed_out=True).outcome is StageOutcome.PASS


def test_a_goodbye_before_the_candidate_was_taken_is_not_waited_for_within_the_allowance() -> None:
    w = MeshWorld().furnish().started(plan=Plan((Stage("1"), Stage("100%"))))
    w.state = replace(w.state, rules_version=GOODBYE_RULES)
    assert isinstance(w.promote(), MeshState)
    rollout, first, second = w.rollout, w.rollout.cohort[0], w.rollout.cohort[1]
    bye = w.verdict("pending", taken=False, leaving=True)
    all_but_one = {**dict.fromkeys(rollout.cohort, w.verdict()), first: bye}

    def outcome(verdicts: Mapping[PeerId, HealthVerdict], rules: int = GOODBYE_RULES, **rest: Any) -> StageOutcome:
        return assess(rollout, verdicts, WALL_MS, rules=rules, **rest).outcome

    assert outcome(all_but_one) is StageOutcome.PASS
    assert outcome(all_but_one, rules=1) is StageOutcome.PENDING, "the rule of a mesh whose voters do not all know it"
    assert outcome({**all_but_one, second: bye}) is StageOutcome.PENDING, "two of three is more than may be missing"
    assert outcome({**all_but_one, second: bye}, timed_out=True) is StageOutcome.FAIL
    silent = {node: said for node, said in all_but_one.items() if node != second}
    assert outcome(silent) is StageOutcome.PENDING, "of who is merely silent nothing is known yet"
    for hides in (replace(bye, taken=True), replace(bye, verdict="fail"), replace(bye, leaving=False)):
        assert outcome({**all_but_one, first: hides}) is not StageOutcome.PASS
    assert outcome({**all_but_one, first: replace(bye, taken=True)}, vanished=(first,)) is StageOutcome.FAIL


def test_in_the_first_stage_nobody_may_be_missing_goodbye_or_not() -> None:
    w = MeshWorld().furnish().started(plan=Plan((Stage("100%"),)))
    verdicts = dict.fromkeys(w.rollout.cohort, w.verdict())
    verdicts[w.rollout.cohort[0]] = w.verdict("pending", taken=False, leaving=True)
    assert assess(w.rollout, verdicts, WALL_MS, rules=GOODBYE_RULES).outcome is StageOutcome.PENDING


def test_a_goodbye_of_an_earlier_stage_holds_and_any_other_word_of_it_does_not() -> None:
    w = MeshWorld().furnish().started(plan=Plan((Stage("1"), Stage("100%"))))
    before = w.rollout.opened
    assert isinstance(w.promote(), MeshState)
    gone, *rest = w.cohort[::-1]

    def promoted(**fields: Any) -> object:
        said = w.verdict("pending", taken=False, **fields)
        shown = w.verdicts(names=rest).add("statements", w.said(gone, said))
        command = w.command(
            Promote(w.rollout.id, w.rollout.stage),
            (),
            shown,
            project="shop",
            environment="prod",
            expect=w.lane.sequence,
        )
        return apply(w.state, command, shown.material, w.at_ms, w.rules)

    assert refused(promoted(opened=before, leaving=True)) == "health.other-stage", "before the rules say so"
    w.state = replace(w.state, rules_version=GOODBYE_RULES)
    assert isinstance(promoted(opened=before, leaving=True), MeshState)
    assert refused(promoted(opened=before)) == "health.other-stage"
    assert refused(promoted(opened=w.rollout.opened + 1, leaving=True)) == "health.other-stage"
    assert refused(promoted(opened=before, leaving=True, rollout=b"r" * 32)) == "health.other-stage"


def test_without_a_concurrent_base_the_cohorts_own_past_is_compared() -> None:
    w = MeshWorld().furnish().started(plan=Plan((Stage("100%"),)))
    verdict = w.verdict(candidate=Counts(1000, 100), base=Counts(1000, 1))
    assessment = assess(w.rollout, dict.fromkeys(w.rollout.cohort, verdict), WALL_MS)
    assert assessment.outcome is StageOutcome.FAIL
    assert assessment.base.requests == 3000


# --- statements -------------------------------------------------------------------------------------------------------

MESH = digest(b"mesh")


def _verdict(**fields: object) -> HealthVerdict:
    base = HealthVerdict(b"e" * 32, b"r" * 32, 1, 1, "pass", 1, Counts(), Counts(), 0)
    return replace(base, **fields)


@pytest.mark.parametrize(
    "statement",
    [
        Prepared(b"short", b"", "passed"),
        Prepared(b"c" * 32, b"short", "passed"),
        _verdict(era=b"short"),
        _verdict(rollout=b"short"),
        _verdict(sequence=-1),
        _verdict(healthy_ms=COUNT_MAX + 1),
        _verdict(candidate=Counts(1, 2)),
        _verdict(base=Counts(-1, -1)),
        _verdict(base=Counts(5, 0, (1, 2))),
        _verdict(base=Counts(1, 0, (1,) * LATENCY_BUCKETS)),
        _verdict(base=Counts(1, 0, (-1,) * LATENCY_BUCKETS)),
        _verdict(reason="x" * 3000),
    ],
)
def test_statements_out_of_bounds_are_refused(statement: HealthVerdict | Prepared) -> None:
    signed = state_it(signer("n1"), MESH, statement)
    assert refused(open_statement(VERIFIER, MESH, signed)) in ("statement.malformed", "statement.too-large")


def test_a_statement_belongs_to_its_signer_and_its_mesh() -> None:
    signed = state_it(signer("n1"), MESH, _verdict())
    said = open_statement(VERIFIER, MESH, signed)
    assert said == Said(node_id("n1"), _verdict())
    assert refused(open_statement(VERIFIER, b"o" * 32, signed)) == "statement.signature"
    garbage = sign(signer("n1"), STATEMENT_DOMAIN, MESH, "garbage")
    assert refused(open_statement(VERIFIER, MESH, garbage)) == "statement.malformed"
    vote = TimeoutVote(b"e" * 32, b"r" * 32, 1, MeshWorld().state.voters[0])
    assert isinstance(open_statement(VERIFIER, MESH, state_it(signer("n1"), MESH, vote)), Said)


@given(st.binary(max_size=2100))
def test_signed_garbage_is_never_a_statement(data: bytes) -> None:
    ann = signer("n1")
    signed = Signed(data, ann.public_key, ann.sign(signing_bytes(STATEMENT_DOMAIN, MESH, data)))
    answer = open_statement(VERIFIER, MESH, signed)
    assert isinstance(answer, Refusal) or encode(answer.statement)


# --- cohorts ----------------------------------------------------------------------------------------------------------

PEERS = tuple(PeerId(f"node{n:02}") for n in range(10))


@given(
    st.lists(st.sampled_from(PEERS), min_size=1, max_size=10, unique=True),
    st.binary(max_size=8),
    st.lists(st.sampled_from(["1", "2", "25%", "50%", "a=1", "3"]), max_size=4),
)
def test_cohorts_nest_and_the_last_holds_everybody(nodes: list[PeerId], seed: bytes, shares: list[str]) -> None:
    labels = {node: ((("a", "1"),) if node.endswith(("3", "7")) else ()) for node in nodes}
    answer = plan_cohorts(seed, labels, [Stage(share) for share in [*shares, "100%"]])
    if isinstance(answer, Refusal):
        assert shares[0] == "a=1"
        return
    order, stages = answer
    assert sorted(order) == sorted(nodes)
    sizes = [stage.size for stage in stages]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == len(nodes)


def test_the_order_depends_on_the_seed_alone() -> None:
    assert scored(b"x", PEERS) == scored(b"x", tuple(reversed(PEERS)))
    assert scored(b"x", PEERS) != scored(b"y", PEERS)


def test_a_mesh_of_one_has_one_stage_with_the_strictest_gate() -> None:
    stages = (Stage("1", 5_000, approve=True), Stage("50%", 9_000), Stage("100%", 1_000, pause_ms=7))
    answer = plan_cohorts(b"s", {PEERS[0]: ()}, stages)
    assert not isinstance(answer, Refusal)
    (only,) = answer[1]
    assert (only.size, only.min_healthy_ms, only.pause_ms, only.approve) == (1, 9_000, 7, True)


@pytest.mark.parametrize("share", ["", "0", "0%", "101%", "-1", "1.5", "many", "=x", "a=", "99999"])
def test_shares_that_mean_nothing_are_refused(share: str) -> None:
    assert refused(plan_cohorts(b"s", {PEERS[0]: ()}, [Stage(share)])) == "plan.stage"


def test_no_nodes_no_cohort() -> None:
    assert refused(plan_cohorts(b"s", {}, [Stage("100%")])) == "placement.no-nodes"
    assert refused(plan_cohorts(b"s", {PEERS[0]: ()}, [])) == "plan.incomplete"


# --- placement --------------------------------------------------------------------------------------------------------


def _deployed(**fields: object) -> Deployed:
    base = Deployed(digest(b"c"), digest(b"r"), digest(b"f"), (), (), (), False, 0, 0, (), "", b"a" * 32, 1)
    return replace(base, **fields)


def test_an_environment_selects_workers_that_stay_and_carry_every_label() -> None:
    w = MeshWorld().furnish()
    assert eligible(w.state, "nowhere") == ()
    assert eligible(w.state, "prod") == tuple(sorted(node_id(name) for name in w.nodes))
    n2 = next(node for node in w.state.nodes if node.node == node_id("n2"))
    there = Environment("e", (("zone", "n2"),), None, False)
    assert selects(there, n2)
    assert not selects(there, replace(n2, draining=True))
    assert not selects(there, replace(n2, roles=("voter",)))
    assert not selects(there, replace(n2, labels=()))


def test_placement_is_everywhere_or_by_count_or_with_the_data() -> None:
    lane = Lane("shop", "prod", data_node=PEERS[4])
    assert placed(lane, _deployed(), PEERS) == PEERS
    assert placed(lane, _deployed(data=True), PEERS) == (PEERS[4],)
    assert placed(lane, _deployed(data=True), PEERS[:2]) == ()
    assert placed(lane, _deployed(data=True), PEERS, down={PEERS[4]}) == (PEERS[4],), "data never moves on a guess"
    three = placed(lane, _deployed(replicas=3), PEERS)
    assert len(three) == 3
    moved = placed(lane, _deployed(replicas=3), PEERS, down={three[0]})
    assert set(three[1:]) < set(moved)
    assert three[0] not in moved
    assert pinned_size(0, False, PEERS) is None
    assert pinned_size(3, False, PEERS) == 3
    assert pinned_size(30, False, PEERS) == 10
    assert pinned_size(0, True, PEERS) == 1


def test_rendezvous_depends_on_the_name_alone() -> None:
    assert rendezvous("x", PEERS) == rendezvous("x", tuple(reversed(PEERS)))
    assert rendezvous("x", PEERS) != rendezvous("y", PEERS)
