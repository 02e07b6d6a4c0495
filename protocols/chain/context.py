"""What the parts of one node's chain share: its ledger and acceptor, who is connected, and the effects of this step.

The chain is one machine made of parts that each own a stretch of the protocol; they meet here and nowhere else. Not
here: any step of the protocol but storing an entry, which all parts must hear of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocols.chain.acceptor import Acceptor, founding_effects, fresh_record
from protocols.chain.ballots import NO_BALLOT, STORE_ID_BYTES, Ballot, Promise, Vote, statement_holds
from protocols.chain.decision import (
    AnyStateMachine,
    Decided,
    Decision,
    Voter,
    evidence_root,
    material_fits,
    material_of,
)
from protocols.chain.grounds import grounds_problem
from protocols.chain.ledger import Judged, Ledger
from protocols.chain.messages import Accepted, Contradiction, EntryStored, Forgotten, Lied, Quarantined, Stalled
from protocols.chain.pacing import ChainTimes, Pacer
from protocols.chain.quorum import rank, voter_of
from protocols.chain.witness import Witness
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.machine import (
    Broadcast,
    Effect,
    Entropy,
    Notify,
    Now,
    PeerId,
    Persist,
    Reject,
    Send,
    Signer,
    Store,
    Verifier,
    Write,
)

PROOF_TABLE = "proof"
PROOFS_MAX = 64


def nobody_revoked(node: PeerId) -> bool:
    """Know of no revocation."""
    return False


@dataclass(frozen=True)
class ChainSetup:
    """What a chain is made with. `boot_nonce` is 8 random bytes, new for every process start."""

    mesh: bytes
    node: PeerId
    boot_nonce: bytes
    signer: Signer
    verifier: Verifier
    entropy: Entropy
    machine: AnyStateMachine
    is_revoked: Callable[[PeerId], bool] = nobody_revoked
    times: ChainTimes = field(default_factory=ChainTimes)


@dataclass(frozen=True)
class Stored:
    """What the disk held at start: tables by name, None if unreadable.

    `same_boot` says that the volatile runtime folder holds a copy of the newest fence: no reboot and no restore since.
    """

    vote: Mapping[str, Mapping[bytes, bytes]] | None = field(default_factory=dict)
    fence: Mapping[str, Mapping[bytes, bytes]] | None = field(default_factory=dict)
    same_boot: bool = False


class ChainContext:
    """State that several parts of the chain read, and the effects they add to."""

    def __init__(self, setup: ChainSetup, ledger: Ledger, acceptor: Acceptor) -> None:
        self.setup = setup
        self.ledger = ledger
        self.acceptor = acceptor
        self.pacer = Pacer(setup.times, setup.entropy)
        self.witness = Witness()
        self.now = Now(0, 0)
        self.out: list[Effect] = []
        self.peers: dict[PeerId, bytes] = {}
        """Connected, admitted peers and their boot nonces, in the order they connected."""
        self.liars: dict[bytes, Contradiction] = {}
        """Proofs by the id of the store that lied; a new store of the same node starts afresh."""
        self.highest_seen: Ballot = NO_BALLOT
        self.recovered_slot = 0
        """The slot a boot read was completed for, while the record still says recovering."""
        self.completion_slot = 0
        """A read found something accepted in this slot: decide it, with a no-op if need be."""
        self.majority_ms: int | None = None
        """When a majority last promised a ballot of this node: then it is not cut off, however long commands wait."""
        self.stalled = ""
        self.muted = ""
        """Why this node takes no part as a voter for now: it could not write what it says."""
        self.on_grown: list[Callable[[], None]] = []
        self.on_silenced: list[Callable[[], None]] = []
        """Told when this node says no more for now under the store it had: what it began with it is over."""
        self._voter_for: tuple[tuple[Voter, ...], bytes, bool] = (), b"", False
        self._rank_for: tuple[tuple[Voter, ...], int, int] = (), 0, 0

    # --- effects ------------------------------------------------------------------------------------------------------

    def send(self, peer: PeerId, message: Any) -> None:
        """Send to one peer."""
        self.out.append(Send(peer, message))

    def to_other_voters(self, message: Any) -> None:
        """Send to every voter of the open slot but this node."""
        for voter in self.ledger.voters:
            if voter.node != self.setup.node:
                self.out.append(Send(voter.node, message))

    def notify(self, event: Any) -> None:
        """Tell the node."""
        self.out.append(Notify(event))

    def reject(self, peer: PeerId, rule: str, detail: str = "") -> None:
        """Name the peer that broke a rule."""
        self.out.append(Reject(peer, rule, detail))

    # --- who speaks ---------------------------------------------------------------------------------------------------

    @property
    def open_slot(self) -> int:
        """The slot being decided."""
        return self.ledger.position.slot + 1

    @property
    def is_voter(self) -> bool:
        """Whether this node, with this store, is a voter of the open slot."""
        voters, store_id = self.ledger.voters, self.acceptor.record.store_id
        if self._voter_for[0] is not voters or self._voter_for[1] != store_id:
            self._voter_for = voters, store_id, self.acceptor.voter in voters
        return self._voter_for[2]

    @property
    def takes_part(self) -> bool:
        """Whether commands may wait here to be proposed; else they go to another voter."""
        return self.is_voter and not self.muted

    @property
    def recovered(self) -> bool:
        """Whether nothing forgotten can matter in the open slot."""
        return not self.acceptor.record.recovering or self.recovered_slot == self.open_slot

    @property
    def speaking(self) -> bool:
        """Whether this node may promise and vote in the open slot."""
        return self.takes_part and self.recovered and not self.stalled

    @property
    def promise_holder(self) -> PeerId | None:
        """The other voter to whom this one gave its promise in the open slot: it may need votes only. None: nobody here."""
        node = self.acceptor.promised.node
        held = node != self.setup.node and node in self.peers and voter_of(self.ledger.voters, node) is not None
        return node if held else None

    @property
    def my_rank(self) -> int:
        """This node's place among the proposers of the open slot."""
        voters, slot = self.ledger.voters, self.open_slot
        if self._rank_for[0] is not voters or self._rank_for[1] != slot:
            self._rank_for = voters, slot, rank(voters, slot, self.setup.node)
        return self._rank_for[2]

    def counts(self, statement: Promise | Vote) -> str:
        """Return why a promise or vote does not count here, or "" once it is verified in every respect but content."""
        voter = Voter(statement.node, statement.store_id)
        if voter not in self.ledger.voters:
            return "chain.not-a-voter"
        if self.setup.is_revoked(statement.node):
            return "chain.revoked-voter"
        if statement.store_id in self.liars:
            return "chain.liar"
        if statement.counter < self.acceptor.floor_of(statement.store_id):
            # Who hears this and has made no boot read has a double: nothing else raises a floor above a living store.
            self.send(statement.node, Forgotten(statement.store_id, self.acceptor.floor_of(statement.store_id)))
            return "chain.forgotten-life"
        if not statement_holds(self.setup.verifier, self.setup.mesh, statement):
            return "chain.signature"
        return ""

    def accepted_problem(self, accepted: Accepted | None, claim: tuple[Ballot, bytes]) -> str:
        """Return why what a store says it accepted does not bear out its claim (ballot and digest), or "".

        Decision, evidence and grounds must come along: whoever takes it over must be able to stand for it.
        """
        ballot, claimed = claim
        if ballot == NO_BALLOT:
            return "" if accepted is None else "it accepted nothing and shows something"
        if accepted is None or accepted.ballot != ballot:
            return "what it accepted is missing"
        decided = digest(accepted.decision)
        if decided != claimed:
            return "what it accepted is another decision"
        try:
            decision: Decision = decode(accepted.decision, Decision)
        except DecodeError as error:
            return str(error)
        if not material_fits(accepted.material) or decision.evidence_root != evidence_root(
            list(material_of(accepted.material))
        ):
            return "the evidence of what it accepted is missing"
        setup, here = self.setup, self.ledger.position
        attempt = here.era, self.open_slot, ballot
        return grounds_problem(setup.verifier, setup.mesh, self.ledger.voters, accepted.grounds, attempt, decided)

    def may_propose(self, peer: PeerId, ballot: Ballot) -> str:
        """Return why a peer may not open or use this ballot, or ""."""
        if ballot.node != peer:
            return "chain.ballot-of-another"
        voter = voter_of(self.ledger.voters, peer)
        if voter is None:
            return "chain.not-a-voter"
        if self.setup.is_revoked(peer):
            return "chain.revoked-voter"
        return "chain.liar" if voter.store_id in self.liars else ""

    def promised_above(self, leap: int = 1) -> Ballot:
        """Return this node's next ballot, `leap` rounds above all it promised or saw in the open slot."""
        highest = max(self.acceptor.promised, self.highest_seen)
        return Ballot(highest.round + leap, self.setup.node, self.setup.boot_nonce)

    def saw(self, ballot: Ballot) -> None:
        """Remember the highest ballot of the open slot, so that the next attempt is above it."""
        self.highest_seen = max(self.highest_seen, ballot)

    # --- the chain grows ----------------------------------------------------------------------------------------------

    def store(self, entry: Decided, judged: Judged, barriers: Sequence[Effect] = ()) -> None:
        """Make a checked entry durable, move the acceptor to the next slot, and tell everybody inside and the node.

        `barriers` are those of this node's own vote where that completed the certificate: one commit holds both.
        """
        writes = self.ledger.append(entry, judged)
        self._grow(writes, barriers)
        self.notify(EntryStored(judged.decision.slot, entry))
        for hear in self.on_grown:
            hear()

    def begin_era(self, writes: tuple[Write, ...], notice: Any) -> None:
        """Make a reset durable and tell everybody."""
        self._grow(writes)
        self.notify(EntryStored(self.ledger.position.slot, self.ledger.entry(self.ledger.position.slot)))
        self.notify(notice)
        for hear in self.on_grown:
            hear()

    def _grow(self, writes: tuple[Write, ...], barriers: Sequence[Effect] = ()) -> None:
        said = [
            write
            for barrier in barriers
            if isinstance(barrier, Persist) and barrier.store is Store.VOTE
            for write in barrier.writes
        ]
        every = (*said, *writes, *self.acceptor.open(self.ledger.position))
        last = {(write.table, write.key): write for write in every}
        self.out.append(Persist(Store.VOTE, tuple(last.values())))
        self.out += [barrier for barrier in barriers if isinstance(barrier, Persist) and barrier.store is Store.FENCE]
        self.highest_seen = NO_BALLOT
        self.witness.forget_before(self.ledger.position.slot)
        self.pacer.open_slot(self.now.mono_ms, self.my_rank)

    def stall(self, slot: int, reason: str) -> None:
        """Stop following and speaking: an entry is proven that this node cannot apply."""
        if not self.stalled:
            self.stalled = reason
            self.notify(Stalled(slot, reason))
            self._be_silent()

    # --- stores that cannot be trusted --------------------------------------------------------------------------------

    def accuse(self, proof: Contradiction) -> None:
        """Act on a verified proof: its store counts no more, and everybody hears; the culprit gives it up."""
        culprit = proof.statements()[0].store_id
        if culprit == self.acceptor.record.store_id:
            self.give_up_store(proof.rule)
        if culprit in self.liars or len(self.liars) >= PROOFS_MAX:
            return
        self.liars[culprit] = proof
        self.out.append(Persist(Store.VOTE, (Write(PROOF_TABLE, culprit, encode(proof)),)))
        self.notify(Lied(proof))
        self.out.append(Broadcast(proof))

    def give_up_store(self, reason: str) -> None:
        """Quarantine: keep the verified chain, vote no more under this store id; a new one waits to be voted in."""
        store_id = self.setup.entropy.random_bytes(STORE_ID_BYTES)
        self.acceptor.record = fresh_record(store_id)
        self.acceptor.accepted = None
        self.out += founding_effects(store_id)
        self.out.append(Persist(Store.VOTE, self.acceptor.open(self.ledger.position)))
        self.notify(Quarantined(reason, store_id))
        self._be_silent()

    def mute(self, reason: str) -> None:
        """Take no part as a voter for now."""
        self.muted = reason
        self._be_silent()

    def _be_silent(self) -> None:
        for hear in self.on_silenced:
            hear()
