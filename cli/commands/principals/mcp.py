"""`freehold mcp`: the change path as tools for a coding agent, on standard input and output."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from cli.access import contexts
from cli.errors import UsageError
from cli.frame import command
from cli.project.find import Found, find_project
from cli.text.output import Output


@command("mcp", examples=("freehold mcp", "freehold mcp --context home-bot --folder ~/guestbook"), takes_json=False)
@click.option(
    "--context", "context_name", help="Act with this context's key; make one with: freehold token create NAME."
)
@click.option("--project", default="", help="The project, if not the one of the folder or the grant.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def mcp(output: Output, context_name: str | None, project: str, folder: Path) -> None:
    """Serve an MCP client, such as a coding agent, with the rights of a context's key.

    Tools that the grant does not allow are not offered, and the node refuses them too. There is no tool that approves.
    The server starts whatever is wrong, and every tool then says what is wrong and what to do.
    """
    from cli.mcp.server import run
    from cli.mcp.session import AgentSession, Opening, open_session

    async def opened() -> AgentSession:
        project_place = await asyncio.to_thread(_found, folder)
        _, context = contexts.current_context(context_name)
        session = await open_session(context, project, project_place)
        output.note(
            f"serving {session.project} to an agent as {session.principal.name} ({', '.join(session.principal.roles)})"
        )
        return session

    run(Opening(opened))


def _found(folder: Path) -> Found | None:
    try:
        return find_project(folder)
    except UsageError as error:
        if error.kind != "no-project":
            raise
        return None
