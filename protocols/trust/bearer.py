"""Bearer tokens: a text that stands for one narrow agent key in one mesh, for clients that cannot sign.

A token is 32 random bytes with the mesh's name. The key it stands for is derived one way, so that what the mesh keeps, a
grant to that key, tells nothing of the token. The grant is an agent's, of nothing but `view` and `propose`: voters
refuse whatever else is said in its name, whoever holds the token. A bearer's change is filed by the node it was shown to,
which therefore could say it, too; that is why a bearer starts nothing. Not here: where a node takes one (node/api).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from protocols.keys import Ed25519Signer
from protocols.trust.grants import Verb

PREFIX = "fht1"
SECRET_BYTES = 32
MESH_CHARS = 16
BEARER_VERBS: tuple[Verb, ...] = ("view", "propose")
"""All that a token's grant may hold."""

_FORM = re.compile(rf"{PREFIX}\.([0-9a-f]{{{MESH_CHARS}}})\.([A-Za-z0-9_-]{{43}})")
_PURPOSE = b"freehold/bearer/1"


def make_token(mesh: bytes, secret: bytes) -> str:
    """Return the token of 32 random bytes in a mesh."""
    assert len(secret) == SECRET_BYTES
    return f"{PREFIX}.{mesh.hex()[:MESH_CHARS]}.{base64.urlsafe_b64encode(secret).decode().rstrip('=')}"


def signer_of(token: str, mesh: bytes) -> Ed25519Signer | None:
    """Return the key that a token stands for in this mesh; None for one of another mesh or of another form.

    A token has one spelling: the last character has two bits that mean nothing, and must be zero.
    """
    answer = _FORM.fullmatch(token)
    if answer is None or answer[1] != mesh.hex()[:MESH_CHARS]:
        return None
    try:
        secret = base64.b64decode(answer[2] + "=", altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    if make_token(mesh, secret) != token:
        return None
    return Ed25519Signer(hashlib.sha256(_PURPOSE + mesh + secret).digest())
