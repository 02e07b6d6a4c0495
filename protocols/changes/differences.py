"""What a change alters, item by item: two releases with their configurations compared as values.

Capabilities are what the components themselves import, plus the hosts and stores their grants name; secrets are names
and versions, never values. Pure. Not here: fetching what is compared, and where a
change would run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from protocols.changes.change import Analysis, Change, Plan, Release, Route, SecretVersion
from protocols.changes.demands import Demands
from protocols.changes.effective import Effective, EffectiveApp

Section = Literal[
    "components", "capabilities", "limits", "configuration", "secrets", "routes", "smoke", "rollout", "policy"
]
SECTIONS: tuple[Section, ...] = (
    "components", "capabilities", "limits", "configuration", "secrets", "routes", "smoke", "rollout", "policy",
)  # fmt: skip

_UNITS_MS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))

MIGRATES = "migrates its data before it takes visitors, once for each release"

Imports = Mapping[bytes, tuple[str, ...]]
"""The interfaces each component asks its host for, by the component's digest."""


class Difference(msgspec.Struct, frozen=True):
    """One thing that differs; `before` or `after` is None where it is not there. `app` is empty for the project's."""

    section: Section
    app: str
    name: str
    before: str | None
    after: str | None

    @property
    def sign(self) -> str:
        """+ for what comes, - for what goes, ~ for what changes."""
        return "+" if self.before is None else "-" if self.after is None else "~"


@dataclass(frozen=True, slots=True)
class Side:
    """One release as it runs, or would run, in one environment. `plan` is None where the change is no longer held."""

    release: Release
    effective: Effective
    secrets: tuple[SecretVersion, ...] = ()
    routes: tuple[Route, ...] = ()
    plan: Plan | None = None
    replicas: int = 0

    @classmethod
    def of(cls, release: Release, effective: Effective, change: Change) -> Side:
        """The side that a change proposes."""
        return cls(release, effective, change.secrets, change.routes, change.plan, change.replicas)


def differences(before: Side | None, after: Side, imports: Imports) -> tuple[Difference, ...]:
    """Return every difference, by section, app and name; everything is new where nothing runs (`before` None)."""
    old, new = _facts(before, imports), _facts(after, imports)
    if before is None or before.plan is None:
        old = {key: value for key, value in old.items() if key[0] != "rollout"}
        new = {key: value for key, value in new.items() if key[0] != "rollout" or before is None}
    found_differences = [
        Difference(key[0], key[1], key[2], old.get(key), new.get(key))
        for key in sorted({*old, *new}, key=lambda key: (SECTIONS.index(key[0]), key[1], key[2]))
        if old.get(key) != new.get(key)
    ]
    return tuple(found_differences)


def written_ms(span_ms: int) -> str:
    """Return a span exactly, as a project file would write it: 10000 is "10s", 1500 is "1500ms"."""
    unit, size = next((unit, size) for unit, size in _UNITS_MS if span_ms % size == 0)
    return f"{span_ms // size}{unit}" if span_ms else "0s"


def size_words(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / (1 << 20):.1f} MiB" if size_bytes >= 1 << 20 else f"{size_bytes / 1024:.1f} KiB"


def exact_size(size_bytes: int) -> str:
    """A limit for people, to the byte where the words would round it: two different limits never look alike."""
    words = size_words(size_bytes)
    whole = size_bytes % (1 << 20) == 0 or (size_bytes < 1 << 20 and size_bytes % 1024 == 0)
    return words if whole else f"{words} ({size_bytes} bytes)"


_Key = tuple[Section, str, str]


def _facts(side: Side | None, imports: Imports) -> dict[_Key, str]:
    if side is None:
        return {}
    facts: dict[_Key, str] = {}
    for component in side.release.components:
        built = f"{component.digest.hex()[:16]}, {size_words(component.size_bytes)}"
        facts["components", component.app, "component"] = (
            f"{built}, {component.toolchain}" if component.toolchain else built
        )
    versions = {secret.name: secret.version for secret in side.secrets}
    for app in side.effective.apps:
        facts.update(_app_facts(app, imports.get(app.component, ()), versions))
    for route in side.routes:
        facts["routes", "", route_words(route)] = "served"
    for check in side.effective.smoke:
        contains = f", contains {check.contains!r}" if check.contains else ""
        said = f"{check.status}{contains}"
        before = facts.get(("smoke", check.app, check.path))
        facts["smoke", check.app, check.path] = f"{before}; {said}" if before else said
    facts.update(_demand_facts(side.release.demands_for(side.effective.environment)))
    if side.plan is not None:
        facts.update(_plan_facts(side.plan, side.replicas))
    return facts


