"""Invites: one pasteable line that lets one new key in, and the signed trail that admitting it leaves.

`fh1.` and base64url hold an ephemeral private key, an admin-signed body that says what the invite is worth, and
addresses with pins. The joiner makes its own key and signs it with the invite key, so nothing lasting is in the line.
The admitting member countersigns with the time and the number of the use; invite, join request and admission travel
together as a `Bundle`, which anybody can check offline. Not here: which uses are spent (trust.py), the network
(joining.py, hello.py). Precedent: the join tokens of kubeadm and SPIRE, with a key in place of a shared secret.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from protocols.envelope import (
    PUBLIC_KEY_BYTES,
    DecodeError,
    Signed,
    decode,
    digest,
    encode,
    open_signed,
    sign,
)
from protocols.machine import Digest, Signer, Verifier
from protocols.refusal import Refusal
from protocols.trust.certificates import DAY_MS, Labels, NodeRole, valid_labels
from protocols.trust.grants import GRANT_DOMAIN, Grant

INVITE_DOMAIN = "freehold/invite/1"
JOIN_DOMAIN = "freehold/join/1"
ADMISSION_DOMAIN = "freehold/admission/1"

LINE_PREFIX = "fh1."
LINE_CHARACTERS_MAX = 8 * 1024
"""A line that does not fit a terminal's paste buffer is not a line; a usual one has about 600 characters."""

CHECKSUM_BYTES = 4
INVITE_LIFETIME_MAX_MS = DAY_MS
USES_MAX = 32
"""As many as the first release has nodes."""

ADDRESSES_MAX = 16
NAME_CHARACTERS_MAX = 64
BUNDLE_MAX_BYTES = 14 * 1024
"""Fits the body of one record."""


class Invite(msgspec.Struct, frozen=True, tag="invite"):
    """What an admin signed: `uses` keys of this kind may join with `invite_key` until `expires_ms` (wall, <= 24 h).

    A node gets `roles` and `labels`. A principal gets `grant`: a grant to the invite key with the same number of uses.
    """

    mesh: bytes
    invite_key: bytes
    kind: Literal["node", "principal"]
    roles: tuple[NodeRole, ...]
    labels: Labels
    uses: int
    issued_ms: int
    expires_ms: int
    grant: Signed | None = None


class JoinRequest(msgspec.Struct, frozen=True, tag="join"):
    """The joiner's own new key, signed with the invite key; a principal adds its grant, signed with it too."""

    key: bytes
    name: str
    nonce: bytes
    grant: Signed | None = None


class Admission(msgspec.Struct, frozen=True, tag="admission"):
    """A member's countersignature: this join took use `use_index` (from 0) of this invite at `at_ms` of its clock.

    `serial` comes from the same count as the certificates the member signs.
    """

    invite: bytes
    join: bytes
    key: bytes
    use_index: int
    serial: int
    at_ms: int


class Bundle(msgspec.Struct, frozen=True, tag="bundle"):
    """The whole trail of one admission, each part signed by its own author."""

    invite: Signed
    join: Signed
    admission: Signed


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where to knock, and the peer id (node) or certificate digest in hex (HTTPS) that must answer."""

    address: str
    pin: str


class _Line(msgspec.Struct, frozen=True, array_like=True):
    seed: bytes
    invite: Signed
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class InviteLine:
    """A parsed line: the ephemeral private seed, the signed invite with its still unproven content, addresses."""

    seed: bytes
    signed: Signed
    invite: Invite
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """The checked content of a bundle; `invite_id` is the digest of the invite's payload."""

    invite_id: Digest
    invite: Invite
    join: JoinRequest
    admission: Admission
    admitted_by: bytes


def write_line(seed: bytes, signed: Signed, addresses: tuple[Address, ...]) -> str:
    """Return the pasteable line; its last bytes are a checksum against a cut or mistyped paste."""
    data = encode(_Line(seed, signed, addresses))
    return LINE_PREFIX + base64.urlsafe_b64encode(data + digest(data)[:CHECKSUM_BYTES]).decode().rstrip("=")


def read_line(line: str) -> InviteLine:
    """Parse a pasted line. Raises DecodeError with what to do about it; proves nothing (the admitting member does)."""
    text = "".join(line.split())
    if not text.startswith(LINE_PREFIX):
        raise DecodeError(
            f"an invite starts with {LINE_PREFIX}; paste the whole line that `freehold mesh invite` printed"
        )
    if len(text) > LINE_CHARACTERS_MAX:
        raise DecodeError("the invite line is too long")
    body = text[len(LINE_PREFIX) :]
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise DecodeError("the invite line has a letter it cannot have; copy it again") from None
    data, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
    if digest(data)[:CHECKSUM_BYTES] != checksum:
        raise DecodeError("the invite line is incomplete or mistyped; copy it again")
    parts: _Line = decode(data, _Line, LINE_CHARACTERS_MAX)
    if len(parts.seed) != PUBLIC_KEY_BYTES or len(parts.addresses) > ADDRESSES_MAX:
        raise DecodeError("the invite line is malformed; ask for a new one")
    invite: Invite = decode(parts.invite.payload, Invite, BUNDLE_MAX_BYTES)
    return InviteLine(parts.seed, parts.invite, invite, parts.addresses)


