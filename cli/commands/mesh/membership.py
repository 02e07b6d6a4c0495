"""`freehold mesh members|remove|voters|leave`: who is in the mesh, who goes, and who decides.

Not here: how anybody comes in (mesh.py), and the choice of the next voters (cli/access/voters.py).
"""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import click

from cli.access import contexts
from cli.access.client import NodeClient, node_folder, talk
from cli.access.members import Member, behind, find_member, members_of
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.access.secrets import rows_of
from cli.access.voters import NewVoters, replacing, stores_of, without
from cli.errors import CommandError, UsageError
from cli.frame import command
from cli.text.foreign import builtins_of
from cli.text.output import Output
from cli.text.table import short, table
from cli.text.times import moment, time_of_day
from cli.views.watch import VOTERS_DECIDE
from protocols.api_models import MeshView, NodeView, RecordView
from protocols.api_upkeep import LeaveBody, ResetBody
from protocols.chain.decision import RESET_DOMAIN, Reset, ResetTo
from protocols.envelope import encode, sign
from protocols.keys import Ed25519Signer, public_key_of
from protocols.machine import PeerId
from protocols.state.commands import DrainNode, RemoveNode
from protocols.trust.revocations import NOTHING_VALID, Revocation, sign_revocation

DRAIN_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.5
STOP_TIMEOUT_S = 30.0

_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
_YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking.")


@command("members", examples=("freehold mesh members", "freehold mesh members --json"))
@_CONTEXT
def members(output: Output, context_name: str | None) -> None:
    """List every node, as the asked node sees it.

    `belief` (alive, suspect, down) is that node's own and advisory; `standing` is what a node may do. `behind` is by how many
    decisions a node's chain is behind the furthest, in its own words.
    """
    _, context = contexts.current_context(context_name)
    found_members, lag = talk(context, _members_and_lag)
    now_ms = time.time_ns() // 1_000_000
    rows = [
        (
            short(member.node),
            member.name or "-",
            ",".join(f"{key}={value}" for key, value in member.labels.items()) or "-",
            member.standing + ("" if member.confirmed else ", unconfirmed") + (_drained(member)),
            _believed(member),
            "yes" if member.voter else "no",
            "yes" if member.connected else "no",
            str(lag.get(member.node, "-")),
            f"{member.rtt_ms:.0f} ms" if member.rtt_ms is not None else "-",
            member.version or "-",
            member.expiry(now_ms),
        )
        for member in found_members
    ]
    header = ("NODE", "NAME", "LABELS", "STANDING", "BELIEF", "VOTER", "CONNECTED", "BEHIND", "RTT", "VERSION", "")
    told = [builtins_of(member) | {"behind": lag.get(member.node)} for member in found_members]
    output.result({"members": told}, table(header, rows))


async def _members_and_lag(client: NodeClient) -> tuple[tuple[Member, ...], dict[str, int]]:
    found_members = await members_of(client)
    return found_members, await behind(client, found_members)


def _drained(member: Member) -> str:
    if not member.draining:
        return ""
    return f", drained until {moment(member.drained_until_ms)}" if member.drained_until_ms else ", drained"


def _believed(member: Member) -> str:
    """What the asked node believes of a member, and since when."""
    word = "stopped" if member.left else member.belief
    return f"{word} since {time_of_day(member.since_ms)}" if member.since_ms and word != "alive" else word


@command("remove", examples=("freehold mesh remove berlin", "freehold mesh remove Xy3kQ9ab --reason 'sold' -y",
                             "freehold mesh remove berlin --compromised"))  # fmt: skip
@click.argument("node")
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--compromised", is_flag=True,
              help="Believe nothing the node ever wrote or signed, and do not wait for its apps to move.")  # fmt: skip
