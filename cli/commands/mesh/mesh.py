"""`freehold mesh`: the group, and how a mesh begins and grows: create, invite, join.

Not here: what changes its members (membership.py) and its backup (backup.py).
"""

from __future__ import annotations

import getpass
import platform
import re
import secrets
import shlex
import time
from pathlib import Path

import click

from cli.access import contexts, half_made
from cli.access.client import NodeClient, default_data_folder, talk
from cli.access.contexts import Context
from cli.access.members import members_of
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import ask_new_passphrase, confirm
from cli.commands.mesh.acknowledge import acknowledge
from cli.commands.mesh.address import address
from cli.commands.mesh.admins import admins
from cli.commands.mesh.backup import backup, restore
from cli.commands.mesh.cosign import cosign_paper
from cli.commands.mesh.label import label
from cli.commands.mesh.membership import leave, members, remove, reset, voters
from cli.commands.mesh.rules import rules
from cli.commands.mesh.upgrade import upgrade
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.units import (
    checked_addresses,
    checked_api,
    checked_listen,
    duration_ms,
    in_words,
    labels_of,
    listen_words,
)
from protocols.api_models import NodeView
from protocols.changes.change import valid_name
from protocols.changes.demands import SOLO, TEAM
from protocols.envelope import DecodeError, Signed, encode, sign
from protocols.keys import SEED_BYTES, Ed25519Signer
from protocols.machine import Digest, PeerId
from protocols.records.credentials import grant_record
from protocols.state.commands import COMMAND_ID_BYTES, Command, ConfirmNode, SetRules, sign_command
from protocols.state.governance import RULES_VERSION
from protocols.trust.certificates import DAY_MS, NODE_ROLES, Labels
from protocols.trust.genesis import mesh_id
from protocols.trust.grants import ANY, GRANT_DOMAIN, Grant, PrincipalKind, Role
from protocols.trust.invites import (
    ADDRESSES_MAX,
    INVITE_LIFETIME_MAX_MS,
    USES_MAX,
    Address,
    Invite,
    InviteLine,
    make_invite,
    read_line,
    write_line,
)

GRANT_LIFETIME_MS = 365 * DAY_MS
"""How long the founder's everyday key is good for; the admin key makes a new grant."""

GRANT_NONCE_BYTES = 16
SEAL_ENTROPY_BYTES = 28
PRINCIPAL_ROLES: tuple[Role, ...] = ("viewer", "proposer", "deployer", "approver")
POLICIES = {"solo": SOLO, "team": TEAM}
POLICY_WORDS = {
    "solo": "nobody else must approve a change; recorded as such in every decision",
    "team": "one other person must approve a change before it runs",
}

_DATA = click.option("--data", type=click.Path(file_okay=False, path_type=Path),
                     help="The node's data folder; by default in your home, /var/lib/freehold/node for root.")  # fmt: skip
_LISTEN = click.option("--listen", multiple=True, metavar="HOST:PORT",
                       help="Where other nodes reach this one; none: nobody dials it, it dials the others.")  # fmt: skip
_ADVERTISE = click.option("--advertise", multiple=True, metavar="HOST:PORT",
                          help="What others are told to dial, if not where it listens.")  # fmt: skip
_INGRESS = click.option("--ingress", multiple=True, metavar="HOST:PORT", help="Where the apps are served.")
_WORKERS = click.option("--workers", type=click.IntRange(1, 64), help="Worker processes that serve apps.")
_API = click.option("--api", default=None, metavar="HOST:PORT",
                    help="Where people log in over HTTPS, such as 0.0.0.0:4180; nowhere by default.")  # fmt: skip
_NODE_NAME = click.option("--node-name", default=None, help="What people call this node; by default the host's name.")
_YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking.")


@command("create", examples=("freehold mesh create home", "freehold mesh create work --policy team --data /srv/freehold",
                             "freehold mesh create home --listen 0.0.0.0:4100 --ingress 0.0.0.0:8080 -y"))  # fmt: skip
@click.argument("name")
@_DATA
@click.option("--policy", type=click.Choice(sorted(POLICIES)), default="solo", show_default=True,
              help="solo: no approval by others. team: one other person approves each change.")  # fmt: skip
