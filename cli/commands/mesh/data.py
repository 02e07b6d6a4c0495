"""`freehold data list|move`: where apps' data lies, and moving it to another node without losing a write.

Not here: moving itself (node/serving/data_moves.py), data as files (data_files.py), and placing without a copy
(`freehold project place`).
"""

from __future__ import annotations

import asyncio
import secrets

import click

from cli.access import contexts
from cli.access.client import NodeClient, RefusedError, talk
from cli.access.members import find_member, members_of
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.commands.mesh.data_files import export_data, freeze_data, import_data, thaw_data
from cli.commands.mesh.data_standby import promote, standby
from cli.commands.options import environment_option
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.table import short, table
from cli.text.times import moment
from cli.text.units import size
from cli.views.lanes import find_lane
from protocols.api_data import DataView, MoveBody, MoveView
from protocols.envelope import digest, encode
from protocols.keys import Ed25519Signer
from protocols.machine import PeerId
from protocols.state.commands import Command, Exhibits, PlaceData, sign_command
from protocols.state.model import Lane

LOOK_EVERY_S = 0.5
PHASES = {
    "copying": "copying while visitors are served",
    "freezing": "writers wait; copying what changed",
    "comparing": "comparing every byte",
    "switching": "having the switch decided",
}
_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
_ENVIRONMENT = environment_option("Where the project runs.")


@command("list", examples=("freehold data list", "freehold data list --json"))
@_CONTEXT
def show(output: Output, context_name: str | None) -> None:
    """List the data of apps, and where it is. Sizes are known of what lies on the node that is asked."""
    _, context = contexts.current_context(context_name)

    async def ask(client: NodeClient) -> list[DataView]:
        state = await client.state()
        lanes = [lane for lane in state.lanes if lane.data_node]
        return [await client.read(DataView, f"/v1/data/{lane.project}/{lane.environment}") for lane in lanes]

    views = talk(context, ask)
    names = {member.node: member.title for member in talk(context, members_of)}
    rows = [
        (
            f"{data.project}/{data.environment}",
            names.get(data.node, short(data.node)),
            _size(data),
            "frozen" if data.frozen and data.node == data.here else data.move.phase if data.move else "-",
            ", ".join(moment(at_ms) for at_ms in data.kept_ms) or "-",
            _backup(data),
            _standby(data, names),
        )
        for data in views
    ]
    output.result(
        {"data": views}, table(("DATA OF", "NODE", "SIZE", "STATE", "KEPT HERE SINCE", "BACKUP", "STANDBY"), rows)
    )
    if not rows:
        output.note("no app has data on a node yet")


@command("move", examples=("freehold data move guestbook --to attic", "freehold data move guestbook --to attic -y"))
@click.argument("name")
@click.option("--to", "to", required=True, metavar="NODE", help="The node that holds the data from then on.")
@_ENVIRONMENT
@_CONTEXT
@click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
def move(output: Output, name: str, to: str, environment: str, context_name: str | None, yes: bool) -> None:
    """Move a project's data to another node. Needs the admin key. No acknowledged write is lost.

    It is copied while visitors are served; then writers wait for some seconds while what changed is copied and every byte
    compared, and the voters decide the switch. If anything fails before that, the data stays where it was, and is
    writable again after a minute at most. The old copy is kept for a week, unwritable.
    """
    _, context = contexts.current_context(context_name)
    require_admin(context, f"move the data of {name} in {environment}")
    lane = talk(context, lambda client: find_lane(client, name, environment))
    members = talk(context, members_of)
    target = find_member(members, to)
    if not lane.data_node:
        raise UsageError(f"{name} has no data in {environment} yet", next_step="freehold data list", kind="no-data")
    source = next((member.title for member in members if member.node == lane.data_node), short(lane.data_node))
    if target.node == lane.data_node:
        raise UsageError(f"the data is on {target.title} already", next_step="freehold data list", kind="there")
    output.note(f"plan: copy the data of {name} in {environment} from {source} to {target.title} while it is served;")
    output.note("then writers wait up to 8 s (visitors get 503 and Retry-After beyond that), all bytes are compared,")
    output.note(f"and the switch is decided. {source} keeps its copy for 7 days, unwritable.")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"move the data of {name} in {environment}")

    async def carry(client: NodeClient) -> MoveView:
        path = f"/v1/data/{name}/{environment}"
        await client.send(MoveView, f"{path}/move", await move_ticket(client, admin, lane, PeerId(target.node)))
        seen = ""
        while True:
            going = (await client.read(DataView, path)).move
            if going is None:
                raise CommandError("the node has forgotten the move", next_step="freehold data list", kind="bad-answer")
            if going.phase in {"done", "failed"}:
                return going
            text = PHASES.get(going.phase, going.phase)
            if going.total_bytes:
                text += f": {size(going.done_bytes)} of {size(going.total_bytes)}"
            if text != seen:
                output.live(text)
            seen = text
            await asyncio.sleep(LOOK_EVERY_S)

    ended = talk(context, carry)
    if ended.phase == "failed":
        if ended.rule == "chain.unknown":
            raise CommandError(ended.detail, next_step="freehold data list", kind="unknown-outcome")
        raise RefusedError(ended.rule, ended.detail, f"freehold data move {name} --env {environment} --to {to}")
    output.result(
        {"project": name, "environment": environment, "node": target.node, "bytes": ended.total_bytes},
        f"the data of {name} in {environment} is on {target.title} ({size(ended.total_bytes)})",
    )


async def move_ticket(client: NodeClient, admin: Ed25519Signer, lane: Lane, target: PeerId) -> MoveBody:
    """The two commands of a move, of which the voters take one at most: it goes there, or stays."""
    chains = await client.chains(admin.public_key)
    exhibits = Exhibits(grants=tuple(bytes(digest(chain)) for chain in chains))
    mesh = await client.mesh()
    signed = [
        encode(
            sign_command(
                [admin],
                mesh,
                Command(secrets.token_bytes(16), PlaceData(node), lane.project, lane.environment, lane.sequence),
                exhibits,
            )
        )
        for node in (target, lane.data_node)
    ]
    return MoveBody(signed[0], signed[1], chains)


def _size(one: DataView) -> str:
    return size(sum(file.size_bytes for file in one.files)) if one.node == one.here else "-"


def _backup(one: DataView) -> str:
    if one.backup_problem:
        return f"failed: {one.backup_problem}"
    return moment(one.backup_ms) if one.backup_ms else "-"


def _standby(one: DataView, names: dict[str, str]) -> str:
    found_standby = one.standby
    if found_standby is None:
        return f"copy of {moment(one.copy_ms)}" if one.copy_ms else "-"
    name = names.get(found_standby.node, short(found_standby.node))
    if found_standby.problem:
        return f"{name}, failing: {found_standby.problem}"
    return f"{name}, as of {moment(found_standby.at_ms)}" if found_standby.at_ms else f"{name}, nothing yet"


@click.group("data", cls=Group)
def data() -> None:
    """See where apps' data lies, move it, and take it out or in."""


for _one in (show, move, export_data, import_data, freeze_data, thaw_data, standby, promote):
    data.add_command(_one)
