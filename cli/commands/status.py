"""`freehold status|releases|rollouts`: what runs where, what is under way, and what it can go back to.

Nodes and people stand by their names. Not here: anything that moves a rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from cli.errors import CommandError
from cli.frame import command
from cli.mesh import home
from cli.mesh.client import NodeClient, talk
from cli.mesh.deploying import require_known
from cli.mesh.principals import principals_of
from cli.mesh.spans import counted
from cli.mesh.table import table
from cli.mesh.watching import short
from cli.output import Output

_PROJECT = click.option("--project", default="", help="Only this project.")
_ENVIRONMENT = click.option("--env", "environment", default="", help="Only this environment.")
_CONTEXT = click.option("--context", "context_name", help="The mesh to use, if not the current one.")


Names = Mapping[str, str]
"""What people call nodes (by id) and keys (by their hex)."""


def _ask(context_name: str | None, path: str, **query: Any) -> tuple[Any, Any, Names]:
    """Return what a path answers, the asked node's own view, and everybody's names."""
    _, context = home.current_context(context_name)

    async def conversation(client: NodeClient) -> tuple[Any, Any, Names]:
        answer = await client.get(path, **query)
        if not answer:
            await require_known(client, query["project"], query["environment"])
        names = {one["node"]: one["name"] for one in await client.get("/v1/members") if one["name"]}
        try:
            names |= {one.key: one.name for one in await principals_of(client) if one.name}
            names |= {admin.hex(): "admin" for admin in (await client.state()).admins}
        except CommandError:  # a key that may not look at principals still sees what runs
            return answer, await client.get("/v1/node"), names
        return answer, await client.get("/v1/node"), names

    return talk(context, conversation)


def _node(names: Names, node: str) -> str:
    return names.get(node) or short(node)


def _key(names: Names, key: str) -> str:
    return names.get(key) or key[:8]


def _at(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _lane(one: Mapping[str, Any]) -> str:
    return f"{one['project']}/{one['environment']}"


def _numbers(names: Names, one: Mapping[str, Any]) -> str:
    """One node's verdict with the numbers behind it."""
    word = {"pass": "is up", "fail": "failed", "pending": "is not up yet"}[one["verdict"]]
    reason = f" ({one['reason']})" if one["reason"] else ""
    return f"{_node(names, one['node'])} {word}{reason}, {_tally(one['errors'], one['requests'])}"


def _tally(errors: int, requests: int) -> str:
    return f"{counted(errors, 'error')} in {counted(requests, 'request')}"


@command("status", examples=("freehold status", "freehold status --project guestbook --json"))
@_PROJECT
@_ENVIRONMENT
@_CONTEXT
def status(output: Output, project: str, environment: str, context_name: str | None) -> None:
    """Show what runs in each environment, what is under way, and what worries this node."""
    lanes, node, names = _ask(context_name, "/v1/lanes", project=project, environment=environment)
    rows, details = [], []
    for lane in lanes:
        rollout, base = lane["rollout"], lane["base"]
        moving = f"stage {rollout['stage'] + 1} of {len(rollout['stages'])}" if rollout is not None else "-"
        where = f"data on {_node(names, lane['data_node'])}" if lane["data_node"] else "every node selected"
        runs = short(base["release"]) if base is not None else "nothing yet"
        rows.append((_lane(lane), runs, moving, where, " ".join(lane["routes"])))
        details += [f"{_lane(lane)}: {line}" for line in _details(names, lane)]
    for warning in node["warnings"]:
        output.warn(warning)
    human = "\n".join([table(("WHAT", "RUNS", "UNDER WAY", "WHERE", "ROUTES"), rows), *details])
    empty = f"nothing is deployed in {node['mesh_name']} yet"
    output.result({"lanes": lanes, "warnings": node["warnings"], "slot": node["slot"]}, human if lanes else empty)
    if not lanes:
        output.hint("freehold deploy")


def _details(names: Names, lane: dict[str, Any]) -> list[str]:
    """What is under way or went wrong in a lane, one sentence each."""
    rollout, found = lane["rollout"], []
    if rollout is not None:
        state = f"paused, {rollout['paused']}" if rollout["paused"] else rollout["reason"]
        found.append(f"release {short(rollout['release'])} is coming, {state}")
        found += [_numbers(names, one) for one in rollout["verdicts"] if one["node"] in rollout["cohort"]]
    elif lane["last_abort"]:
        found.append(f"the last rollout went back: {lane['last_abort']}")
    if lane["frozen"]:
        found.append(f"frozen: {lane['frozen']}")
    return found


@command("releases", examples=("freehold releases", "freehold releases --env staging --json"))
@_PROJECT
@_ENVIRONMENT
@_CONTEXT
def releases(output: Output, project: str, environment: str, context_name: str | None) -> None:
    """List the release that runs in each environment and those it can go back to."""
    lanes, _, names = _ask(context_name, "/v1/lanes", project=project, environment=environment)
    rows: list[tuple[str, ...]] = []
    found: list[dict[str, Any]] = []
    for lane in lanes:
        kept = [("runs", lane["base"])] if lane["base"] is not None else []
        kept += [("kept", one) for one in lane["retained"]]
        for state, one in kept:
            found.append({"project": lane["project"], "environment": lane["environment"], "state": state, **one})
            approvers = ", ".join(_key(names, key) for key in one["approvers"])
            approvers = approvers or ("broken glass" if one["break_glass"] else "-")
            author = _key(names, one["author"])
            rows.append((_lane(lane), short(one["release"]), short(one["change"]), state, author, approvers))
    header = ("WHAT", "RELEASE", "CHANGE", "STATE", "AUTHOR", "APPROVED BY")
    output.result({"releases": found}, table(header, rows) if found else "no release runs yet")
    output.hint("freehold rollback RELEASE -m REASON" if found else "freehold deploy")


@command("rollouts", examples=("freehold rollouts", "freehold rollouts --project guestbook --json"))
@_PROJECT
@_ENVIRONMENT
@_CONTEXT
@click.option(
    "--limit", type=click.IntRange(1, 2000), default=30, show_default=True, help="How many decisions to show."
)
def rollouts(output: Output, project: str, environment: str, limit: int, context_name: str | None) -> None:
    """List what was decided about rollouts, newest first, with the numbers that decided it."""
    decisions, _, names = _ask(context_name, "/v1/decisions", project=project, environment=environment, limit=limit)
    found = [one for one in decisions if one["project"]]
    rows = [
        (_at(one["at_ms"]), _lane(one), one["action"], ", ".join(_key(names, key) for key in one["signers"]) or "health",
         short(one["subject"]))
        for one in found
    ]  # fmt: skip
    header, *lines = table(("WHEN", "WHAT", "DECIDED", "BY", "SUBJECT"), rows).split("\n")
    shown = [header]
    for line, one in zip(lines, found, strict=True):
        shown += [line, *([f"  {one['reason']}"] if one["reason"] else [])]
        shown += [f"  {_numbers(names, each)}" for each in one["numbers"]]
    output.result({"rollouts": found}, "\n".join(shown) if found else "nothing was rolled out yet")
