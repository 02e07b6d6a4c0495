"""Passkeys of people in tests: P-256 keys from seeds, on `cryptography`, in an authenticator in software."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from simulation.world.authenticator import Authenticator
from tests.support.protocols.trust_world import signer


def curve_key(name: str, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """The key called `name`; the same name gives the same key."""
    return ec.derive_private_key(
        int.from_bytes(hashlib.sha256(name.encode()).digest()[1:], "big"), curve or ec.SECP256R1()
    )


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Its uncompressed point."""
    kind = serialization.PublicFormat.UncompressedPoint
    return key.public_key().public_bytes(serialization.Encoding.X962, kind)


def authenticator(
    person: str, name: str = "phone", curve: ec.EllipticCurve | None = None, **fields: Any
) -> Authenticator:
    """The authenticator of a person, with one passkey called `name`."""
    key = curve_key(f"{person} {name}", curve)
    return Authenticator(
        signer(person).public_key, point_of(key), lambda data: key.sign(data, ec.ECDSA(hashes.SHA256())), **fields
    )
