"""What the host needs to know about one app to run it: code, limits, grants. A value, made by whoever places the app.

Not here: where the values come from (`freehold.toml`, the release) or routes (the ingress).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

MEMORY_MAX_BYTES_DEFAULT: Final = 256 * 1024 * 1024
"""Cap of each linear memory; CPython alone takes 30 MiB, so less than 64 MiB is rarely useful."""


@dataclass(frozen=True, slots=True)
class AppSpec:
    """One app of one release.

    `artifact` is the path `CompileCache.ensure` returned, for components and preview 1 modules alike, and
    `artifact_digest` the hex SHA-256 of the file it was compiled from. `allow_hosts` are "host:port" texts,
    "*.suffix:port" for subdomains; `private_networks` those inside of which their addresses may be. `keyvalue`, `sql` and
    `blobs` name the stores, databases and containers it may open, `publish` the queues it may put messages into, all in
    `stores`, "PROJECT" or "PROJECT/ENVIRONMENT", so that one environment never sees another's (empty: the project's).
    `providers` names what a key-value store lies in, of the operator's; the others lie with the node's own data.
    `websocket` is the path at which it takes WebSockets, "" for none, `websocket_origins` pages of elsewhere that may open one.
    `environment` is what the guest sees, secrets included. `redacted` are values, by name, that are blotted out of
    what the guest logs. `instances_ready` is how many instances wait ahead of requests.
    """

    project: str
    app: str
    release: str
    artifact: Path
    artifact_digest: str
    kind: Literal["http", "command", "module"] = "http"
    timeout_ms: int = 10_000
    memory_max_bytes: int = MEMORY_MAX_BYTES_DEFAULT
    table_elements_max: int = 100_000
    instances: Literal["fresh", "reuse"] = "fresh"
    instance_uses_max: int = 1_000
    instances_ready: int = 4
    allow_hosts: tuple[str, ...] = ()
    private_networks: tuple[str, ...] = ()
    allow_loopback: bool = False
    outbound_max: int = 32
    outbound_connect_timeout_ms: int = 5_000
    keyvalue: tuple[str, ...] = ()
    sql: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    providers: Mapping[str, str] = field(default_factory=dict)
    stores: str = ""
    websocket: str = ""
    websocket_origins: tuple[str, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    redacted: Mapping[str, str] = field(default_factory=dict, repr=False)
    log_line_max_bytes: int = 8 * 1024
    log_call_max_bytes: int = 1024 * 1024
    response_fields_max: int = 256
    response_fields_max_bytes: int = 128 * 1024
