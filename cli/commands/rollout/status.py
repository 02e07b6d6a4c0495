"""`freehold status|releases|rollouts`: what runs where, what is under way, and what it can go back to.

Nodes and people stand by their names. Not here: asking the node (overview.py), the words for where a lane stands
(lane_status.py), and anything that moves a rollout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import click
from msgspec.structs import asdict

from cli.access import contexts
from cli.access.client import NodeClient, Parameter, talk
from cli.access.members import members_of
from cli.access.principals import principals_of
from cli.change.proposal import require_known
from cli.errors import CommandError
from cli.frame import command
from cli.text.output import Output
from cli.text.table import table
from cli.text.times import moment
from cli.text.units import in_words
from cli.views import lane_status
from cli.views.endings import ending
from cli.views.jobs import job_words
from cli.views.overview import Seen, SeenLane, look
from cli.views.watch import short
from protocols.api_models import DecisionView, DeployedView, LaneView, Numbers, VerdictView

_PROJECT = click.option("--project", default="", help="Only this project.")
_ENVIRONMENT = click.option("--env", "environment", default="", help="Only this environment.")
_CONTEXT = click.option("--context", "context_name", help="The mesh to use, if not the current one.")


T = TypeVar("T")
LOOK_EVERY_S = 1.0

Names = Mapping[str, str]
"""What people call nodes (by id) and keys (by their hex)."""


def _ask(
    context_name: str | None, kind: type[T], path: str, project: str, environment: str, **query: Parameter
) -> tuple[T, Names]:
    """Return what a path answers of a lane, or of all, and everybody's names."""
    _, context = contexts.current_context(context_name)

    async def conversation(client: NodeClient) -> tuple[T, Names]:
        answer = await client.read(kind, path, project=project, environment=environment, **query)
        if not answer:
            await require_known(client, project, environment)
        return answer, await _names(client)

    return talk(context, conversation)


async def _names(client: NodeClient) -> Names:
    names = {member.node: member.name for member in await members_of(client) if member.name}
    try:
        names |= {principal.key: principal.name for principal in await principals_of(client) if principal.name}
        names |= {admin.hex(): "admin" for admin in (await client.state()).admins}
    except CommandError:
        return names  # a key that may not look at principals still sees what runs
    return names


def _key(names: Names, key: str) -> str:
    return names.get(key) or key[:8]


def _lane(one: LaneView | DecisionView) -> str:
    return f"{one.project}/{one.environment}"


def _numbers(names: Names, one: VerdictView | Numbers) -> str:
    """One node's verdict with the numbers behind it."""
    word = {"pass": "is up", "fail": "failed", "pending": "is not up yet"}[one.verdict]
    reason = f" ({one.reason})" if one.reason else ""
    tally = lane_status.tally(one.errors, one.requests)
    served = one.engine if isinstance(one, VerdictView) else "python"
    engine = "" if served == "python" else f", in {lane_status.engine_words(served)}"
    return f"{lane_status.named(one.node, names)} {word}{reason}, {tally}{engine}"


@command("status", examples=("freehold status", "freehold status -f", "freehold status --project guestbook --json"))
@click.option("-f", "--follow", is_flag=True, help="Show it anew whenever something has changed, until Ctrl-C.")
@_PROJECT
@_ENVIRONMENT
@_CONTEXT
def status(output: Output, *, follow: bool, project: str, environment: str, context_name: str | None) -> None:
    """Show what runs where, since when and for which request, what is under way or waits, and what is wrong."""
    _, context = contexts.current_context(context_name)

    async def conversation(client: NodeClient) -> tuple[Seen, Names]:
        seen, own = await look(client, project, environment), await ending(client, context)
        seen = replace(seen, warnings=(*seen.warnings, own)) if own else seen
        return seen, await _names(client)

    async def watch(client: NodeClient) -> None:
        before: dict[str, object] = {}
        while True:
            seen, names = await conversation(client)
            value = _value(seen)
            if {**value, "slot": 0} != {**before, "slot": 0}:  # a decision about something else changes nothing here
                before = value
                output.event(value)
                output.anew("\n".join([*(f"warning: {warning}" for warning in seen.warnings), _text(seen, names)]))
            await asyncio.sleep(LOOK_EVERY_S)

    if follow:
        talk(context, watch)
        return
    seen, names = talk(context, conversation)
    for warning in seen.warnings:
        output.warn(warning)
    output.result(_value(seen), _text(seen, names))
    if not seen.lanes:
        output.hint(_first_step(context_name))


