"""`freehold mesh address`: where members are dialled, and telling a node where another one is now.

Needed only when no record leads to a member any more: after all nodes have moved at once. Not here: where a node says
itself that it is (`node run --advertise`).
"""

from __future__ import annotations

import asyncio
import time

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.members import Member, find_member, members_of
from cli.access.prompts import confirm
from cli.errors import UsageError
from cli.frame import command
from cli.text.output import Output
from cli.text.table import short, table
from cli.text.units import checked_addresses
from protocols.api_upkeep import AddressesBody

REACHED_WITHIN_S = 10.0
LOOK_EVERY_S = 0.5


@command("address", examples=("freehold mesh address", "freehold mesh address berlin 10.0.7.2:4100",
                              "freehold mesh address berlin --forget"))  # fmt: skip
@click.argument("node", default="")
@click.argument("addresses", nargs=-1, metavar="[HOST:PORT]...")
@click.option("--forget", is_flag=True, help="Forget what was told; the node's own word counts again.")
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
@click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
def address(
    output: Output, *, node: str, addresses: tuple[str, ...], forget: bool, context_name: str | None, yes: bool
) -> None:
    """Show where each node is dialled, or tell the asked node where another one is now.

    Nodes tell each other where they are. Only when all have moved at once does nobody know: tell one node where each of the
    others is, and the rest follows. A wrong address does no harm: a node proves its key, wherever it is dialled. What was told
    counts until that node says itself where it is. Run it on the node's own machine.
    """
    _, context = contexts.current_context(context_name)
    everyone = talk(context, members_of)
    if not node:
        rows = [
            (short(member.node), member.name or "-", _reached(member), ", ".join(member.addresses) or "-")
            for member in everyone
        ]
        value = [{"node": member.node, "name": member.name, "addresses": list(member.addresses), "connected": member.connected}
                 for member in everyone]  # fmt: skip
        output.result({"members": value}, table(("NODE", "NAME", "CONNECTED", "ADDRESSES"), rows))
        return
    target = find_member(everyone, node)
    if bool(addresses) == forget:
        raise UsageError(
            "an address is needed, or --forget" if not forget else "--forget takes no address",
            next_step=f"freehold mesh address {node} HOST:PORT",
        )
    if target.belief == "self":
        raise UsageError(
            "that is the node being asked; where it listens is its own setting",
            next_step="freehold node run --listen HOST:PORT --advertise HOST:PORT",
            kind="own-node",
        )
    told = checked_addresses(addresses)
    output.note(f"This node dials {target.title}, besides where it said that it is:")
    output.note(f"  so far   {', '.join(target.addresses) or 'nowhere'}")
    output.note(f"  from now {', '.join(told) or 'only there'}")
    confirm(output, "Go on?", yes)

    async def tell(client: NodeClient) -> bool:
        await client.put(f"/v1/members/{target.node}/addresses", AddressesBody(told))
        deadline_s = time.monotonic() + (REACHED_WITHIN_S if told else 0)
        while True:
            reached = find_member(await members_of(client), target.node).connected
            if reached or time.monotonic() >= deadline_s:
                return reached
            output.live(f"dialling {target.title}")
            await asyncio.sleep(LOOK_EVERY_S)

    reached = talk(context, tell)
    word = (
        "is connected"
        if reached
        else "does not answer there yet; the node goes on dialling"
        if told
        else "is as it was"
    )
    output.result({"node": target.node, "told": list(told), "connected": reached}, f"{target.title} {word}")
    output.hint("freehold mesh members" if reached or not told else f"freehold mesh address {node} --forget")


def _reached(member: Member) -> str:
    return "self" if member.belief == "self" else "yes" if member.connected else "no"
