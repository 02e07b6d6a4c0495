"""The daemon: runs one node's services under the one root task group until it is told to stop.

Start order: lock the folder, open the stores, make the services from them, then workers, workloads, mesh, API. Crash-
only: an exception that nobody expected ends the group and the process, with the exit code of node/errors.py; what was
acknowledged is on disk, and workers go on serving until the next daemon adopts them. SIGTERM says goodbye to the mesh
and leaves the workers to the next daemon, for a moment; SIGINT drains and stops everything. Not here: making the
folder (membership/found.py), making the services, and what any service does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import signal
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from node.api.listening import listening
from node.api.papers.papers import missing_of
from node.api.reports.app_metrics import look
from node.api.server import VERSION
from node.config import NodeConfig, runtime_folder
from node.control import Control
from node.errors import BusyError, ConfigError
from node.journal.caused_lines import CausedLines
from node.journal.logs import JsonHandler, LogStore
from node.membership.found import read_identity
from node.membership.pending_papers import tell_pending
from node.mesh.peer_addresses import ADDRESSES_PER_NODE_MAX, parse_address
from node.mesh.presence import NodeStatus, body_of, outgoing_address
from node.process_memory import set_aside_lasting_objects
from node.services import Ends, NodePlace, Services, lost_state, make_services, read_stored
from node.store.schema_copy import copy_before_change
from node.store.storage import Storage, failure
from node.webhooks.occasions import Occasions
from protocols.core import CoreStored
from protocols.envelope import encode
from protocols.libp2p import multiaddr
from protocols.libp2p.multiaddr import Multiaddr
from protocols.liveness import Leave
from protocols.records.gossip import Publish
from protocols.records.key_table import make_key
from protocols.rollout.dossiers import Proposed

GOODBYE_S = 0.5
"""Between the goodbye and the end: the others lead visitors past this node by then, and what came is passed on."""
LOOK_AT_ADDRESS_EVERY_S = 15.0
FORGET_EVERY_S = 600.0
HAND_OVER_S = 15.0
"""How long workers serve on for the next daemon behind an orderly stop; with the grace below and a margin 30 s in all."""
HAND_OVER_GRACE_S = 10.0
RELAUNCH_S = 60.0
"""How long they serve on where another release starts at once, which may fail to some times."""


_log = logging.getLogger("freehold.daemon")


class Daemon:
    """One node."""

    def __init__(self, folder: Path, config: NodeConfig, *, may_relaunch: bool = False) -> None:
        """Take a folder that membership/found.py made, and its settings. Raises ConfigError under `python -O`.

        `may_relaunch` says that whoever runs it starts another release in its place when `relaunches` is set at the end.
        """
        if sys.flags.optimize:
            # -O drops every assertion; a machine that went astray would speak on instead of ending.
            raise ConfigError(
                "a node does not run under python -O or PYTHONOPTIMIZE: it checks itself by assertions",
                "start it without -O, and with PYTHONOPTIMIZE unset",
            )
        self._folder = folder
        self._config = config
        self.runtime = runtime_folder(folder)
        self._stopping = asyncio.Event()
        self._hands_over = False
        self._may_relaunch = may_relaunch
        self.relaunches = False
        self.started = asyncio.Event()
        self.control: Control | None = None

    async def run(self) -> None:
        """Run until `stop`, SIGTERM or SIGINT. Raises NodeError for what an operator must know."""
        with _locked(self._folder):
            logs = LogStore(self._folder / "logs", self._config.log_max_bytes, days=self._config.log_days)
            handler = JsonHandler(logs.append, self._config.name)
            handler.addFilter(CausedLines())
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

    def hand_over(self) -> None:
        """End `run` and leave the workers to the daemon that starts next on this folder."""
        self._hands_over = True
        self._stopping.set()

    def relaunch(self) -> None:
        """End `run` and leave the workers to the release that starts in this one's place."""
        self.relaunches = True
        self.hand_over()

    async def _run(self, storage: Storage, logs: LogStore) -> None:
        _require_free((*self._config.listen, *filter(None, (self._config.api,))))
        await asyncio.to_thread(_copy_stores, self._folder)
        vote, state, fence = await storage.open()
        stored = CoreStored(
            read_stored(self.runtime, vote, fence), state or {}, read_identity(self._folder).credentials
        )
        lost = lost_state(vote, state, storage.state.damaged_rows)
        if lost:
            _log.error("%s", lost, extra={"event": "state.rebuilt"})
        place = NodePlace(self._folder, self.runtime, self._config)
        ends = Ends(self.stop, self.relaunch if self._may_relaunch else None)
        services = make_services(place, storage, logs, stored, lost=lost, ends=ends)
        self.control = services.control
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.hand_over)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        await self._serve(services)

    async def _serve(self, services: Services) -> None:
        """Run every part until the node is told to stop."""
        control, pool = services.control, services.control.pool
        async with asyncio.TaskGroup() as group:
            workers = group.create_task(pool.run())  # binds the ingress: a busy port must be known first
            await _first_of(workers, pool.started())
            tasks = [
                group.create_task(services.fetcher.run()),
                group.create_task(services.benches.run()),
                group.create_task(control.workloads.run()),
                group.create_task(services.relay.run()),
                group.create_task(services.topics.run()),
                group.create_task(control.secrets.run(control.audit.note_own)),
                group.create_task(control.starter.run()),
                group.create_task(control.schedules.run()),
                group.create_task(control.deliveries.run()),
                group.create_task(control.recent_answers.run(functools.partial(look, control))),
                group.create_task(control.data.run()),
                group.create_task(control.custody.run()),
                group.create_task(control.backups.run()),
                group.create_task(control.webhooks.run(_occasions(control), control.core.state.name)),
                group.create_task(control.standby.run()),
                group.create_task(services.room.run()),
                group.create_task(control.upgrader.run()),
                group.create_task(control.undrains.run()),
                group.create_task(control.telemetry.run()),
                group.create_task(_forget_logs(control)),
                *((group.create_task(services.certifier.run()),) if services.certifier is not None else ()),
            ]
            await asyncio.sleep(0)  # workloads take orders from their first step on
            tasks.append(group.create_task(control.mesh.run()))
            await _first_of(tasks[-1], control.mesh.transport.started.wait())
            async with listening(control, self.runtime):
                control.api_place.announce = functools.partial(self._announce, control)
                self._announce(control)
                tasks.append(group.create_task(self._follow_own_address(control)))
                tasks.append(group.create_task(tell_pending(self._folder, control.filing, control.requests)))
                if self._may_relaunch:  # the process is this node's alone
                    set_aside_lasting_objects()
                self.started.set()
                _log.info("the node runs", extra={"event": "node.started", "detail": _where(control)})
                await self._stopping.wait()
                _log.info("the node stops", extra={"event": "node.stopping"})
                await _say_goodbye(control)
            if self._hands_over:
                await pool.hand_over(
                    RELAUNCH_S if self.relaunches else HAND_OVER_S, min(HAND_OVER_GRACE_S, self._config.drain_s)
                )
            else:
                await pool.stop()
            await services.relay.drain(min(HAND_OVER_GRACE_S, self._config.drain_s))
            await workers
            for task in tasks:
                task.cancel()

    def _announce(self, control: Control) -> None:
        """Tell everybody where this node listens, and start dialling those whose addresses are records already."""
        control.mesh.post(Publish(make_key("address", control.core.node), encode(self._mine(control))))
        acme = self._config.acme
        status = NodeStatus(
            self._config.name, VERSION, control.api, control.api_pin, control.api_place.authority,
            acme is not None, acme.exceptions if acme is not None else (), self._config.ingress_names,
            control.acknowledged.signed, control.undrains.promised(),
        )  # fmt: skip
        control.mesh.post(Publish(make_key("status", control.core.node), body_of(status)))
        control.addresses.take(list(control.core.records.store.entries.values()))

    def _mine(self, control: Control) -> tuple[str, ...]:
        """Where others are told to dial this node."""
        listening = control.mesh.transport.listening
        mine = [parse_address(address) for address in self._config.advertise] or [
            _dialable(multiaddr) for multiaddr in listening
        ]
        return tuple(str(address) for address in mine[:ADDRESSES_PER_NODE_MAX])

    async def _follow_own_address(self, control: Control) -> None:
        """Tell everybody when the machine got another address: it moved to another network, or its lease ran out."""
        said = self._mine(control)
        while True:
            await asyncio.sleep(LOOK_AT_ADDRESS_EVERY_S)
            now = self._mine(control)
            if now != said and control.mesh.post(Publish(make_key("address", control.core.node), encode(now))):
                _log.info("reached at %s now", ", ".join(now), extra={"event": "address.changed"})
                said = now


