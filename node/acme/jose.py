"""Signed requests of ACME: JWS in the one form that RFC 8555 allows (flattened JSON), by ES256 keys made from the node's seed.

No key lies on disk: an account's is derived from the seed, so that a node that lost everything but its key has its account
still, and a certificate's from the seed and a nonce, so that an order outlives a crash without a key in a file. Not here:
what is said in a request (client.py).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CURVE: Final = ec.SECP256R1()
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_DERIVED_BYTES: Final = 48
"""16 more than a scalar has, so that reducing it modulo the order leaves no bias (FIPS 186-5, A.2.1)."""

AcmeKey = ec.EllipticCurvePrivateKey


def derive_key(seed: bytes, purpose: str, salt: bytes) -> AcmeKey:
    """Return the P-256 key of a node for one purpose, from the 32-byte seed of its own key."""
    info = b"freehold/acme/1\0" + purpose.encode()
    secret = HKDF(hashes.SHA256(), _DERIVED_BYTES, salt=salt, info=info).derive(seed)
    return ec.derive_private_key(int.from_bytes(secret) % (_ORDER - 1) + 1, CURVE)


def base64url(data: bytes) -> str:
    """Encode as RFC 7515 does: URL-safe, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def public_jwk(key: AcmeKey) -> dict[str, str]:
    """Return the public key as a JWK, its members in the order of their thumbprint (RFC 7638)."""
    numbers = key.public_key().public_numbers()
    return {
        "crv": "P-256", "kty": "EC", "x": base64url(numbers.x.to_bytes(32)), "y": base64url(numbers.y.to_bytes(32)),
    }  # fmt: skip


def thumbprint(key: AcmeKey) -> str:
    """Return the JWK thumbprint (RFC 7638, SHA-256), which names an account in its answers to challenges."""
    return base64url(hashlib.sha256(msgspec.json.encode(public_jwk(key))).digest())


def signed_request(key: AcmeKey, header: Mapping[str, Any], payload: Mapping[str, Any] | None) -> bytes:
    """Return the body of one request; no payload at all is a POST-as-GET (RFC 8555, 6.3)."""
    protected = base64url(msgspec.json.encode({"alg": "ES256", **header}))
    content = base64url(msgspec.json.encode(payload)) if payload is not None else ""
    r, s = decode_dss_signature(key.sign(f"{protected}.{content}".encode("ascii"), ec.ECDSA(hashes.SHA256())))
    signature = base64url(r.to_bytes(32) + s.to_bytes(32))
    return msgspec.json.encode({"protected": protected, "payload": content, "signature": signature})


def key_pem(key: AcmeKey) -> bytes:
    """Return a key as PKCS#8 in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
