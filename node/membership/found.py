"""Making a node's data folder: founding a mesh of one, or joining one with an invite line.

Everything is written to a folder under a temporary name and renamed at the end, so that a half-made node is never
started. What it holds then:

    node.key  node.toml  genesis  credentials  addresses  vote.db  fence     (the rest comes with the first run)

Not here: running the node (daemon.py), and the admin's key, which never enters the folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from node.config import NodeConfig, no_node_step, write_config
from node.errors import ConfigError
from node.keys import SystemEntropy, load_or_create_key, sync_folder, sync_tree, write_private
from node.membership.join import Knock
from node.mesh.peer_addresses import write_addresses
from node.mesh.pump import system_now
from node.store.storage import Storage
from protocols.chain.acceptor import founding_effects
from protocols.changes.demands import Policy
from protocols.envelope import DecodeError, decode, encode
from protocols.keys import peer_id
from protocols.libp2p import multiaddr
from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import PeerId, Persist, Signer
from protocols.trust.certificates import NODE_ROLES, Labels, issue
from protocols.trust.genesis import GENESIS_MAX_BYTES, NONCE_BYTES, STORE_ID_BYTES, Genesis, mesh_id
from protocols.trust.invites import InviteLine
from protocols.trust.store import Credentials

CREDENTIALS_MAX_BYTES = 64 * 1024


class NodeIdentity(msgspec.Struct, frozen=True):
    """What a made folder says: the genesis bytes, this node's credentials and those it was admitted with."""

    genesis: bytes
    credentials: tuple[Credentials, ...]


def read_identity(folder: Path) -> NodeIdentity:
    """Read what `found` or `join` wrote. Raises ConfigError."""
    try:
        genesis = (folder / "genesis").read_bytes()
        data = (folder / "credentials").read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no node", no_node_step(folder)) from None
    if len(genesis) > GENESIS_MAX_BYTES:
        raise ConfigError(f"{folder / 'genesis'} is too large to be a genesis", "restore it from your backup")
    try:
        credentials: tuple[Credentials, ...] = decode(data, tuple[Credentials, ...], CREDENTIALS_MAX_BYTES)
    except DecodeError as error:
        raise ConfigError(f"{folder / 'credentials'}: {error}", "restore it from your backup") from None
    return NodeIdentity(genesis, credentials)


async def found(
    folder: Path, config: NodeConfig, *, mesh_name: str, admin: Signer, policy: Policy, labels: Labels = ()
) -> bytes:
    """Make the first node of a new mesh in `folder`; return the mesh id. Raises ConfigError if the folder is in use."""
    entropy = SystemEntropy()
    temporary = _begin(folder)
    try:
        signer = load_or_create_key(temporary / "node.key", entropy)
        node, store_id = peer_id(signer.public_key), entropy.random_bytes(STORE_ID_BYTES)
        now = system_now()
        genesis = encode(
            Genesis(
                name=mesh_name,
                nonce=entropy.random_bytes(NONCE_BYTES),
                admins=(admin.public_key,),
                threshold=1,
                voter_node=node,
                voter_store=store_id,
                policy=encode(policy),
                created_ms=now.wall_ms,
            )
        )
        mesh = mesh_id(genesis)
        certificate = issue(admin, mesh, node, roles=NODE_ROLES, labels=labels, serial=1, wall_ms=now.wall_ms)
        storage = Storage(temporary)
        await storage.open()
        for effect in founding_effects(store_id):
            assert isinstance(effect, Persist)
            await storage.apply(effect)
        await storage.close()
        _finish(temporary, folder, config, NodeIdentity(genesis, (Credentials((certificate,)),)), {})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return mesh


async def join(folder: Path, config: NodeConfig, line: InviteLine) -> PeerId:
    """Join the mesh of an invite line; return the peer that admitted this node. Raises ConfigError saying why not."""
    entropy = SystemEntropy()
    temporary = _begin(folder)
    try:
        signer = load_or_create_key(temporary / "node.key", entropy)
        joined = await Knock(line, signer, entropy, config.name).answer()
        addresses = {PeerId(address.pin): (multiaddr.parse(address.address),) for address in line.addresses}
        identity = NodeIdentity(joined.genesis, (joined.credentials, joined.admitted_by_credentials))
        _finish(temporary, folder, config, identity, addresses)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return joined.admitted_by


def _begin(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", "choose another folder with --data")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(folder.name + ".new")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(mode=0o700)
    return temporary


def _finish(
    temporary: Path,
    folder: Path,
    config: NodeConfig,
    identity: NodeIdentity,
    addresses: Mapping[PeerId, tuple[Multiaddr, ...]],
) -> None:
    (temporary / "genesis").write_bytes(identity.genesis)
    write_private(temporary / "credentials", encode(identity.credentials))
    write_config(temporary, config)
    write_addresses(temporary, addresses)
    sync_tree(temporary)
    if folder.exists():
        folder.rmdir()
    temporary.rename(folder)
    sync_folder(folder.parent)
