"""What a worker is told at its start, what it needs from the sandbox, and where both sides find each other.

Not here: the worker itself (worker.py), and what starts it (pool.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

import msgspec

from runtime.ingress.dispatch import GUEST_THREADS_MAX, Runner
from runtime.ingress.listeners import is_plain
from runtime.ingress.settings import IngressSettings
from runtime.messages import AppLoad
from runtime.native.choice import EngineChoice, Wanted, choose
from runtime.native.plan import NativePlan, NotNative
from runtime.services.log_sink import AppLog
from runtime.services.sqlite_sql import STATEMENT_MAX_S

LOAD_TABLE: Final = "load"
"""Name of the load table in the runtime folder."""


class WorkerSettings(msgspec.Struct, frozen=True):
    """Everything a worker is told at its start; no secrets, since other users may read a command line."""

    slot: int
    build: str
    node: str
    runtime_folder: str
    data_folder: str
    control_fd: int
    listener_fds: tuple[int, ...]
    listeners: tuple[str, ...]
    peer: str = ""
    providers_file: str = ""
    thrown_away: bool = False
    """Whether what its apps write is for a smoke check alone."""

    statement_max_s: float = STATEMENT_MAX_S
    certificates: str = ""
    shares_certificates: bool = False
    proxies: tuple[str, ...] = ()
    ingress: IngressSettings = IngressSettings()
    guest_threads_max: int = GUEST_THREADS_MAX
    engine: Wanted = "python"
    spans: bool = False
    orphan_limit_s: float = 600.0
    drain_grace_s: float = 30.0

    def choice(self) -> EngineChoice:
        """Return the engine that serves in a worker with these settings."""
        plain = sum(is_plain(address) for address in self.listeners)
        return choose(
            self.engine,
            plain_listeners=plain,
            other_listeners=len(self.listeners) - plain,
            local_only=self.ingress.local_only,
            proves=self.shares_certificates,
        )


class HostRunner(Runner, Protocol):
    """A runner, and what the native engine is told of its app, or why that does not serve it."""

    @property
    def plan(self) -> NativePlan | NotNative:
        """Decided when the app was made ready."""
        ...


class AppHost(Protocol):
    """What the worker needs from the sandbox; `app_host.py` provides it, tests may bring another."""

    def prepare(self, load: AppLoad, log: AppLog) -> HostRunner:
        """Make one app ready to answer requests or run jobs; blocking. Raises `LoadError`."""
        ...


def control_path(folder: Path, slot: int, pid: int) -> Path:
    """Return where the worker with `pid` in `slot` listens for daemons."""
    return folder / f"worker-{slot}-{pid}.sock"
