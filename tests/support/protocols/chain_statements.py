"""Voters, ballots and statements of a mesh that is only named, for the parts of the chain."""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.chain.ballots import (
    NO_BALLOT,
    Ballot,
    Promise,
    Proposal,
    Vote,
    sign_statement,
)
from protocols.chain.decision import (
    Voter,
    voters_digest,
)
from protocols.envelope import digest
from protocols.keys import peer_id
from simulation.world.entropy import KeyRing

MESH = bytes(digest(b"parts"))

RING = KeyRing()

SIGNERS = [RING.signer(f"v{index}") for index in range(7)]

VOTERS = tuple(
    sorted(Voter(peer_id(signer.public_key), b"store-%010d" % index) for index, signer in enumerate(SIGNERS))
)

SIGNER_OF = {peer_id(signer.public_key): signer for signer in SIGNERS}

BALLOT = Ballot(3, VOTERS[0].node, b"nonce---")


def vote(at: int = 0, **changes: Any) -> Vote:
    voter = VOTERS[at]
    new_vote = Vote(voter.node, voter.store_id, 4, MESH, 1, BALLOT, digest(b"d"), voters_digest(VOTERS))
    return sign_statement(SIGNER_OF[voter.node], MESH, msgspec.structs.replace(new_vote, **changes))


def promise(at: int = 0, **changes: Any) -> Promise:
    voter = VOTERS[at]
    new_promise = Promise(voter.node, voter.store_id, 3, MESH, 1, BALLOT, NO_BALLOT, b"")
    return sign_statement(SIGNER_OF[voter.node], MESH, msgspec.structs.replace(new_promise, **changes))


def proposal(at: int = 0, **changes: Any) -> Proposal:
    new_proposal = msgspec.structs.replace(Proposal(VOTERS[at].store_id, MESH, 1, BALLOT, digest(b"d")), **changes)
    return sign_statement(SIGNER_OF[new_proposal.ballot.node], MESH, new_proposal)


HIGHER = Ballot(9, VOTERS[1].node, b"nonce---")
