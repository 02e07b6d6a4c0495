"""The parts of a running node, each made with what it needs and nothing set on it afterwards, in one frozen value.

Not here: running them (daemon.py), and what any of them does.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import msgspec

from node.acme.certifier import Certifier
from node.acme.shared import SharedSites
from node.api.reports.views import node_view
from node.api.server import VERSION
from node.concerns import Concerns, is_alone
from node.config import NodeConfig, certificates_folder, telemetry_fields, throwaway_folder
from node.control import ApiPlace, Control
from node.decisions.acknowledged import Acknowledged
from node.decisions.history import History
from node.decisions.outcomes import Fates
from node.decisions.start_queue import Starter, Waiting
from node.decisions.undrains import Undrains
from node.errors import ConfigError
from node.feed import Feed
from node.journal.audit import STARTER, Audit, start_paper
from node.journal.audit_backlog import Backlog
from node.journal.logs import LogStore
from node.keys import SystemEntropy, load_or_create_key, read_seed
from node.membership.admit import Enrolling
from node.membership.found import read_identity
from node.membership.leave import Leaving
from node.mesh.artifact_fetcher import Fetcher
from node.mesh.core_requests import ChainRequests, Filing
from node.mesh.mesh import Mesh
from node.mesh.peer_addresses import PeerAddresses, parse_address
from node.mesh.peer_questions import Answering, Asking
from node.mesh.pump import system_now
from node.mesh.request_relay import Forwarding, candidates, runs_lane
from node.mesh.topic_relay import TopicRelay
from node.oidc.trusts import Trusts
from node.serving.app_counts import AppCounts
from node.serving.data_backups import DataBackups
from node.serving.data_custody import DataCustody
from node.serving.data_moves import DataMoves
from node.serving.data_standby import DataStandby
from node.serving.deliveries import Deliveries
from node.serving.job_history import JobHistory
from node.serving.migrations import Migrations
from node.serving.recent_answers import RecentAnswers
from node.serving.releases import Releases
from node.serving.schedules import Schedules
from node.serving.secrets import Secrets
from node.serving.smoke_bench import SmokeBenches
from node.serving.smoke_evidence import SmokeWitness
from node.serving.workloads import Workloads
from node.store.artifacts import ArtifactStore
from node.store.belongings import Belongings
from node.store.disk_room import MUTED, RoomWatch
from node.store.storage import Storage, Tables
from node.telemetry.telemetry import Telemetry
from node.transport import Transport, TransportSettings
from node.upgrade.launcher import on_trial
from node.upgrade.upgrader import Upgrader
from node.webhooks.webhooks import Webhooks
from protocols.chain.ballots import BOOT_NONCE_BYTES
from protocols.chain.context import Stored
from protocols.chain.fence import FENCE_TABLE, newest_fence
from protocols.chain.ledger import CHAIN_TABLE
from protocols.chain.messages import Mute
from protocols.chain.pacing import ChainTimes
from protocols.changes.secrets import node_secret_key
from protocols.core import CoreSetup, CoreStored, NodeCore
from protocols.keys import Ed25519Verifier
from protocols.machine import PeerId, Signer
from protocols.state.placement import private_networks
from protocols.trust.store import Standing
from runtime.ingress import certificates
from runtime.ingress.listeners import TLS_PREFIX
from runtime.ingress.proofs import FrontFolder
from runtime.ingress.settings import IngressSettings
from runtime.sandbox.compile_cache import CompileCache
from runtime.services.declared_providers import PROVIDERS_FILE, write_providers
from runtime.workers.pool import WorkerPool
from runtime.workers.pool_settings import PoolSettings

FETCHING = frozenset({Standing.MEMBER, Standing.EXPIRED})
"""Who may have artifacts: an expired node keeps its certified release, one that is not confirmed has no workload."""


@dataclass(frozen=True, slots=True)
class NodePlace:
    """Where a node lives: its data folder, its volatile folder and its settings."""

    folder: Path
    runtime: Path
    config: NodeConfig


@dataclass(frozen=True, slots=True)
class Services:
    """What the daemon runs."""

    control: Control
    fetcher: Fetcher
    benches: SmokeBenches
    relay: Forwarding
    topics: TopicRelay
    answering: Answering
    room: RoomWatch
    certifier: Certifier | None


@dataclass(frozen=True, slots=True)
class Ends:
    """How the daemon ends: `stop` drains it; `relaunch` has another release take its place, None where nobody would."""

    stop: Callable[[], None]
    relaunch: Callable[[], None] | None = None


def make_services(
    place: NodePlace, storage: Storage, logs: LogStore, stored: CoreStored, *, lost: str, ends: Ends
) -> Services:
    """Make every part of a node from what was stored; nothing runs, listens or dials yet.

    `lost` says why records that this node once had are not there ("" if they are).
    """
    folder, runtime, config = place.folder, place.runtime, place.config
    entropy, verifier = SystemEntropy(), Ed25519Verifier()
    signer = load_or_create_key(folder / "node.key", entropy)
    mesh = _mesh(place, storage, stored, signer)
    core, transport = mesh.core, mesh.transport
    artifacts = ArtifactStore(folder / "artifacts")
    _empty_folders(place)
    secrets = Secrets(core, node_secret_key(read_seed(folder / "node.key")), entropy, mesh.post, system_now)
    fetcher = _fetcher(mesh, artifacts)
    benches = _benches(place, logs)
    granted = _networks(core), {provider.name: provider.kind for provider in config.declared}
    releases = Releases(artifacts, fetcher, _compile_cache(place), benches, secrets.values, *granted)
    pool = WorkerPool(_pool_settings(place, core.node), on_logs=logs.take_batch, restore=releases.restore)
    smoke_witness = SmokeWitness(core, artifacts, signer, mesh.post, system_now)
    requests, history = ChainRequests(mesh.post, entropy), History(core)
    is_member = functools.partial(_is_member, core)
    data = _data_moves(mesh, requests, history, signer, folder, is_member=is_member)
    migrations = Migrations(core, data.place, data.marking, benches, folder / PROVIDERS_FILE, system_now)
    workloads = Workloads(core, releases, pool, runtime / "ingress.sock", mesh.post, smoke_witness.passed, migrations)
    audit = _audit(mesh, signer, folder, lost)
    starter = _starter(mesh, artifacts, requests, folder, history=history, audit=audit, workloads=workloads)
    relay, topics = _relay(mesh, workloads, runtime), _topics(mesh, runtime)
    filing = Filing(core.records.store, mesh.post)
    leaving = Leaving(
        core, requests, filing, workloads, signer=signer, entropy=entropy, clock=system_now, stop=ends.stop
    )
    asking, api_place = Asking(transport), ApiPlace()
    acknowledged = Acknowledged(core, folder, api_place.tell)
    undrains = Undrains(core, requests, verifier, system_now, folder, api_place.tell)
    app_counts, webhooks = AppCounts(), Webhooks(folder / "webhooks", system_now, entropy)
    certifier = _certifier(place, mesh, asking, entropy)
    telemetry = _telemetry(config, core, logs)
    certified = (certifier.problems,) if certifier is not None else ()
    elsewhere = (webhooks.concerns, undrains.concerns, telemetry.problems, *certified)
    control = Control(
        config=config, folder=folder, mesh=mesh, storage=storage, artifacts=artifacts, pool=pool, workloads=workloads,
        requests=requests, starter=starter, logs=logs, asking=asking, clock=system_now,
        leaving=leaving, enrolling=Enrolling(core, filing, signer, verifier, system_now), secrets=secrets,
        deliveries=_deliveries(mesh, workloads, pool, folder), schedules=_schedules(workloads, pool, folder),
        audit=audit, history=history, fates=Fates(history.decision, history.digest_at),
        concerns=Concerns(
            core, config, folder, workloads, audit, system_now, lost, mesh.rejected, elsewhere, acknowledged
        ),
        feed=Feed(core, starter.starts), filing=filing, data=data, app_counts=app_counts,
        belongings=Belongings(core, releases.named_by), api_place=api_place,
        addresses=PeerAddresses(mesh, folder, tuple(map(parse_address, config.peers))),
        recent_answers=RecentAnswers(app_counts), **_custodians(mesh, data, requests, config, migrations),
        webhooks=webhooks, certifier=certifier, telemetry=telemetry, acknowledged=acknowledged, undrains=undrains,
        upgrader=_upgrader(mesh, artifacts, fetcher, workloads, folder, ends),
        trusts=Trusts(folder / "trusts", core, filing, system_now, entropy),
    )  # fmt: skip
    _subscribe(control)
    return Services(control, fetcher, benches, relay, topics, _answering(control, is_member), _room(control), certifier)


def _telemetry(config: NodeConfig, core: NodeCore, logs: LogStore) -> Telemetry:
    """What tells a collector, if there is one; it hears every line of the log."""
    fields = telemetry_fields(config.telemetry) if config.telemetry is not None else {}
    telemetry = Telemetry(config.telemetry, fields, core, system_now, name=config.name, version=VERSION)
    logs.listeners.append(telemetry.take_line)
    logs.span_listeners.append(telemetry.take_span)
    return telemetry


def _data_moves(
    mesh: Mesh, requests: ChainRequests, history: History, signer: Signer, folder: Path,
    *, is_member: Callable[[PeerId], bool],
) -> DataMoves:  # fmt: skip
    return DataMoves(
        mesh.core, mesh.transport, requests.submit, history.slot_of,
        signer=signer, clock=system_now, folder=folder, is_member=is_member,
    )  # fmt: skip


def _audit(mesh: Mesh, signer: Signer, folder: Path, lost: str) -> Audit:
    backlog = Backlog(folder)
    forgetful = bool(lost or backlog.open) and not is_alone(mesh.core)
    return Audit(mesh.core, signer, mesh.post, system_now, backlog, forgetful=forgetful)


def _answering(control: Control, is_member: Callable[[PeerId], bool]) -> Answering:
    certifier = control.certifier
    return Answering(
        control.mesh.transport, is_member, lambda: msgspec.json.encode(node_view(control, VERSION)), control.logs,
        certifier.proves if certifier is not None else lambda _token: False, control.mesh.loop_time,
    )  # fmt: skip


def _certifier(place: NodePlace, mesh: Mesh, asking: Asking, entropy: SystemEntropy) -> Certifier | None:
    """What gets and keeps certificates of names, if the node takes part."""
    settings = place.config.acme
    if settings is None:
        return None
    seed = read_seed(place.folder / "node.key")
    front = FrontFolder(place.runtime / "workers")
    shared = SharedSites(mesh.core, node_secret_key(seed), front, settings.wildcards)

    def own_names() -> frozenset[str]:
        try:
            held = certificates.read_some(certificates_folder(place.config, place.folder))
        except certificates.CertificateError:
            return frozenset()
        return frozenset(name for loaded in held if certificates.days_left(loaded) >= 0 for name in loaded.names)

    return Certifier(
        mesh.core, settings, shared, seed=seed, folder=place.folder / "acme", entropy=entropy, post=mesh.post,
        clock=system_now, asking=asking, own_names=own_names,
    )  # fmt: skip


def _starter(
    mesh: Mesh, artifacts: ArtifactStore, requests: ChainRequests, folder: Path, *, history: History, audit: Audit,
    workloads: Workloads,
) -> Starter:  # fmt: skip
    return Starter(
        mesh.core, artifacts, requests, Ed25519Verifier(), system_now, folder,
        slot_of=history.slot_of, ended=functools.partial(_note_start, audit), outdated=workloads.check_again,
    )  # fmt: skip


def _is_member(core: NodeCore, peer: PeerId) -> bool:
    return core.hello.standing(peer) is Standing.MEMBER


def _fetcher(mesh: Mesh, artifacts: ArtifactStore) -> Fetcher:
    core = mesh.core
    return Fetcher(
        artifacts, mesh.transport, core.hello.admitted,
        may_fetch=lambda peer: core.trust.standing(peer, system_now().wall_ms) in FETCHING,
        on_reject=mesh.reject,
    )  # fmt: skip


def _upgrader(
    mesh: Mesh, artifacts: ArtifactStore, fetcher: Fetcher, workloads: Workloads, folder: Path, ends: Ends
) -> Upgrader:
    return Upgrader(
        mesh.core, mesh.transport, artifacts, fetcher.ensure, workloads,
        folder=folder, version=VERSION, trial=on_trial(), clock=system_now, relaunch=ends.relaunch,
    )  # fmt: skip


def _networks(core: NodeCore) -> Callable[[str], Sequence[str]]:
    """The private networks that the mesh lets apps reach from an environment, when asked."""
    return lambda environment: private_networks(core.state, environment)


def _compile_cache(place: NodePlace) -> CompileCache:
    return CompileCache(Path(place.config.compiled) if place.config.compiled else place.folder / "compiled")


def _relay(mesh: Mesh, workloads: Workloads, runtime: Path) -> Forwarding:
    return Forwarding(
        mesh.transport, workloads, functools.partial(candidates, mesh), functools.partial(_is_member, mesh.core),
        folder=runtime / "workers", ingress=runtime / "ingress.sock",
    )  # fmt: skip


def _topics(mesh: Mesh, runtime: Path) -> TopicRelay:
    return TopicRelay(
        mesh.transport, runtime / "workers", peers=mesh.core.hello.admitted,
        is_member=functools.partial(_is_member, mesh.core), runs=functools.partial(runs_lane, mesh),
    )  # fmt: skip


def _schedules(workloads: Workloads, pool: WorkerPool, folder: Path) -> Schedules:
    return Schedules(
        lambda: workloads.running, pool.run_job, system_now, folder / "schedules", JobHistory(folder / "jobs")
    )


def _deliveries(mesh: Mesh, workloads: Workloads, pool: WorkerPool, folder: Path) -> Deliveries:
    def holds(project: str, environment: str) -> bool:
        lane = mesh.core.state.lane(project, environment)
        return lane is not None and lane.data_node == mesh.core.node

    return Deliveries(lambda: workloads.running, pool.deliver, system_now, folder / "data", holds)


class _Custodians(TypedDict):
    custody: DataCustody
    backups: DataBackups
    standby: DataStandby


def _custodians(
    mesh: Mesh, moves: DataMoves, requests: ChainRequests, config: NodeConfig, migrations: Migrations
) -> _Custodians:
    """What looks after the data that is here; before any worker opens what an earlier life was putting into place."""
    custody = DataCustody(mesh.core, moves, system_now)
    custody.settle()
    migrations.settle()
    standby = DataStandby(
        mesh.core, mesh.transport, moves, requests.read, clock=system_now,
        is_member=functools.partial(_is_member, mesh.core),
    )  # fmt: skip
    standby.settle()
    backups = DataBackups(mesh.core, moves.place, config.backup, system_now)
    return {"custody": custody, "backups": backups, "standby": standby}


def _subscribe(control: Control) -> None:
    """Have each part hear what the core notices, in this order."""
    control.mesh.listeners.extend(
        (
            control.requests.hear,
            control.starter.hear,
            control.filing.hear,
            control.acknowledged.hear,
            control.undrains.hear,
            control.concerns.hear,
            control.feed.hear,
            control.standby.hear,
            control.data.hear,
            control.workloads.order,
            control.secrets.hear,
            control.addresses.hear,
            control.audit.hear,
            control.webhooks.hear,
            control.telemetry.hear,
            *((control.certifier.hear,) if control.certifier is not None else ()),
        )
    )


def _mesh(place: NodePlace, storage: Storage, stored: CoreStored, signer: Signer) -> Mesh:
    """The node's core, over a transport that does not listen yet."""
    config, entropy, verifier = place.config, SystemEntropy(), Ed25519Verifier()
    settings = TransportSettings(
        listen=tuple(parse_address(address) for address in config.listen),
        advertise=tuple(parse_address(address) for address in config.advertise),
    )
    transport = Transport(settings, signer=signer, verifier=verifier, entropy=entropy)
    setup = CoreSetup(
        read_identity(place.folder).genesis, signer, verifier, entropy, entropy.random_bytes(BOOT_NONCE_BYTES),
        chain=_chain_times(config),
    )  # fmt: skip
    return Mesh(setup, stored, transport, storage.apply)


