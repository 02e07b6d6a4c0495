"""The API's own types: what JSON bodies look like. Never the wire types, so that either can change alone.

Digests and keys are lower-case hex, times are wall milliseconds, binary values are base64 (msgspec's own encoding of
bytes).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Hex64 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
INT64_MAX = 2**63 - 1
Int64 = Annotated[int, msgspec.Meta(ge=-INT64_MAX - 1, le=INT64_MAX)]
"""A whole number of a body: what the document calls int64, and no more."""

_BASE64 = {"pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}
# Lengths are multiples of three, so that as many characters of base64 always are as many bytes.
Blob = Annotated[bytes, msgspec.Meta(max_length=3 * 175_000, extra_json_schema=_BASE64)]
Papers = Annotated[bytes, msgspec.Meta(max_length=3 * 15_000, extra_json_schema=_BASE64)]
Paper = Annotated[bytes, msgspec.Meta(max_length=3 * 5_462, extra_json_schema=_BASE64)]
"""What fits a record, whose own limit of 16 KiB is a byte or two lower."""

PaperKind = Literal["grant", "revocation", "change", "approval", "evidence"]


class NodeView(msgspec.Struct, frozen=True):
    """A node as it describes itself: who it is, what it sees, what worries it; `wall_ms` is its clock's reading.

    `boot_answers_needed`: other voters that must answer before this one, which rebooted, votes again; 0: none. `concerns`
    are those of its warnings that only it can judge, each as "what; what to do". `jobs` are those whose schedules it runs,
    `apps` what those with routes answered lately. `engine` is what serves in its workers ("python", "native", or
    "native+python" where they differ; empty before they were asked), `engine_reason` why not the native one, or what it
    leaves to Python. `left_to_python` are the apps that Python serves where the native engine serves others.
    """

    node: str
    name: str
    version: str
    mesh: Hex64
    mesh_name: str
    standing: str
    voter: bool
    speaking: bool
    stalled: str
    slot: int
    peers: tuple[str, ...]
    mesh_addresses: tuple[str, ...]
    api: str
    api_pin: str
    ingress: tuple[str, ...]
    workers: int
    records: int
    wall_ms: int
    expires_ms: int
    quarantined: str
    refused_by: dict[str, str]
    doubles: tuple[str, ...]
    running: tuple[str, ...]
    disk_free_bytes: int
    wasmtime: str
    warnings: tuple[str, ...]
    muted: str = ""
    rebuilt: str = ""
    alone: bool = False
    boot_answers_needed: int = 0
    concerns: tuple[str, ...] = ()
    jobs: tuple[LaneJobsView, ...] = ()
    apps: tuple[AppAnswersView, ...] = ()
    engine: str = ""
    engine_reason: str = ""
    left_to_python: tuple[AppEngineView, ...] = ()


class MemberView(msgspec.Struct, frozen=True):
    """One member as this node sees it. `belief` is alive, suspect, down or self; `connected` is this node's own link.

    `drained_until_ms` is when some node undrains it, if it is drained for a time (wall, as that node says).
    `since_ms` is when the belief last changed (wall, 0 for not since this node started); `left` says that the member
    stopped and said so.
    `name`, `version`, `api` (where its HTTPS API is, empty for nowhere) and `api_pin` (the SHA-256 of its public key)
    are what the member says of itself. `last_seq` and `last_serial` are the cutoffs that a
    revocation carries to keep what the member wrote and signed so far.
    """

    node: str
    name: str
    version: str
    standing: str
    belief: str
    connected: bool
    confirmed: bool
    voter: bool
    draining: bool
    roles: tuple[str, ...]
    labels: dict[str, str]
    addresses: tuple[str, ...]
    rtt_ms: float | None
    expires_ms: int
    last_seq: int
    last_serial: int
    since_ms: int = 0
    left: bool = False
    drained_until_ms: int = 0
    api: str = ""
    api_pin: str = ""


class NameView(msgspec.Struct, frozen=True):
    """A name that a route claimed: where it should lead, and its certificate as the mesh got it.

    `nodes` are those that are up and serve it, `addresses` where visitors reach them (IP addresses and DNS names).
    `certificate_until_ms` is 0 where the mesh has none or this node takes no part; `problem` says why it has no newer one.
    """

    name: str
    project: str
    environment: str
    nodes: tuple[str, ...]
    addresses: tuple[str, ...]
    certificate_until_ms: int
    certificate_by: str
    problem: str


class AuthorityView(msgspec.Struct, frozen=True):
    """The authority behind one member's API: a CA certificate (PEM) that is good for that node's names alone.

    `api_pin` is the hex SHA-256 of the public key that the API is served with.
    """

    node: str
    name: str
    api: str
    api_pin: str
    certificate: str


class AdmissionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A person's papers: an encoded admission.JoinPapers, its invite and the join request made with it."""

    papers: Papers


class AdmissionView(msgspec.Struct, frozen=True):
    """What the person is called here; `genesis` is the mesh's document, whose digest the invite names."""

    name: str
    genesis: bytes


class SecretBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed paper: an encoded SealedSecret or SecretRemoval of protocols/changes/secrets.py."""

    paper: Paper


class SecretView(msgspec.Struct, frozen=True):
    """One version of a secret; never its value.

    `sealed_to` are the nodes that can open it, `lacking` those that may run its apps and cannot yet, `exposed` those that
    can and may not any more: set it anew. `problem` says why no new change may name it.
    """

    id: Hex64
    project: str
    environment: str
    name: str
    version: int
    author: str
    author_name: str
    created_ms: int
    sealed_to: tuple[str, ...]
    lacking: tuple[str, ...]
    exposed: tuple[str, ...]
    in_use: bool
    problem: str


class VoterView(msgspec.Struct, frozen=True):
    """A store that votes, or could: `ready` is its node's signed readiness (encoded), empty if this node has none."""

    node: str
    store: str
    voter: bool
    ready: bytes


class EnvironmentView(msgspec.Struct, frozen=True):
    """A named target and the nodes it selects now."""

    name: str
    selector: dict[str, str]
    protected: bool
    nodes: tuple[str, ...]
    approvals: int


class VerdictView(msgspec.Struct, frozen=True):
    """One node's word on the open stage; `engine` is what served the candidate there, as `Counts` says it."""

    node: str
    verdict: str
    healthy_ms: int
    requests: int
    errors: int
    reason: str
    engine: str = "python"


class RolloutView(msgspec.Struct, frozen=True):
    """A rollout under way: stages are counts of nodes, `cohort` serves the candidate now."""

    id: Hex64
    change: Hex64
    release: Hex64
    stage: int
    stages: tuple[int, ...]
    cohort: tuple[str, ...]
    paused: str
    assessment: str
    reason: str
    verdicts: tuple[VerdictView, ...]


class DeployedView(msgspec.Struct, frozen=True):
    """A release that was started in an environment."""

    change: Hex64
    release: Hex64
    configuration: Hex64
    author: Hex64
    approvers: tuple[str, ...]
    break_glass: str
    applied: int


class JobRunView(msgspec.Struct, frozen=True):
    """How one run of a scheduled app ended, and when (wall ms) it was due."""

    due_ms: int
    outcome: str
    detail: str
    duration_ms: int


class JobView(msgspec.Struct, frozen=True):
    """A scheduled app on the node that runs it: when it is due next, and how its last run here ended ("" for none).

    `runs` are the newest, the last first. `counts` (by outcome) and `missed`, the minutes in which it was due and no run
    began, go back to when it first ran on this node; `failing` of the newest runs failed or were lost in a row.
    """

    app: str
    schedule: str
    next_ms: int
    last_ms: int = 0
    last_outcome: str = ""
    last_detail: str = ""
    last_duration_ms: int = 0
    runs: tuple[JobRunView, ...] = ()
    counts: dict[str, int] = {}
    failing: int = 0
    missed: int = 0
    missed_last_ms: int = 0


class AppAnswersView(msgspec.Struct, frozen=True):
    """What one app answered on a node in the last minutes: all its requests, those of 5xx, ends that were not orderly.

    `engine` is what its plain requests are served by there.
    """

    project: str
    environment: str
    app: str
    requests: int
    failed: int
    ends: dict[str, int]
    engine: str = ""


class AppEngineView(msgspec.Struct, frozen=True):
    """An app that Python serves on a node whose native engine serves others, and why."""

    project: str
    environment: str
    app: str
    reason: str


class LaneJobsView(msgspec.Struct, frozen=True):
    """The scheduled apps that a node runs of one project in one environment."""

    project: str
    environment: str
    jobs: tuple[JobView, ...]


class LaneView(msgspec.Struct, frozen=True):
    """One project in one environment, with what this node runs of it.

    `schedule_node` runs its schedules; on that node `jobs` are its scheduled apps.
    """

    project: str
    environment: str
    sequence: int
    frozen: str
    base: DeployedView | None
    rollout: RolloutView | None
    retained: tuple[DeployedView, ...]
    data_node: str
    schedule_node: str
    routes: tuple[str, ...]
    here: str
    last_abort: str
    jobs: tuple[JobView, ...] = ()


class MeshView(msgspec.Struct, frozen=True):
    """What the chain decided, summed up; `head` is the digest of the entry at `slot`, the newest held here."""

    mesh: Hex64
    name: str
    slot: int
    head: str
    sequence: int
    unsafe_resets: int
    admins: tuple[str, ...]
    voters: tuple[str, ...]
    projects: tuple[str, ...]
    environments: tuple[EnvironmentView, ...]
    recovery: tuple[str, ...] = ()
    """Keys that may sign the next set of admins, and nothing else."""


class Numbers(msgspec.Struct, frozen=True):
    """What one node measured, as it stood in the material of a decision."""

    node: str
    verdict: str
    requests: int
    errors: int
    healthy_ms: int
    smoke_runs: int
    reason: str


