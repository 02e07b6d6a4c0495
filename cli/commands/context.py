"""`freehold context list|use`: which meshes are known here, and which one commands speak to.

Not here: how one becomes known (mesh create, mesh join, login).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from cli.access import contexts as home
from cli.errors import UsageError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.table import table


@command("list", examples=("freehold context list", "freehold context list --json"))
def show(output: Output) -> None:
    """List the meshes known here, with the mesh of one of the project here; the current one is marked."""
    known = home.read_contexts()
    contexts = dict(known.contexts)
    with contextlib.suppress(UsageError):
        contexts[home.DEV_CONTEXT] = home.read_dev_context(Path.cwd())
    rows = [
        ("*" if name == known.current else "", name, one.mesh[:16], one.where, one.key or "-", one.admin or "-")
        for name, one in sorted(contexts.items())
    ]
    values = [
        {"name": name, "current": name == known.current, "mesh": one.mesh, "socket": one.socket, "url": one.url, "key": one.key,
         "admin_key": one.admin}
        for name, one in sorted(contexts.items())
    ]  # fmt: skip
    output.result({"contexts": values}, table(("", "NAME", "MESH", "API", "KEY", "ADMIN KEY"), rows))
    if not rows:
        output.note("no mesh is known here")
        output.hint(home.FIRST_STEP)


@command("use", examples=("freehold context use home",))
@click.argument("name")
def use(output: Output, name: str) -> None:
    """Make a mesh the current one. FREEHOLD_CONTEXT overrides it for one command."""
    known = home.read_contexts()
    if name not in known.contexts:
        raise UsageError(f"there is no context {name!r}", next_step="freehold context list", kind="no-context")
    home.write_contexts(home.Contexts(name, known.contexts))
    output.result({"current": name}, f"commands now speak to {name}")


@click.group("context", cls=Group)
def context() -> None:
    """See and choose the mesh that commands speak to."""


for _one in (show, use):
    context.add_command(_one)