def _app_facts(app: EffectiveApp, imports: Iterable[str], versions: Mapping[str, int]) -> dict[_Key, str]:
    facts: dict[_Key, str] = {("capabilities", app.name, f"imports {name}"): "yes" for name in imports}
    facts |= {("capabilities", app.name, f"reaches {host}"): "yes" for host in app.allow_hosts}
    facts |= {("capabilities", app.name, f"reaches private network {network}"): "yes" for network in app.networks}
    mapped = app.mapped
    facts |= {
        ("capabilities", app.name, f"opens store {store}"): f"in provider {mapped[store]}" if store in mapped else "yes"
        for store in app.keyvalue
    }
    facts |= {
        ("capabilities", app.name, f"opens database {name}"): f"in provider {mapped[name]}" if name in mapped else "yes"
        for name in app.sql
    }
    facts |= {("capabilities", app.name, f"opens container {name}"): "yes" for name in app.blobs}
    publish, subscribe = app.queues
    facts |= {("capabilities", app.name, f"publishes to {name}"): "yes" for name in publish}
    facts |= {("capabilities", app.name, f"handles messages of {name}"): "yes" for name in subscribe}
    if app.migrates:
        facts["capabilities", app.name, MIGRATES] = "yes"
    path, origins = app.socket
    facts |= {("capabilities", app.name, f"takes WebSockets at {path}"): "yes" for path in (path,) if path}
    facts |= {("capabilities", app.name, f"takes WebSockets from pages of {origin}"): "yes" for origin in origins}
    facts["limits", app.name, "timeout"] = written_ms(app.timeout_ms)
    facts["limits", app.name, "memory_max"] = exact_size(app.memory_max_bytes)
    facts["limits", app.name, "instances"] = app.instances
    facts["limits", app.name, "kind"] = app.kind
    if app.schedule:
        facts["limits", app.name, "schedule"] = app.schedule
    facts |= {("configuration", app.name, key): value for key, value in app.config}
    for name in app.secrets:
        version = versions.get(name)
        facts["secrets", app.name, name] = f"version {version}" if version is not None else "no value set"
    return facts


def _plan_facts(plan: Plan, replicas: int) -> dict[_Key, str]:
    limits: Analysis = plan.analysis
    shown = {
        "stages": ", ".join(stage_words(stage.nodes, stage.pause_ms, stage.approve) for stage in plan.stages),
        "min_healthy_time": ", ".join(written_ms(stage.min_healthy_ms) for stage in plan.stages),
        "healthy_deadline": written_ms(plan.healthy_deadline_ms),
        "progress_deadline": written_ms(plan.progress_deadline_ms),
        "candidate_ttl": written_ms(plan.candidate_ttl_ms),
        "max_parallel": str(plan.max_parallel),
        "auto_promote": "yes" if plan.auto_promote else "no",
        "auto_revert": "yes" if plan.auto_revert else "no",
        "replicas": str(replicas) if replicas else "everywhere",
        "max_error_rate": f"{limits.max_error_ppm / 10_000:g} %" if limits.max_error_ppm else "not judged",
        "max_latency_p99": written_ms(limits.max_latency_p99_ms) if limits.max_latency_p99_ms else "not judged",
        "failure_limit": str(limits.failure_limit),
        "min_requests": str(limits.min_requests),
        "irreversible": "yes" if plan.irreversible else "no",
        "without traffic": "readiness is enough" if plan.probe_only else "pauses for a person",
    }
    return {("rollout", "", name): value for name, value in shown.items()}


def _demand_facts(demands: Demands) -> dict[_Key, str]:
    """What the project file asks for beyond the mesh's policy: a change that asks for less shows it."""
    facts: dict[_Key, str] = {}
    if demands.approvals:
        facts["policy", "", "approvals"] = (
            f"{demands.approvals} by {' or '.join(demands.approver_roles or ('anyone',))}"
            f"{', by passkey' if demands.by_passkey else ''}"
        )
    for demand in demands.evidence:
        hours, rest_ms = divmod(demand.max_age_ms, 3_600_000)
        age = written_ms(demand.max_age_ms) if rest_ms else f"{hours} hours"
        words = f"at most {age} old{', run by a node' if demand.by_node else ''}"
        facts["policy", "", f"{demand.kind} evidence"] = words
    for number, window in enumerate(demands.windows, 1):
        every = f", every {written_ms(window.every_ms)}" if window.every_ms else ", once"
        starts = f"from {window.start_ms} ms since 1970"
        why = f": {window.reason!r}" if window.reason else ""
        said = f"{window.effect} {starts} for {written_ms(window.length_ms)}{every}{why}"
        facts["policy", "", f"window {number}"] = said
    return facts


def stage_words(nodes: str, pause_ms: int, approve: bool) -> str:
    """One stage for people."""
    if approve:
        return f"{nodes}, then an approver"
    return f"{nodes}, then {written_ms(pause_ms)} of pause" if pause_ms else nodes


def route_words(route: Route) -> str:
    """A route as it is written in the project file."""
    return f"{route.host}{route.path}" if route.path != "/" or not route.host else route.host
