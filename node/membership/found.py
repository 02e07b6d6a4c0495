"""Making a node's data folder: founding a mesh of one, or joining one with an invite line.

Everything is prepared beside its place and moved there at the end (new_folder.py), so that a half-made node is never
started. What it holds then:

    node.key  node.toml  genesis  credentials  addresses  vote.db  fence     (the rest comes with the first run)

Not here: running the node (daemon.py), and the admin's key, which never enters the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from node.config import NodeConfig, no_node_step, write_config
from node.errors import ConfigError
from node.keys import SystemEntropy, load_or_create_key, write_private
from node.membership.join import Knock
from node.membership.new_folder import abandon, begin, finish
from node.membership.pending_papers import PendingPapers, write_pending
from node.mesh.peer_addresses import write_addresses
from node.mesh.pump import system_now
from node.store.storage import Storage
from protocols.chain.acceptor import founding_effects
from protocols.changes.demands import Policy
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.keys import peer_id
from protocols.libp2p import multiaddr
from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import Digest, PeerId, Persist, Signer
from protocols.trust.certificates import NODE_ROLES, Labels, issue
from protocols.trust.genesis import GENESIS_MAX_BYTES, NONCE_BYTES, STORE_ID_BYTES, Genesis, mesh_id
from protocols.trust.invites import InviteLine
from protocols.trust.store import Credentials

CREDENTIALS_MAX_BYTES = 64 * 1024
NOTE = "invite"
"""In the folder in the making: the digest of the invite that its key was made for."""


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


Complete = Callable[[Path, Digest, PeerId], PendingPapers]
"""Gets the folder in the making, the mesh and its first node; returns what its first start tells, keeping its keys."""


def _nothing(_making: Path, _mesh: Digest, _node: PeerId) -> PendingPapers:
    return PendingPapers()


async def found_mesh(
    folder: Path,
    config: NodeConfig,
    *,
    mesh_name: str,
    admin: Signer,
    policy: Policy,
    labels: Labels = (),
    complete: Complete = _nothing,
) -> bytes:
    """Make the first node of a new mesh in `folder`; return the mesh id. Raises ConfigError if the folder is in use.

    `complete` is called when all else is prepared and before the folder holds a node.
    """
    entropy = SystemEntropy()
    making = begin(folder)
    try:
        signer = load_or_create_key(making / "node.key", entropy)
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
        storage = Storage(making)
        await storage.open()
        for effect in founding_effects(store_id):
            assert isinstance(effect, Persist)
            await storage.apply(effect)
        await storage.close()
        _write(making, config, NodeIdentity(genesis, (Credentials((certificate,)),)), {})
        pending = complete(making, mesh, node)
        if pending != PendingPapers():
            write_pending(making, pending)
        finish(folder)
    except Exception:
        abandon(folder)
        raise
    return mesh


async def join_mesh(folder: Path, config: NodeConfig, line: InviteLine) -> PeerId:
    """Join the mesh of an invite line; return the peer that admitted this node. Raises ConfigError saying why not.

    An attempt that was cut short is taken up with the key it had: a use of the invite may be spent on that already.
    """
    entropy = SystemEntropy()
    making = begin(folder, keep=("node.key", NOTE))
    invited = digest(line.signed.payload).hex()
    if not (making / NOTE).exists() or (making / NOTE).read_text() != invited:
        making = begin(folder)
        write_private(making / NOTE, invited.encode())
    signer = load_or_create_key(making / "node.key", entropy)
    knock = Knock(line, signer, entropy, config.name)
    try:
        joined = await knock.answer()
    except ConfigError:
        if knock.refused:
            abandon(folder)
        raise
    addresses = {PeerId(address.pin): (multiaddr.parse(address.address),) for address in line.addresses}
    _write(
        making, config, NodeIdentity(joined.genesis, (joined.credentials, joined.admitted_by_credentials)), addresses
    )
    finish(folder)
    return joined.admitted_by


def _write(
    making: Path, config: NodeConfig, identity: NodeIdentity, addresses: Mapping[PeerId, tuple[Multiaddr, ...]]
) -> None:
    (making / "genesis").write_bytes(identity.genesis)
    write_private(making / "credentials", encode(identity.credentials))
    write_config(making, config)
    write_addresses(making, addresses)