@_LISTEN
@_ADVERTISE
@_INGRESS
@_WORKERS
@_API
@_NODE_NAME
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the first node; may repeat.")
@click.option(
    "--rules",
    type=click.IntRange(1, RULES_VERSION),
    default=RULES_VERSION,
    show_default=True,
    help="The rules it judges by; lower where a node of an older release shall join.",
)
@_YES
def create(output: Output, *, name: str, data: Path | None, policy: str, listen: tuple[str, ...],
           advertise: tuple[str, ...], ingress: tuple[str, ...], workers: int | None, api: str | None,
           node_name: str | None, labels: tuple[str, ...], rules: int, yes: bool) -> None:  # fmt: skip
    """Found a mesh with its first node here.

    Makes an admin key that opens only with a passphrase typed on the terminal, and an everyday key `me` that may
    propose and deploy but not approve or administer. Nothing runs yet.
    """
    from cli.host import local_node

    if not valid_name(name):
        raise UsageError("a mesh's name is 1 to 63 of a-z, 0-9 and dash", next_step="freehold mesh create home")
    folder = (data or default_data_folder()).absolute()
    node_labels = labels_of(labels)
    settings = local_node.NodeSettings(
        None, checked_listen(listen), checked_addresses(advertise) or None,
        checked_addresses(ingress) or None, workers, api=checked_api(api),
    )  # fmt: skip
    context_name, admin_name, me_name = name, f"{name}-admin", f"{name}-me"
    if _is_founded(folder, context_name, admin_name):  # and was cut short before its last step
        mesh = local_node.mesh_id_of(folder)
        local_node.tidy(folder)
        _conclude(output, name, mesh, folder, policy, (admin_name, me_name), _run(data, folder))
        return
    note = local_node.in_the_making(folder) / "founding"
    half_made.discard(note)
    _refuse_existing(folder, context_name, (admin_name, me_name))
    output.note(f"This founds the mesh {name}:")
    for line in (
        f"data of its first node   {folder}",
        f"nodes reach it at        {listen_words(settings.listen, '0.0.0.0:4100')}",
        f"apps are served at       {', '.join(settings.ingress or ('127.0.0.1:8080',))}",
        f"policy                   {policy}: {POLICY_WORDS[policy]}",
        f"admin key                {contexts.key_path(admin_name)} (sealed by a passphrase)",
        f"everyday key             {contexts.key_path(me_name)} (proposes and deploys, for a year)",
    ):
        output.note(f"  {line}")
    confirm(output, "Found it?", yes)
    passphrase = ask_new_passphrase(f"the admin key of {name}")
    admin = Ed25519Signer(admin_seed := secrets.token_bytes(SEED_BYTES))
    me = Ed25519Signer(me_seed := secrets.token_bytes(SEED_BYTES))

    def complete(making: Path, mesh: Digest, node: PeerId) -> tuple[list[tuple[str, bytes]], list[bytes]]:
        half_made.write_note(making / note.name, {admin_name: admin.public_key, me_name: me.public_key})
        contexts.store_sealed(admin_name, admin_seed, passphrase, secrets.token_bytes(SEAL_ENTROPY_BYTES))
        contexts.store_plain(me_name, me_seed)
        grant = _grant(admin, mesh, me.public_key, "person", ("proposer", "deployer"), same_person=True)
        return [grant_record(me.public_key, (grant,))], _first_commands(admin, mesh, node, rules, node_labels)

    try:
        mesh = local_node.found(
            folder, settings, name=node_name or _host_name(), mesh_name=name, admin=admin,
            policy=POLICIES[policy], labels=node_labels, complete=complete,
        )  # fmt: skip
    except BaseException:
        if not local_node.is_made(folder):
            for key in (admin_name, me_name):
                contexts.key_path(key).unlink(missing_ok=True)
        raise
    _conclude(output, name, mesh, folder, policy, (admin_name, me_name), _run(data, folder))


def _first_commands(admin: Ed25519Signer, mesh: Digest, node: PeerId, rules: int, labels: Labels) -> list[bytes]:
    """What a new mesh decides at its first start."""
    commands = []
    if rules > 1:
        raised = Command(secrets.token_bytes(COMMAND_ID_BYTES), SetRules(rules), expect=0)
        commands.append(encode(sign_command([admin], mesh, raised)))
    if labels:
        label = Command(secrets.token_bytes(COMMAND_ID_BYTES), ConfirmNode(node, labels, NODE_ROLES))
        commands.append(encode(sign_command([admin], mesh, label)))
    return commands


