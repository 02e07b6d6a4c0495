"""Releases and changes: what is asked for, as content-addressed values.

A release is an immutable manifest of component digests and the project file; a change proposes one release for one
environment and fixes everything a person approves: request, effective configuration, secret versions, base, plan and
policy. Their ids are the digests of their bytes, so whoever alters anything holds another change, and no approval of
the first one covers it. Not here: who may approve (policy.py), and how a rollout moves (rollout.py).
"""

from __future__ import annotations

import msgspec

from protocols.changes.demands import Demands, demands_problem
from protocols.envelope import DIGEST_BYTES, PUBLIC_KEY_BYTES

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

SOURCE_MAX_BYTES = 2 << 20
"""More source than this does not fit a control message comfortably; such an app is built as a release is."""
SOURCE_KEY = "freehold:dev-source"
"""The configuration key under which an interpreter finds the source it runs; no app may name one with a colon."""
REPLICAS_MAX = 32
MIN_REQUESTS_MAX = 1_000_000
ENVIRONMENTS_NAMED_MAX = 16
EVERYWHERE = "*"
"""In a release's demands: every environment that has none of its own there."""
HOST_MAX = 253
PATH_MAX = 255

_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_HOST_LETTERS = _NAME_LETTERS | {"."}


class Component(msgspec.Struct, frozen=True):
    """One app of a release: its component's digest, size and the toolchain that built it.

    `source` is the digest of an app's source that the component, an interpreter, is told to run; what was built has
    none, and its manifest does not name the field. Only `freehold dev` makes such a release.
    """

    app: str
    digest: bytes
    size_bytes: int
    toolchain: str = ""
    source: bytes | msgspec.UnsetType = msgspec.UNSET


class Release(msgspec.Struct, frozen=True, tag="release"):
    """An immutable manifest; its id is the digest of its bytes.

    `project_file` is the whole `freehold.toml`, overlays included. `demands` are what that file asks for beyond the
    mesh's policy, by environment (`EVERYWHERE`: in all it does not name); they can only tighten it. `author` is the 32-byte
    key of the principal that built it.
    """

    project: str
    components: tuple[Component, ...]
    project_file: bytes
    source_commit: str
    author: bytes
    demands: tuple[tuple[str, Demands], ...] = ()

    def demands_for(self, environment: str) -> Demands:
        """Return what this release's own project file demands in `environment`; nothing when it says nothing."""
        named = dict(self.demands)
        return named.get(environment, named.get(EVERYWHERE, Demands()))

    @property
    def from_source(self) -> bool:
        """Whether an app runs from its source: such a release is of a developer's machine and nowhere else."""
        return any(component.source is not msgspec.UNSET for component in self.components)


class SecretVersion(msgspec.Struct, frozen=True, array_like=True):
    """A secret by name and version; the value is nowhere near a change.

    `version` counts for people; `digest` is the id of the signed, sealed version, which is what approval covers.
    """

    name: str
    version: int
    digest: bytes


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


def route_of(text: str) -> Route:
    """Read a route as people write it: "host/path", "host" or "/path"."""
    host, slash, path = text.partition("/")
    return Route(host.lower(), f"/{path.rstrip('/')}" if slash and path else "/")


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


def release_problem(release: Release) -> str | None:
    """Return which bound a manifest breaks, or None."""
    if not valid_name(release.project) or len(release.author) != PUBLIC_KEY_BYTES:
        return "the project's name or the author's key is malformed"
    if not 0 < len(release.components) <= COMPONENTS_MAX:
        return f"a release has 1 to {COMPONENTS_MAX} components"
    if any(len(component.digest) != DIGEST_BYTES or component.size_bytes < 0 for component in release.components):
        return "a component's digest or size is malformed"
    if any(
        isinstance(component.source, bytes) and len(component.source) != DIGEST_BYTES
        for component in release.components
    ):
        return "a source's digest is malformed"
    if len(release.demands) > ENVIRONMENTS_NAMED_MAX:
        return f"a release makes demands in at most {ENVIRONMENTS_NAMED_MAX} environments"
    if len(dict(release.demands)) != len(release.demands):
        return "a release makes demands twice in one environment"
    return next((problem for _, demands in release.demands if (problem := demands_problem(demands))), None)


def change_problem(change: Change) -> str | None:
    """Return which bound a change breaks, or None."""
    if not valid_name(change.project) or not valid_name(change.environment):
        return "a name is not 1 to 63 of a-z, 0-9 and dash"
    if any(len(digest) != DIGEST_BYTES for digest in (change.release, change.configuration, change.policy)):
        return "a digest is not 32 bytes"
    if len(change.base) not in (0, DIGEST_BYTES) or len(change.author) != PUBLIC_KEY_BYTES:
        return "the base or the author has the wrong length"
    if len(change.request) > REQUEST_MAX_CHARACTERS:
        return f"the request has over {REQUEST_MAX_CHARACTERS} characters"
    if len(change.secrets) > SECRETS_MAX or len(change.routes) > ROUTES_MAX or len(change.schedules) > SCHEDULES_MAX:
        return "too many secrets, routes or schedules"
    if len({secret.name for secret in change.secrets}) != len(change.secrets) or any(
        len(secret.digest) != DIGEST_BYTES for secret in change.secrets
    ):
        return "a secret is named twice, or without its version's digest"
    if not 0 <= change.replicas <= REPLICAS_MAX or (change.data and change.replicas > 1):
        return f"replicas are 0 (everywhere) to {REPLICAS_MAX}; an app with data runs on one node"
    return plan_problem(change.plan)


def plan_problem(plan: Plan) -> str | None:
    """Return which bound a plan breaks, or None."""
    if not 0 < len(plan.stages) <= STAGES_MAX:
        return f"a plan has 1 to {STAGES_MAX} stages"
    durations = (
        *(ms for stage in plan.stages for ms in (stage.min_healthy_ms, stage.pause_ms)),
        plan.healthy_deadline_ms,
        plan.progress_deadline_ms,
        plan.candidate_ttl_ms,
    )
    if any(not 0 <= ms <= DURATION_MAX_MS for ms in durations):
        return "a duration is negative or over 30 days"
    longest_ms = max(stage.min_healthy_ms for stage in plan.stages)
    if not longest_ms < plan.healthy_deadline_ms <= plan.progress_deadline_ms:
        return "min_healthy_time must be below healthy_deadline, and that at most progress_deadline"
    limits = plan.analysis
    if plan.max_parallel < 1 or min(limits.max_latency_p99_ms, limits.failure_limit) < 0:
        return "max_parallel is at least 1 and limits are not negative"
    if not 0 <= limits.max_error_ppm <= 1_000_000 or not 0 < limits.min_requests <= MIN_REQUESTS_MAX:
        return "an error rate is 0 to 100 %, and min_requests at least 1"
    return None


def route_problem(route: Route) -> str | None:
    """Return why a route cannot be claimed, or None."""
    if len(route.host) > HOST_MAX or set(route.host) - _HOST_LETTERS:
        return f"{route.host[:HOST_MAX]!r} is not a host name in lower case"
    if not route.path.startswith("/") or len(route.path) > PATH_MAX or not route.path.isprintable():
        return "a path starts with / and is printable"
    if route.path.startswith("/.freehold"):
        return "/.freehold/ is reserved"
    if len(route.path) > 1 and (route.path.endswith("/") or "//" in route.path):
        return "a path has no empty segment"
    return None
