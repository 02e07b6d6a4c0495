"""What libp2p puts inside the Noise handshake: who the peer is, proved, and which muxers it speaks.

The identity key signs the Noise static key, so whoever finishes the handshake holds that identity's private key.
One static key and one signature serve all connections of a process; the ephemeral keys are what gives each connection
its secrecy. Not here: the handshake itself. Unknown extensions are tolerated.
Source: libp2p specs, noise/README.md and connections/inlined-muxer-negotiation.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocols import keys
from protocols.libp2p import peer_id, protobuf
from protocols.libp2p.errors import RemoteProtocolError
from protocols.machine import Entropy, PeerId, Signer, Verifier

PAYLOAD_MAX_BYTES = 2048
"""Key, signature and a few muxer names take under 300 bytes; a peer is not authenticated yet when it sends this."""

MUXERS_MAX = 16
"""Muxer names read from a payload; two exist."""

_SIGNED_PREFIX = b"noise-libp2p-static-key:"
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """This node to its peers: its id, its Noise static key and the signed payload that ties them together."""

    peer: PeerId
    static_private: bytes = field(repr=False)
    payload: bytes
    muxers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoteIdentity:
    """A verified peer: the static key of the handshake was signed by this identity."""

    peer: PeerId
    muxers: tuple[str, ...]


def make_identity(signer: Signer, entropy: Entropy, muxers: tuple[str, ...]) -> Identity:
    """Return a fresh static key signed by `signer`, with the muxers to advertise in order of preference."""
    private = entropy.random_bytes(32)
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    extensions = protobuf.encode((2, name.encode()) for name in muxers)
    payload = protobuf.encode(
        [
            (1, peer_id.encode_public_key(signer.public_key)),
            (2, signer.sign(_SIGNED_PREFIX + public)),
            (4, extensions),
        ]
    )
    return Identity(keys.peer_id(signer.public_key), private, payload, muxers)


def verify_payload(payload: bytes, remote_static: bytes, verifier: Verifier) -> RemoteIdentity:
    """Return who sent `payload`; RemoteProtocolError if the signature does not cover `remote_static`."""
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise RemoteProtocolError("noise.payload-length", f"{len(payload)} bytes, over {PAYLOAD_MAX_BYTES}")
    fields = protobuf.decode(payload)
    key_message, signature = protobuf.last_bytes(fields, 1), protobuf.last_bytes(fields, 2)
    if key_message is None or signature is None or len(signature) != _SIGNATURE_BYTES:
        raise RemoteProtocolError("noise.payload", "identity key or signature is missing")
    public_key = peer_id.decode_public_key(key_message)
    if not verifier.verify(public_key, _SIGNED_PREFIX + remote_static, signature):
        raise RemoteProtocolError("noise.identity", "the identity key did not sign this static key")
    extensions = protobuf.decode(protobuf.last_bytes(fields, 4) or b"")
    names = protobuf.all_bytes(extensions, 2)[:MUXERS_MAX]
    return RemoteIdentity(keys.peer_id(public_key), tuple(name.decode("ascii", "replace") for name in names))
