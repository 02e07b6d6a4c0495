"""The shape of the replicated mesh state: plain values that every voter hashes alike.

Tuples in a fixed order and integers only, encoded as arrays, so that equal states have equal bytes. Caps stand beside
each part: the state is bounded whatever is proposed. Not here: how it changes (apply.py, lanes.py).
"""

from __future__ import annotations

import msgspec

from protocols.chain.decision import Voter
from protocols.changes.change import Plan, Route, SecretVersion
from protocols.changes.demands import Policy
from protocols.machine import Digest, PeerId

NODES_MAX = 32
"""A full mesh of connections; 1000 nodes need a partial overlay first and are refused until then."""
PROJECTS_MAX = 256
ENVIRONMENTS_MAX = 16
LANES_MAX = 512
"""A usual lane encodes to under 2 KiB; STATE_MAX_BYTES (apply.py) bounds what unusual ones may add up to."""
ROUTES_TOTAL_MAX = 2048
LABELS_MAX = 16
OWNERS_MAX = 16
RETAINED_MAX = 5
"""The last five releases, beside the base: rollback targets, kept compiled and never collected."""
RECENT_IDS_MAX = 32
"""Retries arrive within seconds; 32 later commands on one lane are minutes away."""
WITHDRAWN_MAX = 64
"""Per lane; a withdrawal is forgotten once the longest approval would have expired (demands.APPROVAL_MAX_MS)."""


class RecentCommand(msgspec.Struct, frozen=True, array_like=True):
    """A decided command's idempotency id and the count of commands when it was applied."""

    id: bytes
    applied: int


class ConfirmedNode(msgspec.Struct, frozen=True, array_like=True):
    """A node that may vote, run workloads and receive secrets; `applied` is when it was confirmed.

    `invite` and `invite_use` name the use of an invite that let it in, so that no other node takes the same one.
    """

    node: PeerId
    labels: tuple[tuple[str, str], ...]
    roles: tuple[str, ...]
    applied: int
    draining: bool = False
    invite: bytes = b""
    invite_use: int = -1


class Project(msgspec.Struct, frozen=True, array_like=True):
    """A project and who answers for it."""

    name: str
    owners: tuple[str, ...]


class Bounds(msgspec.Struct, frozen=True):
    """What else is said of an environment: `protected`, and the private networks that apps may reach from there."""

    protected: bool
    networks: tuple[str, ...]


class Environment(msgspec.Struct, frozen=True, array_like=True):
    """A named target: nodes that carry every label of `selector`; `policy` None means the mesh's.

    `guard` is whether it is protected, and from rules 4 on `Bounds` where it allows private networks: one that allows none
    is written as before, so that states of older builds keep their digests.
    """

    name: str
    selector: tuple[tuple[str, str], ...]
    policy: Policy | None
    guard: bool | Bounds

    @property
    def protected(self) -> bool:
        """Whether a change needs smoke evidence that a node ran."""
        return self.guard.protected if isinstance(self.guard, Bounds) else self.guard

    @property
    def networks(self) -> tuple[str, ...]:
        """The private networks that apps may reach from here, ascending."""
        return self.guard.networks if isinstance(self.guard, Bounds) else ()


def guarded(protected: bool, networks: tuple[str, ...]) -> bool | Bounds:
    """Return the guard of an environment, in the one form it has."""
    return Bounds(protected, networks) if networks else protected


