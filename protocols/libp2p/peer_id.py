"""Peer ids in their binary form, and the public key message inside: identity multihash of an Ed25519 key.

The text form ("12D3Koo...", base58btc) is made in `protocols.keys`; here it is only checked to be the one canonical
spelling. The key can be read back out of an id, so nothing needs a table from ids to keys. Not here: RSA, secp256k1
and ECDSA keys and CIDv1 text: every node of a mesh has an Ed25519 key, and a peer with another kind is refused by name.
Source: libp2p specs, peer-ids/peer-ids.md.
"""

from __future__ import annotations

from protocols import keys
from protocols.libp2p import protobuf
from protocols.libp2p.errors import RemoteProtocolError
from protocols.machine import PeerId

ED25519_KEY_BYTES = 32
PEER_ID_BYTES = 38
"""Multihash code 0, length 36, then the 36-byte public key message."""

_ED25519 = 1
_IDENTITY_HASH = bytes((0, PEER_ID_BYTES - 2))


def encode_public_key(key: bytes) -> bytes:
    """Return the libp2p `PublicKey` message (36 bytes) of a 32-byte Ed25519 key."""
    return protobuf.encode([(1, _ED25519), (2, key)])


def decode_public_key(message: bytes) -> bytes:
    """Return the 32-byte Ed25519 key in a `PublicKey` message; RemoteProtocolError for any other kind or length."""
    fields = protobuf.decode(message)
    key_type, key = protobuf.last_int(fields, 1), protobuf.last_bytes(fields, 2)
    if key_type != _ED25519:
        raise RemoteProtocolError("peer-id.key-type", f"type {key_type}; only Ed25519 (1) is spoken")
    if key is None or len(key) != ED25519_KEY_BYTES:
        raise RemoteProtocolError("peer-id.key-length")
    return key


def from_bytes(data: bytes) -> PeerId:
    """Return the peer id with the binary form `data`; RemoteProtocolError unless it holds an Ed25519 key."""
    if len(data) != PEER_ID_BYTES or not data.startswith(_IDENTITY_HASH):
        raise RemoteProtocolError("peer-id.multihash", "not the identity hash of a 36-byte key")
    key = decode_public_key(data[2:])
    if encode_public_key(key) != data[2:]:
        raise RemoteProtocolError("peer-id.not-canonical")
    return keys.peer_id(key)


def to_bytes(peer: PeerId) -> bytes:
    """Return the 38-byte binary form of a checked peer id."""
    return _IDENTITY_HASH + encode_public_key(keys.public_key_of(peer))


def parse(text: str) -> PeerId:
    """Return `text` as a peer id; RemoteProtocolError unless it is the canonical text of an Ed25519 one."""
    try:
        peer = keys.peer_id(keys.public_key_of(PeerId(text)))
    except ValueError as error:
        raise RemoteProtocolError("peer-id.text", str(error)) from None
    if peer != text:
        raise RemoteProtocolError("peer-id.not-canonical")
    return peer
