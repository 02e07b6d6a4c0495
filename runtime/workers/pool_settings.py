"""What a pool of workers is told, and what it tells each of them at its start. Values only; the pool is pool.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.ingress.settings import IngressSettings
from runtime.native.choice import Wanted
from runtime.services.sqlite_sql import STATEMENT_MAX_S
from runtime.workers.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What the pool needs to know. `listen` are "host:port", "[v6]:port" or "unix:/path" texts; port 0 picks one.

    "tls:" before an address asks for TLS with the certificates of the folder `certificates`, and with those of the mesh
    if it `shares_certificates`.

    `runtime_folder` gets mode 0700 and holds control sockets; `data_folder` holds the apps' stores. `orphan_limit_s`
    is how long workers serve on without a daemon. `engine` is what serves in them (`runtime/native/choice.py`).
    `providers_file` says where the operator's providers are; without it every store lies in `data_folder`.
    `spans` says that somebody takes spans of what guests ask for.
    What is `thrown_away` is written for a smoke check: in a provider only databases, each new and removed at the end.
    `statement_max_s` is how long one statement of an app's SQL may take, `peer` the node's id in its mesh.
    """

    listen: tuple[str, ...]
    runtime_folder: Path
    data_folder: Path
    build: str
    workers: int = 2
    node: str = "local"
    peer: str = ""
    certificates: Path | None = None
    shares_certificates: bool = False
    proxies: tuple[str, ...] = ()
    ingress: IngressSettings = field(default_factory=IngressSettings)
    drain_grace_ms: int = 30_000
    orphan_limit_s: float = 600.0
    guest_threads_max: int = 32
    engine: Wanted = "python"
    spans: bool = False
    providers_file: Path | None = None
    thrown_away: bool = False
    statement_max_s: float = STATEMENT_MAX_S
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "runtime.workers.worker")

    def of_worker(self, slot: int, listeners: Sequence[str], fds: tuple[int, ...]) -> WorkerSettings:
        """Return what the worker in a slot is told: its control socket is the first of `fds`, `listeners` the others."""
        return WorkerSettings(
            slot=slot,
            build=self.build,
            node=self.node,
            peer=self.peer,
            runtime_folder=str(self.runtime_folder.resolve()),
            data_folder=str(self.data_folder.resolve()),
            control_fd=fds[0],
            listener_fds=fds[1:],
            listeners=tuple(listeners),
            certificates=str(self.certificates or ""),
            shares_certificates=self.shares_certificates,
            proxies=self.proxies,
            ingress=self.ingress,
            guest_threads_max=self.guest_threads_max,
            engine=self.engine,
            spans=self.spans,
            providers_file=str(self.providers_file or ""),
            thrown_away=self.thrown_away,
            statement_max_s=self.statement_max_s,
            orphan_limit_s=self.orphan_limit_s,
            drain_grace_s=self.drain_grace_ms / 1000,
        )