@_CONTEXT
@_YES
def remove(output: Output, *, node: str, reason: str, compromised: bool, context_name: str | None, yes: bool) -> None:
    """Take a node out of the mesh: drain it, take its vote, revoke its key, forget it.

    Needs the admin key. The revocation works at once and for good; a node that comes back needs a new key.
    """
    _, context = contexts.current_context(context_name)
    require_admin(context, f"remove {node}")
    target, voters, exposed, notes = talk(context, lambda client: _plan_removal(client, node, compromised))
    output.note(f"This removes {target.title} from the mesh:")
    for line in notes:
        output.note(f"  {line}")
    confirm(output, "Remove it?", yes)
    admin = unlock_admin(context, f"remove {target.title}")
    slot = talk(
        context, lambda client: _remove(client, output, admin, target, voters, reason=reason, compromised=compromised)
    )
    value = {"node": target.node, "slot": slot, "revoked": True,
             "voters": [voter.node for voter in voters.voters] if voters else None,
             "rotate": [dict(zip(("project", "environment", "name"), place, strict=True)) for place in exposed]}  # fmt: skip
    output.result(value, f"{target.title} is removed (decision {slot})")
    for project, environment, name in exposed:
        output.hint(f"freehold secret set {name} --project {project} --env {environment}: {target.title} could open it")
    output.hint("freehold mesh members")


async def _plan_removal(
    client: NodeClient, text: str, compromised: bool
) -> tuple[Member, NewVoters | None, list[tuple[str, str, str]], list[str]]:
    """Return whom to remove, the voters afterwards if it votes, the secrets it could open, and the plan in words."""
    everyone = await members_of(client)
    target = find_member(everyone, text)
    if target.belief == "self":
        raise UsageError(
            "that is the node being asked; it cannot judge its own removal",
            next_step="run this on another node, or here: freehold mesh leave",
            kind="own-node",
        )
    state = await client.state()
    voters = without(await stores_of(client), PeerId(target.node)) if target.voter else None
    notes = []
    if target.confirmed and not target.draining and not compromised:
        notes.append("drain it: its apps move to other nodes")
    notes += [
        f"{lane.project} in {lane.environment} keeps its data there: it stops until a copy is restored elsewhere"
        for lane in state.lanes
        if lane.data_node == target.node
    ]
    exposed = sorted({
        (row.project, row.environment, row.name)
        for row in await rows_of(client, "", "")
        if target.node in row.sealed_to
    })  # fmt: skip
    if exposed:
        named = "; ".join(f"{name} of {project} in {environment}" for project, environment, name in exposed)
        notes.append(f"set these secrets anew afterwards, it could open them: {named}")
    if voters is not None:
        coming = ", ".join(short(peer_id) for peer_id in voters.added) or "nobody"
        notes.append(f"take its vote: {coming} comes instead; {len(voters.voters)} voters then")
        if len(voters.voters) < len(state.voters):
            notes.append(f"with {len(voters.voters)} voters the mesh survives the loss of {len(voters.voters) // 2}")
    notes.append("revoke its key: its connections close within seconds, for good")
    return target, voters, exposed, notes


async def _remove(client: NodeClient, output: Output, admin: Ed25519Signer, target: Member,
                  voters: NewVoters | None, *, reason: str, compromised: bool) -> int:  # fmt: skip
    node = PeerId(target.node)
    if compromised:
        await _revoke(client, admin, target, reason or "compromised", keep=False)
        output.note("revoked: nothing it wrote or signed is believed any more")
    elif target.confirmed and not target.draining:
        output.live(VOTERS_DECIDE)
        await client.decide(admin, DrainNode(node), next_step="freehold mesh members")
        await _wait_until_idle(client, output, target)
    if voters is not None:
        expect = (await client.state()).sequence
        output.live(VOTERS_DECIDE)
        await client.decide(admin, voters.action, expect=expect, exhibits=voters.exhibits,
                            material=voters.statements, next_step="freehold mesh voters")  # fmt: skip
        output.note(f"the voters are now {', '.join(short(voter.node) for voter in voters.voters)}")
    if not compromised:
        await _revoke(client, admin, target, reason or "removed", keep=True)
        output.note("revoked")
    if not target.confirmed:
        return (await client.read(MeshView, "/v1/mesh")).slot
    expect = (await client.state()).sequence
    output.live(VOTERS_DECIDE)
    return await client.decide(admin, RemoveNode(node), expect=expect, next_step="freehold mesh members")


async def _wait_until_idle(client: NodeClient, output: Output, target: Member) -> None:
    """Wait until the node says that nothing runs there; a node that cannot be asked is not waited for."""
    deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
    told = False
    while time.monotonic() < deadline_s:
        try:
            running = (await client.read(NodeView, f"/v1/nodes/{target.node}")).running
        except CommandError:
            output.note("it does not answer; nothing to wait for")
            return
        if not running:
            return
        if not told:
            output.note(f"waiting until {', '.join(running)} stops there")
            told = True
        await asyncio.sleep(LOOK_EVERY_S)
    output.warn(f"apps still run there after {DRAIN_TIMEOUT_S:.0f} s; going on")