def _is_founded(folder: Path, context: str, admin: str) -> bool:
    """Whether the node in a folder was founded by this user's admin key of this name, and no context leads to it yet."""
    from cli.host import local_node

    if (
        not local_node.is_made(folder)
        or context in contexts.read_contexts().contexts
        or not contexts.key_path(admin).exists()
    ):
        return False
    return contexts.public_key(admin) in local_node.founder_of(folder)


def _conclude(
    output: Output, name: str, mesh: Digest, folder: Path, policy: str, keys: tuple[str, str], run: str
) -> None:
    """Take the last step: the mesh is known here from now on."""
    from cli.host import local_node

    admin_name, me_name = keys
    contexts.write_context(name, Context(mesh.hex(), local_node.socket_of(folder), me_name, admin_name, start=run))
    output.result(
        {"mesh": mesh.hex(), "name": name, "data": str(folder), "context": name, "policy": policy,
         "admin_key": admin_name, "key": me_name, "next_step": run},
        f"mesh {name} {mesh.hex()[:16]} is founded in {folder}",
    )  # fmt: skip
    output.hint(run)


@command("invite", examples=("freehold mesh invite", "freehold mesh invite --label zone=eu --uses 3 --expires 2h",
                             "freehold mesh invite --kind principal --role proposer --role deployer"))  # fmt: skip
@click.option("--kind", type=click.Choice(["node", "principal"]), default="node", show_default=True,
              help="Who is invited: a machine, or a person with a laptop.")  # fmt: skip
@click.option("--role", "roles", multiple=True, metavar="ROLE",
              help=f"Node: {', '.join(NODE_ROLES)} (all by default). Principal: {', '.join(PRINCIPAL_ROLES)}.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the invited nodes; may repeat.")
@click.option(
    "--uses", type=click.IntRange(1, USES_MAX), default=1, show_default=True, help="How many may join with it."
)
@click.option(
    "--expires",
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="How long the line lets anybody in; at most 24h.",
)
@click.option("--for", "name", default="guest", show_default=True, help="Principal: what the grant calls them.")
@click.option("--myself", is_flag=True,
              help="Principal: yourself on another machine; the mesh then knows that both are one person.")  # fmt: skip
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
def invite(output: Output, *, kind: str, roles: tuple[str, ...], labels: tuple[str, ...], uses: int, expires: str,
           name: str, myself: bool, context_name: str | None) -> None:  # fmt: skip
    """Print one line that lets a new node or person in.

    Whoever has the line can use it: send it on a private way. It is worth nothing after its uses or its time.
    """
    _, context = contexts.current_context(context_name)
    span_ms = duration_ms(expires)
    if span_ms > INVITE_LIFETIME_MAX_MS:
        raise UsageError("an invite lasts at most 24h", next_step="freehold mesh invite --expires 24h")
    allowed: tuple[str, ...] = NODE_ROLES if kind == "node" else PRINCIPAL_ROLES
    unknown = [role for role in roles if role not in allowed]
    if unknown:
        raise UsageError(
            f"a {kind} has no role {unknown[0]!r}", next_step=f"choose among {', '.join(allowed)}", kind="usage"
        )
    if myself and kind != "principal":
        raise UsageError("a machine is nobody's self", next_step="add --kind principal", kind="usage")
    chosen = roles or (allowed if kind == "node" else ("viewer",))
    node_labels = labels_of(labels)
    require_admin(context, f"invite a {kind}")
    mesh, addresses = talk(context, _mesh_and_addresses if kind == "node" else _mesh_and_apis)
    admin = unlock_admin(context, f"invite a {kind}")
    seed = secrets.token_bytes(SEED_BYTES)
    invite_key = Ed25519Signer(seed).public_key
    now_ms = time.time_ns() // 1_000_000
    grant = None
    if kind == "principal":
        in_order = tuple(role for role in PRINCIPAL_ROLES if role in chosen)
        grant = _grant(admin, mesh, invite_key, "person", in_order, name=name, uses=uses, same_person=myself)
    new_invite = Invite(
        mesh=mesh, invite_key=invite_key, kind="node" if kind == "node" else "principal",
        roles=tuple(role for role in NODE_ROLES if role in chosen) if kind == "node" else (),
        labels=node_labels if kind == "node" else (), uses=uses, issued_ms=now_ms, expires_ms=now_ms + span_ms,
        grant=grant,
    )  # fmt: skip
    line = write_line(seed, make_invite(admin, new_invite), addresses)
    once = "once" if uses == 1 else f"{uses} times"
    output.note(f"Good for {in_words(span_ms)}, {once}, for a {kind} as {', '.join(chosen)}; send it privately:")
    following = "freehold mesh join LINE" if kind == "node" else "freehold login LINE"
    output.result(
        {"line": line, "kind": kind, "roles": list(chosen), "labels": dict(node_labels), "uses": uses,
         "expires_ms": new_invite.expires_ms, "addresses": [address.address for address in addresses], "next_step": following},
        line,
    )  # fmt: skip
    output.hint(f"on the other machine: {following}")


