"""A parsed project: what freehold.toml says, in integers with their units in the name.

Values only. Not here: reading them (`parse.py`), or what a node does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from protocols.changes.demands import Demands

Language = Literal["python", "wsgi", "asgi", "javascript", "typescript", "static", "component"]

ENTRY_DEFAULTS: Mapping[str, str] = {
    "python": "app",
    "wsgi": "app:app",
    "asgi": "app:app",
    "javascript": "app.js",
    "typescript": "app.ts",
    "static": "404.html",
    "component": "",
}


@dataclass(frozen=True, slots=True)
class App:
    """One `[app.NAME]`: how it is built, when it runs, what it may use. `schedule` is None for an app with routes."""

    name: str
    language: Language
    source: str
    entry: str
    routes: tuple[str, ...]
    schedule: str | None
    timeout_ms: int
    memory_max_bytes: int
    instances: Literal["fresh", "reuse"]
    allow_hosts: tuple[str, ...]
    private_networks: tuple[str, ...]
    keyvalue: tuple[str, ...]
    sql: tuple[str, ...]
    blobs: tuple[str, ...]
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    providers: Mapping[str, str]
    migrate: bool
    websocket: str
    websocket_origins: tuple[str, ...]
    config: Mapping[str, str]
    secrets: tuple[str, ...]

    @property
    def keeps_data(self) -> bool:
        """Whether it opens anything that lies on one node."""
        own = {*self.keyvalue, *self.sql} - self.providers.keys()
        return bool(own or self.blobs or self.publish or self.subscribe)


@dataclass(frozen=True, slots=True)
class Smoke:
    """One request that must be answered as said."""

    app: str
    path: str
    status: int
    contains: str | None


@dataclass(frozen=True, slots=True)
class StageSettings:
    """One step of a rollout. `nodes` is a count, a percentage or a label; `pause` is milliseconds or "approve"."""

    nodes: str
    min_healthy_time_ms: int
    healthy_deadline_ms: int
    pause: int | Literal["approve"]


@dataclass(frozen=True, slots=True)
class AnalysisSettings:
    """What the measured numbers must say; None: not judged."""

    max_error_rate_ppm: int | None
    max_latency_p99_ms: int | None
    failure_limit: int


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How a release replaces the one before it; `replicas` 0 means on every node."""

    stages: tuple[StageSettings, ...]
    progress_deadline_ms: int
    candidate_ttl_ms: int
    replicas: int
    max_parallel: int
    auto_promote: bool
    auto_revert: bool
    analysis: AnalysisSettings


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds in one environment, or in none: apps by name, the rollout, and what is demanded beyond the mesh's policy."""

    apps: Mapping[str, App]
    rollout: RolloutSettings
    demands: Demands


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """A whole freehold.toml. `environments` holds the effective settings of each `[env.NAME]`, overlay applied."""

    name: str
    description: str
    owners: tuple[str, ...]
    base: Settings
    test_command: str | None
    smoke: tuple[Smoke, ...]
    environments: Mapping[str, Settings]

    def settings(self, environment: str | None = None) -> Settings:
        """Return what holds in `environment`; an environment without an overlay has the base settings."""
        return self.base if environment is None else self.environments.get(environment, self.base)