async def _revoke(client: NodeClient, admin: Ed25519Signer, target: Member, reason: str, *, keep: bool) -> None:
    """File the revocation; with `keep` what the node wrote and signed so far stays valid."""
    subject = public_key_of(PeerId(target.node))
    revocation = Revocation(
        kind="node",
        subject=subject,
        last_seq=target.last_seq if keep else NOTHING_VALID,
        last_serial=target.last_serial if keep else NOTHING_VALID,
        reason=reason,
        at_ms=time.time_ns() // 1_000_000,
    )
    statement = sign_revocation(admin, await client.mesh(), revocation)
    await client.publish("revocation", subject.hex(), encode(statement))


@command("voters", examples=("freehold mesh voters", "freehold mesh voters --replace oslo berlin"))
@click.option("--replace", "pair", nargs=2, default=None, metavar="OLD NEW",
              help="Give NEW the vote of OLD; name one node twice to take its new store after a disk was lost.")  # fmt: skip
@_CONTEXT
@_YES
def voters(output: Output, pair: tuple[str, str] | None, context_name: str | None, yes: bool) -> None:
    """List the voters, or replace one that is lost.

    The mesh grows its voters on its own, up to what the policy wants; only a loss needs a person.
    """
    _, context = contexts.current_context(context_name)
    if pair is None:
        talk(context, lambda client: _show_voters(client, output))
        return
    require_admin(context, "change the voters")
    old, new = pair
    plan = talk(context, lambda client: _plan_replacement(client, old, new))
    output.note("This changes who decides:")
    for node in plan.removed:
        output.note(f"  {short(node)} loses its vote")
    for node in plan.added:
        output.note(f"  {short(node)} votes from then on")
    confirm(output, "Change the voters?", yes)
    admin = unlock_admin(context, "change the voters")

    async def change(client: NodeClient) -> int:
        expect = (await client.state()).sequence
        return await client.decide(admin, plan.action, expect=expect, exhibits=plan.exhibits,
                                   material=plan.statements, next_step="freehold mesh voters")  # fmt: skip

    output.live(VOTERS_DECIDE)
    slot = talk(context, change)
    names = [voter.node for voter in plan.voters]
    output.result({"slot": slot, "voters": names}, f"decision {slot}: {', '.join(short(name) for name in names)} vote")


@command("reset", examples=('freehold mesh reset oslo -m "berlin and rome burnt"',))
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.option("-m", "--message", required=True, help="Why; kept with the chain for ever.")
@_CONTEXT
@_YES
def reset(output: Output, nodes: tuple[str, ...], message: str, context_name: str | None, yes: bool) -> None:
    """Go on after a majority of the voters is lost for good: the 1, 3, 5 or 7 named nodes vote from now on.

    Unsafe, and warned of until `mesh acknowledge`: whatever the lost voters decided among themselves is abandoned. Be sure
    that none of them runs any more. Run it on the machine that holds the most decisions (`freehold node status`). Needs the
    admin key.
    """
    _, context = contexts.current_context(context_name)
    require_admin(context, "reset the mesh")

    async def plan(client: NodeClient) -> tuple[Reset, int]:
        state, stores = await client.state(), await stores_of(client)
        everyone = await members_of(client)
        chosen = {find_member(everyone, text).node for text in nodes}
        able = {store.voter.node: store.voter for store in stores}  # a store that is ready comes after one that votes
        if missing := sorted(chosen - able.keys()):
            raise UsageError(
                f"{', '.join(short(text) for text in missing)} has no store that says it can vote",
                next_step="freehold mesh voters",
                kind="no-store",
            )
        view = await client.read(MeshView, "/v1/mesh")
        return Reset(
            mesh=await client.mesh(),
            number=view.unsafe_resets + 1,
            slot=view.slot + 1,
            prev=bytes.fromhex(view.head),
            at_ms=time.time_ns() // 1_000_000,
            voters=tuple(sorted(able[PeerId(text)] for text in chosen)),
            reason=message,
        ), state.threshold

    wanted, threshold = talk(context, plan)
    if threshold > 1:
        raise CommandError(
            f"this mesh asks for {threshold} admins' signatures, and this command gives one",
            next_step="restore a voter from its backup: freehold mesh restore",
            kind="threshold",
        )
    output.note(f"This begins era {wanted.number + 1} behind decision {wanted.slot - 1}:")
    for voter in wanted.voters:
        output.note(f"  {short(voter.node)} votes from then on")
    output.note("  what any other voter decided after that is abandoned")
    confirm(output, "Are the lost voters gone for good?", yes)
    admin = unlock_admin(context, "reset the mesh")
    signed = sign(admin, RESET_DOMAIN, wanted.mesh, wanted)
    entry = encode(ResetTo(signed.payload, (signed,)))
    talk(context, lambda client: client.send(MeshView, "/v1/resets", ResetBody(entry)))
    names = [voter.node for voter in wanted.voters]
    output.result({"slot": wanted.slot, "voters": names}, f"{', '.join(short(name) for name in names)} vote")
    output.hint("freehold mesh voters")


