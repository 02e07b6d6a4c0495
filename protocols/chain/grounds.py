"""Grounds: why a decision could be proposed at a ballot, kept beside it for as long as the decision is.

A round is the promises of a majority at one ballot. Grounds are the round of the ballot itself and, if that round bound
the proposer to an accepted decision, the round of the ballot at which that was accepted, and so on down to the round
that left its proposer free. Two certificates for one slot therefore carry between them the two statements that no
honest store makes both: in the lowest round above the lower certificate, somebody hid its vote there (witness.py).
Whoever holds both entries holds the proof, also much later, and also if it took no part.

Signatures are checked, whether a promise counts today (a liar, a revoked node, a forgotten life) is not: grounds once
good stay good. Not here: collecting promises (proposer.py).

Source: L. Lamport, "Paxos Made Simple" (2001), section 2.2, condition P2c; A. Haeberlen, P. Kouznetsov, P. Druschel,
"PeerReview: Practical Accountability for Distributed Systems" (2007), for evidence that outlives its witnesses.
"""

from __future__ import annotations

from protocols.chain.ballots import NO_BALLOT, Ballot, Grounds, Promise, statement_holds
from protocols.chain.decision import Voter
from protocols.chain.quorum import majority
from protocols.machine import Digest, Verifier

ROUNDS_MAX = 16
"""Rounds kept of one decision, newest first: a slot that was fought over longer loses the oldest, and their proof."""

Attempted = tuple[bytes, int, Ballot]
"""What a round is about: era, slot and ballot."""


def adopted(promises: tuple[Promise, ...]) -> tuple[Ballot, bytes]:
    """Return ballot and digest of the accepted decision that must be proposed, NO_BALLOT if the proposer is free."""
    highest = max(promises, key=lambda promise: promise.accepted_ballot)
    if highest.accepted_ballot == NO_BALLOT:
        return NO_BALLOT, b""
    return highest.accepted_ballot, highest.accepted_digest


def promises_problem(promises: tuple[Promise, ...], attempt: Attempted, voters: tuple[Voter, ...]) -> str:
    """Return why these promises do not entitle anyone to propose at (era, slot, ballot), or "" when they do.

    Signatures are the caller's to verify.
    """
    if len(promises) > len(voters):
        return "there are more promises than voters"
    makers = [Voter(promise.node, promise.store_id) for promise in promises]
    if len(set(makers)) != len(makers) or any(maker not in voters for maker in makers):
        return "the promises are not of distinct voters"
    if len(makers) < majority(len(voters)):
        return "the promises are of no majority"
    if any((promise.era, promise.slot, promise.ballot) != attempt for promise in promises):
        return "a promise is for another ballot"
    return ""


def built_on(promises: tuple[Promise, ...], below: Grounds) -> Grounds:
    """Return the grounds of a proposal: its own round on top of those of what it adopted (or of nothing)."""
    return (promises, *below)[:ROUNDS_MAX]


def grounds_problem(
    verifier: Verifier,
    mesh: bytes,
    voters: tuple[Voter, ...],
    grounds: Grounds,
    attempt: Attempted,
    decided: Digest,
) -> str:
    """Return why grounds do not entitle anyone to propose `decided` at (era, slot, ballot), or "" when they do."""
    if not 1 <= len(grounds) <= ROUNDS_MAX:
        return "there are no grounds, or more rounds than are kept"
    era, slot, ballot = attempt
    for place, promises in enumerate(grounds, 1):
        problem = promises_problem(promises, (era, slot, ballot), voters)
        if problem:
            return problem
        if not all(statement_holds(verifier, mesh, promise) for promise in promises):
            return "a promise's signature does not verify"
        below, must = adopted(promises)
        if below == NO_BALLOT:
            return "" if place == len(grounds) else "there are rounds below the one that was free"
        if must != decided:
            return "the round binds its proposer to another decision"
        if not below < ballot:
            return "a promise claims what was accepted at its own ballot or above"
        ballot = below
    return "" if len(grounds) == ROUNDS_MAX else "the round of what was adopted is missing"
