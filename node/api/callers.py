"""Who calls the API: a local user on the Unix socket, or a key that signs its requests over TCP (RFC 9421, RFC 9530).

The socket proves a uid and nothing more: it lets a local user see, and hand over commands that are signed elsewhere;
it never stands for an approval or an admin. A signed request covers method, target and the body's digest, names its
key, and is good once within two minutes, so a leaked log line is useless. Not here: what a key may do (its grants,
judged by the chain and by `control`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable

from aiohttp import web

from node.api.problems import ProblemError
from protocols.machine import Signer, Verifier

CREATED_TOLERANCE_S = 120
NONCES_MAX = 65_536
"""Nonces remembered: 500 signed requests a second for as long as a signature is good."""

COVERED = '("@method" "@target-uri" "content-digest")'
"""The only set of covered components that is accepted; anything less could be replayed elsewhere."""

_INPUT = re.compile(
    r'fh=\("@method" "@target-uri" "content-digest"\);created=(\d{1,12});'
    r'nonce="([A-Za-z0-9_-]{16,64})";keyid="([0-9a-f]{64})";alg="ed25519"\Z'
)
_SIGNATURE = re.compile(r"fh=:([A-Za-z0-9+/=]{86,90}):\Z")


def content_digest(body: bytes) -> str:
    """The Content-Digest field of a body (RFC 9530, section 2)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def signature_base(method: str, target: str, digest_field: str, parameters: str) -> bytes:
    """What a request's signature covers (RFC 9421, section 2.5)."""
    lines = (
        f'"@method": {method}',
        f'"@target-uri": {target}',
        f'"content-digest": {digest_field}',
        f'"@signature-params": {parameters}',
    )
    return "\n".join(lines).encode()


def sign_request(
    signer: Signer, method: str, target: str, body: bytes, *, created_s: int, nonce: str
) -> dict[str, str]:
    """Return the header fields that sign one request; `target` is the absolute URI, `nonce` 16 to 64 of [A-Za-z0-9_-]."""
    parameters = f'{COVERED};created={created_s};nonce="{nonce}";keyid="{signer.public_key.hex()}";alg="ed25519"'
    digest_field = content_digest(body)
    signature = signer.sign(signature_base(method, target, digest_field, parameters))
    return {
        "Content-Digest": digest_field,
        "Signature-Input": f"fh={parameters}",
        "Signature": f"fh=:{base64.b64encode(signature).decode()}:",
    }


class Callers:
    """Finds out who calls, once per request."""

    def __init__(self, verifier: Verifier, wall_s: Callable[[], float]) -> None:
        """Take a verifier and the wall clock in seconds."""
        self._verifier = verifier
        self._wall_s = wall_s
        self._nonces: OrderedDict[tuple[str, str], None] = OrderedDict()

    def local(self, request: web.Request) -> str | None:
        """The caller on the Unix socket, or None for a request that came over TCP."""
        transport = request.transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None or sock.family != socket.AF_UNIX:
            return None
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        return f"socket:{uid}"

    def signed(self, request: web.Request, body: bytes) -> str:
        """The key (hex) that signed a request over TCP. Raises ProblemError 401, naming what is wrong with the signature."""
        given = request.headers.get("Signature-Input", "")
        found = _INPUT.match(given)
        signature = _SIGNATURE.match(request.headers.get("Signature", ""))
        if found is None or signature is None:
            raise _unauthorized(f"a signature over {COVERED} is missing or has another form")
        created_s, nonce, key = int(found[1]), found[2], found[3]
        if abs(self._wall_s() - created_s) > CREATED_TOLERANCE_S:
            raise _unauthorized("the signature is older or newer than two minutes; check this machine's clock")
        digest_field = content_digest(body)
        if request.headers.get("Content-Digest") != digest_field:
            raise _unauthorized("Content-Digest is not the SHA-256 of the body")
        try:
            raw = base64.b64decode(signature[1], validate=True)
        except binascii.Error:
            raise _unauthorized("the signature is not base64") from None
        target = f"https://{request.host}{request.raw_path}"
        base = signature_base(request.method, target, digest_field, given.removeprefix("fh="))
        if not self._verifier.verify(bytes.fromhex(key), base, raw):
            raise _unauthorized("the signature does not verify under the key it names")
        if (key, nonce) in self._nonces:
            raise _unauthorized("this very request was made before; sign it again with a new nonce")
        self._nonces[key, nonce] = None
        while len(self._nonces) > NONCES_MAX:
            self._nonces.popitem(last=False)
        return key


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, "caller.unsigned", "the caller is not known", detail, "freehold login LINE")