def _first_step(context_name: str | None) -> str:
    """What to do where nothing runs: in the mesh of one, freehold dev is about to do it."""
    name, _ = contexts.current_context(context_name)
    return (
        "look where freehold dev runs: it is building, or says why it cannot"
        if name == contexts.DEV_CONTEXT
        else "freehold deploy"
    )


def _value(seen: Seen) -> dict[str, object]:
    engine = {
        "engine": seen.node.engine,
        "engine_reason": seen.node.engine_reason,
        "left_to_python": seen.node.left_to_python,
    }
    return {"lanes": seen.lanes, "warnings": seen.warnings, "slot": seen.node.slot, **engine}


def _text(seen: Seen, names: Names) -> str:
    if not seen.lanes:
        return f"nothing is deployed in {seen.node.mesh_name} yet"
    rows = [_row(seen, names, lane) for lane in seen.lanes]
    details = [f"{_lane(lane)}: {line}" for lane in seen.lanes for line in _details(seen, names, lane)]
    words = [lane_status.served_words(seen.node), *lane_status.left_to_python(seen.node)]
    served = words if seen.node.engine else []
    return "\n".join([table(("WHAT", "RUNS", "SINCE", "UNDER WAY", "WHERE", "ROUTES"), rows), *details, *served])


def _asked_for(requests: Mapping[str, str], change: str) -> str:
    request = requests.get(change)
    if request is None:
        return f"change {change[:12]}"  # this node no longer holds the words
    return f'"{lane_status.in_short(request)}"' if request else "without a request"


def _row(seen: Seen, names: Names, lane: SeenLane) -> tuple[str, ...]:
    rollout, base = lane.rollout, lane.base
    moving = f"stage {rollout.stage + 1} of {len(rollout.stages)}" if rollout is not None else "-"
    if base is None:
        return _lane(lane), "nothing yet", "-", moving, "-", " ".join(lane.routes)
    down = [node for node in lane.down if node in lane.nodes]
    where = lane_status.where_words(lane.nodes, down, names, data=bool(lane.data_node))
    since = lane_status.ago(lane.since_ms, seen.node.wall_ms)
    return _lane(lane), short(base.release), since, moving, where, " ".join(lane.routes)


def _details(seen: Seen, names: Names, lane: SeenLane) -> list[str]:
    """What runs for which request, and what is under way, waits or went wrong in a lane; one sentence each."""
    rollout, base, texts = lane.rollout, lane.base, []
    requests = lane.requests
    if base is not None:
        down = [node for node in lane.down if node in lane.nodes]
        texts.append(f"runs {_asked_for(requests, base.change)}, by {_key(names, base.author)}")
        unserved = lane_status.unserved_words(lane.nodes, down, names, data=bool(lane.data_node))
        texts += [unserved] if unserved else []
    if rollout is not None:
        state = f"paused, {rollout.paused}" if rollout.paused else rollout.reason
        opened = f", this stage began {lane_status.ago(lane.stage_ms, seen.node.wall_ms)}"
        what = f"release {short(rollout.release)}, {_asked_for(requests, rollout.change)},"
        texts.append(f"{what} is coming, {state}{opened}")
        heard = [verdict.node for verdict in rollout.verdicts if verdict.node in rollout.cohort]
        texts += [_numbers(names, verdict) for verdict in rollout.verdicts if verdict.node in rollout.cohort]
        ends_ms = lane.stage_ms + lane.deadline_ms - seen.node.wall_ms
        until = f" for {in_words(ends_ms)} more, then it goes back" if lane.stage_ms and ends_ms > 0 else ""
        texts += lane_status.silent_words(rollout.cohort, heard, lane.down, names, until)
    elif lane.aborted is not None:
        when, by = lane_status.ago(lane.aborted.at_ms, seen.node.wall_ms), lane.aborted.by
        reason = f": {lane.last_abort}" if lane.last_abort else ""
        texts.append(f"the last rollout went back {when}, by {by}{reason}")
    if lane.frozen:
        texts.append(f"frozen: {lane.frozen}")
    texts += [job_words(job, seen.node.wall_ms) for job in lane.jobs]
    return [*texts, *(waiting_start.words for waiting_start in lane.waiting)]


