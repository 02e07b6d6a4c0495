"""The daemon: builds one node's services and runs them under the one root task group until it is told to stop.

Start order: lock the folder, open the stores, take the core from them, then mesh, workers, workloads, API. Crash-
only: an exception that nobody expected ends the group and the process, with the exit code of node/errors.py; what was
acknowledged is on disk, and workers go on serving until the next daemon adopts them. SIGTERM and SIGINT drain and
stop everything. Not here: making the folder (founding.py), and what any service does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from node.api.listening import listening
from node.api.problems import ProblemError
from node.api.server import VERSION
from node.api.views import node_view
from node.config import NodeConfig, certificates_folder, runtime_folder
from node.control import Control
from node.decisions.start_queue import Starter
from node.errors import BusyError, ConfigError
from node.journal.audit import Audit
from node.journal.audit_backlog import Backlog
from node.journal.logs import JsonHandler, LogStore
from node.keys import SystemEntropy, load_or_create_key, read_seed
from node.membership.admit import Enrolling
from node.membership.found import read_addresses, read_identity, write_addresses
from node.membership.leave import Leaving
from node.membership.pending_papers import forget_pending, read_pending
from node.mesh.artifact_fetcher import Fetcher
from node.mesh.chain_requests import ChainRequests
from node.mesh.filing import BUSY, file_record
from node.mesh.mesh import Mesh
from node.mesh.peer_questions import Asking
from node.mesh.presence import NodeStatus, outgoing_address
from node.mesh.pump import system_now
from node.mesh.request_relay import Forwarding, candidates
from node.serving.releases import Releases
from node.serving.schedules import Schedules
from node.serving.secrets import Secrets
from node.serving.smoke_bench import SmokeBenches
from node.serving.smoke_evidence import SmokeWitness
from node.serving.workloads import Workloads
from node.store.artifacts import ArtifactStore
from node.store.disk_room import RoomWatch
from node.store.storage import Storage, Tables
from node.transport import Transport, TransportSettings
from protocols.chain.ballots import BOOT_NONCE_BYTES
from protocols.chain.context import Stored
from protocols.chain.fence import TABLE as FENCE_TABLE
from protocols.chain.fence import newest
from protocols.chain.ledger import TABLE as CHAIN_TABLE
from protocols.chain.messages import Mute
from protocols.chain.pacing import ChainTimes
from protocols.changes.secrets import node_secret_key
from protocols.core import CoreSetup, CoreStored
from protocols.envelope import DecodeError, decode, encode
from protocols.keys import Ed25519Verifier
from protocols.libp2p import multiaddr
from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import PeerId
from protocols.records.gossip import Publish, RecordsMerged
from protocols.records.key_table import make_key
from protocols.records.record import Entry
from protocols.trust.store import Standing
from runtime.ingress import certificates
from runtime.ingress.listeners import TLS_PREFIX
from runtime.sandbox.compile_cache import CompileCache
from runtime.workers.pool import PoolSettings, WorkerPool

ADDRESSES_PER_NODE_MAX = 8
FOLDER_MODE = 0o700
FETCHING = frozenset({Standing.MEMBER, Standing.EXPIRED})
"""Who may have artifacts: an expired node keeps its certified release, one that is not confirmed has no workload."""

_log = logging.getLogger("freehold.daemon")


class Daemon:
    """One node."""

    def __init__(self, folder: Path, config: NodeConfig) -> None:
        """Take a folder that founding.py made, and its settings."""
        self._folder = folder
        self._config = config
        self.runtime = runtime_folder(folder)
        self._stopping = asyncio.Event()
        self.started = asyncio.Event()
        self._addresses: dict[PeerId, tuple[Multiaddr, ...]] = {}
        self.control: Control | None = None

    async def run(self) -> None:
        """Run until `stop`, SIGTERM or SIGINT. Raises NodeError for what an operator must know."""
        with _locked(self._folder):
            logs = LogStore(self._folder / "logs", self._config.log_max_bytes)
            handler = JsonHandler(logs.append, self._config.name)
            logging.getLogger("freehold").addHandler(handler)
            logging.getLogger("freehold").setLevel(logging.INFO)
            storage = Storage(self._folder, self.runtime / "fence")
            try:
                await self._run(storage, logs)
            finally:
                await storage.close()
                logging.getLogger("freehold").removeHandler(handler)
                logs.close()

    def stop(self) -> None:
        """Drain and end `run`."""
        self._stopping.set()

    async def _run(self, storage: Storage, logs: LogStore) -> None:
        _require_free((*self._config.listen, *filter(None, (self._config.api,))))
        vote, state, fence = await storage.open()
        pool = WorkerPool(
            PoolSettings(
                listen=(
                    *self._config.ingress,
                    *(f"{TLS_PREFIX}{address}" for address in self._config.ingress_tls),
                    f"unix:{self.runtime / 'ingress.sock'}",
                ),
                certificates=_certificates(self._config, self._folder),
                runtime_folder=self.runtime / "workers",
                data_folder=self._folder / "data",
                build=VERSION,
                workers=self._config.workers,
                node=self._config.name,
                proxies=self._config.proxies,
                drain_grace_ms=self._config.drain_s * 1000,
                orphan_limit_s=self._config.orphan_s,
            ),
            on_logs=logs.take_batch,
        )
        stored = CoreStored(_stored(self.runtime, vote, fence), state or {}, read_identity(self._folder).credentials)
        lost = _lost_state(vote, state, storage.state.damaged_rows)
        control = self._build(storage, logs, pool, stored, forgetful=bool(lost))
        control.rebuilt = lost
        if control.rebuilt:
            _log.error("%s", control.rebuilt, extra={"event": "state.rebuilt"})
        self.control = control
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        async with asyncio.TaskGroup() as group:
            workers = group.create_task(pool.run())  # binds the ingress: a busy port must be known first
            await _first_of(workers, pool.started())
            control.ingress = pool.addresses
            services = [
                group.create_task(self._fetcher.run()),
                group.create_task(self._benches.run()),
                group.create_task(control.workloads.run()),
                group.create_task(self._forwarding.run()),
                group.create_task(control.secrets.run(control.audit_own)),
                group.create_task(control.starter.run()),
                group.create_task(control.schedules.run()),
                group.create_task(self._room(storage, control).run()),
            ]
            await asyncio.sleep(0)  # workloads take orders from their first step on
            services.append(group.create_task(control.mesh.run()))
            await _first_of(services[-1], control.mesh.transport.started.wait())
            async with listening(control, self.runtime):
                self._announce(control)
                services.append(group.create_task(self._tell_pending(control)))
                self.started.set()
                _log.info("the node runs", extra={"event": "node.started", "detail": _where(control)})
                await self._stopping.wait()
                _log.info("the node stops", extra={"event": "node.stopping"})
            await pool.stop()
            await workers
            for task in services:
                task.cancel()

    def _build(
        self, storage: Storage, logs: LogStore, pool: WorkerPool, stored: CoreStored, *, forgetful: bool
    ) -> Control:
        entropy, verifier = SystemEntropy(), Ed25519Verifier()
        signer = load_or_create_key(self._folder / "node.key", entropy)
        settings = TransportSettings(
            listen=tuple(_multiaddr(address) for address in self._config.listen),
            advertise=tuple(_multiaddr(address) for address in self._config.advertise),
        )
        transport = Transport(settings, signer=signer, verifier=verifier, entropy=entropy)
        setup = CoreSetup(
            read_identity(self._folder).genesis, signer, verifier, entropy, entropy.random_bytes(BOOT_NONCE_BYTES),
            chain=_chain_times(self._config),
        )  # fmt: skip
        mesh = Mesh(
            setup,
            stored,
            transport,
            storage.apply,
        )
        artifacts = ArtifactStore(self._folder / "artifacts")
        throwaway = self._folder / "throwaway"
        shutil.rmtree(throwaway, ignore_errors=True)
        throwaway.mkdir()
        for left in self.runtime.glob("smoke-*"):
            shutil.rmtree(left, ignore_errors=True)
        (self._folder / "data").mkdir(exist_ok=True)
        secrets = Secrets(
            mesh.core, node_secret_key(read_seed(self._folder / "node.key")), entropy, mesh.post, system_now,
        )  # fmt: skip
        self._fetcher = Fetcher(
            artifacts, transport, mesh.core.hello.admitted,
            may_fetch=lambda peer: mesh.core.trust.standing(peer, system_now().wall_ms) in FETCHING,
            on_reject=mesh.reject,
        )  # fmt: skip
        self._benches = SmokeBenches(throwaway, self.runtime, logs.append, ahead=self._config.smoke_ahead)
        cache = CompileCache(Path(self._config.compiled) if self._config.compiled else self._folder / "compiled")
        releases = Releases(artifacts, self._fetcher, cache, self._benches, secrets.values)
        pool.restore = releases.restore
        workloads = Workloads(mesh.core, releases, pool, self.runtime / "ingress.sock", mesh.post)
        requests = ChainRequests(mesh.post, entropy)
        starter = Starter(mesh.core, artifacts, requests, verifier, system_now, self._folder)

        def is_member(peer: PeerId) -> bool:
            return mesh.core.hello.standing(peer) is Standing.MEMBER

        self._forwarding = Forwarding(
            transport, workloads, functools.partial(candidates, mesh), is_member,
            folder=self.runtime / "workers", ingress=self.runtime / "ingress.sock",
        )  # fmt: skip
        asking = Asking(
            transport,
            is_member,
            lambda: msgspec.json.encode(node_view(control, VERSION)),
            logs,
        )
        control = Control(
            self._config, self._folder, mesh, storage, artifacts, workloads, requests, starter, logs, asking, system_now
        )
        control.leaving = Leaving(control, signer, entropy, self.stop)
        control.enrolling = Enrolling(control, signer, verifier)
        control.secrets = secrets
        control.schedules = Schedules(lambda: workloads.running, pool.run_job, system_now, self._folder / "schedules")
        backlog = Backlog(self._folder)
        control.audit = Audit(
            mesh.core, signer, mesh.post, system_now, backlog,
            forgetful=(forgetful or backlog.open) and not control.alone,
        )  # fmt: skip
        workloads.smoked = SmokeWitness(mesh.core, artifacts, signer, mesh.post, system_now).passed
        starter.ended, starter.outdated = control.audit_start, workloads.check_again
        starter.slot_of = control.slot_of
        mesh.listeners += [
            requests.hear,
            starter.hear,
            control.hear,
            workloads.order,
            secrets.hear,
            self._learn_addresses,
        ]
        mesh.listeners.append(control.audit.hear)
        self._addresses = read_addresses(self._folder)
        mesh.set_addresses(self._others(mesh))
        control.addresses = _texts(self._addresses)
        return control

    def _room(self, storage: Storage, control: Control) -> RoomWatch:
        """The watch over the disk: without room the chain falls silent, and nothing more is taken in or logged to it."""

        def tell(reason: str) -> bool:
            if not control.mesh.post(Mute(reason)):
                return False
            control.logs.in_memory_only = bool(reason)
            control.artifacts.closed = reason
            return True

        return RoomWatch(self._folder, storage.reserve, tell)

    # --- where peers are ------------------------------------------------------------------------------------------------

    def _announce(self, control: Control) -> None:
        """Tell everybody where this node listens, and start dialling those whose addresses are records already."""
        mine = [_multiaddr(address) for address in self._config.advertise] or [
            _dialable(address) for address in control.mesh.transport.listening
        ]
        texts = tuple(str(address) for address in mine[:ADDRESSES_PER_NODE_MAX])
        control.mesh.post(Publish(make_key("address", control.core.node), encode(texts)))
        status = NodeStatus(self._config.name, VERSION, control.api, control.api_pin)
        control.mesh.post(Publish(make_key("status", control.core.node), encode(status)))
        self._take_addresses(control, list(control.core.records.store.entries.values()))

    async def _tell_pending(self, control: Control) -> None:
        """Publish and submit what was signed when this node was founded; what stays undecided is told again next time."""
        pending = read_pending(self._folder)
        told = True
        for paper in pending.papers:
            try:
                await file_record(control, paper.key, paper.body)
            except ProblemError as error:
                told = told and error.problem.status != BUSY
                _log.warning("not filed: %s", error, extra={"event": "pending.refused", "rule": error.problem.rule})
        for command in pending.commands:
            outcome = await control.requests.submit(command, ())
            told = told and outcome.outcome != "unknown"
            if outcome.outcome != "decided":
                detail = outcome.rule or outcome.outcome
                _log.warning("not decided: %s", outcome.detail, extra={"event": "pending.refused", "detail": detail})
        if told and (pending.papers or pending.commands):
            forget_pending(self._folder)

    def _learn_addresses(self, event: Any) -> None:
        if isinstance(event, RecordsMerged) and self.control is not None:
            self._take_addresses(self.control, event.entries)

    def _take_addresses(self, control: Control, entries: tuple[Entry, ...] | list[Entry]) -> None:
        changed = False
        for entry in entries:
            if entry.parsed.rule.prefix != "address" or entry.parsed.owner is None:
                continue
            with contextlib.suppress(DecodeError, ValueError):
                texts: tuple[str, ...] = decode(entry.record.body, tuple[str, ...], 4096)
                where = tuple(multiaddr.parse(text) for text in texts[:ADDRESSES_PER_NODE_MAX])
                if where != self._addresses.get(entry.parsed.owner):
                    self._addresses[entry.parsed.owner] = where
                    changed = True
        if changed:
            control.addresses = _texts(self._addresses)
            control.mesh.set_addresses(self._others(control.mesh))
            try:
                write_addresses(self._folder, self._addresses)
            except OSError as error:  # the mesh tells again; what must be durable fails elsewhere, and loudly
                _log.warning("addresses not kept: %s", error, extra={"event": "addresses.not-kept"})

    def _others(self, mesh: Mesh) -> dict[PeerId, tuple[Multiaddr, ...]]:
        return {peer: where for peer, where in self._addresses.items() if peer != mesh.core.node and where}


def _certificates(config: NodeConfig, folder: Path) -> Path | None:
    """Return the folder of the ingress's certificates, if it serves TLS. Raises ConfigError if it cannot."""
    if not config.ingress_tls:
        return None
    where = certificates_folder(config, folder)
    try:
        certificates.read(where)
    except certificates.CertificateError as error:
        raise ConfigError(str(error), f"put one there, or leave --ingress-tls out ({where})") from None
    return where


