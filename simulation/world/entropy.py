"""Seeded randomness and fast signatures, the simulator's stand-ins for the operating system's and for Ed25519.

Each purpose draws from a stream of its own, named under the seed, so that removing one fault does not shift the draws
of everything else; that is what lets a failing seed be minimised. The signature is a keyed hash that only the
simulated key ring can check: outsiders inside the simulation cannot forge it, and it costs a microsecond. Nothing
here is secure.
"""

from __future__ import annotations

import hashlib
import random

SIGNATURE_BYTES = 64


def stream(seed: int, name: str) -> random.Random:
    """Return the random stream called `name` under `seed`; equal across processes and hash seeds."""
    return random.Random(f"{seed}/{name}")


class SeededEntropy:
    """The `Entropy` of one simulated host."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def random_bytes(self, count: int) -> bytes:
        """Return `count` bytes of the stream."""
        return self._source.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        """Return a float of the stream in [low, high)."""
        return self._source.uniform(low, high)


class KeyRing:
    """Makes signers and checks their signatures; one per world."""

    def __init__(self) -> None:
        self._secrets: dict[bytes, bytes] = {}

    def signer(self, name: str) -> RingSigner:
        """Return the signer called `name`; the same name gives the same key."""
        secret = hashlib.blake2b(name.encode(), digest_size=32, person=b"fh-sim-secret").digest()
        public_key = hashlib.blake2b(secret, digest_size=32, person=b"fh-sim-public").digest()
        self._secrets[public_key] = secret
        return RingSigner(public_key, secret)

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` was made over `message` by a signer of this ring."""
        secret = self._secrets.get(public_key)
        return secret is not None and _signature(secret, message) == signature

    def point(self, name: str) -> bytes:
        """Return the stand-in for a P-256 key of the signer called `name`: a name of the right size for its secret."""
        signer = self.signer(name)
        point = b"\x04" + signer.public_key + hashlib.blake2b(signer.public_key, digest_size=32).digest()
        self._secrets[point] = self._secrets[signer.public_key]
        return point

    def same(self, other: bytes, known: bytes) -> None:
        """Let `other` be another name of the key `known`."""
        self._secrets[other] = self._secrets[known]

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` was made over `message` by the signer of a point."""
        return self.verify(point, message, signature)


class RingSigner:
    """A `Signer` whose signatures a `KeyRing` can check."""

    def __init__(self, public_key: bytes, secret: bytes) -> None:
        self._public_key = public_key
        self._secret = secret

    @property
    def public_key(self) -> bytes:
        """The 32-byte public key."""
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte keyed hash of `message`."""
        return _signature(self._secret, message)


def _signature(secret: bytes, message: bytes) -> bytes:
    return hashlib.blake2b(message, key=secret, digest_size=SIGNATURE_BYTES).digest()
