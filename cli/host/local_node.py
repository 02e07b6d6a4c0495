"""The node on this machine: making its folder, running it, and where its API listens. The only file that imports node.

The daemon's errors become CommandErrors here. Everything else a command wants of a node goes through its HTTP API
(client.py). Not here: asking a person, and what is printed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import msgspec

from cli.errors import CommandError
from cli.host.ports import owner_of
from node import daemon
from node.api.server import VERSION
from node.config import NodeConfig, api_socket, read_config
from node.control import Control
from node.errors import BusyError, NodeError
from node.journal.logs import JsonHandler, LogFilter
from node.keys import SystemEntropy, load_or_create_key
from node.membership.backup import Manifest, manifest_of, read_backup, write_backup
from node.membership.found import found_mesh, join_mesh, read_identity
from node.membership.new_folder import MAKING, abandon, holds_node, is_free
from node.membership.pending_papers import FoundingPaper, PendingPapers
from node.process_memory import return_freed_memory
from node.upgrade import launcher
from protocols.chain.decision import RESET_DOMAIN, Reset, ResetTo, Voter
from protocols.chain.messages import SubmitReset
from protocols.changes.demands import Policy
from protocols.envelope import decode, encode, sign
from protocols.keys import peer_id
from protocols.machine import Digest, PeerId, Signer
from protocols.trust.certificates import Labels
from protocols.trust.genesis import Genesis, mesh_id
from protocols.trust.invites import InviteLine
from runtime.core_dumps import forbid_dumps
from runtime.workers.pool import PoolError

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

Complete = Callable[[Path, Digest, PeerId], tuple[Sequence[tuple[str, bytes]], Sequence[bytes]]]


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What an operator may say about a node; None leaves the default, or what the folder's node.toml says."""

    name: str | None = None
    listen: tuple[str, ...] | None = None
    advertise: tuple[str, ...] | None = None
    ingress: tuple[str, ...] | None = None
    workers: int | None = None
    voter_after_s: int | None = None
    api: str | None = None
    ingress_tls: tuple[str, ...] | None = None
    certificates: str | None = None
    drain_s: int | None = None
    orphan_s: int | None = None
    smoke_ahead: bool | None = None
    compiled: str | None = None
    local_only: bool | None = None
    metrics: str | None = None
    peers: tuple[str, ...] | None = None
    ingress_names: tuple[str, ...] | None = None

    def config(self, base: NodeConfig) -> NodeConfig:
        """Return `base` with what was said."""
        said = {name: value for name in self.__dataclass_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(base, **said)


class NodeFailedError(CommandError):
    """The node could not be made or run; `code` is the exit code that its kind of failure has (node/errors.py)."""

    def __init__(self, error: NodeError) -> None:
        super().__init__(str(error), next_step=error.advice or "freehold doctor", kind=_kind(error))
        self.code = error.exit_code


def found(
    folder: Path,
    settings: NodeSettings,
    *,
    name: str,
    mesh_name: str,
    admin: Signer,
    policy: Policy,
    labels: Labels,
    complete: Complete | None = None,
) -> Digest:
    """Make the first node of a new mesh; return the mesh id. Raises NodeFailedError.

    `complete` gets the folder in the making, the mesh and its node before they are anybody's; it returns the signed papers
    and commands that the node tells at its first start.
    """
    config = settings.config(NodeConfig(name))

    def pending(making: Path, mesh: Digest, node: PeerId) -> PendingPapers:
        papers, commands = complete(making, mesh, node) if complete is not None else ((), ())
        return PendingPapers(tuple(FoundingPaper(*paper) for paper in papers), tuple(commands))

    making = found_mesh(
        folder, config, mesh_name=mesh_name, admin=admin, policy=policy, labels=labels, complete=pending
    )
    return Digest(_translated(lambda: asyncio.run(making)))


def join(folder: Path, settings: NodeSettings, name: str, line: InviteLine) -> str:
    """Make a node that joins by invite; return the id of the node that admitted it. Raises NodeFailedError."""
    joining = join_mesh(folder, settings.config(NodeConfig(name)), line)
    return str(_translated(lambda: asyncio.run(joining)))


def run(folder: Path, settings: NodeSettings, log: logging.Handler | Callable[[bytes], None]) -> None:
    """Run the node until it is told to stop. Raises NodeFailedError, naming who holds a busy port.

    `log` takes the daemon's own log: its records, or lines of JSON.
    """
    import uvloop

    forbid_dumps()
    return_freed_memory()
    _translated(lambda: launcher.lead(folder, VERSION))
    config = _translated(lambda: settings.config(read_config(folder)))
    handler = log if isinstance(log, logging.Handler) else JsonHandler(log, config.name)
    logging.getLogger("freehold").addHandler(handler)
    running = _translated(lambda: daemon.Daemon(folder, config, may_relaunch=True))
    try:
        uvloop.run(running.run())
    except* NodeError as group:
        raise NodeFailedError(_first(group)) from None
    except* (PoolError, OSError) as group:
        raise _busy(config, _first(group)) from None
    finally:
        logging.getLogger("freehold").removeHandler(handler)
    if running.relaunches:
        launcher.relaunch()


class HeldNode:
    """A node that this very process runs, as `run` does: `freehold dev` holds one. Its API is spoken to like any other's.

    What it is told are `settings` alone, whatever an earlier version left in the folder's node.toml.
    """

    def __init__(self, folder: Path, name: str, settings: NodeSettings) -> None:
        """Take a folder that `found` made."""
        self._config = settings.config(NodeConfig(name))
        self._daemon = daemon.Daemon(folder, self._config)

    async def run(self) -> None:
        """Run it until `stop`, SIGTERM or SIGINT. Raises NodeFailedError, naming who holds a busy port."""
        try:
            await self._daemon.run()
        except* NodeError as group:
            raise NodeFailedError(_first(group)) from None
        except* (PoolError, OSError) as group:
            raise _busy(self._config, _first(group)) from None

    async def started(self) -> None:
        """Wait until its API answers."""
        await self._daemon.started.wait()

    def stop(self) -> None:
        """Have it drain and end."""
        self._daemon.stop()

    @property
    def address(self) -> str:
        """Where it serves apps."""
        return self._control.ingress[0]

    def serves(self, project: str, environment: str, change: bytes) -> bool:
        """Whether its workers answer for a change, as the base of its lane."""
        running = self._control.workloads.running.get((project, environment))
        here = running is not None and running.deployed.change == change
        return here and self._control.workloads.serves((project, environment), "base")

    async def lines(self, project: str) -> AsyncIterator[bytes]:
        """Yield log lines of a project as they come, until it has stopped."""
        async for line in self._control.logs.follow(LogFilter(project=project)):
            yield line

    @property
    def speaks(self) -> bool:
        """Whether it votes now."""
        return self._control.core.chain.speaking and not self.lost_vote

    @property
    def muted(self) -> str:
        """Why it does not vote though it could, empty if it does: its disk is full."""
        return self._control.core.chain.muted

    @property
    def lost_vote(self) -> str:
        """Why its store has no vote, empty if it votes: what a sole voter forgot, nobody can tell it."""
        core = self._control.core
        mine = Voter(core.node, core.chain.store_id)
        return "" if mine in core.state.voters else self._control.concerns.quarantined or "its store is another one"

    def reset(self, admin: Signer, reason: str) -> None:
        """Begin a new era with this store as the one voter, on the admin's signature: what cannot be told is abandoned."""
        core = self._control.core
        position = core.chain.position
        reset = Reset(
            mesh=core.trust.mesh,
            number=core.state.resets + 1,
            slot=position.slot + 1,
            prev=position.digest,
            at_ms=time.time_ns() // 1_000_000,
            voters=(Voter(core.node, core.chain.store_id),),
            reason=reason,
        )
        signed = sign(admin, RESET_DOMAIN, core.trust.mesh, reset)
        self._control.mesh.post(SubmitReset(encode(ResetTo(signed.payload, (signed,)))))

    @property
    def _control(self) -> Control:
        assert self._daemon.control is not None, "asked before it started"
        return self._daemon.control


def socket_of(folder: Path) -> str:
    """Return the path of the API's Unix socket of the node in a folder."""
    return str(_translated(lambda: api_socket(folder)))


def mesh_id_of(folder: Path) -> Digest:
    """Return the mesh of the node in a folder. Raises NodeFailedError if there is none."""
    identity = _translated(lambda: read_identity(folder))
    return mesh_id(identity.genesis)


def ports_of(folder: Path) -> list[int]:
    """Return the ports that the node in a folder listens on."""
    config = _translated(lambda: read_config(folder))
    return [int(address.rpartition(":")[2]) for address in (*config.listen, *config.ingress, *config.ingress_tls)]


def node_id_of(folder: Path) -> PeerId:
    """Return the id of the node in a folder."""
    mesh_id_of(folder)  # a folder without a node must not get a key
    signer = _translated(lambda: load_or_create_key(folder / "node.key", SystemEntropy()))
    return peer_id(signer.public_key)


def backup(folder: Path, target: Path) -> int:
    """Write the node's backup to a new file; return its bytes. Raises NodeFailedError, OSError."""
    node, mesh = node_id_of(folder), mesh_id_of(folder)
    return _translated(lambda: write_backup(folder, target, node, mesh.hex()))


def restore(source: Path, folder: Path) -> Manifest:
    """Make a node's folder from a backup. Raises NodeFailedError."""
    return _translated(lambda: read_backup(source, folder))


def backup_of(source: Path) -> Manifest:
    """Return what a backup says of itself. Raises NodeFailedError."""
    return _translated(lambda: manifest_of(source))


def is_made(folder: Path) -> bool:
    """Whether a folder holds a node."""
    return holds_node(folder)


def can_be_made(folder: Path) -> bool:
    """Whether a node can be made in a folder: it is empty, or holds what an attempt that was cut short has left."""
    return is_free(folder)


def tidy(folder: Path) -> None:
    """Remove what an attempt that was cut short has left in the folder of a node that it made."""
    abandon(folder)


def has_run(folder: Path) -> bool:
    """Whether the node in a folder was ever started."""
    return (folder / "lock").exists()


def in_the_making(folder: Path) -> Path:
    """Where the node of a folder is prepared before there is one, and what its maker noted for its next attempt."""
    return folder / MAKING


def founder_of(folder: Path) -> tuple[bytes, ...]:
    """Return the admin keys that the mesh of the node in a folder was founded with. Raises NodeFailedError."""
    identity = _translated(lambda: read_identity(folder))
    genesis: Genesis = decode(identity.genesis, Genesis)
    return genesis.admins


def is_running(folder: Path) -> bool:
    """Whether a daemon holds the folder's lock."""
    try:
        with (folder / "lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _translated(action: Callable[[], T]) -> T:
    try:
        return action()
    except NodeError as error:
        raise NodeFailedError(error) from None


def _first(group: BaseExceptionGroup[E]) -> E:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return cast("E", error)


def _kind(error: NodeError) -> str:
    return "node-" + type(error).__name__.removesuffix("Error").lower()


def _busy(config: NodeConfig, error: Exception) -> NodeFailedError:
    """What a start that failed is told as: a port that somebody has by its owner's name, all else in its own words."""
    if not any(isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE for cause in (error, error.__cause__)):
        return NodeFailedError(NodeError(f"the node cannot run: {error}", "freehold doctor"))
    advice = "stop it, or choose another address with --listen, --ingress or --api"
    for address in (*config.listen, *config.ingress, *config.ingress_tls):
        port = int(address.rpartition(":")[2])
        owner = owner_of(port) if port else None
        if owner:
            return NodeFailedError(BusyError(f"{address} is in use by {owner}", advice))
    # A service may not see whose process that is.
    return NodeFailedError(BusyError(getattr(error, "strerror", None) or str(error), advice))
