"""What a voter's store signs in one slot of the decision chain: ballots, promises, votes and proposals.

A statement is verified by rebuilding the signed bytes from the values the receiver itself will use, so a signature can
never cover something else than what is acted upon. Every statement carries the store's counter, which only rises: a
store restored from an old copy gives itself away (witness.py). Not here: who may make a statement, and what follows.

Source: L. Lamport, "Paxos Made Simple" (2001), section 2.2, one instance per slot.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from protocols.envelope import encode, signing_bytes
from protocols.keys import public_key_of
from protocols.machine import Digest, PeerId, Signer, Verifier

STORE_ID_BYTES = 16
BOOT_NONCE_BYTES = 8
ROUND_MAX = 1 << 48
"""No honest proposer counts this far in one slot; a larger round would only serve to exhaust the numbers."""

_KEYS_MAX = 4096
_keys: dict[PeerId, bytes] = {}


def key_of(node: PeerId) -> bytes:
    """Return the public key inside a peer id, remembered, because base58 is slow. Raises ValueError."""
    key = _keys.get(node)
    if key is None:
        if len(_keys) >= _KEYS_MAX:
            _keys.clear()
        key = _keys[node] = public_key_of(node)
    return key


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Orders the attempts on one slot: by round, then node; the boot nonce keeps two lives of a node apart."""

    round: int
    node: PeerId
    boot_nonce: bytes


NO_BALLOT = Ballot(0, PeerId(""), b"")
"""Below every ballot."""


class Promise(msgspec.Struct, frozen=True, array_like=True):
    """A store will accept nothing below `ballot`, and until now accepted `accepted_ballot` (or NO_BALLOT)."""

    node: PeerId
    store_id: bytes
    counter: int
    era: bytes
    slot: int
    ballot: Ballot
    accepted_ballot: Ballot
    accepted_digest: bytes
    signature: bytes = b""


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """A store accepted the decision `digest` at `ballot`, as one of the voters whose set has `voters_digest`."""

    node: PeerId
    store_id: bytes
    counter: int
    era: bytes
    slot: int
    ballot: Ballot
    digest: Digest
    voters_digest: Digest
    signature: bytes = b""


class Proposal(msgspec.Struct, frozen=True, array_like=True):
    """The ballot's owner proposes the decision `digest`; two digests at one ballot are proof of a lie."""

    store_id: bytes
    era: bytes
    slot: int
    ballot: Ballot
    digest: Digest
    signature: bytes = b""


Statement = Promise | Vote | Proposal
Grounds = tuple[tuple[Promise, ...], ...]
"""Rounds of promises that entitle a proposal, newest first (grounds.py)."""
StatementT = TypeVar("StatementT", Promise, Vote, Proposal)

_DOMAINS = {Promise: "freehold/promise/1", Vote: "freehold/vote/1", Proposal: "freehold/proposal/1"}


def statement_bytes(mesh: bytes, statement: Statement) -> bytes:
    """Return the bytes the statement's signature covers: its domain, the mesh and every field but the signature."""
    match statement:
        case Promise() as p:
            fields: tuple[object, ...] = (
                p.node, p.store_id, p.counter, p.era, p.slot, p.ballot, p.accepted_ballot, p.accepted_digest,
            )  # fmt: skip
        case Vote() as v:
            fields = (v.node, v.store_id, v.counter, v.era, v.slot, v.ballot, v.digest, v.voters_digest)
        case Proposal() as o:
            fields = (o.store_id, o.era, o.slot, o.ballot, o.digest)
    return signing_bytes(_DOMAINS[type(statement)], mesh, encode(fields))


def signer_of(statement: Statement) -> PeerId:
    """Return the node whose key must have signed the statement."""
    return statement.ballot.node if isinstance(statement, Proposal) else statement.node


def sign_statement(signer: Signer, mesh: bytes, statement: StatementT) -> StatementT:
    """Return the statement with its signature filled in."""
    return msgspec.structs.replace(statement, signature=signer.sign(statement_bytes(mesh, statement)))


def statement_holds(verifier: Verifier, mesh: bytes, statement: Statement) -> bool:
    """Return whether the statement is signed by the node it names."""
    try:
        key = key_of(signer_of(statement))
    except ValueError:
        return False
    return verifier.verify(key, statement_bytes(mesh, statement), statement.signature)