class RouteClaim(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A route that belongs to one project in one environment."""

    route: Route
    project: str
    environment: str


class Deployed(msgspec.Struct, frozen=True, array_like=True):
    """A change that was started, whole: code, configuration, secret versions, and who approved it.

    `required` is how many approvals it needed when it started; `approvers` are the keys that gave them and have not
    withdrawn. `break_glass` is the recorded reason for having skipped them, shown ever after. `author` is the key that
    signed the change.
    """

    change: Digest
    release: Digest
    configuration: Digest
    secrets: tuple[SecretVersion, ...]
    routes: tuple[Route, ...]
    schedules: tuple[str, ...]
    data: bool
    replicas: int
    required: int
    approvers: tuple[bytes, ...]
    break_glass: str
    author: bytes
    applied: int

    @property
    def withdrawn(self) -> bool:
        """Whether withdrawals left fewer approvals than it needed."""
        return len(self.approvers) < self.required


class Withdrawn(msgspec.Struct, frozen=True, array_like=True):
    """The approver `key` took back an approval of `change` at `at_ms` (wall)."""

    change: Digest
    key: bytes
    at_ms: int


class OpenStage(msgspec.Struct, frozen=True, array_like=True):
    """One stage of a rollout under way: how many nodes of `Rollout.order` serve the candidate, and its gate."""

    size: int
    min_healthy_ms: int
    pause_ms: int
    approve: bool


class Rollout(msgspec.Struct, frozen=True, array_like=True):
    """A staged move under way: `order` holds the pinned nodes by cohort score, each stage a prefix of it.

    `stage` counts from 0; `opened` is the state's `applied` when it opened and stands for the slot: verdicts are bound
    to it. `stage_at_ms` (wall) is when that was decided. `paused` holds the reason, empty while running.
    `authors` are all keys that count as the author's.
    """

    id: Digest
    candidate: Deployed
    plan: Plan
    order: tuple[PeerId, ...]
    stages: tuple[OpenStage, ...]
    stage: int
    opened: int
    stage_at_ms: int
    started_at_ms: int
    paused: str = ""
    authors: tuple[bytes, ...] = ()

    @property
    def cohort(self) -> tuple[PeerId, ...]:
        """The pinned nodes that serve the candidate in this stage."""
        return self.order[: self.stages[self.stage].size]

    @property
    def last_stage(self) -> bool:
        """Whether passing this stage makes the candidate the base."""
        return self.stage == len(self.stages) - 1


class Lane(msgspec.Struct, frozen=True, array_like=True):
    """One project in one environment: idle, running or paused.

    `sequence` rises with every command on it; `retained` holds former bases, newest first; `recent` bounded
    idempotency ids, newest last.
    """

    project: str
    environment: str
    sequence: int = 0
    base: Deployed | None = None
    rollout: Rollout | None = None
    frozen: str = ""
    retained: tuple[Deployed, ...] = ()
    data_node: PeerId = PeerId("")
    schedule_node: PeerId = PeerId("")
    withdrawn: tuple[Withdrawn, ...] = ()
    recent: tuple[RecentCommand, ...] = ()


class MeshState(msgspec.Struct, frozen=True, array_like=True):
    """Everything the chain has decided. `applied` counts the commands (genesis is 0); all tuples are sorted by name.

    `era` is the mesh id until a reset; `resets` above 0 flags the mesh as unsafe forever. `sequence` rises with every
    mesh command that carries `expect`. `at_ms` is the last decision's.
    """

    name: str
    era: Digest
    applied: int
    sequence: int
    rules_version: int
    admins: tuple[bytes, ...]
    threshold: int
    policy: Policy
    voters: tuple[Voter, ...]
    nodes: tuple[ConfirmedNode, ...] = ()
    projects: tuple[Project, ...] = ()
    environments: tuple[Environment, ...] = ()
    routes: tuple[RouteClaim, ...] = ()
    lanes: tuple[Lane, ...] = ()
    recent: tuple[RecentCommand, ...] = ()
    at_ms: int = 0
    resets: int = 0

    def lane(self, project: str, environment: str) -> Lane | None:
        """Return the lane, fresh if nothing was decided on it yet; None when its project or environment is unknown."""
        for lane in self.lanes:
            if lane.project == project and lane.environment == environment:
                return lane
        if any(entry.name == project for entry in self.projects) and any(
            entry.name == environment for entry in self.environments
        ):
            return Lane(project, environment)
        return None
