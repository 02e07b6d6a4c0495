"""Signed bytes: the one place where Freehold encodes, decodes, signs and verifies.

Wire values are frozen, tagged msgspec Structs encoded as MessagePack. Sign bytes, not objects: a receiver verifies the
payload bytes it was given and only then decodes them; nothing is ever encoded again in order to verify. Every signature
covers a domain tag, the mesh id and the payload, so one made for another purpose or mesh is worthless here.

Not here: who may sign what (trust.py), and the framing of messages on a stream.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

from protocols.machine import Digest, Signer, Verifier

MESSAGE_MAX_BYTES = 1 << 20
"""The largest encoded message between nodes: a catch-up batch or a trie level fits, a flood does not."""

SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32
DIGEST_BYTES = 32

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
_decoders_by_id: dict[int, tuple[Any, msgspec.msgpack.Decoder[Any]]] = {}
"""The same by the identity of the type, kept beside it: the hash of a large union is computed anew each time."""


class DecodeError(ValueError):
    """Bytes from outside are too long, not MessagePack, or not of the expected type; nothing was changed."""


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """Payload bytes and one Ed25519 signature over `signing_bytes(domain, mesh, payload)`.

    `key` is the signer's 32-byte public key; whether that key may say this is decided elsewhere.
    """

    payload: bytes
    key: bytes
    signature: bytes


def encode(value: Any) -> bytes:
    """Encode a Struct as MessagePack bytes; equal values give equal bytes (field order is the class's)."""
    return _encoder.encode(value)


def decode(data: bytes, kind: type[T] | Any, max_bytes: int = MESSAGE_MAX_BYTES) -> T:
    """Decode `data` as `kind` (a Struct or a union of tagged Structs); unknown fields pass, unknown tags do not.

    Raises DecodeError, naming what was wrong; it never echoes the data.
    """
    if len(data) > max_bytes:
        raise DecodeError(f"{len(data)} bytes where at most {max_bytes} are allowed")
    try:
        return _decoder_of(kind).decode(data)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(str(error)) from None


def _decoder_of(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    known = _decoders_by_id.get(id(kind))
    if known is not None:
        return known[1]
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
        _decoders_by_id[id(kind)] = kind, decoder
    return decoder


def digest(data: bytes) -> Digest:
    """Return the SHA-256 digest of `data`, 32 bytes."""
    return Digest(hashlib.sha256(data).digest())


def digest_of(value: Any) -> Digest:
    """Return the SHA-256 digest of a Struct's encoding."""
    return digest(encode(value))


def signing_bytes(domain: str, mesh: bytes, payload: bytes) -> bytes:
    """Return what a signature covers: length-prefixed domain tag, mesh id (32 bytes; empty in a genesis), payload.

    `domain` is a lower-case name with a version, for example "freehold/vote/1".
    """
    tag = domain.encode("ascii")
    return bytes((len(tag),)) + tag + bytes((len(mesh),)) + mesh + payload


def sign(signer: Signer, domain: str, mesh: bytes, value: Any) -> Signed:
    """Encode `value` and sign it for `domain` in `mesh`."""
    payload = encode(value)
    return Signed(payload, signer.public_key, signer.sign(signing_bytes(domain, mesh, payload)))


def verify(verifier: Verifier, domain: str, mesh: bytes, signed: Signed) -> bool:
    """Return whether the signature covers the payload for this domain and mesh; the payload is not decoded."""
    return (
        len(signed.key) == PUBLIC_KEY_BYTES
        and len(signed.signature) == SIGNATURE_BYTES
        and verifier.verify(signed.key, signing_bytes(domain, mesh, signed.payload), signed.signature)
    )


def open_signed(verifier: Verifier, domain: str, mesh: bytes, signed: Signed, kind: type[T] | Any) -> T:
    """Verify, then decode the payload as `kind`. Raises DecodeError if either fails."""
    if not verify(verifier, domain, mesh, signed):
        raise DecodeError(f"signature does not verify for {domain}")
    value: T = decode(signed.payload, kind)
    return value
