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

VOTERS = tuple(sorted(Voter(peer_id(one.public_key), b"store-%010d" % at) for at, one in enumerate(SIGNERS)))

SIGNER_OF = {peer_id(one.public_key): one for one in SIGNERS}

BALLOT = Ballot(3, VOTERS[0].node, b"nonce---")


def vote(at: int = 0, **changes: Any) -> Vote:
    voter = VOTERS[at]
    made = Vote(voter.node, voter.store_id, 4, MESH, 1, BALLOT, digest(b"d"), voters_digest(VOTERS))
    return sign_statement(SIGNER_OF[voter.node], MESH, msgspec.structs.replace(made, **changes))


def promise(at: int = 0, **changes: Any) -> Promise:
    voter = VOTERS[at]
    made = Promise(voter.node, voter.store_id, 3, MESH, 1, BALLOT, NO_BALLOT, b"")
    return sign_statement(SIGNER_OF[voter.node], MESH, msgspec.structs.replace(made, **changes))


def proposal(at: int = 0, **changes: Any) -> Proposal:
    made = msgspec.structs.replace(Proposal(VOTERS[at].store_id, MESH, 1, BALLOT, digest(b"d")), **changes)
    return sign_statement(SIGNER_OF[made.ballot.node], MESH, made)


HIGHER = Ballot(9, VOTERS[1].node, b"nonce---")
