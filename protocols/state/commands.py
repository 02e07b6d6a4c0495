"""Commands: what the decision chain decides, who signed it, and the exhibits it is judged by.

A command is bytes signed by a principal (or by several admins, or by a node that shows health evidence). It names its
project and environment, carries an idempotency id and `expect`, the sequence it was computed against. The exhibits
beside it are digests of the material that proves it (grants, approvals, evidence, verdicts); they are chosen by whoever
proposes it and bound by the decision, not by the command's signature. The empty command is
the chain's own no-op (decision.NOOP). Not here: what a command does (apply.py, governance.py, lanes.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from protocols.chain.decision import Voter
from protocols.changes.change import Route
from protocols.changes.demands import Policy
from protocols.envelope import PUBLIC_KEY_BYTES, encode, signing_bytes
from protocols.machine import Digest, PeerId, Signer

COMMAND_DOMAIN = "freehold/command/1"
COMMAND_MAX_BYTES = 16 * 1024
SIGNATURES_MAX = 16
"""As many as a mesh may have admins (genesis.ADMINS_MAX)."""
COMMAND_ID_BYTES = 16
REASON_MAX = 500

# --- commands on the mesh ---------------------------------------------------------------------------------------------


class ConfirmNode(msgspec.Struct, frozen=True, tag="confirm_node"):
    """Admit a node to votes, workloads and secrets; labels and roles are those of its certificate."""

    node: PeerId
    labels: tuple[tuple[str, str], ...] = ()
    roles: tuple[str, ...] = ()


class DrainNode(msgspec.Struct, frozen=True, tag="drain_node"):
    """Take a node out of (or back into) what is eligible, before it leaves."""

    node: PeerId
    draining: bool = True


class RemoveNode(msgspec.Struct, frozen=True, tag="remove_node"):
    """Forget a node that left or was revoked; a voter must be reconfigured away first."""

    node: PeerId


class SetAdmins(msgspec.Struct, frozen=True, tag="set_admins"):
    """Replace the admin keys (32 bytes each, ascending) and their threshold.

    From rules 4 on a recovery key stands among them, as RECOVERY before its 32 bytes: it is no admin's key to anybody who
    looks for one, so it has no right but one, its signature counts for the next set of admins.
    """

    admins: tuple[bytes, ...]
    threshold: int


RECOVERY = b"\x01"
"""Before a key among the admins: it is kept for the day on which the others are lost."""


def admin_keys(admins: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the admins' own keys of a set, without those for recovery."""
    return tuple(key for key in admins if len(key) == PUBLIC_KEY_BYTES)