def _empty_folders(place: NodePlace) -> None:
    """Make the folders that a process begins with empty, and those that must be there."""
    throwaway = place.folder / "throwaway"
    shutil.rmtree(throwaway, ignore_errors=True)
    throwaway.mkdir()
    for left in place.runtime.glob("smoke-*"):
        shutil.rmtree(left, ignore_errors=True)
    (place.folder / "data").mkdir(exist_ok=True)


def _pool_settings(place: NodePlace, peer: PeerId) -> PoolSettings:
    config, runtime = place.config, place.runtime
    write_providers(place.folder / PROVIDERS_FILE, config.declared)
    return PoolSettings(
        listen=(
            *config.ingress,
            *(f"{TLS_PREFIX}{address}" for address in config.ingress_tls),
            f"unix:{runtime / 'ingress.sock'}",
        ),
        certificates=_certificates(config, place.folder),
        shares_certificates=config.acme is not None,
        runtime_folder=runtime / "workers",
        data_folder=place.folder / "data",
        build=VERSION,
        workers=config.workers,
        node=config.name,
        peer=peer,
        proxies=config.proxies,
        drain_grace_ms=config.drain_s * 1000,
        orphan_limit_s=config.orphan_s,
        ingress=IngressSettings(
            local_only=config.local_only, traced=config.telemetry.traces if config.telemetry is not None else 1.0
        ),
        engine=config.engine,
        spans=config.telemetry is not None and config.telemetry.traces > 0,
        providers_file=place.folder / PROVIDERS_FILE,
    )


