"""Mesh state: genesis, and how one decided command makes the next state.

`apply` is deterministic: the same state, command, material and `at_ms` give the same state or the same refusal on every
voter, whatever its clock or what it has heard. What depends on one voter's own view stands apart in freshness.py.
`MeshMachine` is the face the decision chain drives (decision.StateMachine). Not here: slots, ballots and certificates
(chain.py), what commands do (rollout.py, governance.py), and the transition table (transitions.py).
"""

from __future__ import annotations

from msgspec.structs import replace

from protocols.chain.decision import (
    COMMAND_MAX_BYTES,
    NOOP,
    Admins,
    Growth,
    Material,
    Reset,
    StateMachine,
    Voter,
)
from protocols.changes.demands import PASSKEY_RULES, Policy, policy_problem
from protocols.envelope import DecodeError, Signed, decode, digest, encode
from protocols.invariants import ensure
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.state.commands import (
    ClaimRoutes,
    Command,
    CreateEnvironment,
    Exhibits,
    LaneAction,
    MeshAction,
    Reconfigure,
    SetAdmins,
    SignedCommand,
    WithdrawApproval,
)
from protocols.state.exhibits import Case, Rules, open_case
from protocols.state.freshness import View, fresh_refusal
from protocols.state.governance import ORDERED, RULES_VERSION, claim, govern, grows, growth_candidates
from protocols.state.lanes import step
from protocols.state.model import (
    LANES_MAX,
    RECENT_IDS_MAX,
    ConfirmedNode,
    Lane,
    MeshState,
    RecentCommand,
)
from protocols.trust.genesis import Genesis

_SETS_ADMINS = str(SetAdmins.__struct_config__.tag).encode()

__all__ = [
    "Material",
    "MeshMachine",
    "MeshState",
    "Refusal",
    "Rules",
    "Voter",
    "apply",
    "genesis_state",
    "read_command",
]

STATE_MAX_BYTES = 4 * 1024 * 1024
"""Every decision hashes the state: 4 MiB cost about 10 ms. Two thousand usual lanes would fit."""


def genesis_state(genesis: Genesis, mesh: Digest) -> MeshState:
    """Return the state before slot 1, as the genesis document founds it. Raises DecodeError if its policy is not one.

    The founder's node is confirmed with every role: nobody else is there to do it.
    """
    policy: Policy = decode(genesis.policy, Policy)
    problem = policy_problem(policy)
    if problem:
        raise DecodeError(f"genesis policy: {problem}")
    if policy.demands.by_passkey:
        raise DecodeError(f"genesis policy: passkeys need rules {PASSKEY_RULES}, and a mesh begins with less")
    founder = ConfirmedNode(genesis.voter_node, (), ("issuer", "voter", "worker"), 0)
    return MeshState(
        name=genesis.name,
        era=mesh,
        applied=0,
        sequence=0,
        rules_version=1,
        admins=genesis.admins,
        threshold=genesis.threshold,
        policy=policy,
        voters=(Voter(genesis.voter_node, genesis.voter_store),),
        nodes=(founder,),
        at_ms=genesis.created_ms,
    )


def read_command(command: bytes) -> SignedCommand | Refusal:
    """Decode a decision's command bytes; nothing in them is verified yet."""
    try:
        signed: SignedCommand = decode(command, SignedCommand, COMMAND_MAX_BYTES)
    except DecodeError as error:
        return Refusal("command.malformed", str(error))
    return signed


def apply(
    state: MeshState, command: SignedCommand, material: Material, at_ms: int, rules: Rules
) -> MeshState | Refusal:
    """Return the state after `command`, or the first rule it breaks; pure and the same on every voter."""
    case = open_case(command, material, at_ms, rules, state.admins)
    if isinstance(case, Refusal):
        return case
    action = case.command.action
    after = _apply_mesh(state, case, action) if isinstance(action, MeshAction) else _apply_lane(state, case, action)
    if isinstance(after, Refusal):
        return after
    after = replace(after, applied=state.applied + 1, at_ms=at_ms)
    if len(encode(after)) > STATE_MAX_BYTES:
        return Refusal("mesh.state-full", f"the state would pass {STATE_MAX_BYTES} bytes")
    return after


def _apply_mesh(state: MeshState, case: Case, action: MeshAction) -> MeshState | Refusal:
    command = case.command
    if command.project or command.environment:
        return Refusal("command.scope", "a command on the mesh names no project and no environment")
    done = _duplicate(state.recent, command)
    if done is not None:
        return done
    ordered = isinstance(action, ORDERED)
    # A new environment depends on nothing that was decided: a mesh whose voters grow meanwhile makes it all the same.
    anywhen = not ordered or (isinstance(action, CreateEnvironment) and not action.replace)
    if not (anywhen and command.expect is None) and command.expect != state.sequence:
        return _unexpected(state.sequence)
    after = govern(state, case, action)
    if isinstance(after, Refusal):
        return after
    return replace(after, sequence=state.sequence + ordered, recent=_remembered(state.recent, state, command))


def _apply_lane(state: MeshState, case: Case, action: LaneAction) -> MeshState | Refusal:
    command = case.command
    lane = state.lane(command.project, command.environment)
    if lane is None:
        return Refusal("lane.unknown", "there is no such project or environment; an admin creates them")
    done = _duplicate(lane.recent, command)
    if done is not None:
        return done
    anywhen = isinstance(action, WithdrawApproval) and command.expect is None
    if not anywhen and command.expect != lane.sequence:
        return _unexpected(lane.sequence)
    if isinstance(action, ClaimRoutes):
        claimed = claim(state, lane, case, action)
        if isinstance(claimed, Refusal):
            return claimed
        after, changed = claimed, lane
    else:
        stepped = step(state, lane, case, action)
        if isinstance(stepped, Refusal):
            return stepped
        after, changed = state, stepped
    changed = replace(changed, sequence=lane.sequence + 1, recent=_remembered(lane.recent, state, command))
    return _with_lane(after, changed)


