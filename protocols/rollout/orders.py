"""Orders from the rollout agent to its node, the node's reports back, and the probes between nodes.

Plain values: the agent (agent.py) decides, the node performs and reports, the simulator stands in for the node. Not
here: why anything is ordered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from protocols.chain.decision import Voter
from protocols.changes.statements import Counts
from protocols.envelope import Signed
from protocols.liveness import Leave
from protocols.machine import Digest, PeerConnected, PeerDisconnected, PeerId, Received, Tick
from protocols.state.model import Deployed, MeshState

Role = Literal["base", "candidate"]

ID_BYTES = 8
"""Of the digest of a statement, as StatementsHeld names it."""

# --- messages ---------------------------------------------------------------------------------------------------------


class VoterProbe(msgspec.Struct, frozen=True, tag="voter_probe"):
    """Asks a voter whether it is there; the answer only says so."""

    round: int


class VoterHere(msgspec.Struct, frozen=True, tag="voter_here"):
    """The answer to the probe of that round."""

    round: int


class RolloutStatement(msgspec.Struct, frozen=True, tag="rollout_statement"):
    """A node's signed statement on its way to everybody; the sender could not tell it to the confirmed nodes `untold`."""

    signed: Signed
    untold: tuple[PeerId, ...] = ()


class StatementsHeld(msgspec.Struct, frozen=True, tag="statements_held"):
    """Which statements that are said once the sender holds: the first ID_BYTES of the digest of each, joined.

    The receiver sends the others that it holds.
    """

    ids: bytes


AgentMessage = RolloutStatement | StatementsHeld | VoterProbe | VoterHere
"""What rollout agents send one another."""

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StateDecided:
    """The chain stored a decision that made `state`; `voter` is this node with its store, None when it has no vote."""

    state: MeshState
    voter: Voter | None = None


@dataclass(frozen=True, slots=True)
class ChangeProposed:
    """A change by an author with the right to propose is known: prepare it, so that it can start."""

    project: str
    environment: str
    change: Digest
    base: bytes


@dataclass(frozen=True, slots=True)
class PreparationDone:
    """The node fetched, verified, compiled and smoke-tested `change`, or could not."""

    change: Digest
    ok: bool
    smoke: Literal["passed", "absent"] = "absent"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkObserved:
    """What the supervisor saw of `change` since the last time; counts are totals since the stage opened here.

    Wanted at least once a probing window: longer silence counts as not ready.
    """

    project: str
    environment: str
    change: Digest
    ready: bool
    crashes: int = 0
    candidate: Counts = field(default_factory=Counts)
    base: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class SmokeReplayed:
    """The smoke checks ran against the serving candidate; "absent" when the release has none."""

    project: str
    environment: str
    change: Digest
    result: Literal["passed", "failed", "absent"]


@dataclass(frozen=True, slots=True)
class PeersDown:
    """The nodes this one believes down; replicas of a base move past them, nothing else does."""

    down: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class PeerCompared:
    """This node and `peer` found that their records are equal, as they do now and then: what is said once may lack too."""

    peer: PeerId


AgentEvent = (
    StateDecided
    | ChangeProposed
    | PreparationDone
    | WorkObserved
    | SmokeReplayed
    | PeersDown
    | PeerCompared
    | Received[AgentMessage]
    | PeerConnected
    | PeerDisconnected
    | Leave
    | Tick
)


# --- orders to the node -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrepareRelease:
    """Fetch, verify, compile `change` and run its smoke checks on throwaway data; answer with PreparationDone."""

    change: Digest


@dataclass(frozen=True, slots=True)
class Run:
    """Serve `deployed` here in place of what the lane ran; `schedules`: this node also runs its schedules.

    The same change in another role goes on without a restart.
    """

    project: str
    environment: str
    deployed: Deployed
    role: Role
    schedules: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Drain and stop what the lane runs here."""

    project: str
    environment: str


@dataclass(frozen=True, slots=True)
class Reverted:
    """The candidate failed here and was left on this node's own authority; the order to run the base follows."""

    project: str
    environment: str
    rollout: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class ReplaySmoke:
    """Too little traffic came: run the smoke checks against the serving candidate; answer with SmokeReplayed."""

    project: str
    environment: str
    change: Digest


@dataclass(frozen=True, slots=True)
class Observe:
    """The candidate has been ready for long enough: say what it did until now; answer with WorkObserved."""

    project: str
    environment: str
    change: Digest


@dataclass(frozen=True, slots=True)
class NodePrepared:
    """A node said that it prepared `change`: a start that waited for it may be complete now."""

    change: Digest


@dataclass(frozen=True, slots=True)
class Retain:
    """These changes must stay prepared here (base, candidate, retained); any other may be collected."""

    changes: tuple[Digest, ...]
