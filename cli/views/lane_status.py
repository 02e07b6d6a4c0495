"""Where a lane stands, in words: which nodes serve it and which of them are down, since when, and what it waits for.

Pure judgements on what the asked node answered, so a node is down when the asked one believes so. Not here: asking
(overview.py), and what moves a rollout (commands/rollout/rollout.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cli.access.members import Member
from cli.text.table import short
from cli.text.units import counted, in_words
from protocols.api_models import ChangeView, DecisionView, NodeView, StartView
from protocols.state.model import MeshState
from protocols.state.placement import eligible, placed

NAMED_MAX = 4
"""Nodes told by name; of more, only those that are down."""

REQUEST_MAX = 60
DOWN = "down"
QUIET = ("start.new", "rollout.not-prepared")
"""What a start waits for at first anyway."""

STEPS = {
    "approval.": "freehold approve {}",
    "evidence.": "freehold test, then freehold deploy",
    "window.": "freehold policy show, then freehold deploy --change {}",
    "fresh.nodes-missed": "freehold deploy --change {}, which starts it on those nodes too",
}
"""What holds a start by rule, and what to run; the start itself goes on waiting on the node."""


class Aborted(msgspec.Struct, frozen=True):
    """When (wall) a rollout ended early, and by whom: names of people, or health."""

    at_ms: int
    by: str


ENGINES = {"python": "Python", "native": "the native engine"}


def engine_words(engine: str) -> str:
    """Name what serves, for a sentence."""
    return ENGINES.get(engine, engine)


def served_words(node: NodeView) -> str:
    """Say by what a node serves, and why not by the native engine where there is something to say."""
    reason = f": {node.engine_reason}" if node.engine_reason else ""
    return f"{node.name} serves in {engine_words(node.engine)}{reason}"


def left_to_python(node: NodeView) -> list[str]:
    """Say of each app that a node's native engine leaves to Python why it does."""
    return [
        f"{app.project} in {app.environment}, {app.app}: {node.name} serves it in Python: {app.reason}"
        for app in node.left_to_python
    ]


def nodes_of(state: MeshState, project: str, environment: str) -> tuple[str, ...]:
    """Return the nodes that are to serve a lane; none before its first release."""
    lane = state.lane(project, environment)
    if lane is None or lane.base is None:
        return ()
    return placed(lane, lane.base, eligible(state, environment))


def down_of(nodes: Iterable[str], members: Sequence[Member]) -> tuple[str, ...]:
    """Return those that the asked node believes down."""
    down = {member.node for member in members if member.belief == DOWN}
    return tuple(node for node in nodes if node in down)


def where_words(nodes: Sequence[str], down: Sequence[str], names: Mapping[str, str], *, data: bool) -> str:
    """Say which nodes serve a lane, and which of them do not now."""
    if not nodes:
        return "no node"
    listed = ", ".join(named(node, names) for node in nodes) if len(nodes) <= NAMED_MAX else f"{len(nodes)} nodes"
    where = f"data on {listed}" if data else listed
    if not down:
        return where
    lost = "which" if len(nodes) == 1 else ", ".join(named(node, names) for node in down)
    return f"{where}{',' if len(nodes) == 1 else ';'} {lost} {'is' if len(down) == 1 else 'are'} down"


def unserved_words(nodes: Sequence[str], down: Sequence[str], names: Mapping[str, str], *, data: bool) -> str:
    """Say that nobody serves a lane, and why; nothing if somebody does."""
    if not nodes or len(down) < len(nodes):
        return ""
    lost = ", ".join(named(node, names) for node in down)
    why = f"its data is on {lost}, which is down" if data else f"{lost} {'is' if len(down) == 1 else 'are'} down"
    return f"no visitor is served: {why}"


def began_ms(change: str, decisions: Sequence[DecisionView]) -> int:
    """Return when a change became what runs, from the lane's decisions, newest first; 0 if they do not reach so far.

    That is the last promotion after its start, or the rollback that returned to it.
    """
    promoted_ms = 0
    for decision in decisions:
        if decision.action == "promote":
            promoted_ms = promoted_ms or decision.at_ms
        elif decision.action in {"start", "rollback"} and decision.subject == change:
            return decision.at_ms if decision.action == "rollback" else promoted_ms or decision.at_ms
        elif decision.action in {"start", "abort", "rollback"}:
            promoted_ms = 0
    return 0


def opened_ms(decisions: Sequence[DecisionView]) -> int:
    """Return when the stage that is open was opened, from the lane's decisions, newest first; 0 if they do not say."""
    moves = (decision.at_ms for decision in decisions if decision.action in {"start", "promote", "resume"})
    return next(moves, 0)


def aborted(decisions: Sequence[DecisionView]) -> Aborted | None:
    """Return when the lane's newest rollout was aborted and by whom, from its decisions, newest first; None if it was not."""
    newest = next(
        (decision for decision in decisions if decision.action in {"start", "promote", "abort", "rollback"}), None
    )
    if newest is None or newest.action != "abort":
        return None
    signers = [name or key[:12] for name, key in zip(newest.names, newest.signers, strict=True)]
    return Aborted(newest.at_ms, ", ".join(signers) or "health")


def silent_words(
    cohort: Sequence[str], heard: Iterable[str], down: Sequence[str], names: Mapping[str, str], until: str = ""
) -> list[str]:
    """Say of each node of an open stage that nothing is known of whether it is down or has not reported.

    `until` says when the stage ends without it.
    """
    known = set(heard)
    wait = f"the stage waits for it{until}"
    return [
        f"{named(node, names)} {f'is down: {wait}' if node in down else f'has not reported yet: {wait}'}"
        for node in cohort
        if node in down or node not in known
    ]


def step_for(rule: str, change: str) -> str:
    """Return what somebody runs where this rule holds the start of a change; nothing where only time helps."""
    return next((step.format(change[:12]) for prefix, step in STEPS.items() if rule.startswith(prefix)), "")


def held_by(start: StartView | None) -> str:
    """Return the rule that holds a start which was handed over; nothing if it waits for nobody."""
    return start.rule if start is not None and start.outcome == "waiting" and start.rule not in QUIET else ""


def waiting_words(change: ChangeView) -> str:
    """Say what a start that was handed over waits for, and what to run; nothing if it waits for nobody."""
    start = change.start
    if start is None or start.outcome != "waiting" or not start.detail:
        return ""
    step = step_for(start.rule, change.id)
    said = f'change {change.id[:12]} "{in_short(change.request)}" waits: {start.detail}'
    return f"{said}; {step}" if step else said


def in_short(request: str) -> str:
    """Return the beginning of what somebody wrote, on one line and without control characters."""
    text = "".join(char for char in " ".join(request.split()) if char.isprintable())
    return text if len(text) <= REQUEST_MAX else f"{text[: REQUEST_MAX - 1]}…"


def ago(at_ms: int, now_ms: int) -> str:
    """Return how long ago something was, or a dash where that is not known."""
    return f"{in_words(now_ms - at_ms)} ago" if at_ms else "-"


def named(node: str, names: Mapping[str, str]) -> str:
    """Return what people call a node."""
    return names.get(node) or short(node)


def with_names(text: str, members: Sequence[Member]) -> str:
    """Return a sentence of a node with its peers' ids as people call them."""
    for member in members:
        text = text.replace(member.node, member.title)
    return text


def tally(errors: int, requests: int) -> str:
    """Return what was measured, in words."""
    return f"{counted(errors, 'error')} in {counted(requests, 'request')}"
