"""One attempt to decide the open slot: collect promises, choose what to propose, collect votes.

Pure bookkeeping over verified statements: the chain verifies, persists and sends. Not here: when attempts start
(pacing.py), what must be adopted (grounds.py), and what a fresh decision is (clients.py, ledger.py).

Source: L. Lamport, "Paxos Made Simple" (2001), section 2.2, phases 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.chain.ballots import Ballot, Grounds, Promise, Proposal, Vote
from protocols.chain.decision import QuorumCertificate, Voter, VoteSignature
from protocols.chain.ledger import Judged
from protocols.chain.messages import Accepted
from protocols.chain.quorum import majority
from protocols.invariants import ensure
from protocols.machine import Digest, Now, PeerId


@dataclass
class Attempt:
    """An attempt at one ballot; `judged` is set when the promises are in and a decision was chosen.

    One that `stands_by` was opened before there was anything to decide. `leads` are how far the promisers' clocks were
    ahead of this node's monotonic one: so a decision is dated when it is made, however long promises were held. `lead_ms`
    is how far this node's own was when it asked: where that is no longer so, the promisers' are not known either.
    """

    slot: int
    era: bytes
    ballot: Ballot
    voters: tuple[Voter, ...]
    voters_digest: Digest
    started_ms: int
    stands_by: bool = False
    lead_ms: int = 0
    promises: dict[Voter, Promise] = field(default_factory=dict)
    leads: dict[Voter, int] = field(default_factory=dict)
    accepted: Accepted | None = None
    decision: bytes = b""
    material: tuple[bytes, ...] = ()
    grounds: Grounds = ()
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
    def is_promised(self) -> bool:
        """Whether a majority has promised."""
        return len(self.promises) >= self.needed

    def wall_ms(self, mono_ms: int) -> int:
        """The lower median of the promisers' clocks at `mono_ms`: one that is far ahead cannot date a decision."""
        return sorted(self.leads.values())[(len(self.leads) - 1) // 2] + mono_ms

    def add_promise(self, promise: Promise, now: Now, accepted: Accepted | None) -> bool:
        """Count a verified promise, `now` by its maker's wall clock and this node's monotonic one.

        Each voter counts once, however often its promise arrives. Return whether a majority has promised.
        """
        voter = Voter(promise.node, promise.store_id)
        ensure(voter in self.voters, "a promise is a voter's")
        self.leads[voter] = now.wall_ms - now.mono_ms
        self.promises[voter] = promise
        if accepted is not None and (self.accepted is None or accepted.ballot > self.accepted.ballot):
            self.accepted = accepted
        return self.is_promised

    def add_vote(self, vote: Vote) -> bool:
        """Count a verified vote; return whether a majority has voted."""
        voter = Voter(vote.node, vote.store_id)
        ensure(voter in self.voters, "a vote is a voter's")
        self.votes[voter] = vote
        return len(self.votes) >= self.needed

    def decline(self, node: PeerId, rule: str, detail: str) -> bool:
        """Count a voter's refusal; return whether no majority can vote for this any more."""
        self.declined[node] = (rule, detail)
        return len(self.voters) - len(self.declined) < self.needed

    def certificate(self) -> QuorumCertificate:
        """Return the certificate that the votes make."""
        assert self.judged is not None
        ensure(len(self.votes) >= self.needed, "a certificate is a majority")
        signatures = tuple(
            VoteSignature(vote.node, vote.store_id, vote.counter, vote.signature)
            for _, vote in sorted(self.votes.items())
        )
        return QuorumCertificate(self.era, self.slot, self.ballot, self.judged.digest, self.voters_digest, signatures)
