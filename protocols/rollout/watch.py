"""What a node knows of its own part in one open stage of a rollout: observations, smoke replays, what it said.

A value that the agent fills and asks; it says what is due, never why anything runs. Not here: the agent's orders
(agent.py), one node's verdict (health.py), and what others said (conductor.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.changes.statements import Counts, HealthVerdict, VerdictWord
from protocols.invariants import InvariantError, ensure
from protocols.machine import PeerId
from protocols.rollout.health import NodeHealth
from protocols.rollout.orders import Role
from protocols.state.model import Deployed, Lane, Rollout


def latch_key(rollout: Rollout) -> bytes:
    """Return the key of a latch: the rollout and the opening of its stage, 40 bytes."""
    return rollout.id + rollout.opened.to_bytes(8, "big")


def is_settled(said: HealthVerdict | None) -> bool:
    """Return whether a node needs no more time: it has judged the candidate, or said goodbye before it took it."""
    return said is not None and (said.verdict != "pending" or (said.leaving and not said.taken))


@dataclass(slots=True)
class Watch:
    """One stage, since it opened here. Times in monotonic ms."""

    opened: int
    since_ms: int
    health: NodeHealth | None = None
    candidate: Counts = field(default_factory=Counts)
    base: Counts = field(default_factory=Counts)
    seen_ms: int = 0
    smoke_runs: int = 0
    smoke_asked: bool = False
    smoke_awaited: bool = False
    observe_asked_ms: int | None = None
    said: VerdictWord | None = None
    said_ms: int = 0
    failed: str = ""
    patience_ms: int = 0
    settled: int = 0

    def due_word(self, rollout: Rollout) -> VerdictWord:
        """Return the verdict to say: no pass before the smoke replay it asked for has ended, unless traffic came instead.

        A pass without either would have the stage taken for one of which nothing says that it works.
        """
        assert self.health is not None
        quiet = self.candidate.requests < rollout.plan.analysis.min_requests
        waits = self.health.verdict == "pass" and self.smoke_awaited and quiet
        return "pending" if waits else self.health.verdict

    def ripe_ms(self, rollout: Rollout) -> int | None:
        """Return when a candidate that is ready will have been so for long enough, None if there is nothing to ask then.

        It is asked after once at that time, so that a pass rests on counts of that time.
        """
        health = self.health
        if health is None or health.ready_ms is None or health.verdict != "pending" or self.failed:
            return None
        due_ms = health.ready_ms + rollout.stages[rollout.stage].min_healthy_ms
        return due_ms if self.observe_asked_ms != due_ms else None


def ensure_authorized(me: PeerId, lane: Lane, deployed: Deployed, role: Role) -> None:
    """Raise InvariantError unless `me` may run `deployed` so: AuthorizedRun and NoZombie."""
    if role == "base":
        ensure(deployed == lane.base, "AuthorizedRun: not the base")
        return
    if lane.rollout is None:
        raise InvariantError("NoZombie: no rollout is under way")
    ensure(deployed == lane.rollout.candidate, "AuthorizedRun: not the candidate")
    ensure(me in lane.rollout.cohort, "AuthorizedRun: not in the cohort")