def _with_lane(state: MeshState, lane: Lane) -> MeshState | Refusal:
    name = (lane.project, lane.environment)
    others = [lane for lane in state.lanes if (lane.project, lane.environment) != name]
    if len(others) >= LANES_MAX:
        return Refusal("lane.limit", f"a mesh carries at most {LANES_MAX} projects times environments")
    lanes = sorted([*others, lane], key=lambda one: (one.project, one.environment))
    return replace(state, lanes=tuple(lanes))


def _duplicate(recent: tuple[RecentCommand, ...], command: Command) -> Refusal | None:
    recent_command = next((entry for entry in recent if entry.id == command.id), None)
    if recent_command is None:
        return None
    return Refusal("command.duplicate", f"decided already, as command {recent_command.applied} of the mesh")


def _unexpected(sequence: int) -> Refusal:
    return Refusal("command.expect", f"something was decided in between; the sequence is {sequence} now: look again")


def _remembered(recent: tuple[RecentCommand, ...], state: MeshState, command: Command) -> tuple[RecentCommand, ...]:
    return (*recent, RecentCommand(command.id, state.applied + 1))[-RECENT_IDS_MAX:]


# --- the face of the chain --------------------------------------------------------------------------------------------


class MeshMachine(StateMachine[MeshState]):
    """Implements decision.StateMachine over MeshState; `view` is this voter's own, asked only for fresh decisions."""

    def __init__(self, genesis: Genesis, rules: Rules, view: View) -> None:
        """Take a checked genesis. Raises DecodeError if its policy is not one."""
        self._genesis = genesis_state(genesis, rules.mesh)
        self._rules = rules
        self._view = view

    @property
    def rules_version(self) -> int:
        """The highest feature level this build can apply."""
        return RULES_VERSION

    def genesis(self) -> MeshState:
        """Return the state before slot 1."""
        return self._genesis

    def decode_state(self, data: bytes) -> MeshState:
        """Decode what `envelope.encode(state)` gave. Raises DecodeError."""
        state: MeshState = decode(data, MeshState, STATE_MAX_BYTES)
        return state

    def apply(self, state: MeshState, command: bytes, material: Material, at_ms: int) -> MeshState | Refusal:
        """Return the next state, or why the command is not allowed; the chain's no-op changes nothing."""
        if command == NOOP:
            return state if not material else Refusal("command.material", "a no-op shows nothing")
        signed = read_command(command)
        return signed if isinstance(signed, Refusal) else apply(state, signed, material, at_ms, self._rules)

    def fresh_refusal(self, state: MeshState, command: bytes, material: Material, at_ms: int) -> Refusal | None:
        """Return why this voter, by its own view, will not be the first to accept the command."""
        if command == NOOP:
            return None
        signed = read_command(command)
        if isinstance(signed, Refusal):
            return signed
        case = open_case(signed, material, at_ms, self._rules, state.admins)
        return case if isinstance(case, Refusal) else fresh_refusal(state, case, self._view)

    def admins(self, state: MeshState) -> Admins:
        """Return who may reset a chain that ends in this state."""
        return Admins(state.admins, state.threshold)

    def admins_named(self, command: bytes) -> Admins | None:
        """Return who may do so since a command was decided, None if it changed nothing about that."""
        if _SETS_ADMINS not in command:
            return None  # most are about something else, and a long chain is looked through
        signed = read_command(command)
        if isinstance(signed, Refusal):
            return None
        said: Command = decode(signed.payload, Command)
        return Admins(said.action.admins, said.action.threshold) if isinstance(said.action, SetAdmins) else None

    def apply_reset(self, state: MeshState, reset: Reset, era: Digest) -> MeshState:
        """Return `state` with the voters of a reset that the admins signed, its era, and marked unsafe."""
        ensure(reset.number == state.resets + 1, "a reset is judged before it is applied")
        return replace(
            state,
            era=era,
            voters=reset.voters,
            resets=reset.number,
            applied=state.applied + 1,
            at_ms=max(state.at_ms, reset.at_ms),
        )

    def voters(self, state: MeshState) -> tuple[Voter, ...]:
        """Return the voters of the next slot."""
        return state.voters

    def rules_version_of(self, state: MeshState) -> int:
        """Return the feature level under which the next decision is applied."""
        return state.rules_version

    def growth(self, state: MeshState) -> Growth:
        """Return what policy wants of the voters."""
        return Growth(state.policy.voters_target, growth_candidates(state))

    def reconfigure(
        self, state: MeshState, voters: tuple[Voter, ...], ready: tuple[Signed, ...]
    ) -> tuple[bytes, tuple[bytes, ...]] | None:
        """Return the command and evidence for this automatic growth of the voters, or None if it needs a person."""
        if not grows(state, voters):
            return None
        material = tuple(encode(signed) for signed in ready)
        identity = digest(encode((state.era, state.sequence, voters)))[:16]
        command = Command(identity, Reconfigure(tuple(sorted(voters))), expect=state.sequence)
        exhibits = Exhibits(statements=tuple(bytes(digest(item)) for item in material))
        return encode(SignedCommand(encode(command), (), exhibits)), material
