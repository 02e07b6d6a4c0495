"""The decision chain's values: voters, decisions, quorum certificates, resets, and the face of the state they drive.

One chain per mesh. Slot s+1 opens only with a certificate for s, and the decision at s names the voters of s+1. What
commands mean is not decided here: a `StateMachine` is injected, and to the chain commands and states are opaque. The
empty command is the chain's own no-op; it changes no state and needs no authority.

Not here: how a decision is reached (acceptor.py, proposer.py) and stored (ledger.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from protocols.chain.ballots import Ballot, Grounds, Vote
from protocols.envelope import Signed, digest, digest_of
from protocols.machine import Digest, PeerId
from protocols.refusal import Refusal

NOOP = b""
"""The command that changes nothing: it finishes a slot, and proves that a new set of voters can decide."""

COMMAND_MAX_BYTES = 64 << 10
MATERIAL_MAX_ITEMS = 256
"""Evidence under one decision: verdicts of a whole cohort, approvals, tests and a manifest fit."""
MATERIAL_MAX_BYTES = 384 << 10
"""All evidence of one decision travels in one message with it, so it stays well under the message limit."""
VOTER_COUNTS = (1, 3, 5, 7)
CLOCK_TOLERANCE_MS = 120_000
"""A fresh decision's `at_ms` may differ this much from a voter's wall clock (docs/concepts/protocol.md, section 4, step 4)."""

Material = Mapping[Digest, bytes]
"""Evidence a command refers to, by content: digest -> bytes."""


class Voter(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A node together with one store; the same node with a new database is another voter."""

    node: PeerId
    store_id: bytes


class Decision(msgspec.Struct, frozen=True):
    """The value of one slot. Its digest is over the bytes it arrived in, never over a second encoding.

    `era` is the mesh id, or the digest of the last reset. `prev` is the digest of the entry at slot - 1 (of the
    genesis: the mesh id). `command` is opaque, or NOOP. `voters` are those of slot + 1.
    """

    mesh: bytes
    era: bytes
    slot: int
    prev: bytes
    at_ms: int
    rules_version: int
    command: bytes
    evidence_root: Digest
    state_hash: Digest
    voters: tuple[Voter, ...]


class VoteSignature(msgspec.Struct, frozen=True, array_like=True):
    """One signed acceptance inside a certificate."""

    node: PeerId
    store_id: bytes
    counter: int
    signature: bytes


class QuorumCertificate(msgspec.Struct, frozen=True, array_like=True):
    """A quorum certificate: votes of a majority of the slot's voters, all at one ballot, for one digest."""

    era: bytes
    slot: int
    ballot: Ballot
    digest: Digest
    voters_digest: Digest
    votes: tuple[VoteSignature, ...]

    def statements(self) -> tuple[Vote, ...]:
        """Return the votes as the statements their stores signed."""
        era, slot, ballot = self.era, self.slot, self.ballot
        return tuple(
            Vote(v.node, v.store_id, v.counter, era, slot, ballot, self.digest, self.voters_digest, v.signature)
            for v in self.votes
        )


class Reset(msgspec.Struct, frozen=True):
    """Admins start a new era after a majority of voters is lost for good; it takes the slot after the last head kept.

    `number` counts the resets of the mesh, from 1. `prev` is the digest of the entry kept at slot - 1. The new era's id
    is the digest of the encoded reset. What the lost voters decided after `prev` is abandoned: unsafe, and said so.
    """

    mesh: bytes
    number: int
    slot: int
    prev: bytes
    at_ms: int
    voters: tuple[Voter, ...]
    reason: str


RESET_DOMAIN = "freehold/reset/1"
RESET_SIGNATURES_MAX = 16
"""As many as a mesh may have admins (genesis.ADMINS_MAX)."""


class Decided(msgspec.Struct, frozen=True, tag="decided"):
    """A chain entry: the encoded decision, its certificate, its evidence, and the promises it was proposed upon."""

    decision: bytes
    certificate: QuorumCertificate
    material: tuple[bytes, ...] = ()
    grounds: Grounds = ()


