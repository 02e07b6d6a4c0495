"""`freehold console`: the mesh in this machine's browser. Not here: what its page shows (cli/console)."""

from __future__ import annotations

import asyncio
import secrets

import click

from cli.access import contexts
from cli.access.client import NodeClient
from cli.access.principals import everyday_key
from cli.console.console import ENROL_WITHIN_S, Console
from cli.console.serving import PORT, origin_of, serving
from cli.frame import command
from cli.text.output import Output

CODE_BYTES = 16


@command("console", examples=("freehold console", "freehold console --port 4200"), line_by_line=True)
@click.option("--port", type=click.IntRange(1024, 65535), default=PORT, show_default=True, help="On localhost.")
@click.option("--context", "context_name", help="The mesh, if not the current context.")
def console(output: Output, port: int, context_name: str | None) -> None:
    """Show the mesh in this machine's browser: what waits, rollouts, changes, nodes, logs.

    The link lets one browser in, within a minute, with what your everyday key may; a passkey approves. Ctrl-C ends it.
    """
    name, context = contexts.current_context(context_name)
    signer = everyday_key(context)
    code = secrets.token_urlsafe(CODE_BYTES)

    async def run() -> None:
        async with NodeClient(context) as client:
            await client.mesh()  # a node that is not there is told before anybody opens a page
            new_console = Console(name, context, client, signer, port)
            async with serving(port, code, "console.html", new_console.by_code, signed=new_console.signed):
                link = f"{origin_of(port)}/#{code}"
                output.event({"event": "ready", "url": link}) if output.as_json else None
                output.note(
                    f"The mesh {name}, in a browser on this machine (the link is good once, for {ENROL_WITHIN_S:.0f} s;\n"
                    f"a browser that was let in opens {origin_of(port)}):\n  {link}"
                )
                await asyncio.Event().wait()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        output.note("the console is closed")
