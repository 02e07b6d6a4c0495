"""What admins sign to have one node do something with a lane's data: hand a copy out, take one in, hold it still.

A mandate is for one node, good for minutes and used once. As many admins sign it as the mesh asks for. It is no command:
nothing is decided by it, since the node that holds the data alone can do it. Not here: what is done
(node/serving/data_custody.py), and moves, which are decided.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocols.envelope import DecodeError, decode
from protocols.machine import Digest, PeerId, Signer, Verifier
from protocols.refusal import Refusal
from protocols.trust.cosigning import Cosigned, begin_cosigning, require_admins

MANDATE_DOMAIN = "freehold/data-mandate/1"
MANDATE_MAX_BYTES = 4_096
MANDATE_LIFETIME_MS = 900_000
"""How old it may be by the node's clock: it goes from admin to admin, where several sign it."""

MANDATE_AHEAD_MS = 1_000
"""How far it may be dated ahead, as a signed request may: one from before a restart is then known by its date."""

NONCE_BYTES = 16
Act = Literal["export", "import", "freeze", "thaw", "standby"]


class DataMandate(msgspec.Struct, frozen=True, tag="data_mandate"):
    """One act on the data of a project in an environment, by the node that holds it.

    `listing` is the SHA-256 of what is to be imported, as the API takes it; `replace` allows that something is there.
    `target` is the node that is to be a standby ("": none is), which stays so until another mandate says otherwise.
    """

    act: Act
    project: str
    environment: str
    node: PeerId
    nonce: bytes
    at_ms: int
    listing: bytes = b""
    replace: bool = False
    target: str = ""


def sign_mandate(signer: Signer, mesh: Digest, mandate: DataMandate) -> Cosigned:
    """Sign a mandate with an admin's key, as the first."""
    return begin_cosigning(signer, MANDATE_DOMAIN, mesh, mandate)


def open_mandate(
    data: bytes, verifier: Verifier, mesh: Digest, admins: tuple[bytes, ...], threshold: int
) -> DataMandate | Refusal:
    """Return what the admins signed at any time, or why it does not count."""
    try:
        signed: Cosigned = decode(data, Cosigned, MANDATE_MAX_BYTES)
        mandate: DataMandate = decode(signed.payload, DataMandate, MANDATE_MAX_BYTES)
    except DecodeError as error:
        return Refusal("data.malformed", f"the mandate cannot be read: {error}")
    try:
        require_admins(verifier, MANDATE_DOMAIN, mesh, signed, admins, threshold)
    except DecodeError as error:
        return Refusal("command.not-allowed", f"admins of the mesh sign what is done with data: {error}")
    return mandate


def read_mandate(
    data: bytes, verifier: Verifier, mesh: Digest, admins: tuple[bytes, ...], threshold: int, now_ms: int
) -> DataMandate | Refusal:
    """Return what the admins signed, or why it does not count now."""
    mandate = open_mandate(data, verifier, mesh, admins, threshold)
    if isinstance(mandate, Refusal):
        return mandate
    if len(mandate.nonce) != NONCE_BYTES:
        return Refusal("data.malformed", f"a mandate's nonce has {NONCE_BYTES} bytes")
    if not -MANDATE_AHEAD_MS <= now_ms - mandate.at_ms <= MANDATE_LIFETIME_MS:
        return Refusal("data.expired", "the mandate is not of these minutes; check both clocks and sign it again")
    return mandate