async def _forget_logs(control: Control) -> None:
    """Remove, now and then, what of the log is older than the settings allow."""
    while True:
        control.logs.expire(control.clock().wall_ms / 1000)
        await asyncio.sleep(FORGET_EVERY_S)


async def _say_goodbye(control: Control) -> None:
    """Tell the others that this node stops, so that they wait for it in nothing and lead no visitor to it."""
    if control.core.hello.admitted():
        control.mesh.post(Leave())
        await asyncio.sleep(GOODBYE_S)


def _copy_stores(folder: Path) -> None:
    """Copy the stores if this release changes their schema. Raises StorageError."""
    try:
        copy_before_change(folder)
    except (sqlite3.Error, OSError) as error:
        raise failure("the copy of the stores", error) from error


def _where(control: Control) -> str:
    """Who this node is and where it listens, in one line for whoever just started it."""
    mesh = ", ".join(str(address) for address in control.mesh.transport.listening) or "nowhere, it only dials"
    apps = ", ".join(address for address in control.ingress if not address.startswith("unix:"))
    api = f", people log in at {control.api}" if control.api else ""
    return f"{control.core.node}: nodes reach it at {mesh}, apps are served at {apps}{api}"


def _dialable(address: Multiaddr) -> Multiaddr:
    """What others dial for an address this node listens on: a wildcard stands for its address on the way out."""
    end = address.tcp()
    if end is None or end[0] not in {"0.0.0.0", "::"}:  # noqa: S104  compared, not bound
        return address
    family = socket.AF_INET6 if end[0] == "::" else socket.AF_INET
    return multiaddr.from_tcp(outgoing_address(family), end[1])


def _occasions(control: Control) -> Occasions:
    """What this node's webhooks are told of."""

    def lack(proposed: Proposed) -> tuple[str, ...]:
        return tuple(missing.rule for missing in missing_of(control, proposed))

    return Occasions(control.core, control.history, lack)


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
