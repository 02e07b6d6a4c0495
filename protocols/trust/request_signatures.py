"""HTTP requests signed with a principal's key: what is covered, and how it is written (RFC 9421, RFC 9530).

Method, target and the body's digest are covered, with the time, a nonce and the key, so that a request is good once, for
a moment, and nowhere else. Client and server share this. Not here: checking time and nonce (node/api/callers.py).
"""

from __future__ import annotations

import base64
import hashlib

from protocols.machine import Signer

COVERED = '("@method" "@target-uri" "content-digest")'
"""The only set of covered components that is accepted; anything less could be replayed elsewhere."""


def content_digest(body: bytes) -> str:
    """The Content-Digest field of a body (RFC 9530, section 2)."""
    return digest_field(hashlib.sha256(body).digest())


def digest_field(digest: bytes) -> str:
    """The Content-Digest field of a body with this SHA-256."""
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def signature_base(method: str, target: str, covered: str, parameters: str) -> bytes:
    """What a request's signature covers (RFC 9421, section 2.5)."""
    lines = (
        f'"@method": {method}',
        f'"@target-uri": {target}',
        f'"content-digest": {covered}',
        f'"@signature-params": {parameters}',
    )
    return "\n".join(lines).encode()


def sign_request(
    signer: Signer, method: str, target: str, body: bytes, *, created_s: int, nonce: str
) -> dict[str, str]:
    """Return the header fields that sign one request; `target` is the absolute URI, `nonce` 16 to 64 of [A-Za-z0-9_-]."""
    parameters = f'{COVERED};created={created_s};nonce="{nonce}";keyid="{signer.public_key.hex()}";alg="ed25519"'
    covered = content_digest(body)
    signature = signer.sign(signature_base(method, target, covered, parameters))
    return {
        "Content-Digest": covered,
        "Signature-Input": f"fh={parameters}",
        "Signature": f"fh=:{base64.b64encode(signature).decode()}:",
    }
