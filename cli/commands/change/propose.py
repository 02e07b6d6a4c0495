"""`freehold propose`: file a change with all it names, so that nodes prepare it and people review it. Nothing starts."""

from __future__ import annotations

from pathlib import Path

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.principals import everyday_key, require_right
from cli.change.propose import Filed, file_proposal, put_together, to_offer
from cli.change.review import Review, review_change, review_text
from cli.commands.options import environment_option
from cli.frame import command
from cli.project.find import find_project, project_at
from cli.text.foreign import builtins_of
from cli.text.output import Output


@command(
    "propose",
    examples=('freehold propose -m "greet by name"', 'freehold propose --env staging -m "greet by name" --json'),
)
@environment_option("Where it is meant to run.")
@click.option("-m", "--message", required=True, help="The change request this fulfils; kept with the change.")
@click.option("--release", default="", metavar="DIGEST",
              help="Propose this release (see freehold releases), as it is; build nothing.")  # fmt: skip
@click.option("--context", "context_name", help="The mesh, if not the current context.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def propose(
    output: Output, *, environment: str, message: str, release: str, context_name: str | None, folder: Path
) -> None:
    """Build the project and file it as a change; the nodes fetch and compile it, and nothing starts.

    The evidence that `freehold test` left for this release goes along.
    """
    project = project_at(folder) if release else find_project(folder)
    _, context = contexts.current_context(context_name)
    signer = everyday_key(context)

    async def conversation(client: NodeClient) -> tuple[Filed, Review]:
        what = await to_offer(client, project, release)
        await require_right(client, signer.public_key, "propose", what.project.name, environment)
        proposal, offered = await put_together(client, output, what, environment, message, signer)
        filed = await file_proposal(client, output, offered, proposal, signer)
        return filed, await review_change(client, proposal.id.hex())

    filed, review = talk(context, conversation)
    change = filed.proposal.id.hex()
    answer = {
        "change": change, "environment": environment, "evidence": filed.evidence, "sent_bytes": filed.sent_bytes,
        "unclaimed_routes": filed.unclaimed, "diff": builtins_of(review),
    }  # fmt: skip
    output.result(answer, f"{review_text(review)}\n\nchange {change} is proposed; {filed.evidence} pieces of evidence")
    if filed.unclaimed:
        output.warn(f"a deployer must claim {', '.join(filed.unclaimed)} first: freehold deploy does")
    if not filed.evidence:
        output.warn("no evidence goes with it; freehold test makes some")
    output.hint(f"freehold changes {change[:12]}")