async def _plan_replacement(client: NodeClient, old: str, new: str) -> NewVoters:
    everyone = await members_of(client)
    leaving, coming = find_member(everyone, old), find_member(everyone, new)
    stores = await stores_of(client)
    return replacing(stores, PeerId(leaving.node), PeerId(coming.node))


async def _show_voters(client: NodeClient, output: Output) -> None:
    by_node = {member.node: member for member in await members_of(client)}
    stores = await stores_of(client)
    rows, values = [], []
    for store in stores:
        member = by_node.get(store.voter.node)
        name = member.name if member is not None and member.name else "-"
        belief = member.belief if member is not None else "unknown"
        role = "votes" if store.votes else "ready to vote"
        rows.append((short(store.voter.node), name, store.voter.store_id.hex()[:8], role, belief))
        values.append({"node": store.voter.node, "store": store.voter.store_id.hex(), "votes": store.votes,
                       "belief": belief})  # fmt: skip
    voting = [value for value in values if value["votes"]]
    up = sum(row["belief"] in {"self", "alive", "suspect"} for row in voting)
    majority = len(voting) // 2 + 1
    output.result(
        {"voters": values, "up": up, "majority": majority}, table(("NODE", "NAME", "STORE", "", "BELIEF"), rows)
    )
    spare = up - majority
    if spare < 0:
        output.warn(f"{up} of {len(voting)} voters are up, {majority} must be: nothing can be decided")
    elif len(voting) > 1:
        output.note(f"{up} of {len(voting)} voters are up; {spare} more may be lost before nothing can be decided")


@command("leave", examples=("freehold mesh leave", "freehold mesh leave --purge -y"))
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="The node's data folder.")
@click.option("--purge", is_flag=True, help="Delete the data folder afterwards.")
@_YES
def leave(output: Output, reason: str, data: Path | None, purge: bool, yes: bool) -> None:
    """Take the node on this machine out of its mesh for good, and stop it.

    It drains itself and revokes its own key, so no admin is needed, unless it votes.
    """
    from cli.host import local_node

    folder = node_folder(data)
    context = contexts.Context(local_node.mesh_id_of(folder).hex(), local_node.socket_of(folder), "")
    output.note(f"The node in {folder} leaves its mesh:")
    for line in ("its apps move to other nodes", "its key is revoked and never valid again", "it stops"):
        output.note(f"  {line}")
    if purge:
        output.note(f"  {folder} is deleted, with the data of the apps that live here")
    confirm(output, "Leave?", yes)
    talk(context, lambda client: client.send(RecordView, "/v1/leave", LeaveBody(reason)))
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while local_node.is_running(folder) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    stopped = not local_node.is_running(folder)
    if purge and stopped:
        shutil.rmtree(folder)
    known = contexts.read_contexts()
    items = {name: entry for name, entry in known.contexts.items() if entry.socket != context.socket or entry.admin}
    contexts.write_contexts(contexts.Contexts(known.current if known.current in items else "", items))
    output.result({"stopped": stopped, "purged": purge and stopped}, "the node has left")
    output.hint("on an admin's machine, to forget it: freehold mesh remove NODE")