class DecisionView(msgspec.Struct, frozen=True):
    """One decision. `signers` are keys in hex; none means that health or an admission gave the authority.

    `names` are theirs, as granted: no part of the chain, so whoever answers adds them.
    """

    slot: int
    at_ms: int
    action: str
    project: str
    environment: str
    signers: tuple[str, ...]
    voters: tuple[str, ...]
    subject: str
    reason: str
    numbers: tuple[Numbers, ...]
    names: tuple[str, ...] = ()


class AuditView(msgspec.Struct, frozen=True):
    """One write. `caller` reached the API, `signers` signed what it handed over; `names` are theirs, as granted.

    `count` refused calls of one caller, the first at `first_ms`, are told together; both are 1 and 0 otherwise.
    """

    node: str
    number: int
    at_ms: int
    caller: str
    signers: tuple[str, ...]
    lineage: tuple[str, ...]
    names: tuple[str, ...]
    verb: str
    target: str
    digest: str
    result: str
    request: str
    count: int = 1
    first_ms: int = 0


class CommandBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed command (encoded SignedCommand) and the material behind its exhibits."""

    command: Blob
    material: Annotated[tuple[Blob, ...], msgspec.Meta(max_length=256)] = ()


class OutcomeView(msgspec.Struct, frozen=True):
    """What became of a command: decided (at `slot`), refused, superseded or unknown."""

    outcome: str
    slot: int
    rule: str
    detail: str


class RecordBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signed paper for every node: `kind` grant, revocation, change, approval or evidence; `scope` as in the key table."""

    kind: PaperKind
    scope: Annotated[str, msgspec.Meta(max_length=128)]
    body: Paper


class ApprovalBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An approval as its approver signed it, a DSSE envelope; its statement names the change."""

    envelope: Paper


class RecordView(msgspec.Struct, frozen=True):
    """Where a paper was filed."""

    key: str


class StartView(msgspec.Struct, frozen=True):
    """A start that waits, started, or was refused; `rule` and `detail` say what it waits for, or why not."""

    change: Hex64
    outcome: str
    slot: int
    rule: str
    detail: str


class ChangeView(msgspec.Struct, frozen=True):
    """A proposed change and the papers this node holds for it.

    `state`: base (it runs), candidate (it is coming), retained (it ran, and can again); else how it ended, rolled-back,
    aborted or superseded, with `ended` why and when; proposed if it was never started. `failure` is why it could not be
    prepared here; `tries_again` says that the node goes on trying.
    """

    id: Hex64
    project: str
    environment: str
    request: str
    release: Hex64
    configuration: Hex64
    base: str
    author: Hex64
    created_ms: int
    approvals: int
    prepared: tuple[str, ...]
    failure: str
    state: str
    start: StartView | None
    tries_again: bool = False
    ended: str = ""
    ended_ms: int = 0


class LogLines(msgspec.Struct, frozen=True):
    """Log lines, oldest first."""

    lines: tuple[str, ...]


class RightsView(msgspec.Struct, frozen=True):
    """What one further grant of a key allows, by itself; `grants` are the digests of its chain's links."""

    roles: tuple[str, ...]
    verbs: tuple[str, ...]
    projects: tuple[str, ...]
    environments: tuple[str, ...]
    expires_ms: int
    grants: tuple[str, ...]


class PrincipalView(msgspec.Struct, frozen=True):
    """A key and what it may do now; `problem` says why nothing, and name and kind are then those it had.

    `lineage` are all keys that count as its own doing.

    `beside` are its further grants: each stands alone, as does the one shown here.
    """

    key: str
    name: str
    kind: str
    roles: tuple[str, ...]
    verbs: tuple[str, ...]
    projects: tuple[str, ...]
    environments: tuple[str, ...]
    expires_ms: int
    lineage: tuple[str, ...]
    grants: tuple[str, ...]
    problem: str
    chains: tuple[bytes, ...]
    beside: tuple[RightsView, ...] = ()


class ApprovalView(msgspec.Struct, frozen=True):
    """One approval as signed (`envelope`, DSSE); `problem` says why it does not count, empty if it does."""

    key: str
    name: str
    approved_ms: int
    expires_ms: int
    comment: str
    problem: str
    envelope: bytes
    by_passkey: bool = False


class EvidenceView(msgspec.Struct, frozen=True):
    """One piece of evidence as signed; `by` is node, principal (self-attested if the author's) or stranger."""

    key: str
    name: str
    kind: str
    passed: bool
    by: str
    self_attested: bool
    finished_ms: int
    components: tuple[str, ...]
    configurations: tuple[str, ...]
    envelope: bytes


class MissingView(msgspec.Struct, frozen=True):
    """A rule the change does not meet yet, and who can help."""

    rule: str
    detail: str


class PapersView(msgspec.Struct, frozen=True):
    """Everything held for a change; `signed` and `release` are encoded, `release` empty if it is not here yet."""

    change: str
    signed: bytes
    release: bytes
    author: PrincipalView
    required: int
    approvals: tuple[ApprovalView, ...]
    evidence: tuple[EvidenceView, ...]
    missing: tuple[MissingView, ...]
