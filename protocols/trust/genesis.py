"""The genesis document: the one thing a mesh is named after, and the first trust anybody has in it.

Its bytes are hashed, never re-encoded: `mesh_id = SHA-256(genesis bytes)`, so whoever knows the id can check a genesis
from anywhere and needs no signature on it. It is immutable; admin keys, threshold, policy and voters change later by
decision (state/apply.py), which starts from the values here. Not here: the meaning of the policy bytes (policy.py).
"""

from __future__ import annotations

import msgspec

from protocols.envelope import PUBLIC_KEY_BYTES, DecodeError, decode, digest
from protocols.keys import public_key_of
from protocols.machine import Digest, PeerId

ADMINS_MAX = 16
"""More admin keys than a person can keep account of are a mistake, and the genesis travels in every welcome."""

NONCE_BYTES = 16
STORE_ID_BYTES = 16
NAME_CHARACTERS_MAX = 64
POLICY_MAX_BYTES = 8 * 1024
GENESIS_MAX_BYTES = 16 * 1024
"""Fits the 64 KiB that a connection may use before admission, beside a certificate chain."""


class Genesis(msgspec.Struct, frozen=True, tag="genesis"):
    """What the founder wrote down; see the module for what may change afterwards.

    `nonce` is 16 random bytes; `admins` are distinct 32-byte Ed25519 keys in ascending order, of which `threshold` must
    sign what the chain calls admin-threshold; `voter_node` and `voter_store` (16 bytes) are the first voter; `policy`
    is the encoded first policy of state/policy.py, opaque here; `created_ms` is the founder's wall clock.
    """

    name: str
    nonce: bytes
    admins: tuple[bytes, ...]
    threshold: int
    voter_node: PeerId
    voter_store: bytes
    policy: bytes
    created_ms: int


def mesh_id(genesis_bytes: bytes) -> Digest:
    """Return the mesh's id: the SHA-256 digest of the genesis as it was first encoded."""
    return digest(genesis_bytes)


def decode_genesis(genesis_bytes: bytes, expected: bytes | None = None) -> Genesis:
    """Decode and check a genesis; `expected` is the mesh id it must hash to, when known.

    Raises DecodeError naming the first rule that is broken.
    """
    if expected is not None and mesh_id(genesis_bytes) != expected:
        raise DecodeError("the genesis is of another mesh: its digest is not the mesh id")
    genesis: Genesis = decode(genesis_bytes, Genesis, GENESIS_MAX_BYTES)
    problem = _problem(genesis)
    if problem:
        raise DecodeError(f"genesis: {problem}")
    return genesis


def _problem(genesis: Genesis) -> str | None:
    if not 0 < len(genesis.name) <= NAME_CHARACTERS_MAX:
        return f"the name needs 1 to {NAME_CHARACTERS_MAX} characters"
    if len(genesis.nonce) != NONCE_BYTES:
        return f"the nonce is not {NONCE_BYTES} bytes"
    if not 0 < len(genesis.admins) <= ADMINS_MAX:
        return f"there must be 1 to {ADMINS_MAX} admin keys"
    if any(len(key) != PUBLIC_KEY_BYTES for key in genesis.admins):
        return f"an admin key is not {PUBLIC_KEY_BYTES} bytes"
    if any(first >= second for first, second in zip(genesis.admins, genesis.admins[1:], strict=False)):
        return "admin keys are not distinct and ascending"
    if not 0 < genesis.threshold <= len(genesis.admins):
        return "the threshold is not between 1 and the number of admin keys"
    if len(genesis.voter_store) != STORE_ID_BYTES:
        return f"the first voter's store id is not {STORE_ID_BYTES} bytes"
    if len(genesis.policy) > POLICY_MAX_BYTES:
        return f"the policy is over {POLICY_MAX_BYTES} bytes"
    try:
        public_key_of(genesis.voter_node)
    except ValueError as error:
        return f"the first voter: {error}"
    return None