class ResetTo(msgspec.Struct, frozen=True, tag="reset"):
    """A chain entry made by admins: `approvals` sign the same encoded Reset (RESET_DOMAIN), one admin key each."""

    reset: bytes
    approvals: tuple[Signed, ...]


Entry = Decided | ResetTo


class Admins(msgspec.Struct, frozen=True, array_like=True):
    """Who may reset a chain: so many of these keys must sign."""

    keys: tuple[bytes, ...]
    threshold: int


class Growth(msgspec.Struct, frozen=True):
    """What policy wants of the voters: how many, and which nodes may be one (confirmed, with the voter role)."""

    target: int
    candidates: tuple[PeerId, ...]


VOTER_READY_DOMAIN = "freehold/voter-ready/1"


class VoterReady(msgspec.Struct, frozen=True):
    """A node says which store it would vote with, and the head that store holds; signed under VOTER_READY_DOMAIN."""

    node: PeerId
    store_id: bytes
    era: bytes
    slot: int


StateT = TypeVar("StateT")


class StateMachine(Protocol[StateT]):
    """What the chain decides about. Pure but for `fresh_refusal`, which may look at this node's view of the world.

    States are immutable, and encode to equal bytes when equal: `state_hash` is the digest of `envelope.encode(state)`.
    """

    @property
    def rules_version(self) -> int:
        """The highest version of the rules this build can apply."""
        ...

    def genesis(self) -> StateT:
        """Return the state before slot 1; its voters decide slot 1."""
        ...

    def decode_state(self, data: bytes) -> StateT:
        """Decode what `envelope.encode(state)` gave. Raises DecodeError."""
        ...

    def apply(self, state: StateT, command: bytes, material: Material, at_ms: int) -> StateT | Refusal:
        """Return the next state, or why the command is not allowed; the same on every node, for ever."""
        ...

    def fresh_refusal(self, state: StateT, command: bytes, material: Material, at_ms: int) -> Refusal | None:
        """Return why this voter, by its own clock and view, will not be the first to accept the command."""
        ...

    def admins(self, state: StateT) -> Admins:
        """Return who may reset a chain that ends in this state."""
        ...

    def admins_named(self, command: bytes) -> Admins | None:
        """Return who may do so since a command was decided, None if it changed nothing about that."""
        ...

    def apply_reset(self, state: StateT, reset: Reset, era: Digest) -> StateT:
        """Return `state` with the voters of a reset that the admins signed, its era, and marked unsafe."""
        ...

    def voters(self, state: StateT) -> tuple[Voter, ...]:
        """Return the voters of the next slot."""
        ...

    def rules_version_of(self, state: StateT) -> int:
        """Return the version of the rules under which the next decision is applied."""
        ...

    def growth(self, state: StateT) -> Growth:
        """Return what policy wants of the voters."""
        ...

    def reconfigure(
        self, state: StateT, voters: tuple[Voter, ...], ready: tuple[Signed, ...]
    ) -> tuple[bytes, tuple[bytes, ...]] | None:
        """Return the command and evidence for this automatic change of voters, or None if it needs a person."""
        ...


def voters_digest(voters: tuple[Voter, ...]) -> Digest:
    """Return the digest that a vote signs in place of the set of voters."""
    return digest_of(voters)


def evidence_root(digests: list[Digest]) -> Digest:
    """Return the digest that stands for a set of evidence: of the sorted digests, joined."""
    return digest(b"".join(sorted(digests)))


def material_of(items: tuple[bytes, ...]) -> dict[Digest, bytes]:
    """Return evidence by digest; what a sender claims about digests is never used."""
    return {digest(item): item for item in items}


def material_fits(items: tuple[bytes, ...]) -> bool:
    """Return whether evidence is within the limits of one decision."""
    return len(items) <= MATERIAL_MAX_ITEMS and sum(map(len, items)) <= MATERIAL_MAX_BYTES


AnyStateMachine = StateMachine[Any]
