"""`freehold why PROJECT`: the eight answers about what runs, from any node, each with its signed sources."""

from __future__ import annotations

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.commands.options import environment_option
from cli.errors import UsageError
from cli.frame import command
from cli.project.find import project_here
from cli.text.foreign import builtins_of
from cli.text.output import Output
from cli.views.audit import delivery_figures, delivery_text
from cli.views.dora import Delivery
from cli.views.why import WhyAnswer, explain, explain_text


@command("why", examples=("freehold why guestbook", "freehold why guestbook --env staging --json"))
@click.argument("project", default="")
@environment_option("Where it runs.")
@click.option("--context", "context_name", help="The mesh, if not the current context.")
def why(output: Output, project: str, environment: str, context_name: str | None) -> None:
    """Say who approved what runs, what was tested, where configuration and secrets are, what happens when it fails,
    how it is observed, how it rolls back and what it depends on. PROJECT is by default that of this folder."""
    project = project or project_here()
    if not project:
        raise UsageError("which project?", next_step="freehold why PROJECT; freehold project list names them")
    _, context = contexts.current_context(context_name)

    async def conversation(client: NodeClient) -> tuple[tuple[WhyAnswer, ...], dict[str, Delivery]]:
        return await explain(client, project, environment), await delivery_figures(client, project)

    answers, figures = talk(context, conversation)
    delivery = figures.get(f"{project}/{environment}")
    value = {
        "project": project,
        "environment": environment,
        "answers": [builtins_of(answer) for answer in answers],
        "delivery": builtins_of(delivery) if delivery is not None else None,
    }
    tail = f"\n\nDelivery: {delivery_text(delivery)}" if delivery is not None else ""
    output.result(value, explain_text(answers) + tail)
    output.hint(f"freehold evidence export, freehold decisions --project {project}: fetch and check a source")
