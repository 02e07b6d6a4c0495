"""The newest log lines of one node or of all: each node is asked for its own. Not here: how lines look, and following."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cli.access.client import NodeClient, Parameter
from cli.access.members import find_member, members_of
from cli.errors import CommandError
from protocols.api_models import LogLines

ALL = "all"


async def asked_nodes(client: NodeClient, node: str) -> Sequence[tuple[str, str]]:
    """Return (id, title) of the nodes to ask; unconnected ones are among them, and will be silent."""
    everyone = await members_of(client)
    chosen = [member for member in everyone if member.confirmed] if node == ALL else [find_member(everyone, node)]
    return [(member.node, member.title) for member in chosen]


async def recent_lines(client: NodeClient, node: str, query: Mapping[str, Parameter]) -> tuple[list[str], list[str]]:
    """Return the newest lines of one node or of `ALL`, node by node, and the titles of those that did not answer."""
    lines: list[str] = []
    silent: list[str] = []
    for peer, title in await asked_nodes(client, node):
        try:
            lines += (await client.read(LogLines, "/v1/logs", node=peer, **query)).lines
        except CommandError as error:
            if node != ALL:
                raise
            if error.kind != "node.unreachable":
                raise
            silent.append(title)
    return lines, silent