def _where(control: Control) -> str:
    """Who this node is and where it listens, in one line for whoever just started it."""
    mesh = ", ".join(str(address) for address in control.mesh.transport.listening) or "nowhere, it only dials"
    apps = ", ".join(address for address in control.ingress if not address.startswith("unix:"))
    api = f", people log in at {control.api}" if control.api else ""
    return f"{control.core.node}: nodes reach it at {mesh}, apps are served at {apps}{api}"


def _stored(runtime: Path, vote: Tables | None, fence: dict[bytes, bytes]) -> Stored:
    """Compare the fence with its copy in the volatile folder: without one that is as new, something may be forgotten."""
    same_boot = False
    with contextlib.suppress(FileNotFoundError):
        token = (runtime / "fence").read_bytes()
        held = newest(fence)
        copied = newest({b"0": token, b"1": b""})
        same_boot = (
            held is not None
            and copied is not None
            and held.store_id == copied.store_id
            and held.counter >= copied.counter
        )
    return Stored(vote, {FENCE_TABLE: fence} if fence else {}, same_boot)


def _lost_state(vote: Tables | None, state: Tables | None, damaged_rows: int) -> str:
    """Why records that this node once had were not there at the start, or ""; a first start has none to lose."""
    if damaged_rows:
        return f"{damaged_rows} rows of state.db were damaged and left out"
    if state is None:
        return "state.db was damaged and is set aside"
    return "state.db was gone" if not state and vote and vote.get(CHAIN_TABLE) else ""