def make_invite(signer: Signer, invite: Invite) -> Signed:
    """Sign an invite with an admin key."""
    return sign(signer, INVITE_DOMAIN, invite.mesh, invite)


def make_join(invite_signer: Signer, mesh: bytes, join: JoinRequest) -> Signed:
    """Sign a join request with the invite's ephemeral key."""
    return sign(invite_signer, JOIN_DOMAIN, mesh, join)


def open_invite(verifier: Verifier, mesh: bytes, admins: Sequence[bytes], signed: Signed) -> Invite | Refusal:
    """Check that an admin of this mesh signed a well-formed invite; expiry is judged by the caller."""
    if signed.key not in admins:
        return Refusal("invite.not-by-admin", "the invite is not signed by an admin of this mesh")
    try:
        invite: Invite = open_signed(verifier, INVITE_DOMAIN, mesh, signed, Invite)
    except DecodeError as error:
        return Refusal("invite.malformed", str(error))
    sound = (
        invite.mesh == mesh
        and len(invite.invite_key) == PUBLIC_KEY_BYTES
        and 0 < invite.uses <= USES_MAX
        and 0 < invite.expires_ms - invite.issued_ms <= INVITE_LIFETIME_MAX_MS
        and valid_labels(invite.labels)
        and (invite.grant is not None) == (invite.kind == "principal")
    )
    return invite if sound else Refusal("invite.malformed", "the invite breaks a limit or is for another mesh")


def open_join(verifier: Verifier, mesh: bytes, invite: Invite, signed: Signed) -> JoinRequest | Refusal:
    """Check that the invite's key signed a join request of the right kind."""
    if signed.key != invite.invite_key:
        return Refusal("invite.join-key", "the join request is not signed with the invite's key")
    try:
        join: JoinRequest = open_signed(verifier, JOIN_DOMAIN, mesh, signed, JoinRequest)
    except DecodeError as error:
        return Refusal("invite.malformed", str(error))
    if len(join.key) != PUBLIC_KEY_BYTES or len(join.name) > NAME_CHARACTERS_MAX:
        return Refusal("invite.malformed", "the joiner's key or name has the wrong length")
    if (join.grant is not None) != (invite.kind == "principal"):
        return Refusal("invite.kind", f"the invite is for a {invite.kind}")
    if join.grant is not None:
        return _grant_problem(verifier, mesh, invite, join) or join
    return join


def _grant_problem(verifier: Verifier, mesh: bytes, invite: Invite, join: JoinRequest) -> Refusal | None:
    assert invite.grant is not None
    assert join.grant is not None
    try:
        grant: Grant = open_signed(verifier, GRANT_DOMAIN, mesh, invite.grant, Grant)
        taken: Grant = open_signed(verifier, GRANT_DOMAIN, mesh, join.grant, Grant)
    except DecodeError as error:
        return Refusal("invite.malformed", str(error))
    bound = (
        grant.key == invite.invite_key
        and grant.invite_uses == invite.uses
        and join.grant.key == invite.invite_key
        and taken.key == join.key
        and taken.parent == digest(invite.grant.payload)
    )
    return None if bound else Refusal("invite.grant", "the grants do not lead from the invite to the joiner's key")


def open_bundle(verifier: Verifier, mesh: bytes, admins: Sequence[bytes], bundle: Bundle) -> OpenedBundle | Refusal:
    """Check a whole admission trail; whether the countersigner is a member is the trust store's question."""
    invite = open_invite(verifier, mesh, admins, bundle.invite)
    if isinstance(invite, Refusal):
        return invite
    join = open_join(verifier, mesh, invite, bundle.join)
    if isinstance(join, Refusal):
        return join
    try:
        admission: Admission = open_signed(verifier, ADMISSION_DOMAIN, mesh, bundle.admission, Admission)
    except DecodeError as error:
        return Refusal("invite.malformed", str(error))
    invite_id = digest(bundle.invite.payload)
    if (admission.invite, admission.join, admission.key) != (invite_id, digest(bundle.join.payload), join.key):
        return Refusal("invite.other-admission", "the admission is for another invite, join request or key")
    if not 0 <= admission.use_index < invite.uses:
        return Refusal("invite.use-index", f"the invite has {invite.uses} uses, numbered from 0")
    if admission.at_ms >= invite.expires_ms:
        return Refusal("invite.expired", "the invite had expired when it was used")
    return OpenedBundle(invite_id, invite, join, admission, bundle.admission.key)


def countersign(
    signer: Signer, mesh: bytes, invite: Signed, join: Signed, *, key: bytes, use_index: int, serial: int, wall_ms: int
) -> Bundle:
    """Admit `key` as use `use_index` of the invite; the caller checked everything and writes it down first."""
    admission = Admission(digest(invite.payload), digest(join.payload), key, use_index, serial, wall_ms)
    return Bundle(invite, join, sign(signer, ADMISSION_DOMAIN, mesh, admission))
