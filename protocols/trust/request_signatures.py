"""HTTP requests signed with a principal's key: what is covered, and how it is written (RFC 9421, RFC 9530).

Method, target, the body's digest and the node it is for are covered, with the time, a nonce and the key, so that a request
is good once, for a moment, at one node, and nowhere else. Not here: what else a node accepts, and checking node, time and
nonce (node/api/callers/).
"""

from __future__ import annotations

import base64
import hashlib

from protocols.machine import Signer

NODE_FIELD = "Freehold-Node"
"""The field that names the node a request is for: its id, or the hex SHA-256 of the certificate it answers with."""


def content_digest(body: bytes) -> str:
    """The Content-Digest field of a body (RFC 9530, section 2)."""
    return digest_field(hashlib.sha256(body).digest())


def digest_field(digest: bytes) -> str:
    """The Content-Digest field of a body with this SHA-256."""
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def sign_request(
    signer: Signer,
    method: str,
    target: str,
    body: bytes,
    *,
    created_s: int,
    nonce: str,
    node: str = "",
    digest: bytes | None = None,
) -> dict[str, str]:
    """Return the header fields that sign one request; `target` is the absolute URI, `nonce` 16 to 64 of [A-Za-z0-9_-].

    `node` names the node it is for (NODE_FIELD); only on a Unix socket, which leads to one node, may it be left out.
    `digest` is the body's SHA-256 where the body itself is not at hand.
    """
    covered = {
        "@method": method,
        "@target-uri": target,
        "content-digest": content_digest(body) if digest is None else digest_field(digest),
    }
    fields = {"Content-Digest": covered["content-digest"]}
    if node:
        covered[NODE_FIELD.lower()] = fields[NODE_FIELD] = node
    names = " ".join(f'"{name}"' for name in covered)
    parameters = f'({names});created={created_s};nonce="{nonce}";keyid="{signer.public_key.hex()}";alg="ed25519"'
    lines = [f'"{name}": {value}' for name, value in covered.items()]
    signature = signer.sign("\n".join((*lines, f'"@signature-params": {parameters}')).encode())
    return fields | {"Signature-Input": f"fh={parameters}", "Signature": f"fh=:{base64.b64encode(signature).decode()}:"}
