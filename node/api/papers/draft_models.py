"""Drafts as JSON: what a client says in plain words, and what the node makes of it to be signed.

Routes are "host/path", "host" or "/path"; spans are milliseconds. Not here: making them (drafts.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from protocols.api_models import Hex64, MissingView
from protocols.changes.change import COMPONENTS_MAX, REQUEST_MAX_CHARACTERS, ROUTES_MAX, STAGES_MAX
from protocols.changes.differences import Difference
from protocols.changes.networks import NETWORKS_MAX
from protocols.state.commands import REASON_MAX

Name = Annotated[str, msgspec.Meta(pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", max_length=63)]
OptionalHex64 = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]
Text = Annotated[str, msgspec.Meta(max_length=4_096)]
Host = Annotated[str, msgspec.Meta(max_length=253)]
RouteText = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Signature = Annotated[
    str, msgspec.Meta(pattern="^[A-Za-z0-9+/]{86}==$", description="64 bytes of Ed25519 over to_sign, in base64")
]
PROJECT_FILE_MAX_CHARACTERS = 48 * 1024


class DraftApp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One app: the digest of its uploaded component, how it is entered, its limits and grants; secrets by name."""

    name: Name
    component: Hex64
    kind: Literal["http", "command", "module"] = "http"
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=3_600_000)] = 30_000
    memory_max_bytes: Annotated[int, msgspec.Meta(ge=1, le=4 << 30)] = 128 << 20
    instances: Literal["fresh", "reuse"] = "fresh"
    routes: Annotated[tuple[RouteText, ...], msgspec.Meta(max_length=ROUTES_MAX)] = ()
    schedule: Annotated[str, msgspec.Meta(max_length=100)] = ""
    allow_hosts: Annotated[tuple[Host, ...], msgspec.Meta(max_length=64)] = ()
    private_networks: Annotated[tuple[Host, ...], msgspec.Meta(max_length=NETWORKS_MAX)] = ()
    keyvalue: Annotated[tuple[Host, ...], msgspec.Meta(max_length=32)] = ()
    sql: Annotated[tuple[Host, ...], msgspec.Meta(max_length=32)] = ()
    blobs: Annotated[tuple[Host, ...], msgspec.Meta(max_length=32)] = ()
    migrate: bool = False
    publish: Annotated[tuple[Host, ...], msgspec.Meta(max_length=32)] = ()
    subscribe: Annotated[tuple[Host, ...], msgspec.Meta(max_length=32)] = ()
    providers: dict[Name, Name] = {}
    websocket: Annotated[str, msgspec.Meta(max_length=200)] = ""
    websocket_origins: Annotated[tuple[Host, ...], msgspec.Meta(max_length=16)] = ()
    config: dict[str, Text] = {}
    secrets: Annotated[tuple[Host, ...], msgspec.Meta(max_length=64)] = ()
    toolchain: Annotated[str, msgspec.Meta(max_length=200)] = ""


class DraftSmoke(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request that must be answered with this status before a stage passes."""

    app: Name
    path: Annotated[str, msgspec.Meta(pattern="^/", max_length=1_000)] = "/"
    status: Annotated[int, msgspec.Meta(ge=100, le=599)] = 200
    contains: Annotated[str, msgspec.Meta(max_length=1_000)] = ""


class DraftStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One share of the nodes: "1", "25%", "zone=a". `approve` waits for an approver's promote afterwards."""

    nodes: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] = "100%"
    min_healthy_ms: Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400_000)] = 10_000
    pause_ms: Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400_000)] = 0
    approve: bool = False


class DraftPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the rollout moves. Limits of 0 are not judged."""

    stages: Annotated[tuple[DraftStage, ...], msgspec.Meta(min_length=1, max_length=STAGES_MAX)] = (DraftStage(),)
    healthy_deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400_000)] = 300_000
    progress_deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400_000)] = 600_000
    auto_promote: bool = True
    auto_revert: bool = True
    max_error_ppm: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    max_latency_p99_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)] = 0
    failure_limit: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0


class ChangeDraft(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="change"
):
    """A change. Either `apps` (a new release of uploaded components) or `release` (one that the mesh holds).

    `configuration` is the digest of the effective configuration of a held release, if not the one it was last proposed
    with here. `author` is the key that will sign, by default the caller's.
    """

    project: Name
    environment: Name
    request: Annotated[str, msgspec.Meta(min_length=1, max_length=REQUEST_MAX_CHARACTERS)]
    author: OptionalHex64 = ""
    release: OptionalHex64 = ""
    configuration: OptionalHex64 = ""
    apps: Annotated[tuple[DraftApp, ...], msgspec.Meta(max_length=COMPONENTS_MAX)] = ()
    smoke: Annotated[tuple[DraftSmoke, ...], msgspec.Meta(max_length=64)] = ()
    project_file: Annotated[str, msgspec.Meta(max_length=PROJECT_FILE_MAX_CHARACTERS)] = ""
    source_commit: Annotated[str, msgspec.Meta(max_length=100)] = ""
    plan: DraftPlan | None = None
    replicas: Annotated[int, msgspec.Meta(ge=0, le=32)] = 0


class RoutesDraft(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="routes"):
    """The command that claims routes for a project, beside those it holds; a deployer signs it."""

    project: Name
    environment: Name
    routes: Annotated[tuple[RouteText, ...], msgspec.Meta(min_length=1, max_length=ROUTES_MAX)]


class StartDraft(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="start"):
    """The command that starts a proposed change on the nodes that are up; a deployer signs it."""

    change: Hex64
    supersede: bool = False


class RollbackDraft(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="rollback"):
    """The command that returns to the retained change, at once and whole; a deployer signs it."""

    project: Name
    environment: Name
    change: Hex64
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=REASON_MAX)]


Draft = ChangeDraft | RoutesDraft | StartDraft | RollbackDraft


class DraftView(msgspec.Struct, frozen=True):
    """What there is to sign. `digest` is SHA-256 of `payload`, a change's id; `to_sign` are the very bytes to sign.

    The review is against what runs now; a command has none. The draft is forgotten at `expires_ms`.
    """

    kind: str
    digest: Hex64
    payload: bytes
    to_sign: bytes
    project: str
    environment: str
    expires_ms: int
    author: str = ""
    release: str = ""
    configuration: str = ""
    base: str = ""
    differences: tuple[Difference, ...] = ()
    nodes: tuple[str, ...] = ()
    missing: tuple[MissingView, ...] = ()


class SignedDraft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A draft by its digest with a detached signature; a token needs none, the node then signs for it."""

    digest: Hex64
    key: OptionalHex64 = ""
    signature: Annotated[str, msgspec.Meta(pattern="^([A-Za-z0-9+/]{86}==)?$")] = ""


class SignatureBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A detached signature over a draft's `to_sign`."""

    key: Hex64
    signature: Signature


class ProposedView(msgspec.Struct, frozen=True):
    """A filed change. `through` is the node that signed for a token, empty where the author signed."""

    change: Hex64
    through: str
    missing: tuple[MissingView, ...]
    next_step: str