def recovery_keys(admins: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the recovery keys of a set, as the 32 bytes that sign."""
    return tuple(key[1:] for key in admins if len(key) == 1 + PUBLIC_KEY_BYTES and key[:1] == RECOVERY)


class SetPolicy(msgspec.Struct, frozen=True, tag="set_policy"):
    """Set the policy of an environment, or of the mesh when `environment` is empty; None returns to the mesh's."""

    policy: Policy | None
    environment: str = ""


class SetRules(msgspec.Struct, frozen=True, tag="set_rules"):
    """Raise the feature level (`rules_version`) once every voter supports it."""

    rules_version: int


class CreateProject(msgspec.Struct, frozen=True, tag="create_project"):
    """Make a project, with the owners who answer for it."""

    name: str
    owners: tuple[str, ...] = ()


class CreateEnvironment(msgspec.Struct, frozen=True, tag="create_environment"):
    """Make (or, with `replace`, set) an environment: nodes whose labels match `selector`, and its own policy if any."""

    name: str
    selector: tuple[tuple[str, str], ...] = ()
    policy: Policy | None = None
    protected: bool = False
    replace: bool = False


class SetNetworks(msgspec.Struct, frozen=True, tag="set_networks"):
    """Set the private networks that apps may reach from an environment, ascending; none: public addresses alone."""

    environment: str
    networks: tuple[str, ...] = ()


class Reconfigure(msgspec.Struct, frozen=True, tag="reconfigure"):
    """Name the voters of the next slot, in ascending order; exhibits hold their `VoterReady` statements."""

    voters: tuple[Voter, ...]


# --- commands on one project in one environment -----------------------------------------------------------------------


class ClaimRoutes(msgspec.Struct, frozen=True, tag="claim_routes"):
    """Claim exactly these routes for the project in the environment; routes it held and does not name are released."""

    routes: tuple[Route, ...]


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Start the rollout of a change over the pinned `nodes` (ascending).

    `supersede` aborts a running rollout first; `break_glass` is an admin's recorded reason to skip approvals, evidence
    and windows.
    """

    change: bytes
    nodes: tuple[PeerId, ...]
    supersede: bool = False
    break_glass: str = ""


class Promote(msgspec.Struct, frozen=True, tag="promote"):
    """Take rollout `rollout` from `stage` to the next one; after the last, the candidate becomes the base."""

    rollout: bytes
    stage: int


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Hold a running rollout where it is."""

    rollout: bytes
    reason: str = ""


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Continue a paused rollout; its stage opens anew."""

    rollout: bytes


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End a rollout; every node returns to the base."""

    rollout: bytes
    reason: str = ""


class Rollback(msgspec.Struct, frozen=True, tag="rollback"):
    """Return to the change `change` of a retained release, at once and without stages."""

    change: bytes
    reason: str


class Freeze(msgspec.Struct, frozen=True, tag="freeze"):
    """Refuse starts, promotions and resumes until unfrozen."""

    reason: str


class Unfreeze(msgspec.Struct, frozen=True, tag="unfreeze"):
    """End a freeze."""


class PlaceData(msgspec.Struct, frozen=True, tag="place_data"):
    """Name the node that holds the data (or, with `schedule`, runs the schedules)."""

    node: PeerId
    schedule: bool = False


class WithdrawApproval(msgspec.Struct, frozen=True, tag="withdraw_approval"):
    """Take back the signer's approval of `change`: it no longer starts, and no rollback returns to it."""

    change: bytes
    reason: str = ""


MeshAction = (
    ConfirmNode
    | DrainNode
    | RemoveNode
    | SetAdmins
    | SetPolicy
    | SetRules
    | CreateProject
    | CreateEnvironment
    | SetNetworks
    | Reconfigure
)
LaneAction = (
    ClaimRoutes | Start | Promote | Pause | Resume | Abort | Rollback | Freeze | Unfreeze | PlaceData | WithdrawApproval
)
Action = MeshAction | LaneAction


class Command(msgspec.Struct, frozen=True, tag="command"):
    """What was signed. `id` is 16 random bytes; mesh commands leave `project` and `environment` empty.

    `expect` is the sequence of the lane (or of the mesh) it was computed against; None only where order cannot matter
    (confirm_node, drain_node, create_project, a new environment, withdraw_approval).
    """

    id: bytes
    action: Action
    project: str = ""
    environment: str = ""
    expect: int | None = None


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """One key's (32 bytes) signature (64 bytes) over a command's payload."""

    key: bytes
    signature: bytes


class Exhibits(msgspec.Struct, frozen=True):
    """Digests of the material a command is judged by; each names bytes in `Material`.

    `change`: the author's Signed change; `release`: the manifest; `grants`: encoded grant chains (tuple[Signed, ...])
    of signers, author, approvers and testers; `approvals` and `evidence`: DSSE envelopes; `statements`: Signed
    statements of nodes (prepared, verdicts, timeouts, voter_ready); `admission`: what admits a node.
    """

    change: bytes = b""
    release: bytes = b""
    grants: tuple[bytes, ...] = ()
    approvals: tuple[bytes, ...] = ()
    evidence: tuple[bytes, ...] = ()
    statements: tuple[bytes, ...] = ()
    admission: tuple[bytes, ...] = ()

    def digests(self) -> tuple[Digest, ...]:
        """Return every digest named, ascending, each once."""
        single = tuple(named for named in (self.change, self.release) if named)
        every = single + self.grants + self.approvals + self.evidence + self.statements + self.admission
        return tuple(sorted({Digest(named) for named in every}))


class SignedCommand(msgspec.Struct, frozen=True, tag="signed_command"):
    """A command's payload, its signatures in ascending order of key, and the exhibits beside it.

    Encoded, this is the `command` of a decision. No signature at all is allowed where exhibits alone give authority:
    health evidence, an admission, the growth of the voters.
    """

    payload: bytes
    signatures: tuple[Signature, ...]
    exhibits: Exhibits = Exhibits()


def sign_command(
    signers: Sequence[Signer], mesh: bytes, command: Command, exhibits: Exhibits | None = None
) -> SignedCommand:
    """Encode a command and sign it with every signer; without signers the exhibits alone must give authority."""
    payload = encode(command)
    message = signing_bytes(COMMAND_DOMAIN, mesh, payload)
    pairs = sorted((signer.public_key, signer.sign(message)) for signer in signers)
    return SignedCommand(payload, tuple(Signature(*pair) for pair in pairs), exhibits or Exhibits())
