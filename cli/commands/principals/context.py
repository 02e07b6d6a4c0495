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
        (
            "*" if name == known.current else "",
            name,
            context.mesh[:16],
            context.where,
            context.key or "-",
            context.admin or "-",
        )
        for name, context in sorted(by_name.items())
    ]
    values = [
        {
            "name": name,
            "current": name == known.current,
            "mesh": context.mesh,
            "socket": context.socket,
            "url": context.url,
            "key": context.key,
            "admin_key": context.admin,
        }
        for name, context in sorted(by_name.items())
    ]
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
        mesh, authorities = await client.mesh(), await client.read(tuple[AuthorityView, ...], "/v1/authorities")
        return [
            # A certificate has lines, which are shown as lines: `is_of_node` has read it as one.
            {
                **asdict(authority),
                "certificate": plain(authority.certificate),
                "pinnedpubkey": f"sha256//{base64.b64encode(bytes.fromhex(authority.api_pin)).decode()}",
            }
            for authority in authorities
            if is_of_node(
                Ed25519Verifier(), PeerId(authority.node), mesh, ssl.PEM_cert_to_DER_cert(plain(authority.certificate))
            )
        ]

    rows = talk(context, conversation)
    if not rows:
        raise CommandError(
            "no node of this mesh serves its API with a certificate of its own authority",
            next_step="freehold node run --api 0.0.0.0:4180; beside an api.pem of an earlier version: remove it, log in again",
            kind="no-authority",
        )
    text = "".join(f"# {row['name']} at https://{row['api']}\n{row['certificate']}" for row in rows).rstrip("\n")
    output.result({"authorities": rows}, text)


@click.group("context", cls=Group)
def context() -> None:
    """See and choose the mesh that commands speak to."""


for _one in (show, use, ca):
    context.add_command(_one)