def _name_for_rollback(found: Sequence[tuple[LaneView, str, DeployedView]]) -> str:
    """What names the newest release to go back to, and nothing else: its change, where it is kept more than once."""
    lane, newest = next((lane, deployed) for lane, state, deployed in found if state == "kept")
    several = sum((entry is lane, deployed.release) == (True, newest.release) for entry, _, deployed in found) > 1
    where = (
        f" --project {lane.project} --env {lane.environment}" if any(entry is not lane for entry, _, _ in found) else ""
    )
    return (newest.change if several else newest.release)[:12] + where


@command("releases", examples=("freehold releases", "freehold releases --env staging --json"))
@_PROJECT
@_ENVIRONMENT
@_CONTEXT
def releases(output: Output, project: str, environment: str, context_name: str | None) -> None:
    """List the release that runs in each environment and those it can go back to."""
    lanes, names = _ask(context_name, tuple[LaneView, ...], "/v1/lanes", project, environment)
    rows: list[tuple[str, ...]] = []
    entries: list[tuple[LaneView, str, DeployedView]] = []
    for lane in lanes:
        pairs = [("runs", lane.base)] if lane.base is not None else []
        pairs += [("kept", deployed) for deployed in lane.retained]
        for state, entry in pairs:
            entries.append((lane, state, entry))
            approvers = ", ".join(_key(names, key) for key in entry.approvers)
            approvers = approvers or ("broken glass" if entry.break_glass else "-")
            author = _key(names, entry.author)
            rows.append((_lane(lane), short(entry.release), short(entry.change), state, author, approvers))
    header = ("WHAT", "RELEASE", "CHANGE", "STATE", "AUTHOR", "APPROVED BY")
    told = [
        {"project": lane.project, "environment": lane.environment, "state": state, **asdict(deployed)}
        for lane, state, deployed in entries
    ]
    output.result({"releases": told}, table(header, rows) if entries else "no release runs yet")
    if any(state == "kept" for _, state, _ in entries):
        output.hint(f"freehold rollback {_name_for_rollback(entries)} -m REASON")
    elif not entries:
        output.hint(_first_step(context_name))


@command("rollouts", examples=("freehold rollouts", "freehold rollouts --project guestbook --json"))
@_PROJECT
@_ENVIRONMENT
@_CONTEXT
@click.option(
    "--limit", type=click.IntRange(1, 2000), default=30, show_default=True, help="How many decisions to show."
)
def rollouts(output: Output, project: str, environment: str, limit: int, context_name: str | None) -> None:
    """List what was decided about rollouts, newest first, with the numbers that decided it."""
    decisions, names = _ask(context_name, tuple[DecisionView, ...], "/v1/decisions", project, environment, limit=limit)
    found_decisions = [decision for decision in decisions if decision.project]
    rows = [
        (
            moment(decision.at_ms),
            _lane(decision),
            decision.action,
            ", ".join(_key(names, key) for key in decision.signers) or "health",
            short(decision.subject),
        )
        for decision in found_decisions
    ]
    header, *lines = table(("WHEN", "WHAT", "DECIDED", "BY", "SUBJECT"), rows).split("\n")
    shown = [header]
    for line, entry in zip(lines, found_decisions, strict=True):
        shown += [line, *([f"  {entry.reason}"] if entry.reason else [])]
        shown += [f"  {_numbers(names, number)}" for number in entry.numbers]
    output.result({"rollouts": found_decisions}, "\n".join(shown) if found_decisions else "nothing was rolled out yet")
