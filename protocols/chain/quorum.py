"""Counting voters: majorities, the rank of a proposer, and whether a certificate proves a decision.

Pure functions over one slot's voters. A revoked voter stays in the denominator; whether its new statements count is the
caller's question, and a certificate once valid stays valid. Not here: who the voters are (the chain says).

Source: T. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates" (1998), rendezvous hashing.
"""

from __future__ import annotations

from protocols.chain.ballots import statement_holds
from protocols.chain.decision import VOTER_COUNTS, QuorumCertificate, Voter, voters_digest
from protocols.envelope import digest
from protocols.machine import Digest, PeerId, Verifier


def majority(count: int) -> int:
    """Return how many of `count` voters make a majority."""
    return count // 2 + 1


def boot_quorum(count: int) -> int:
    """Return how many *other* voters must answer a boot read: they meet every majority this voter took part in."""
    return count - majority(count) + 1


def valid_voters(voters: tuple[Voter, ...]) -> bool:
    """Return whether a set of voters has a legal size, ascending order, and each node once."""
    nodes = [voter.node for voter in voters]
    return len(voters) in VOTER_COUNTS and list(voters) == sorted(voters) and len(set(nodes)) == len(nodes)


def voter_of(voters: tuple[Voter, ...], node: PeerId) -> Voter | None:
    """Return the voter a node is, with whichever store, or None."""
    return next((voter for voter in voters if voter.node == node), None)


def rank(voters: tuple[Voter, ...], slot: int, node: PeerId) -> int:
    """Return the node's place in the order of preference to propose `slot`; 0 is the preferred proposer."""
    prefix = b"%d/" % slot
    order = sorted((digest(prefix + voter.node.encode()), voter.node) for voter in voters)
    return next((place for place, (_, name) in enumerate(order) if name == node), len(order))


def certificate_problem(
    verifier: Verifier, mesh: bytes, voters: tuple[Voter, ...], certificate: QuorumCertificate, decided: Digest
) -> str:
    """Return why a certificate does not prove that `voters` decided `decided`, or "" when it does."""
    if certificate.digest != decided:
        return "the certificate is for another decision"
    if certificate.voters_digest != voters_digest(voters):
        return "the certificate counts other voters"
    signers = [Voter(vote.node, vote.store_id) for vote in certificate.votes]
    if len(signers) > len(voters) or len(set(signers)) != len(signers):
        return "the certificate counts a voter twice"
    if any(signer not in voters for signer in signers):
        return "the certificate counts one who is no voter"
    if len(signers) < majority(len(voters)):
        return f"{len(signers)} votes are no majority of {len(voters)}"
    if not all(statement_holds(verifier, mesh, vote) for vote in certificate.statements()):
        return "a vote's signature does not verify"
    return ""
