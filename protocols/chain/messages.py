"""What nodes say to each other about the decision chain, and what a node hears from its own chain.

Wire messages are tagged Structs; events in and `Notify` events out are plain dataclasses of this node alone. Every list
on the wire has a limit here, checked before its items are looked at. Not here: what anybody does with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from protocols.chain.ballots import Ballot, Grounds, Promise, Proposal, Statement, Vote
from protocols.chain.decision import Entry
from protocols.envelope import Signed
from protocols.machine import PeerId

BATCH_ENTRIES_MAX = 64
BATCH_BYTES_MAX = 512 << 10
"""A catch-up batch is half a message, so that one entry of the largest kind still fits behind a full batch."""
REQUEST_ID_MAX_BYTES = 64


Count = Annotated[int, msgspec.Meta(ge=0)]
"""Checked while decoding: a count below zero would index a chain from its end."""


class Position(msgspec.Struct, frozen=True, array_like=True):
    """Where a chain ends: its era, how many resets led to it, the last slot and that entry's digest."""

    era: bytes
    resets: Count
    slot: Count
    digest: bytes


# --- wire -------------------------------------------------------------------------------------------------------------


class Head(msgspec.Struct, frozen=True, tag="chain.head"):
    """My chain ends here; sent on connecting, after a new entry, and now and then to one peer."""

    position: Position


class Fetch(msgspec.Struct, frozen=True, tag="chain.fetch"):
    """My chain ends here: send what follows."""

    position: Position


class Entries(msgspec.Struct, frozen=True, tag="chain.entries"):
    """Chain entries in order, the first at `first_slot`; `head` is where the sender's chain ends."""

    first_slot: int
    entries: tuple[Entry, ...]
    head: Position


class Accepted(msgspec.Struct, frozen=True):
    """A decision some store accepted: its ballot, the encoded decision, its evidence, the proposer's signature.

    `grounds` are those it was accepted upon.
    """

    ballot: Ballot
    decision: bytes
    material: tuple[bytes, ...]
    proposal: bytes
    grounds: Grounds = ()


class Prepare(msgspec.Struct, frozen=True, tag="chain.prepare"):
    """Phase 1 for `slot`: promise me this ballot. `position` is the proposer's head, at slot - 1."""

    slot: int
    ballot: Ballot
    position: Position


class Promised(msgspec.Struct, frozen=True, tag="chain.promised"):
    """A promise, the decision it says was accepted, and the wall clock of whoever promised."""

    promise: Promise
    wall_ms: int
    accepted: Accepted | None = None


class Nack(msgspec.Struct, frozen=True, tag="chain.nack"):
    """`ballot` for `slot` came too late: `promised` is higher."""

    slot: int
    ballot: Ballot
    promised: Ballot


class Propose(msgspec.Struct, frozen=True, tag="chain.propose"):
    """Phase 2: accept this decision; the promises in `grounds` show that adoption was obeyed."""

    proposal: Proposal
    decision: bytes
    material: tuple[bytes, ...]
    grounds: Grounds
    position: Position


class Voted(msgspec.Struct, frozen=True, tag="chain.voted"):
    """A vote, to the proposer."""

    vote: Vote


class Declined(msgspec.Struct, frozen=True, tag="chain.declined"):
    """This voter does not accept the proposal at `ballot`, and why."""

    slot: int
    ballot: Ballot
    rule: str
    detail: str


class Commit(msgspec.Struct, frozen=True, tag="chain.commit"):
    """The entry at `slot` is decided; the sender says so to the peers `told` as well, who need not hear it again."""

    slot: int
    entry: Entry
    head: Position
    told: tuple[PeerId, ...] = ()


class Forward(msgspec.Struct, frozen=True, tag="chain.forward"):
    """A node that may not propose asks a voter to; its client waits `wait_ms` more (0: as long as the voter's own)."""

    request_id: bytes
    command: bytes
    material: tuple[bytes, ...]
    wait_ms: int = 0


class Answer(msgspec.Struct, frozen=True, tag="chain.answer"):
    """What became of a forwarded command: `outcome` is "decided", "refused", "superseded" or "unknown"."""

    request_id: bytes
    outcome: str
    slot: int = 0
    rule: str = ""
    detail: str = ""


class Probe(msgspec.Struct, frozen=True, tag="chain.probe"):
    """A linearizable read asks: where is your head, and did you accept anything above it?"""

    nonce: bytes
    position: Position


class Probed(msgspec.Struct, frozen=True, tag="chain.probed"):
    """The answer to a probe, true when the probe was read."""

    nonce: bytes
    position: Position
    accepted: bool


