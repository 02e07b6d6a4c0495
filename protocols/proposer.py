"""One attempt to decide the open slot: collect promises, choose what to propose, collect votes.

Pure bookkeeping over verified statements: the chain verifies, persists and sends. The one rule that makes it Paxos is
`adopted`: after a majority promised, the accepted decision of the highest ballot must be proposed again. Not here:
when attempts start (pacing.py), and what a fresh decision is (clients.py, ledger.py).

Source: L. Lamport, "Paxos Made Simple" (2001), section 2.2, phases 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.ballots import NO_BALLOT, Ballot, Promise, Proposal, Vote
from protocols.chain_messages import Accepted
from protocols.decision import Certificate, Voter, VoteSignature
from protocols.ledger import Judged
from protocols.machine import Digest, PeerId
from protocols.quorum import majority


@dataclass
class Attempt:
    """An attempt at one ballot; `judged` is set when the promises are in and a decision was chosen."""

    slot: int
    era: bytes
    ballot: Ballot
    voters: tuple[Voter, ...]
    voters_digest: Digest
    started_ms: int
    promises: dict[Voter, Promise] = field(default_factory=dict)
    clocks: list[int] = field(default_factory=list)
    accepted: Accepted | None = None
    decision: bytes = b""
    material: tuple[bytes, ...] = ()
    judged: Judged | None = None
    proposal: Proposal | None = None
    votes: dict[Voter, Vote] = field(default_factory=dict)
    declined: dict[PeerId, tuple[str, str]] = field(default_factory=dict)

    @property
    def proposing(self) -> bool:
        """Whether phase 2 began."""
        return self.judged is not None

    @property
    def needed(self) -> int:
        """How many promises, and then votes, make a majority."""
        return majority(len(self.voters))

    @property
    def wall_ms(self) -> int:
        """The lower median of the promisers' clocks: one clock that is far ahead cannot date a decision."""
        return sorted(self.clocks)[(len(self.clocks) - 1) // 2]

    def add_promise(self, promise: Promise, wall_ms: int, accepted: Accepted | None) -> bool:
        """Count a verified promise; return whether a majority has promised."""
        self.clocks.append(wall_ms)
        self.promises[Voter(promise.node, promise.store_id)] = promise
        if accepted is not None and (self.accepted is None or accepted.ballot > self.accepted.ballot):
            self.accepted = accepted
        return len(self.promises) >= self.needed

    def add_vote(self, vote: Vote) -> bool:
        """Count a verified vote; return whether a majority has voted."""
        self.votes[Voter(vote.node, vote.store_id)] = vote
        return len(self.votes) >= self.needed

    def decline(self, node: PeerId, rule: str, detail: str) -> bool:
        """Count a voter's refusal; return whether no majority can vote for this any more."""
        self.declined[node] = (rule, detail)
        return len(self.voters) - len(self.declined) < self.needed

    def certificate(self) -> Certificate:
        """Return the certificate that the votes make."""
        assert self.judged is not None
        assert len(self.votes) >= self.needed, "a certificate is a majority"
        signatures = tuple(
            VoteSignature(vote.node, vote.store_id, vote.counter, vote.signature)
            for _, vote in sorted(self.votes.items())
        )
        return Certificate(self.era, self.slot, self.ballot, self.judged.digest, self.voters_digest, signatures)


def adopted(promises: tuple[Promise, ...]) -> tuple[Ballot, bytes]:
    """Return ballot and digest of the accepted decision that must be proposed, NO_BALLOT if the proposer is free."""
    highest = max(promises, key=lambda promise: promise.accepted_ballot)
    if highest.accepted_ballot == NO_BALLOT:
        return NO_BALLOT, b""
    return highest.accepted_ballot, highest.accepted_digest


def promises_problem(
    promises: tuple[Promise, ...], attempt: tuple[bytes, int, Ballot], voters: tuple[Voter, ...]
) -> str:
    """Return why these promises do not entitle anyone to propose at (era, slot, ballot), or "" when they do.

    Signatures are the caller's to verify.
    """
    makers = [Voter(promise.node, promise.store_id) for promise in promises]
    if len(set(makers)) != len(makers) or any(maker not in voters for maker in makers):
        return "the promises are not of distinct voters"
    if len(makers) < majority(len(voters)):
        return "the promises are of no majority"
    if any((promise.era, promise.slot, promise.ballot) != attempt for promise in promises):
        return "a promise is for another ballot"
    return ""
