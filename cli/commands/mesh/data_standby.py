"""`freehold data standby|promote`: a second copy of an app's data on another node, and having it take over.

Not here: how it is kept and when it may be written (node/serving/data_standby.py), and moves, which lose nothing.
"""

from __future__ import annotations

import time

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.members import find_member, members_of
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.commands.mesh.data_files import CONTEXT, ENVIRONMENT, YES, holder_of, mandate_for
from cli.errors import UsageError
from cli.frame import command
from cli.text.output import Output
from cli.text.table import short
from cli.text.times import moment
from cli.text.units import in_words
from cli.views.lanes import find_lane
from protocols.api_data import DataView
from protocols.machine import PeerId
from protocols.state.commands import PlaceData

LEASE_S = 10
WAIT_S = 30


@command("standby", examples=("freehold data standby guestbook --on attic", "freehold data standby guestbook --off"))
@click.argument("name")
@click.option("--on", "on", default="", metavar="NODE", help="The node that is sent what changes, from now on.")
@click.option("--off", is_flag=True, help="Have no standby any more.")
@ENVIRONMENT
@CONTEXT
@YES
def standby(
    output: Output, name: str, on: str, off: bool, environment: str, context_name: str | None, yes: bool
) -> None:
    """Have another node keep a second copy of a project's data. Needs the admin key.

    What changed is sent each second, and takes a tenth of the node's time at most. In exchange the holder writes only while it
    hears a majority of the voters: cut off, it refuses writes after 10 seconds.
    """
    if bool(on) == off:
        raise UsageError("name --on NODE, or --off", next_step="freehold data standby --help")
    context, lane, held_by = holder_of(context_name, name, environment, f"have a standby of {name} in {environment}")
    target = find_member(talk(context, members_of), on) if on else None
    if target is None:
        output.note(
            f"plan: {held_by} sends the data of {name} in {environment} nowhere, and needs no majority to write."
        )
    else:
        output.note(
            f"plan: {held_by} sends what changes in the data of {name} in {environment} to {target.title} each second."
        )
        output.note(
            f"{target.title} can read all of it. {held_by} refuses writes {LEASE_S} s after it last heard a majority"
        )
        output.note("of the voters.")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"have a standby of {name} in {environment}")

    async def carry(client: NodeClient) -> None:
        mandate = await mandate_for(client, admin, lane, "standby", target=target.node if target is not None else "")
        await client.post_nothing(f"/v1/data/{name}/{environment}/standby", mandate)

    talk(context, carry)
    where = target.title if target is not None else "no node"
    output.result(
        {"project": name, "environment": environment, "standby": target.node if target is not None else ""},
        f"the standby of {name} in {environment} is {where}",
    )
    output.hint("freehold data list")


@command("promote", examples=("freehold data promote guestbook --to attic",))
@click.argument("name")
@click.option("--to", "to", required=True, metavar="NODE", help="The standby, which is the node that is asked.")
@ENVIRONMENT
@CONTEXT
@YES
def promote(output: Output, name: str, to: str, environment: str, context_name: str | None, yes: bool) -> None:
    """Have a standby take the place of the node that held a project's data. Needs the admin key.

    What was acknowledged after the copy's moment is lost; a holder that can still be reached loses nothing by
    `freehold data move`. Ask the standby itself: it knows what its copy is of.
    """
    _, context = contexts.current_context(context_name)
    require_admin(context, f"promote the standby of {name} in {environment}")
    lane = talk(context, lambda client: find_lane(client, name, environment))
    members = talk(context, members_of)
    target = find_member(members, to)
    view = talk(context, lambda client: client.read(DataView, f"/v1/data/{name}/{environment}"))
    if lane.data_node == target.node:
        raise UsageError(f"{target.title} holds the data already", next_step="freehold data list", kind="there")
    if view.here != target.node or not view.copy_ms:
        what = f"the asked node is not {target.title}" if view.here != target.node else f"{target.title} has no copy"
        step = f"on {target.title}: freehold data promote {name} --env {environment} --to {target.title}"
        raise UsageError(what, next_step=step, kind="no-copy")
    former = next((member for member in members if member.node == lane.data_node), None)
    title = former.title if former is not None else short(lane.data_node)
    age_ms = max(time.time_ns() // 1_000_000 - view.copy_ms, 0)
    output.note(f"plan: {target.title} takes the place of {title}, with the data as of {moment(view.copy_ms)},")
    output.note(f"{in_words(age_ms)} ago. What {title} acknowledged since then is lost.")
    if former is not None and former.belief == "alive":
        output.warn(f"{title} can be reached, and its latest writes would be lost")
        output.hint(f"freehold data move {name} --env {environment} --to {target.title}")
    output.note(f"{target.title} writes {WAIT_S} s after the decision: by then {title}, cut off, has stopped.")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"promote the standby of {name} in {environment}")
    output.live("having it decided")
    slot = talk(
        context,
        lambda client: client.decide(
            admin, PlaceData(PeerId(target.node)), project=name, environment=environment, expect=lane.sequence,
            next_step=f"freehold data promote {name} --env {environment} --to {to}",
        ),
    )  # fmt: skip
    output.result(
        {"project": name, "environment": environment, "node": target.node, "slot": slot, "copy_ms": view.copy_ms,
         "lost_at_most_ms": age_ms},
        f"{target.title} holds the data of {name} in {environment} (decision {slot}), as of {moment(view.copy_ms)}",
    )  # fmt: skip
    output.hint(f"freehold data standby {name} --env {environment} --on NODE")
