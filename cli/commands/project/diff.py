"""`freehold diff`: what deploying the project now would change, against what runs. Nothing is filed or changed."""

from __future__ import annotations

from pathlib import Path

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.principals import everyday_key
from cli.change.propose import put_together, to_offer
from cli.change.review import Review, review_proposal, review_text
from cli.commands.options import environment_option
from cli.errors import ExitCode
from cli.frame import command
from cli.project.find import find_project, project_at
from cli.text.foreign import builtins_of
from cli.text.output import Output


@command("diff", examples=("freehold diff", "freehold diff --env staging --json", "freehold diff --exit-code",
                           "freehold diff --release 5c1d09 --env production"))  # fmt: skip
@environment_option("Against what runs there.")
@click.option("--exit-code", is_flag=True, help=f"End with {int(ExitCode.CHANGES)} if there are changes.")
@click.option("--release", default="", metavar="DIGEST",
              help="Compare this release (see freehold releases), as it is; build nothing.")  # fmt: skip
@click.option("--context", "context_name", help="The mesh, if not the current context.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def diff(
    output: Output, *, environment: str, exit_code: bool, release: str, context_name: str | None, folder: Path
) -> None:
    """Show what would change, what new things the app could reach, where it would run, and the way back.

    Prints the command that deploys exactly this: it is refused if anything has moved since.
    """
    project = project_at(folder) if release else find_project(folder)
    _, context = contexts.current_context(context_name)
    signer = everyday_key(context)

    async def conversation(client: NodeClient) -> Review:
        what = await to_offer(client, project, release)
        proposal, _ = await put_together(client, output, what, environment, "", signer)
        return await review_proposal(client, proposal, held=bool(release))

    review = talk(context, conversation)
    output.result({"diff": builtins_of(review), "changes": review.changes}, review_text(review))
    if review.changes:
        output.hint(review.command)
    if exit_code and review.changes:
        raise SystemExit(int(ExitCode.CHANGES))
