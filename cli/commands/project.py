"""`freehold project create|list`: the names under which things are deployed, made by an admin.

Not here: the project's files (`freehold new`), and what runs of it (`freehold status`).
"""

from __future__ import annotations

from typing import Any

import click

from cli.errors import UsageError
from cli.frame import command
from cli.mesh import home
from cli.mesh.administering import unlock_admin
from cli.mesh.client import NodeClient, talk
from cli.mesh.table import table
from cli.output import Output
from protocols.change import valid_name
from protocols.commands import CreateProject

_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")


@command("create", examples=("freehold project create guestbook", "freehold project create shop --owner web-team"))
@click.argument("name")
@click.option("--owner", "owners", multiple=True, metavar="NAME", help="Who answers for it; may repeat.")
@_CONTEXT
def create(output: Output, name: str, owners: tuple[str, ...], context_name: str | None) -> None:
    """Make a project. Needs the admin key."""
    if not valid_name(name):
        raise UsageError("a project's name is 1 to 63 of a-z, 0-9 and dash", next_step="freehold project create shop")
    _, context = home.current_context(context_name)
    state = talk(context, lambda client: client.state())
    if any(one.name == name for one in state.projects):
        raise UsageError(f"there is a project {name} already", next_step="freehold project list", kind="exists")
    admin = unlock_admin(context, f"make the project {name}")
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
    _, context = home.current_context(context_name)

    async def ask(client: NodeClient) -> list[dict[str, Any]]:
        state = await client.state()
        return [
            {"name": one.name, "owners": list(one.owners),
             "environments": [lane.environment for lane in state.lanes if lane.project == one.name and lane.base]}
            for one in state.projects
        ]  # fmt: skip

    found = talk(context, ask)
    rows = [(one["name"], ", ".join(one["owners"]) or "-", ", ".join(one["environments"]) or "-") for one in found]
    output.result({"projects": found}, table(("PROJECT", "OWNERS", "RUNS IN"), rows))
    if not rows:
        output.hint("freehold project create NAME")


@click.group("project")
def project() -> None:
    """Make and list projects."""


for _one in (create, show):
    project.add_command(_one)