@command("join", examples=("freehold mesh join fh1.…", "freehold mesh join fh1.… --data /srv/freehold -y"))
@click.argument("line")
@_DATA
@_LISTEN
@_ADVERTISE
@_INGRESS
@_WORKERS
@_API
@_NODE_NAME
@click.option("--label", "labels", multiple=True, hidden=True)
@_YES
def join(output: Output, *, line: str, labels: tuple[str, ...], data: Path | None, listen: tuple[str, ...],
         advertise: tuple[str, ...], ingress: tuple[str, ...], workers: int | None, api: str | None,
         node_name: str | None, yes: bool) -> None:  # fmt: skip
    """Make this machine a node of the mesh that an invite line names.

    Dials a member, which checks the invite and certifies this node's new key. Nothing runs yet. Its roles and labels come
    with the invite.
    """
    from cli.host import local_node

    if labels:
        wanted = " ".join(f"--label {shlex.quote(label)}" for label in labels)
        raise UsageError(
            "a node does not label itself: its labels come with the invite, signed by an admin",
            next_step=f"ask whoever invites for another line: freehold mesh invite {wanted}",
            kind="usage",
        )
    invited = _read(line)
    folder = (data or default_data_folder()).absolute()
    settings = local_node.NodeSettings(
        None, checked_listen(listen), checked_addresses(advertise) or None,
        checked_addresses(ingress) or None, workers, api=checked_api(api),
    )  # fmt: skip
    mesh = invited.invite.mesh.hex()
    output.note("This makes a node of this machine:")
    for text in (
        f"mesh                     {mesh[:16]} at {', '.join(reached.address for reached in invited.addresses)}",
        f"roles                    {', '.join(invited.invite.roles)}",
        f"labels                   {', '.join(f'{key}={value}' for key, value in invited.invite.labels) or 'none'}",
        f"data                     {folder}",
        f"nodes reach it at        {listen_words(settings.listen, '0.0.0.0:4100')}",
        f"apps are served at       {', '.join(settings.ingress or ('127.0.0.1:8080',))}",
    ):
        output.note(f"  {text}")
    confirm(output, "Join?", yes)
    if local_node.is_made(folder) and local_node.mesh_id_of(folder).hex() == mesh:
        _refuse_known(folder, _run(data, folder))  # else it was cut short before its last step
        local_node.tidy(folder)
        admitted_by = ""
    else:
        admitted_by = local_node.join(folder, settings, node_name or _host_name(), invited)
    node = local_node.node_id_of(folder)
    run = _run(data, folder)
    context_name = _free_context(mesh)
    # Who can act in this mesh from here already goes on doing so: through this node alone nobody could deploy.
    acts = any(context.mesh == mesh and context.key for context in contexts.read_contexts().contexts.values())
    contexts.write_context(context_name, Context(mesh, local_node.socket_of(folder), "", start=run), current=not acts)
    output.result(
        {"node": node, "mesh": mesh, "admitted_by": admitted_by, "data": str(folder), "context": context_name,
         "next_step": run},
        f"node {node} was admitted{f' by {admitted_by}' if admitted_by else ''}",
    )  # fmt: skip
    output.hint(run)


