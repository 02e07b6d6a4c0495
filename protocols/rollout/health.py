"""One node's verdict on the candidate it runs: pass, fail or pending, from what its supervisor observes.

A pure step function over integers and the monotonic clock; the agent (agent.py) feeds it and signs what it says. Pass:
readiness held for `min_healthy_ms` with no restart. Fail: three crashes in five minutes, readiness lost for three
windows, or no pass by the deadline. Otherwise pending; two flips from pass to fail make fail sticky for the rollout.
Not here: comparison with the base, and what a cohort's verdicts amount to (analysis.py). Source of the defaults:
Nomad's update stanza.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from protocols.changes.statements import VerdictWord

CRASHES_MAX = 3
CRASH_SPAN_MS = 300_000
UNREADY_WINDOWS = 3
FLIPS_STICKY = 2


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """Durations in ms of one stage; `window_ms` is the probing window."""

    min_healthy_ms: int
    healthy_deadline_ms: int
    window_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class Observation:
    """What the supervisor saw since the last one: whether the candidate is ready, and how often it crashed."""

    ready: bool
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """The state behind a verdict; all times monotonic ms. `ready_ms` and `unready_ms` say since when, one is None."""

    started_ms: int
    ready_ms: int | None = None
    unready_ms: int | None = None
    was_ready: bool = False
    crashes_ms: tuple[int, ...] = ()
    flips: int = 0
    verdict: VerdictWord = "pending"
    reason: str = ""

    @property
    def sticky(self) -> bool:
        """Whether the verdict stays fail whatever comes."""
        return self.flips >= FLIPS_STICKY

    def healthy_ms(self, mono_ms: int) -> int:
        """Return how long it has been ready."""
        return 0 if self.ready_ms is None else max(0, mono_ms - self.ready_ms)


def reopened(health: NodeHealth, mono_ms: int) -> NodeHealth:
    """Return the state for the next stage of the same rollout: time starts anew, crashes and flips are remembered."""
    ready_ms = mono_ms if health.ready_ms is not None else None
    verdict: VerdictWord = "fail" if health.sticky else "pending"
    return replace(health, started_ms=mono_ms, ready_ms=ready_ms, verdict=verdict)


def restarted(health: NodeHealth | None, mono_ms: int) -> NodeHealth:
    """Return the state of a candidate that is started here, again or for the first time; only flips are remembered."""
    flips = health.flips if health is not None else 0
    verdict: VerdictWord = "fail" if flips >= FLIPS_STICKY else "pending"
    return NodeHealth(mono_ms, flips=flips, verdict=verdict)


def observe(health: NodeHealth, seen: Observation, mono_ms: int, limits: HealthLimits) -> NodeHealth:
    """Return the state after an observation at `mono_ms`; also called without news, for what only time brings."""
    crashes = tuple(index for index in health.crashes_ms if mono_ms - index < CRASH_SPAN_MS)
    crashes = (*crashes, *(mono_ms for _ in range(min(seen.crashes, CRASHES_MAX))))[-CRASHES_MAX:]
    ready_ms, unready_ms = health.ready_ms, health.unready_ms
    if seen.ready and not seen.crashes:
        ready_ms = mono_ms if ready_ms is None else ready_ms
        unready_ms = None
    else:
        ready_ms = mono_ms if seen.ready else None
        unready_ms = None if seen.ready else (mono_ms if unready_ms is None else unready_ms)
    current = replace(
        health,
        ready_ms=ready_ms,
        unready_ms=unready_ms,
        was_ready=health.was_ready or seen.ready,
        crashes_ms=crashes,
    )
    return _judged(current, mono_ms, limits)


def _judged(health: NodeHealth, mono_ms: int, limits: HealthLimits) -> NodeHealth:
    if health.sticky:
        return health
    reason = _failure(health, mono_ms, limits)
    if reason:
        flips = health.flips + (health.verdict == "pass")
        return replace(health, verdict="fail", reason=reason, flips=flips)
    if health.ready_ms is not None and mono_ms - health.ready_ms >= limits.min_healthy_ms:
        return replace(health, verdict="pass", reason="")
    if health.verdict == "pass" and health.ready_ms is not None:
        return replace(health, verdict="pending", reason="restarted")
    return health


def _failure(health: NodeHealth, mono_ms: int, limits: HealthLimits) -> str:
    if len(health.crashes_ms) >= CRASHES_MAX:
        return f"crash loop: {CRASHES_MAX} crashes within {CRASH_SPAN_MS // 60_000} minutes"
    lost_ms = UNREADY_WINDOWS * limits.window_ms
    if health.was_ready and health.unready_ms is not None and mono_ms - health.unready_ms >= lost_ms:
        return f"readiness lost for {UNREADY_WINDOWS} windows"
    healthy = health.ready_ms is not None and mono_ms - health.ready_ms >= limits.min_healthy_ms
    if health.verdict == "pending" and not healthy and mono_ms - health.started_ms >= limits.healthy_deadline_ms:
        return f"not healthy within {limits.healthy_deadline_ms} ms"
    return ""
