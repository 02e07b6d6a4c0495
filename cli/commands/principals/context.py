"""`freehold context list|use|ca`: which meshes are known here, and which one commands speak to.

Not here: how one becomes known (mesh create, mesh join, login).
"""

from __future__ import annotations

import base64
import contextlib
import ssl
from pathlib import Path

import click
from msgspec.structs import asdict

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.foreign import plain
from cli.text.output import Output
from cli.text.table import table
from node.api.callers.authority import is_of_node
from protocols.api_models import AuthorityView
from protocols.keys import Ed25519Verifier
from protocols.machine import PeerId


@command("list", examples=("freehold context list", "freehold context list --json"))
def show(output: Output) -> None:
    """List the meshes known here, with the mesh of one of the project here; the current one is marked."""
    known = contexts.read_contexts()
    by_name = dict(known.contexts)
    with contextlib.suppress(UsageError):
        by_name[contexts.DEV_CONTEXT] = contexts.read_dev_context(Path.cwd())
    rows = [
        ("*" if name == known.current else "", name, one.mesh[:16], one.where, one.key or "-", one.admin or "-")
        for name, one in sorted(by_name.items())
    ]
    values = [
        {"name": name, "current": name == known.current, "mesh": one.mesh, "socket": one.socket, "url": one.url, "key": one.key,
         "admin_key": one.admin}
        for name, one in sorted(by_name.items())
    ]  # fmt: skip
    output.result({"contexts": values}, table(("", "NAME", "MESH", "API", "KEY", "ADMIN KEY"), rows))
    if not rows:
        output.note("no mesh is known here")
        output.hint(contexts.FIRST_STEP)


@command("use", examples=("freehold context use home",))
@click.argument("name")
def use(output: Output, name: str) -> None:
    """Make a mesh the current one. FREEHOLD_CONTEXT overrides it for one command."""
    known = contexts.read_contexts()
    if name not in known.contexts:
        raise UsageError(f"there is no context {name!r}", next_step="freehold context list", kind="no-context")
    contexts.write_contexts(contexts.Contexts(name, known.contexts))
    output.result({"current": name}, f"commands now speak to {name}")


@command("ca", examples=("freehold context ca",
                        "freehold context ca --json"))  # fmt: skip
@click.option("--context", "context_name", help="The mesh, if not the current context.")
def ca(output: Output, context_name: str | None) -> None:
    """Print the certificate authorities of the mesh's APIs, for clients that verify TLS, such as curl --cacert.

    Each is a node's own and good for that node's names alone; take them anew when a node is reached at a new address.
    """
    _, context = contexts.current_context(context_name)

    async def conversation(client: NodeClient) -> list[dict[str, object]]:
        mesh, found = await client.mesh(), await client.read(tuple[AuthorityView, ...], "/v1/authorities")
        return [
            # A certificate has lines, which are shown as lines: `is_of_node` has read it as one.
            {
                **asdict(one),
                "certificate": plain(one.certificate),
                "pinnedpubkey": f"sha256//{base64.b64encode(bytes.fromhex(one.api_pin)).decode()}",
            }
            for one in found
            if is_of_node(Ed25519Verifier(), PeerId(one.node), mesh, ssl.PEM_cert_to_DER_cert(plain(one.certificate)))
        ]

    found = talk(context, conversation)
    if not found:
        raise CommandError(
            "no node of this mesh serves its API with a certificate of its own authority",
            next_step="freehold node run --api 0.0.0.0:4180; beside an api.pem of an earlier version: remove it, log in again",
            kind="no-authority",
        )
    text = "".join(f"# {one['name']} at https://{one['api']}\n{one['certificate']}" for one in found).rstrip("\n")
    output.result({"authorities": found}, text)


@click.group("context", cls=Group)
def context() -> None:
    """See and choose the mesh that commands speak to."""


for _one in (show, use, ca):
    context.add_command(_one)