def _benches(place: NodePlace, logs: LogStore) -> SmokeBenches:
    """The workers for smoke checks."""
    return SmokeBenches(
        place.folder / "throwaway",
        throwaway_folder(place.runtime),
        logs.append,
        ahead=place.config.smoke_ahead,
        providers_file=place.folder / PROVIDERS_FILE,
    )


def _note_start(audit: Audit, waiting: Waiting) -> None:
    """Take down how a start that waited here has ended."""
    result = "done" if waiting.outcome == "started" else waiting.refusal.rule
    audit.note(STARTER, start_paper(waiting.signed), result, "")


def _room(control: Control) -> RoomWatch:
    """The watch over the disk: without room the chain falls silent, and nothing more is taken in or logged to it."""

    def tell(reason: str) -> bool:
        if not control.mesh.post(Mute(reason)):
            return False
        full = reason if reason == MUTED else ""
        control.logs.in_memory_only = bool(full)
        control.artifacts.closed = full
        return True

    return RoomWatch(control.folder, control.storage.reserve, tell, lambda: control.upgrader.hold)


def _certificates(config: NodeConfig, folder: Path) -> Path | None:
    """Return the folder of the ingress's certificates, if it serves TLS. Raises ConfigError if it cannot."""
    if not config.ingress_tls:
        return None
    where = certificates_folder(config, folder)
    if config.acme is not None:
        return where  # one may come at any time
    try:
        certificates.read_some(where)
    except certificates.CertificateError as error:
        raise ConfigError(str(error), f"put one there, or leave --ingress-tls out ({where})") from None
    return where


