"""One look at every lane: the node's own view, and beside it where it runs, since when, for what, and what is open.

People get it from `freehold status`, agents from the tool of that name. Not here: the judgements (lane_status.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import astuple, replace

from cli.access.client import NodeClient
from cli.access.members import Member, members_of
from cli.change.proposal import require_known
from cli.errors import CommandError
from cli.views import lane_status
from protocols.api_models import ChangeView, DecisionView, JobView, LaneView, NodeView
from protocols.state.model import MeshState

CHANGES_ASKED = 100
DECISIONS_ASKED = 100
"""Of each lane, newest first: enough to find when what runs began."""

OPEN_MAX = 5


class WaitingStart(msgspec.Struct, frozen=True):
    """A start that was handed over and waits for somebody, in words."""

    change: str
    words: str


class SeenLane(LaneView, frozen=True, kw_only=True):
    """The asked node's view of a lane, and beside it what a look at the whole mesh adds.

    `nodes` are to serve it, and those of them, or of its cohort, that do not answer are `down`. `since_ms` is when what runs
    began, `stage_ms` when the open stage did (wall, 0: not known), `deadline_ms` how long that waits for a node that says
    nothing. `requests` are by change; `aborted` says how the newest rollout ended, if it ended so; `open` are the newest
    changes that are proposed and not started. `jobs` are the scheduled apps as the node that runs them tells.
    """

    nodes: tuple[str, ...]
    down: tuple[str, ...]
    since_ms: int
    stage_ms: int
    deadline_ms: int
    requests: dict[str, str]
    waiting: tuple[WaitingStart, ...]
    aborted: lane_status.Aborted | None
    open: tuple[ChangeView, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: the asked node, every lane that was asked for, and what worries the node, with names for ids."""

    node: NodeView
    lanes: Sequence[SeenLane]
    warnings: Sequence[str]
    members: tuple[Member, ...]


async def look(client: NodeClient, project: str, environment: str) -> Seen:
    """Ask a node about every lane, or those of one project or environment. Raises UsageError for one that is not there."""
    lanes = await client.read(tuple[LaneView, ...], "/v1/lanes", project=project, environment=environment)
    if not lanes:
        await require_known(client, project, environment)
    node, state, members = await client.read(NodeView, "/v1/node"), await client.state(), await members_of(client)
    seen_lanes = []
    jobs = await _jobs_elsewhere(client, lanes, node.node, members)
    for lane in lanes:
        where = {"project": lane.project, "environment": lane.environment}
        changes = await client.read(tuple[ChangeView, ...], "/v1/changes", **where, limit=CHANGES_ASKED)
        decisions = await client.read(tuple[DecisionView, ...], "/v1/decisions", **where, limit=DECISIONS_ASKED)
        nodes = lane_status.nodes_of(state, lane.project, lane.environment)
        cohort = lane.rollout.cohort if lane.rollout is not None else ()
        shown = {entry.change for entry in (lane.base, lane.rollout) if entry is not None}
        started = {decision.subject for decision in decisions if decision.action == "start"}
        proposed = [change for change in changes if change.state == "proposed"]
        beside = replace(lane, jobs=lane.jobs or jobs.get((lane.project, lane.environment), ()))
        seen_lanes.append(
            SeenLane(
                *astuple(beside),
                nodes=nodes,
                down=lane_status.down_of(dict.fromkeys((*nodes, *cohort)), members),
                since_ms=lane_status.began_ms(lane.base.change if lane.base is not None else "", decisions),
                stage_ms=lane_status.opened_ms(decisions) if lane.rollout is not None else 0,
                requests={change.id: change.request for change in changes if change.id in shown},
                waiting=tuple(
                    WaitingStart(change.id, lane_status.with_names(words, members))
                    for change in changes
                    if (words := lane_status.waiting_words(change))
                ),
                aborted=lane_status.aborted(decisions),
                deadline_ms=_deadline_ms(state, lane),
                open=tuple(change for change in proposed if change.id not in started)[:OPEN_MAX],
            )
        )
    return Seen(node, seen_lanes, [lane_status.with_names(warning, members) for warning in node.warnings], members)


def _deadline_ms(state: MeshState, lane: LaneView) -> int:
    """Return how long the open stage of a lane waits for a node that says nothing; 0 where none is open."""
    decided = state.lane(lane.project, lane.environment)
    return decided.rollout.plan.progress_deadline_ms if decided is not None and decided.rollout is not None else 0


async def _jobs_elsewhere(
    client: NodeClient, lanes: Sequence[LaneView], here: str, members: Sequence[Member]
) -> dict[tuple[str, str], tuple[JobView, ...]]:
    """Ask the other nodes that run schedules of these lanes for them; one that does not answer is left out."""
    reached = {member.node for member in members if member.connected}
    keepers = {lane.schedule_node for lane in lanes if lane.schedule_node not in {"", here}}
    table: dict[tuple[str, str], tuple[JobView, ...]] = {}
    for keeper in sorted(keepers & reached):
        with contextlib.suppress(CommandError):
            said = await client.read(NodeView, f"/v1/nodes/{keeper}")
            table |= {(job.project, job.environment): job.jobs for job in said.jobs}
    return table
