"""`freehold status|releases|rollouts`: what runs where, what is under way, and what it can go back to."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cli.frame import command
from cli.mesh import home
from cli.mesh.client import NodeClient, talk
from cli.mesh.watching import short
from cli.output import Output

_PROJECT = click.option("--project", default="", help="Only this project.")
_ENVIRONMENT = click.option("--env", "environment", default="", help="Only this environment.")
_CONTEXT = click.option("--context", "context_name", help="The mesh to use, if not the current one.")


def _ask(context_name: str | None, path: str, **query: Any) -> Any:
    _, context = home.current_context(context_name)

    async def conversation(client: NodeClient) -> Any:
        return await client.get(path, **query)

    return talk(context, conversation)


def render(table: Table) -> str:
    """A table as text for standard output: no colour or lines where nobody looks."""
    console = Console(width=140, highlight=False, no_color=True, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _at(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@command("status", examples=("freehold status", "freehold status --project guestbook --json"))
@_PROJECT
@_ENVIRONMENT
@_CONTEXT
def status(output: Output, project: str, environment: str, context_name: str | None) -> None:
    """Show what runs in each environment, what is under way, and what worries this node."""
    lanes = _ask(context_name, "/v1/lanes", project=project, environment=environment)
    node = _ask(context_name, "/v1/node")
    table = _table("PROJECT", "ENVIRONMENT", "RUNS", "UNDER WAY", "WHERE", "ROUTES")
    for lane in lanes:
        rollout, base = lane["rollout"], lane["base"]
        moving = "-"
        if rollout is not None:
            moving = f"{short(rollout['release'])} stage {rollout['stage'] + 1}/{len(rollout['stages'])}"
            moving += f", paused: {rollout['paused']}" if rollout["paused"] else f", {rollout['reason']}"
        elif lane["last_abort"]:
            moving = f"went back: {lane['last_abort']}"
        if lane["frozen"]:
            moving += f" (frozen: {lane['frozen']})"
        where = f"data on {short(lane['data_node'])}" if lane["data_node"] else "everywhere selected"
        if lane["schedule_node"]:
            where += f", schedules on {short(lane['schedule_node'])}"
        runs = short(base["release"]) if base is not None else "nothing yet"
        table.add_row(lane["project"], lane["environment"], runs, moving, where, " ".join(lane["routes"]))
    jobs = [(lane, job) for lane in lanes for job in lane["jobs"]]
    for lane, job in jobs:
        last = f"last {job['last_outcome']} at {_at(job['last_ms'])}" if job["last_outcome"] else "not run here yet"
        output.note(f"{lane['project']}/{lane['environment']} {job['app']}: next at {_at(job['next_ms'])}, {last}")
    for warning in node["warnings"]:
        output.warn(warning)
    human = render(table) if lanes else f"nothing is deployed in {node['mesh_name']} yet"
    output.result({"lanes": lanes, "warnings": node["warnings"], "slot": node["slot"]}, human)
    if not lanes:
        output.hint("freehold deploy")


@command("releases", examples=("freehold releases", "freehold releases --env staging --json"))
@_PROJECT
@_ENVIRONMENT
@_CONTEXT
def releases(output: Output, project: str, environment: str, context_name: str | None) -> None:
    """List the release that runs in each environment and those it can go back to."""
    lanes = _ask(context_name, "/v1/lanes", project=project, environment=environment)
    table = _table("PROJECT", "ENVIRONMENT", "RELEASE", "CHANGE", "STATE", "AUTHOR", "APPROVERS")
    found: list[dict[str, Any]] = []
    for lane in lanes:
        kept = [("runs", lane["base"])] if lane["base"] is not None else []
        kept += [("kept", one) for one in lane["retained"]]
        for state, one in kept:
            found.append({"project": lane["project"], "environment": lane["environment"], "state": state, **one})
            approvers = ", ".join(key[:8] for key in one["approvers"]) or (
                "broken glass" if one["break_glass"] else "-"
            )
            table.add_row(
                lane["project"], lane["environment"], short(one["release"]), short(one["change"]), state,
                one["author"][:8], approvers,
            )  # fmt: skip
    output.result({"releases": found}, render(table) if found else "no release runs yet")
    output.hint("freehold rollback RELEASE -m REASON" if found else "freehold deploy")


@command("rollouts", examples=("freehold rollouts", "freehold rollouts --project guestbook --json"))
@_PROJECT
@_ENVIRONMENT
@_CONTEXT
@click.option("--limit", default=30, show_default=True, help="How many decisions to show.")
def rollouts(output: Output, project: str, environment: str, limit: int, context_name: str | None) -> None:
    """List what was decided about rollouts, newest first, with the numbers that decided it."""
    decisions = _ask(context_name, "/v1/decisions", project=project, environment=environment, limit=limit)
    found = [one for one in decisions if one["project"]]
    table = _table("WHEN", "PROJECT", "ENVIRONMENT", "DECIDED", "SUBJECT", "BY", "NUMBERS")
    for one in found:
        numbers = "; ".join(
            f"{short(each['node'])} {each['verdict']} {each['errors']}/{each['requests']} errors"
            for each in one["numbers"]
        )
        by = ", ".join(key[:8] for key in one["signers"]) or "health"
        table.add_row(
            _at(one["at_ms"]), one["project"], one["environment"], one["action"], short(one["subject"]), by,
            numbers or one["reason"],
        )  # fmt: skip
    output.result({"rollouts": found}, render(table) if found else "nothing was rolled out yet")