def read_stored(runtime: Path, vote: Tables | None, fence: dict[bytes, bytes]) -> Stored:
    """Compare the fence with its copy in the volatile folder: without one that is as new, something may be forgotten."""
    same_boot = False
    with contextlib.suppress(FileNotFoundError):
        token = (runtime / "fence").read_bytes()
        held = newest_fence(fence)
        copied = newest_fence({b"0": token, b"1": b""})
        same_boot = (
            held is not None
            and copied is not None
            and held.store_id == copied.store_id
            and held.counter >= copied.counter
        )
    return Stored(vote, {FENCE_TABLE: fence} if fence else {}, same_boot)


def lost_state(vote: Tables | None, state: Tables | None, damaged_rows: int) -> str:
    """Why records that this node once had were not there at the start, or ""; a first start has none to lose."""
    if damaged_rows:
        return f"{damaged_rows} rows of state.db were damaged and left out"
    if state is None:
        return "state.db was damaged and is set aside"
    return "state.db was gone" if not state and vote and vote.get(CHAIN_TABLE) else ""


def _chain_times(config: NodeConfig) -> ChainTimes:
    """How soon nodes become voters; a shorter wait also asks more often whether one is due."""
    growth_ms = config.voter_after_s * 1000
    return ChainTimes(growth_ms=growth_ms, ready_ms=max(500, min(ChainTimes().ready_ms, growth_ms // 4)))
