"""`freehold logs`: log lines of apps and nodes, of one node or of all, now or as they come.

Every node keeps its own logs; the asked node asks the others. Not here: how long logs are kept (node.toml).
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping

import click

from cli.access import contexts
from cli.access.client import NodeClient, Parameter, talk
from cli.change.proposal import require_known
from cli.errors import CommandError
from cli.frame import command
from cli.project.find import project_here
from cli.text.foreign import plain
from cli.text.output import Output
from cli.text.table import short
from cli.views.log_lines import read, show
from cli.views.recent_lines import ALL, asked_nodes, recent_lines
from protocols.api_models import NodeView

ASK_AGAIN_S = 2.0
"""Between two questions to a node that does not answer."""

LINES_REMEMBERED = 10_000
"""Of those that were shown: a node that is asked again tells its newest once more."""


@command("logs", examples=("freehold logs --app web", "freehold logs -f --project guestbook --app web",
                           "freehold logs --node berlin --contains error", "freehold logs --release 3f9c --json"))  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Go on with lines as they come, until Ctrl-C.")
@click.option("--project", default="", help="Only this project.")
@click.option("--app", default="", help="Only this app.")
@click.option("--release", default="", help="Only this release, by the beginning of its digest.")
@click.option("--node", "node", default=ALL, show_default=True, metavar="NODE", help="Only this node, by name or id.")
@click.option("--contains", default="", help="Only lines with this text.")
@click.option(
    "--limit", type=click.IntRange(1, 2000), default=100, show_default=True, help="The newest so many of a node."
)
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
def logs(output: Output, *, follow: bool, project: str, app: str, release: str, node: str, contains: str, limit: int,
         context_name: str | None) -> None:  # fmt: skip
    """Show log lines; in a project's folder, that project's, unless a node is named.

    What an app wrote is marked `|` and untrusted; what a node says is marked `·`. Of several nodes, each line names its
    own.
    """
    _, context = contexts.current_context(context_name)
    here = not project and node == ALL
    if here:
        project = project_here()
    query: dict[str, Parameter] = {
        "project": project,
        "app": app,
        "release": release,
        "contains": contains,
        "limit": limit,
    }
    if follow:
        talk(context, lambda client: _follow(client, output, node, query))
        return
    lines, silent = talk(context, lambda client: recent_lines(client, node, query))
    if not lines and not here:
        talk(context, lambda client: require_known(client, project, ""))
    entries = [read(plain(line).encode()) for line in lines]
    entries.sort(key=lambda entry: str(entry.get("time", "")))
    if output.as_json:
        output.result({"lines": entries, "silent": silent}, "")
    else:
        several = len({entry.get("node") for entry in entries}) > 1
        for entry in entries:
            show(output, json.dumps(plain(entry)).encode(), answer=True, node=several)
    if not entries:
        output.note("no node has such a line" + (f" of {project}" if project else ""))
    for name in silent:
        output.warn(f"{name} does not answer; its lines are missing")


async def _follow(client: NodeClient, output: Output, node: str, query: Mapping[str, Parameter]) -> None:
    """Follow every asked node at once: what there is in the order it was written, then what comes.

    A node that goes is told and asked again until it is back; when the node that this command speaks to goes, that is
    its end. Raises CommandError.
    """
    asked = await asked_nodes(client, node)
    lines, _ = await recent_lines(client, node, query)
    entries = sorted((read(plain(line).encode()) for line in lines), key=lambda entry: str(entry.get("time", "")))
    for entry in entries:
        show(output, json.dumps(plain(entry)).encode(), answer=True, node=len(asked) > 1)
    shown = deque((json.dumps(plain(entry)) for entry in entries), maxlen=LINES_REMEMBERED)

    async def one(peer: str, title: str) -> None:
        missed = False
        while True:
            try:
                async for _, entry in client.follow("/v1/logs", node=peer, follow=True, **query):
                    if missed:
                        output.note(f"{title} answers again")
                    missed = False
                    text = json.dumps(plain(entry))
                    if text not in shown:  # it begins with its newest, which were shown before
                        shown.append(text)
                        show(output, text.encode(), answer=True, node=len(asked) > 1)
            except CommandError as error:
                if error.kind == "no-node":
                    raise
                if error.kind != "node.unreachable":
                    output.warn(f"{title}: {error}")
                    return
            await client.read(NodeView, "/v1/node")
            if not missed:
                output.warn(f"{title} does not answer; its lines are missing until it does")
            missed = True
            await asyncio.sleep(ASK_AGAIN_S)

    try:
        async with asyncio.TaskGroup() as group:
            for peer, title in asked:
                group.create_task(one(peer, title), name=short(peer))
    except* CommandError as errors:
        raise errors.exceptions[0] from None
