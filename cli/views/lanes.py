"""Which lane, and which of its releases, a command is about. Not here: what a lane shows (lane_status.py)."""

from __future__ import annotations

from collections.abc import Sequence

from cli.access.client import NodeClient
from cli.errors import UsageError
from cli.views.watch import short
from protocols.api_models import DecisionView
from protocols.state.model import Deployed, Lane


async def find_lane(client: NodeClient, project: str | None, environment: str) -> Lane:
    """Return one lane. Raises UsageError naming what there is."""
    return choose_lane((await client.state()).lanes, project, environment)


def choose_lane(lanes: Sequence[Lane], project: str | None, environment: str) -> Lane:
    """Return the lane of a project, or the only one there is: of several none is guessed. Raises UsageError."""
    known = [lane for lane in lanes if lane.environment == environment]
    found_lanes = [lane for lane in known if project is None or lane.project == project]
    if len(found_lanes) == 1:
        return found_lanes[0]
    names = ", ".join(lane.project for lane in known) or "none"
    if found_lanes:
        step = f"add --project {found_lanes[0].project}, or run it in the project's folder"
        raise UsageError(f"which project? (in {environment}: {names})", next_step=step, kind="no-lane")
    what = f"there is no project {project}" if project else "there is no project"
    raise UsageError(f"{what} (in {environment}: {names})", next_step="freehold status", kind="no-lane")


LEADS_AWAY = frozenset({"start", "promote", "abort"})
"""Decisions on a lane after which a rollback has something to return from."""
HISTORY_ASKED = 50


async def rollback_target(client: NodeClient, lane: Lane, prefix: str) -> Deployed | None:
    """Return the release a rollback goes to, None if the lane is there already: a rollback asked for twice is one.

    Without a prefix it is the release before, unless a rollback is the last thing that changed what runs. Raises
    UsageError naming the releases there are.
    """
    if lane.rollout is None and lane.base is not None:
        base = lane.base
        if prefix and base.change.hex().startswith(prefix):
            return None
        if prefix and base.release.hex().startswith(prefix):
            matching = [deployed for deployed in lane.retained if deployed.release.hex().startswith(prefix)]
            if matching:  # with other secrets, or another configuration: asked for twice it would go there and back
                raise _several(prefix, [base, *matching])
            return None
        if not prefix and await _rolled_back(client, lane):
            return None
    return target_of(lane, prefix)


async def _rolled_back(client: NodeClient, lane: Lane) -> bool:
    where = {"project": lane.project, "environment": lane.environment}
    for decision in await client.read(tuple[DecisionView, ...], "/v1/decisions", **where, limit=HISTORY_ASKED):
        if decision.action == "rollback":
            return True
        if decision.action in LEADS_AWAY:
            return False
    return False


def target_of(lane: Lane, prefix: str) -> Deployed:
    """Return the deployed release a rollback goes to. Raises UsageError naming those there are."""
    known = [*lane.retained]
    if lane.rollout is not None and lane.base is not None:
        known.insert(0, lane.base)
    matching = [
        deployed
        for deployed in known
        if deployed.release.hex().startswith(prefix) or deployed.change.hex().startswith(prefix)
    ]
    if matching and (not prefix or len(matching) == 1):
        return matching[0]
    if matching:  # the same release under several changes: with other secrets, or another configuration
        raise _several(prefix, matching)
    names = ", ".join(short(deployed.release.hex()) for deployed in known) or "none"
    raise UsageError(
        f"there is no such release to return to (kept: {names})", next_step="freehold releases", kind="no-release"
    )


def _several(prefix: str, matching: Sequence[Deployed]) -> UsageError:
    """Return the error for a name that several releases have; it names a change that only one has."""
    names = ", ".join(f"{deployed.change.hex()[:12]} (release {deployed.release.hex()[:12]})" for deployed in matching)
    return UsageError(
        f"several changes match {prefix}: {names}; name the change",
        next_step=f"freehold rollback {matching[-1].change.hex()[:12]} -m REASON",
        kind="no-release",
    )
