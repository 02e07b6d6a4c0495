"""The transition table of one project in one environment: state x command, frozen included, as data.

A lane (one project in one environment) is idle, running or paused. The table says where each command leads or which
rule refuses it; it is total, `docs/reference/transitions.md` is printed from it, and rollout.py asks it before anything else.
What a command must also prove (rights, approvals, health) is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from protocols.invariants import ensure
from protocols.state.commands import (
    Abort,
    ClaimRoutes,
    Freeze,
    LaneAction,
    Pause,
    PlaceData,
    Promote,
    Resume,
    Rollback,
    Start,
    Unfreeze,
    WithdrawApproval,
)
from protocols.state.model import Lane


class LanePhase(Enum):
    """Where a lane stands."""

    IDLE = "idle"
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Leads:
    """The command is allowed and leads to one of `to`; `note` says what decides between them."""

    to: tuple[LanePhase, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Refuses:
    """The command is refused by `rule`, unless it says `unless` and then leads to `to`."""

    rule: str
    detail: str
    unless: str = ""
    to: LanePhase | None = None


Outcome = Leads | Refuses

_IDLE, _RUNNING, _PAUSED = LanePhase.IDLE, LanePhase.RUNNING, LanePhase.PAUSED
_STAY_IDLE, _STAY_RUNNING, _STAY_PAUSED = Leads((_IDLE,)), Leads((_RUNNING,)), Leads((_PAUSED,))
_NO_ROLLOUT = Refuses("rollout.none", "no rollout is under way; `freehold status` shows what runs")
_UNDER_WAY = Refuses(
    "rollout.under-way", "a rollout is under way: finish it, abort it, or say `supersede`", "supersede", _RUNNING
)
_BUSY = Refuses("rollout.under-way", "a rollout is under way: finish or abort it first")
_FROZEN = Refuses("lane.frozen", "the environment is frozen for this project; an admin can unfreeze it")
_NOT_FROZEN = Refuses("lane.not-frozen", "nothing is frozen here")
_NOT_PAUSED = Refuses("rollout.not-paused", "the rollout is not paused")
_PAUSED_ALREADY = Refuses("rollout.paused", "the rollout is paused already")
_ENDS = Leads((_IDLE,), "every node returns to the base")
_RETURNS = Leads((_IDLE,), "the named release becomes the base at once")
_STEPS = Leads((_RUNNING, _IDLE), "idle after the last stage: the candidate is the base")

Row = tuple[Outcome, Outcome, Outcome]
"""Outcomes from idle, running and paused."""

OPEN: dict[type[Any], Row] = {
    ClaimRoutes: (_STAY_IDLE, _STAY_RUNNING, _STAY_PAUSED),
    Start: (Leads((_RUNNING,)), _UNDER_WAY, _UNDER_WAY),
    Promote: (_NO_ROLLOUT, _STEPS, _STEPS),
    Pause: (_NO_ROLLOUT, Leads((_PAUSED,)), _PAUSED_ALREADY),
    Resume: (_NO_ROLLOUT, _NOT_PAUSED, Leads((_RUNNING,), "the stage opens anew")),
    Abort: (_NO_ROLLOUT, _ENDS, _ENDS),
    Rollback: (_RETURNS, _RETURNS, _RETURNS),
    Freeze: (_STAY_IDLE, _STAY_RUNNING, _STAY_PAUSED),
    Unfreeze: (_NOT_FROZEN, _NOT_FROZEN, _NOT_FROZEN),
    PlaceData: (_STAY_IDLE, _BUSY, _BUSY),
    WithdrawApproval: (
        _STAY_IDLE,
        Leads((_RUNNING, _PAUSED), "paused when the candidate lost an approval it needs"),
        _STAY_PAUSED,
    ),
}
FROZEN: dict[type[Any], Row] = {
    **OPEN,
    ClaimRoutes: (_FROZEN, _FROZEN, _FROZEN),
    Start: (_FROZEN, _FROZEN, _FROZEN),
    Promote: (_NO_ROLLOUT, _FROZEN, _FROZEN),
    Resume: (_NO_ROLLOUT, _FROZEN, _FROZEN),
    Freeze: (_FROZEN, _FROZEN, _FROZEN),
    Unfreeze: (_STAY_IDLE, _STAY_RUNNING, _STAY_PAUSED),
    PlaceData: (_FROZEN, _FROZEN, _FROZEN),
}
"""A freeze holds what would bring something new; pausing, aborting and rolling back stay possible, for safety."""


def phase_of(lane: Lane) -> LanePhase:
    """Return where the lane stands."""
    if lane.rollout is None:
        return LanePhase.IDLE
    return LanePhase.PAUSED if lane.rollout.paused else LanePhase.RUNNING


def outcome(lane: Lane, action: LaneAction) -> Outcome:
    """Return what the table says of `action` on this lane."""
    row = (FROZEN if lane.frozen else OPEN)[type(action)]
    match phase_of(lane):
        case LanePhase.IDLE:
            return row[0]
        case LanePhase.RUNNING:
            return row[1]
        case LanePhase.PAUSED:
            return row[2]


def check(lane: Lane, action: LaneAction) -> Refuses | None:
    """Return the rule that refuses `action` here, or None; a `start` that says `supersede` passes."""
    answer = outcome(lane, action)
    if isinstance(answer, Leads):
        return None
    if answer.unless and isinstance(action, Start) and action.supersede:
        return None
    return answer


def assert_led(before: Lane, action: LaneAction, after: Lane) -> None:
    """Assert that the step taken is one the table allows."""
    answer = outcome(before, action)
    allowed = answer.to if isinstance(answer, Leads) else (answer.to,)
    ensure(phase_of(after) in allowed, f"{type(action).__name__}: {phase_of(before)} led to {phase_of(after)}")


def markdown() -> str:
    """Return the table as the Markdown page `docs/reference/transitions.md`."""
    lines = [
        "# Transitions of one project in one environment",
        "",
        "Printed from `protocols/state/transitions.py` by `python -m protocols.state.transitions`; a test holds it.",
        "",
        "A command also needs the rights, approvals and evidence that policy asks for; this table comes first.",
        "`noop` and the commands on the mesh itself (nodes, policy, projects, voters) change no row here.",
    ]
    for title, table in (("Open", OPEN), ("Frozen", FROZEN)):
        lines += ["", f"## {title}", "", "| command | idle | running | paused |", "|---|---|---|---|"]
        for action, row in table.items():
            cells = " | ".join(_cell(entry) for entry in row)
            lines.append(f"| `{action.__struct_config__.tag}` | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(found: Outcome) -> str:
    match found:
        case Leads(to, note):
            return " or ".join(phase.value for phase in to) + (f" ({note})" if note else "")
        case Refuses(rule, _, unless, to):
            assert not unless or to is not None
            return f"refused: `{rule}`" + (f"; with `{unless}`: {to.value}" if unless and to else "")


if __name__ == "__main__":  # pragma: no cover
    print(markdown(), end="")
