"""The mesh of one behind `freehold dev`: its folder beside the project, its two keys, and what it must have decided.

    .freehold/dev/node/           the node, as `freehold mesh create` makes one; the apps' data is in node/data
    .freehold/dev/keys/           the admin's and the everyday key, mode 0600, not sealed: they count in this mesh alone
    .freehold/dev/context.json    how commands reach it (`--context dev`), written anew at each start

Deleting the folder is always safe, but for the apps' data in it. Not here: running the node (server.py), and what is
started in it (candidate.py).
"""

from __future__ import annotations

import getpass
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.access import contexts
from cli.access.client import NodeClient
from cli.access.contexts import DEV_CONTEXT, DEV_ENVIRONMENT, Context
from cli.errors import CommandError
from cli.host import local_node
from cli.host.local_node import NodeSettings
from cli.project.build import STATE_FOLDER
from cli.project.model import ProjectFile
from cli.text.output import Output
from protocols.api_models import PrincipalView
from protocols.changes.demands import DEV
from protocols.envelope import Signed, encode, sign
from protocols.keys import SEED_BYTES, Ed25519Signer
from protocols.state.commands import CreateEnvironment, CreateProject
from protocols.state.model import MeshState
from protocols.trust.certificates import DAY_MS
from protocols.trust.grants import ANY, GRANT_DOMAIN, Grant

GRANT_LIFETIME_MS: Final = 365 * DAY_MS
GRANT_NONCE_BYTES: Final = 16
NODE_NAME: Final = "dev"


@dataclass(frozen=True, slots=True)
class MeshOfOne:
    """One that is there: `folder` holds everything, `node` the daemon's part; `admin` and `me` act in it."""

    folder: Path
    node: Path
    context: Context
    admin: Ed25519Signer
    me: Ed25519Signer


def open_mesh(root: Path, settings: NodeSettings, output: Output) -> MeshOfOne:
    """Return the project's mesh of one, founding it if there is none. Raises CommandError."""
    folder = root.absolute() / STATE_FOLDER / DEV_CONTEXT
    node, keys = folder / "node", folder / "keys"
    admin_name, me_name = str(keys / "admin"), str(keys / "me")
    if not (node / "genesis").exists():
        _found(folder, settings)
        output.note(
            f"founded a mesh of one in {STATE_FOLDER}/{DEV_CONTEXT}; deleting that folder deletes its apps' data"
        )
    mesh = local_node.mesh_id_of(node)
    context = Context(mesh.hex(), local_node.socket_of(node), me_name, admin_name, start="freehold dev")
    contexts.write_dev_context(folder, context)
    return MeshOfOne(folder, node, context, contexts.open_plain(admin_name), contexts.open_plain(me_name))


def _found(folder: Path, settings: NodeSettings) -> None:
    """Make the keys, then the node; what a founding that was cut short has left goes first."""
    keys = folder / "keys"
    shutil.rmtree(keys, ignore_errors=True)
    keys.mkdir(parents=True, mode=0o700)
    (folder / ".gitignore").write_text("*\n")
    admin = contexts.store_plain(str(keys / "admin"), secrets.token_bytes(SEED_BYTES))
    contexts.store_plain(str(keys / "me"), secrets.token_bytes(SEED_BYTES))
    local_node.found(
        folder / "node", settings, name=NODE_NAME, mesh_name=DEV_CONTEXT, admin=admin, policy=DEV, labels=()
    )


async def furnish(mesh: MeshOfOne, client: NodeClient, project: ProjectFile) -> None:
    """Have the chain decide what a deploy rests on: the everyday key's grant, the environment, the project."""
    key = mesh.me.public_key.hex()
    if (await client.read(PrincipalView, f"/v1/principals/{key}")).problem:
        await client.publish("grant", key, encode((_grant(mesh, await client.mesh()),)))
    state = await client.state()
    _refuse_other_project(state, project.name)
    if not any(environment.name == DEV_ENVIRONMENT for environment in state.environments):
        await client.decide(mesh.admin, CreateEnvironment(DEV_ENVIRONMENT))
    if not state.projects:
        await client.decide(mesh.admin, CreateProject(project.name, project.owners))


def _refuse_other_project(state: MeshState, name: str) -> None:
    others = [project.name for project in state.projects if project.name != name]
    if others:
        raise CommandError(
            f"the mesh of one of this folder serves the project {others[0]}, not {name}",
            next_step=f"name it {others[0]} again, or remove {STATE_FOLDER}/{DEV_CONTEXT} (its apps' data goes with it)",
            kind="other-project",
        )


def _grant(mesh: MeshOfOne, mesh_id: bytes) -> Signed:
    expires_ms = time.time_ns() // 1_000_000 + GRANT_LIFETIME_MS
    nonce = secrets.token_bytes(GRANT_NONCE_BYTES)
    grant = Grant(
        mesh.me.public_key, "person", getpass.getuser(), ("proposer", "deployer"), (ANY,), (ANY,), expires_ms, nonce
    )
    return sign(mesh.admin, GRANT_DOMAIN, mesh_id, grant)
