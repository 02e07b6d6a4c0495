"""`freehold project create|list|place`: the names under which things are deployed, and where what must be on one node is.

Not here: the project's files (`freehold new`), and what runs of it (`freehold status`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.members import Member, find_member, members_of
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.commands.options import environment_option
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.table import short, table
from cli.views.lanes import find_lane
from cli.views.watch import VOTERS_DECIDE
from protocols.api_models import NodeView
from protocols.changes.change import valid_name
from protocols.machine import PeerId
from protocols.state.commands import CreateProject, PlaceData
from protocols.state.model import Project

SERVES_WITHIN_S = 120.0
LOOK_EVERY_S = 1.0

_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")


@command("create", examples=("freehold project create guestbook", "freehold project create shop --owner web-team"))
@click.argument("name")
@click.option("--owner", "owners", multiple=True, metavar="NAME", help="Who answers for it; may repeat.")
@_CONTEXT
def create(output: Output, name: str, owners: tuple[str, ...], context_name: str | None) -> None:
    """Make a project. Needs the admin key."""
    if not valid_name(name):
        raise UsageError("a project's name is 1 to 63 of a-z, 0-9 and dash", next_step="freehold project create shop")
    _, context = contexts.current_context(context_name)
    require_admin(context, f"make the project {name}")
    state = talk(context, lambda client: client.state())
    if any(project.name == name for project in state.projects):
        raise UsageError(f"there is a project {name} already", next_step="freehold project list", kind="exists")
    admin = unlock_admin(context, f"make the project {name}")
    output.live(VOTERS_DECIDE)
    slot = talk(
        context,
        lambda client: client.decide(admin, CreateProject(name, owners), next_step="freehold project list"),
    )
    output.result({"project": name, "owners": list(owners), "slot": slot}, f"project {name} (decision {slot})")
    output.hint("in its folder: freehold deploy")


@command("list", examples=("freehold project list", "freehold project list --json"))
@_CONTEXT
def show(output: Output, context_name: str | None) -> None:
    """List the projects and where they run."""
    _, context = contexts.current_context(context_name)

    async def ask(client: NodeClient) -> list[tuple[Project, list[str]]]:
        state = await client.state()
        return [
            (project, [lane.environment for lane in state.lanes if lane.project == project.name and lane.base])
            for project in state.projects
        ]

    pairs = talk(context, ask)
    rows = [
        (project.name, ", ".join(project.owners) or "-", ", ".join(environments) or "-")
        for project, environments in pairs
    ]
    told = [
        {"name": project.name, "owners": project.owners, "environments": environments}
        for project, environments in pairs
    ]
    output.result({"projects": told}, table(("PROJECT", "OWNERS", "RUNS IN"), rows))
    if not rows:
        output.note("there is no project yet")
        output.hint("freehold project create NAME")


@command("place", examples=("freehold project place guestbook --schedules garage",
                            "freehold project place guestbook --env staging --data attic -y"))  # fmt: skip
@click.argument("name")
@environment_option("Where the project runs.")
@click.option("--schedules", metavar="NODE", help="The node that runs the scheduled apps from now on.")
@click.option("--data", metavar="NODE", help="The node that holds the key-value stores from now on.")
@_CONTEXT
@click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
def place(output: Output, name: str, environment: str, schedules: str | None, data: str | None,
          context_name: str | None, yes: bool) -> None:  # fmt: skip
    """Say which node runs a project's schedules, or holds its data. Needs the admin key.

    Neither ever moves by itself: a node that cannot be reached may still be running. Data is not copied, which is for data
    that is lost: a new holder begins with empty stores, unless they were put there before (data/PROJECT/ENVIRONMENT in
    the node's folder). To take it along: `freehold data move`.
    """
    if (schedules is None) == (data is None):
        raise UsageError("name --schedules NODE or --data NODE", next_step="freehold project place --help")
    _, context = contexts.current_context(context_name)
    require_admin(context, f"place {name} in {environment}")
    lane = talk(context, lambda client: find_lane(client, name, environment))
    node = find_member(talk(context, members_of), schedules or data or "")
    before = lane.schedule_node if schedules else lane.data_node
    what = "schedules run on" if schedules else "data is on"
    output.note(f"{name} in {environment}: its {what} {short(before) if before else 'no node yet'}, then {node.title}")
    if data and before and before != node.node:
        output.warn(f"nothing is copied: visitors find empty stores on {node.title} until you put the data there")
        output.hint(f"freehold data move {name} --env {environment} --to {node.title}")
    if data and lane.base is not None and before != node.node:
        output.note(f"  visitors get 503 until {node.title} has fetched, compiled and tried the release")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"place {name} in {environment}")
    action = PlaceData(PeerId(node.node), schedule=schedules is not None)
    output.live(VOTERS_DECIDE)
    slot = talk(
        context,
        lambda client: client.decide(
            admin, action, project=name, environment=environment, expect=lane.sequence, next_step="freehold status"
        ),
    )
    waits = data is not None and lane.base is not None
    serves = (
        talk(context, lambda client: _await_serving(client, output, f"{name}/{environment}", node)) if waits else None
    )
    output.result({"project": name, "environment": environment, "node": node.node, "slot": slot, "serves": serves},
                  f"{name} in {environment}: its {what} {node.title} (decision {slot})")  # fmt: skip
    if serves is False:
        output.warn(f"{node.title} does not serve it yet; it goes on preparing, and visitors get 503 meanwhile")
        output.hint("freehold doctor")


async def _await_serving(client: NodeClient, output: Output, lane: str, node: Member) -> bool:
    """Wait until a node runs a lane's release, for SERVES_WITHIN_S at most; return whether it does."""
    deadline_s = time.monotonic() + SERVES_WITHIN_S
    while True:
        with contextlib.suppress(CommandError):
            if lane in (await client.read(NodeView, f"/v1/nodes/{node.node}")).running:
                return True
        if time.monotonic() >= deadline_s:
            return False
        output.live(f"{node.title} fetches, compiles and tries the release")
        await asyncio.sleep(LOOK_EVERY_S)


@click.group("project", cls=Group)
def project() -> None:
    """Make and list projects, and place what must be on one node."""


for _one in (create, show, place):
    project.add_command(_one)
