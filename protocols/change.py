"""Releases and changes: what is asked for, as content-addressed values.

A release is an immutable manifest of component digests and the project file; a change proposes one release for one
environment and fixes everything a person approves: request, effective configuration, secret versions, base, plan and
policy. Their ids are the digests of their bytes, so whoever alters anything holds another change, and no approval of
the first one covers it. Not here: who may approve (policy.py), and how a rollout moves (rollout.py).
"""

from __future__ import annotations

import msgspec

from protocols.demands import Demands

CHANGE_DOMAIN = "freehold/change/1"
RELEASE_MAX_BYTES = 64 * 1024
"""A manifest with the whole project file: the longest file anybody reviews is far shorter."""
CHANGE_MAX_BYTES = 16 * 1024
"""A record's body limit: a change is replicated as an immutable record."""
NAME_MAX = 63
"""A DNS label: project and environment names become host names."""
COMPONENTS_MAX = 32
SECRETS_MAX = 64
STAGES_MAX = 16
ROUTES_MAX = 32
SCHEDULES_MAX = 16
REQUEST_MAX_CHARACTERS = 4000
DURATION_MAX_MS = 30 * 86_400_000
"""No stage, deadline or pause lasts over 30 days: a longer one is a mistake in units."""

_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


class Component(msgspec.Struct, frozen=True):
    """One app of a release: its component's digest, size and the toolchain that built it."""

    app: str
    digest: bytes
    size_bytes: int
    toolchain: str = ""


class Release(msgspec.Struct, frozen=True, tag="release"):
    """An immutable manifest; its id is the digest of its bytes.

    `project_file` is the whole `freehold.toml`, overlays included. `demands` are what that file asks for beyond the
    mesh's policy, by environment; they can only tighten it. `author` is the 32-byte key of the principal that built it.
    """

    project: str
    components: tuple[Component, ...]
    project_file: bytes
    source_commit: str
    author: bytes
    demands: tuple[tuple[str, Demands], ...] = ()

    def demands_for(self, environment: str) -> Demands:
        """Return what this release's own project file demands in `environment`; nothing when it says nothing."""
        return next((demands for name, demands in self.demands if name == environment), Demands())


class SecretVersion(msgspec.Struct, frozen=True, array_like=True):
    """A secret by name and version; the value is nowhere near a change."""

    name: str
    version: int


class Stage(msgspec.Struct, frozen=True, array_like=True):
    """One share of the placed nodes: `nodes` is a count ("1"), a percentage ("25%") or a label ("zone=a").

    `pause_ms` holds the rollout after this stage passed; `approve` waits for an approver's promote instead.
    """

    nodes: str
    min_healthy_ms: int = 10_000
    pause_ms: int = 0
    approve: bool = False


class Analysis(msgspec.Struct, frozen=True, array_like=True):
    """Limits on what the candidate may do: errors in parts per million, p99 in ms (0: no limit), failed nodes.

    `failure_limit` is how many cohort nodes may fail in stages after the first. `min_requests` is how many requests
    each side needs before rates are compared.
    """

    max_error_ppm: int = 0
    max_latency_p99_ms: int = 0
    failure_limit: int = 0
    min_requests: int = 20


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """How a rollout moves; durations in ms. `irreversible` forbids every return to the base once it served.

    `probe_only` accepts readiness alone where there is no traffic and no smoke check; without it such a stage pauses.
    """

    stages: tuple[Stage, ...]
    healthy_deadline_ms: int = 300_000
    progress_deadline_ms: int = 600_000
    max_parallel: int = 1
    auto_promote: bool = True
    auto_revert: bool = True
    analysis: Analysis = Analysis()
    candidate_ttl_ms: int = 1_800_000
    irreversible: bool = False
    probe_only: bool = False


class Route(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A host ("" for any) and a path prefix ("/" for all)."""

    host: str
    path: str


class Change(msgspec.Struct, frozen=True, tag="change"):
    """A release proposed for an environment; its id is the digest of its bytes.

    `base` is the release it was computed against (empty for a first deploy), `configuration` the digest of the
    effective configuration, `policy` the digest of the policy in force there (`policy.policy_digest`). `replicas` 0
    means everywhere the environment selects; `schedules` names apps that run on one node; `data` says whether it keeps
    data on one node. `author` signed these bytes (CHANGE_DOMAIN) at `created_ms`.
    """

    project: str
    environment: str
    request: str
    release: bytes
    base: bytes
    configuration: bytes
    policy: bytes
    author: bytes
    created_ms: int
    plan: Plan
    secrets: tuple[SecretVersion, ...] = ()
    routes: tuple[Route, ...] = ()
    replicas: int = 0
    schedules: tuple[str, ...] = ()
    data: bool = False


def valid_name(name: str) -> bool:
    """Return whether `name` is 1 to 63 of a-z, 0-9 and dash, with no dash at either end."""
    return 0 < len(name) <= NAME_MAX and not (set(name) - _NAME_LETTERS) and name[0] != "-" and name[-1] != "-"