async def _mesh_and_addresses(client: NodeClient) -> tuple[bytes, tuple[Address, ...]]:
    """Return the mesh id, and where connected members that may admit are dialled, the asked node's first."""
    mesh = mesh_id(await client.get_bytes("/v1/genesis"))
    me = await client.read(NodeView, "/v1/node")
    addresses = [
        Address(address, member.node)
        for member in sorted(await members_of(client), key=lambda one: one.node != me.node)
        if member.connected and member.standing == "member" and "issuer" in member.roles
        for address in member.addresses
    ]
    if not addresses:
        raise CommandError(
            "no member that may admit says where it can be reached",
            next_step="start it with --listen, or name --advertise HOST:PORT",
            kind="no-address",
        )
    return mesh, tuple(addresses[:ADDRESSES_MAX])


async def _mesh_and_apis(client: NodeClient) -> tuple[bytes, tuple[Address, ...]]:
    """Return the mesh id, and where people may log in: the HTTPS APIs of connected members, with their pins."""
    mesh = mesh_id(await client.get_bytes("/v1/genesis"))
    addresses = [
        Address(f"https://{member.api}", member.api_pin)
        for member in await members_of(client)
        if member.api and member.connected and member.standing == "member" and "issuer" in member.roles
    ]
    if not addresses:
        raise CommandError(
            "no node serves its API over HTTPS, so nobody could log in",
            next_step="freehold node run --api 0.0.0.0:4180",
            kind="no-address",
        )
    return mesh, tuple(addresses[:ADDRESSES_MAX])


def _grant(admin: Ed25519Signer, mesh: bytes, key: bytes, kind: PrincipalKind, roles: tuple[Role, ...], *,
           name: str = "", uses: int = 0, same_person: bool = False) -> Signed:  # fmt: skip
    expires_ms = time.time_ns() // 1_000_000 + GRANT_LIFETIME_MS
    grant = Grant(
        key, kind, name or getpass.getuser(), roles, (ANY,), (ANY,), expires_ms, secrets.token_bytes(GRANT_NONCE_BYTES),
        invite_uses=uses, same_person=same_person,
    )  # fmt: skip
    return sign(admin, GRANT_DOMAIN, mesh, grant)


def _run(data: Path | None, folder: Path) -> str:
    """The command that runs the node of a folder."""
    return f"freehold node run --data {shlex.quote(str(folder))}" if data else "freehold node run"


def _refuse_existing(folder: Path, context: str, keys: tuple[str, ...]) -> None:
    from cli.host import local_node

    contexts.require_free_name(context)
    known = contexts.read_contexts().contexts.get(context)
    if known is not None:
        step = f"choose another name; to run that one: {known.start}"
        raise UsageError(f"a mesh {context} is known here already", next_step=step, kind="exists")
    if not local_node.can_be_made(folder):
        raise UsageError(f"{folder} is not empty", next_step="choose another folder with --data", kind="exists")
    for key in keys:
        if contexts.key_path(key).exists():
            raise UsageError(f"{contexts.key_path(key)} exists", next_step="choose another name", kind="exists")


def _refuse_known(folder: Path, run: str) -> None:
    """Raise UsageError if a context leads to the node in a folder: it was made, wholly."""
    from cli.host import local_node

    socket = local_node.socket_of(folder)
    if any(context.socket == socket for context in contexts.read_contexts().contexts.values()):
        raise UsageError(f"{folder} holds a node of this mesh already", next_step=run, kind="exists")


def _free_context(mesh: str) -> str:
    known = contexts.read_contexts().contexts
    name = f"node-{mesh[:8]}"
    return next(text for text in (name, *(f"{name}-{n}" for n in range(2, len(known) + 3))) if text not in known)


def _read(line: str) -> InviteLine:
    try:
        invited = read_line(line)
    except DecodeError as error:
        raise UsageError(str(error), next_step="ask an operator: freehold mesh invite", kind="invite") from None
    if invited.invite.kind != "node":
        raise UsageError("this invite is for a person, not a machine", next_step="freehold login LINE", kind="invite")
    return invited


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", platform.node())[:63] or "node"


@click.group("mesh", cls=Group)
def mesh() -> None:
    """Found a mesh, let nodes in and out, look after its voters."""


for _one in (
    create, invite, join, members, address, label, remove, voters, admins, cosign_paper, rules, upgrade, reset, acknowledge,
    leave, backup, restore,
):  # fmt: skip
    mesh.add_command(_one)
