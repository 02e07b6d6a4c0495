"""An admin's word that a reset of the mesh was looked into: it ends the warning about it, and nothing else.

Nodes pass it on in what they say of themselves; no decision depends on it. Not here: where a node keeps it.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from protocols.envelope import Signed, open_signed, sign
from protocols.machine import Signer, Verifier
from protocols.refusal import Refusal

ACKNOWLEDGEMENT_DOMAIN = "freehold/acknowledgement/1"
NOTE_MAX = 200
PAPER_MAX_BYTES = 2 * 1024


class Acknowledgement(msgspec.Struct, frozen=True, tag="acknowledgement"):
    """The mesh was reset `resets` times, the last time into `era`, and the signer looked into it at `at_ms` (wall)."""

    resets: int
    era: bytes
    at_ms: int
    note: str = ""


def sign_acknowledgement(signer: Signer, mesh: bytes, said: Acknowledgement) -> Signed:
    """Sign one with an admin's key."""
    return sign(signer, ACKNOWLEDGEMENT_DOMAIN, mesh, said)


def read_acknowledgement(verifier: Verifier, mesh: bytes, signed: Signed) -> Acknowledgement:
    """Return what a paper says. Raises DecodeError if its signature is not its key's."""
    said: Acknowledgement = open_signed(verifier, ACKNOWLEDGEMENT_DOMAIN, mesh, signed, Acknowledgement)
    return said


def acknowledgement_problem(
    said: Acknowledgement, key: bytes, *, admins: Collection[bytes], resets: int, era: bytes
) -> Refusal | None:
    """Why a paper does not speak of the newest reset, or its signer may not; None if it does and may."""
    if key not in admins:
        return Refusal("acknowledgement.admin", "the key that signed it is no admin's")
    if not resets:
        return Refusal("acknowledgement.none", "this mesh was never reset")
    if (said.resets, said.era) != (resets, era):
        return Refusal("acknowledgement.other", "it speaks of another reset than the newest")
    if len(said.note) > NOTE_MAX:
        return Refusal("acknowledgement.note", f"a note has at most {NOTE_MAX} characters")
    return None
