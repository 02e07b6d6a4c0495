"""A tiny state machine for simulating the decision chain alone: counters, a policy for voters, admins for a reset.

Just enough to tell decisions apart and to change voters with signed readiness; the real one is protocols/state/apply.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from protocols.chain.decision import (
    VOTER_COUNTS,
    VOTER_READY_DOMAIN,
    Admins,
    Growth,
    Material,
    Reset,
    Voter,
    VoterReady,
)
from protocols.chain.quorum import majority
from protocols.envelope import DecodeError, Signed, decode, encode, open_signed
from protocols.keys import peer_id
from protocols.machine import Digest, PeerId, Verifier
from protocols.refusal import Refusal


class CounterState(msgspec.Struct, frozen=True, array_like=True):
    """Counters by name, and who votes."""

    era: bytes
    voters: tuple[Voter, ...]
    target: int
    counters: tuple[tuple[str, int], ...] = ()
    resets: int = 0
    rules_version: int = 1


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Add to a counter, if it stands at `expect` (-1: whatever it stands at)."""

    id: bytes
    name: str
    amount: int
    expect: int = -1


class SetVoters(msgspec.Struct, frozen=True, tag="voters"):
    """Name the voters of the next slot; the evidence is signed readiness."""

    id: bytes
    voters: tuple[Voter, ...]


class SetTarget(msgspec.Struct, frozen=True, tag="target"):
    """Set how many voters the mesh wants."""

    id: bytes
    target: int


class SetToyRules(msgspec.Struct, frozen=True, tag="rules"):
    """Raise the version of the rules."""

    id: bytes
    version: int


CounterCommand = Add | SetVoters | SetTarget | SetToyRules


class CounterMachine:
    """A `StateMachine` over `CounterState`; `fresh_refusals` (by counter) is this voter's own view."""

    def __init__(
        self,
        mesh: bytes,
        founders: tuple[Voter, ...],
        verifier: Verifier,
        *,
        candidates: tuple[PeerId, ...] = (),
        admins: tuple[bytes, ...] = (),
        target: int = 1,
        rules_version: int = 1,
    ) -> None:
        self._mesh = mesh
        self._founders = founders
        self._verifier = verifier
        self._candidates = candidates
        self._admins = admins
        self._target = target
        self._rules_version = rules_version
        self.fresh_refusals: dict[str, Refusal] = {}

    @property
    def rules_version(self) -> int:
        """The highest version of the rules this build can apply."""
        return self._rules_version

    def genesis(self) -> CounterState:
        """No counters, the founders vote."""
        return CounterState(self._mesh, self._founders, self._target)

    def decode_state(self, data: bytes) -> CounterState:
        """Decode a stored state. Raises DecodeError."""
        state: CounterState = decode(data, CounterState)
        return state

    def apply(self, state: CounterState, command: bytes, material: Material, at_ms: int) -> CounterState | Refusal:
        """Apply one command; pure."""
        del at_ms
        try:
            decoded: CounterCommand = decode(command, CounterCommand)
        except DecodeError as error:
            return Refusal("counter.malformed", str(error))
        match decoded:
            case Add():
                counters = dict(state.counters)
                value = counters.get(decoded.name, 0)
                if decoded.expect not in (-1, value):
                    return Refusal("counter.expect", f"{decoded.name} stands at {value}")
                counters[decoded.name] = value + decoded.amount
                return msgspec.structs.replace(state, counters=tuple(sorted(counters.items())))
            case SetTarget():
                return msgspec.structs.replace(state, target=decoded.target)
            case SetToyRules():
                if decoded.version <= state.rules_version:
                    return Refusal("counter.rules")
                return msgspec.structs.replace(state, rules_version=decoded.version)
            case SetVoters():
                return self._set_voters(state, decoded, material)

    def _set_voters(self, state: CounterState, command: SetVoters, material: Material) -> CounterState | Refusal:
        if command.voters == state.voters:
            return Refusal("counter.voters-same")
        if len(command.voters) not in VOTER_COUNTS:
            return Refusal("counter.voters-count")
        ready = set()
        for _, item in sorted(material.items()):
            try:
                signed: Signed = decode(item, Signed)
                said: VoterReady = open_signed(self._verifier, VOTER_READY_DOMAIN, self._mesh, signed, VoterReady)
            except DecodeError:
                return Refusal("counter.ready-malformed")
            if said.era == state.era and peer_id(signed.key) == said.node:
                ready.add(Voter(said.node, said.store_id))
        if len(ready & set(command.voters)) < majority(len(command.voters)):
            return Refusal("counter.not-ready")
        return msgspec.structs.replace(state, voters=command.voters)

    def fresh_refusal(self, state: CounterState, command: bytes, material: Material, at_ms: int) -> Refusal | None:
        """Refuse what this voter's view was told to refuse."""
        del state, material, at_ms
        decoded: CounterCommand = decode(command, CounterCommand)
        return self.fresh_refusals.get(decoded.name) if isinstance(decoded, Add) else None

    def admins(self, state: CounterState) -> Admins:
        """Every admin must sign a reset."""
        del state
        return Admins(self._admins, len(self._admins))

    def admins_named(self, command: bytes) -> Admins | None:
        """No command changes the admins."""
        del command
        return None

    def apply_reset(self, state: CounterState, reset: Reset, era: Digest) -> CounterState:
        """Begin the era of a reset."""
        return msgspec.structs.replace(state, era=era, voters=reset.voters, resets=state.resets + 1)

    def voters(self, state: CounterState) -> tuple[Voter, ...]:
        """The voters of the next slot."""
        return state.voters

    def rules_version_of(self, state: CounterState) -> int:
        """The version under which the next decision is applied."""
        return state.rules_version

    def growth(self, state: CounterState) -> Growth:
        """Grow to the target."""
        return Growth(state.target, self._candidates)

    def reconfigure(
        self, state: CounterState, voters: tuple[Voter, ...], ready: tuple[Signed, ...]
    ) -> tuple[bytes, tuple[bytes, ...]] | None:
        """Every automatic change is allowed."""
        del state
        return encode(SetVoters(b"auto", voters)), tuple(encode(signed) for signed in ready)


def counter(state: CounterState, name: str) -> int:
    """Return where a counter stands."""
    counters: Mapping[str, int] = dict(state.counters)
    return counters.get(name, 0)