def _texts(addresses: Mapping[PeerId, tuple[Multiaddr, ...]]) -> dict[PeerId, tuple[str, ...]]:
    return {peer: tuple(str(one) for one in where) for peer, where in addresses.items()}


def _chain_times(config: NodeConfig) -> ChainTimes:
    """How soon nodes become voters; a shorter wait also asks more often whether one is due."""
    growth_ms = config.voter_after_s * 1000
    return ChainTimes(growth_ms=growth_ms, ready_ms=max(500, min(ChainTimes().ready_ms, growth_ms // 4)))


def _dialable(address: Multiaddr) -> Multiaddr:
    """What others dial for an address this node listens on: a wildcard stands for its address on the way out."""
    end = address.tcp()
    if end is None or end[0] not in {"0.0.0.0", "::"}:  # noqa: S104  compared, not bound
        return address
    return multiaddr.from_tcp(outgoing_address(), end[1])


def _multiaddr(address: str) -> Multiaddr:
    host, _, port = address.rpartition(":")
    return multiaddr.from_tcp(host.strip("[]"), int(port))


async def _first_of(task: asyncio.Task[Any], waited: Any) -> None:
    """Wait for something a service brings about; if the service ends first, its error is the answer."""
    waiting = asyncio.ensure_future(waited)
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        task.result()
    await waiting


def _require_free(addresses: tuple[str, ...]) -> None:
    """Raise OSError if an address cannot be bound, before anything runs: workers would outlive the failed start."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError as error:
                raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second daemon on it is refused."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another process runs the node in {folder}", f"freehold node status --data {folder}"
            ) from None
        yield
