"""Ed25519 keys and their names: signer and verifier on `cryptography`, and the libp2p peer id of a public key.

The fast test signer of the simulator lives in simulation/, not here. Key generation takes its seed as an argument, from
an injected Entropy; key files belong to node/. Sources: RFC 8032; libp2p specs, peer-ids (identity multihash of the
protobuf-encoded public key, base58btc).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocols.machine import PeerId, Verifier

SEED_BYTES = 32
GOOD_MAX = 4_096
"""Signatures that a RememberingVerifier knows again: the grants of all principals of a large mesh, several times."""

NAMES_MAX = 4096
"""Names kept in both directions: base58 costs 70 us, and a mesh speaks of the same few keys all day."""

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUE = {letter: value for value, letter in enumerate(_BASE58)}
_PEER_ID_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash (0x00), 36 bytes (0x24), protobuf: type Ed25519 (08 01), data of 32 bytes (12 20)."""
_PEER_ID_TEXT_MAX = 64


class Ed25519Signer:
    """A Signer that holds a private key in memory (RFC 8032)."""

    def __init__(self, seed: bytes) -> None:
        """Take the 32-byte private seed. Raises ValueError on any other length."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public_key = self._key.public_key().public_bytes_raw()

    @property
    def public_key(self) -> bytes:
        """The 32-byte public key."""
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over `message`."""
        return self._key.sign(message)


class Ed25519Verifier:
    """A Verifier on `cryptography` (RFC 8032)."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether the signature is good; malformed keys and signatures are simply not."""
        try:
            _public_key(public_key).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether the signature of a passkey is good; a point that is not on P-256 has none."""
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True


class RememberingVerifier:
    """A Verifier for papers that are looked at again and again: it checks each good signature once.

    What a signature covers does not change, so nothing makes it bad later; the oldest of GOOD_MAX is checked anew.
    """

    def __init__(self, verifier: Verifier) -> None:
        """Take what checks."""
        self._verifier = verifier
        self._good: dict[tuple[bytes, bytes, bytes], None] = {}

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether the signature is good."""
        name = public_key, signature, hashlib.sha256(message).digest()
        if name in self._good:
            return True
        if not self._verifier.verify(public_key, message, signature):
            return False
        self._good[name] = None
        if len(self._good) > GOOD_MAX:
            del self._good[next(iter(self._good))]
        return True

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether the signature of a passkey is good."""
        return self._verifier.verify_es256(point, message, signature)


@lru_cache(NAMES_MAX)
def _public_key(data: bytes) -> Ed25519PublicKey:
    """Return a parsed key; the same few sign nearly everything. Raises ValueError on any other length."""
    return Ed25519PublicKey.from_public_bytes(data)


@lru_cache(NAMES_MAX)
def peer_id(public_key: bytes) -> PeerId:
    """Return the libp2p peer id ("12D3Koo...") of a 32-byte Ed25519 public key."""
    assert len(public_key) == 32
    number = int.from_bytes(_PEER_ID_PREFIX + public_key, "big")
    letters = []
    while number:
        number, rest = divmod(number, 58)
        letters.append(_BASE58[rest])
    return PeerId("1" + "".join(reversed(letters)))


@lru_cache(NAMES_MAX)
def public_key_of(peer: PeerId) -> bytes:
    """Return the 32-byte public key inside a peer id. Raises ValueError if it is not an Ed25519 peer id."""
    # Exactly one leading "1" (one zero byte): a second would be another spelling of the same key, hence another peer.
    if not 2 <= len(peer) <= _PEER_ID_TEXT_MAX or peer[0] != "1" or peer[1] == "1":
        raise ValueError("not an Ed25519 peer id: expected base58 text that starts with 12D3Koo")
    number = 0
    for letter in peer:
        value = _BASE58_VALUE.get(letter)
        if value is None:
            raise ValueError("not an Ed25519 peer id: a letter outside the base58 alphabet")
        number = number * 58 + value
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    if len(data) != 37 or not (b"\x00" + data).startswith(_PEER_ID_PREFIX):
        raise ValueError("not an Ed25519 peer id: wrong multihash")
    return data[5:]