class BootRead(msgspec.Struct, frozen=True, tag="chain.boot-read"):
    """A voter that may have forgotten what it said asks the others, before it says anything.

    Whoever answers accepts nothing below `ballot` in this slot any more, and from then on counts no statement of that
    store with a counter below `floor`: what the forgotten life said can complete no quorum.
    """

    slot: int
    ballot: Ballot
    store_id: bytes
    floor: int
    position: Position


class Forgotten(msgspec.Struct, frozen=True, tag="chain.forgotten"):
    """What this store says does not count here below `floor`: another life of its node has made a boot read."""

    store_id: bytes
    floor: Count


class BootAnswer(msgspec.Struct, frozen=True, tag="chain.boot-answer"):
    """What a store knows of `slot`: what it accepted, and the floors it holds under other stores."""

    slot: int
    ballot: Ballot
    floors: tuple[tuple[bytes, int], ...]
    accepted: Accepted | None = None


class Ready(msgspec.Struct, frozen=True, tag="chain.ready"):
    """A `VoterReady`, signed: this node could vote with that store."""

    ready: Signed


class Contradiction(msgspec.Struct, frozen=True, tag="chain.contradiction"):
    """Portable proof that a store (or a proposer) lied: two signed statements that no honest one makes both."""

    rule: str
    promises: tuple[Promise, ...] = ()
    votes: tuple[Vote, ...] = ()
    proposals: tuple[Proposal, ...] = ()

    def statements(self) -> tuple[Statement, ...]:
        """Return the two statements."""
        return (*self.promises, *self.votes, *self.proposals)


class WhoAreYou(msgspec.Struct, frozen=True, tag="chain.who"):
    """Two lives of one peer seem to be connected: every life that hears this answers."""

    challenge: bytes


class IAm(msgspec.Struct, frozen=True, tag="chain.iam"):
    """The answer to `WhoAreYou`: a signed `Life`."""

    life: Signed


class Cloned(msgspec.Struct, frozen=True, tag="chain.cloned"):
    """Two lives of the addressee answered one challenge: it was cloned, and must not vote."""

    first: Signed
    second: Signed


class Life(msgspec.Struct, frozen=True):
    """One life of a node, by its boot nonce; signed under LIFE_DOMAIN."""

    challenge: bytes
    boot_nonce: bytes


LIFE_DOMAIN = "freehold/life/1"

ChainMessage = (
    Head | Fetch | Entries | Prepare | Promised | Nack | Propose | Voted | Declined | Commit | Forward | Answer
    | Probe | Probed | BootRead | BootAnswer | Forgotten | Ready | Contradiction | WhoAreYou | IAm | Cloned
)  # fmt: skip


# --- events of this node ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Booted:
    """The process started: check the store before anything else is asked of it."""


@dataclass(frozen=True, slots=True)
class Mute:
    """The node has no room to write what a voter must: it says nothing as one from now on, until the reason is ""."""

    reason: str


@dataclass(frozen=True, slots=True)
class Submit:
    """A client of this node wants a command decided; ends in one `Outcome` with this request id."""

    request_id: bytes
    command: bytes
    material: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """A client wants to read the latest decided state; ends in one `ReadDone` with this request id."""

    request_id: bytes


@dataclass(frozen=True, slots=True)
class SubmitReset:
    """An admin hands over a signed reset (or one came by file): start a new era if it is good."""

    entry: bytes


ChainEvent = Booted | Submit | Read | SubmitReset

# --- what the node hears (Notify) -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EntryStored:
    """The chain grew by one durable entry; the state now is `Chain.state`."""

    slot: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a submitted command.

    "decided": at `slot`. "refused": `rule` forbids it, and it will not be decided. "superseded": allowed when it was
    submitted, but what was decided before it changed that. "unknown": not known in time; it may still be decided.
    """

    request_id: bytes
    outcome: str
    slot: int = 0
    rule: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReadDone:
    """`Chain.state` at `slot` holds everything decided before the read began; `slot` -1: no majority answered."""

    request_id: bytes
    slot: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """This node's store may have forgotten what it signed; it votes again only as a new voter."""

    reason: str
    store_id: bytes


@dataclass(frozen=True, slots=True)
class Lied:
    """A store or proposer is proven to have contradicted itself."""

    proof: Contradiction


@dataclass(frozen=True, slots=True)
class Stalled:
    """The chain goes on without this node: it cannot apply the entry at `slot`, and why."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class EraChanged:
    """Admins reset the chain: decisions after `kept_slot` of the era before were abandoned."""

    era: bytes
    kept_slot: int


ChainNotice = EntryStored | Outcome | ReadDone | Quarantined | Lied | Stalled | EraChanged
