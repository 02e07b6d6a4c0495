"""Who calls the API: a local user on the Unix socket, or a key that signs its requests over TCP (RFC 9421, RFC 9530).

The socket proves a uid and nothing more: it lets a local user see, and hand over commands that are signed elsewhere;
it never stands for an approval or an admin. A signed request covers method, target and the body's digest, names its
key, and is good once within two minutes, so a leaked log line is useless. Not here: what a key may do (its grants,
judged by the chain and by `control`).
"""

from __future__ import annotations

import base64
import binascii
import re
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable

from aiohttp import web

from node.api.problems import ProblemError
from protocols.machine import Verifier
from protocols.trust.request_signatures import COVERED, digest_field, signature_base

CREATED_TOLERANCE_S = 120
NONCES_MAX = 65_536
"""Nonces remembered: 500 signed requests a second for as long as a signature is good."""

FAILURES_MAX = 20
"""Bad signatures from one address in a minute before it has to wait: typing errors are fewer, guessing is hopeless."""

FAILURES_WITHIN_S = 60.0
ADDRESSES_MAX = 4_096
"""Addresses whose failures are remembered; an attacker with more of them still meets the nonce and the signature."""

_INPUT = re.compile(
    r'fh=\("@method" "@target-uri" "content-digest"\);created=(\d{1,12});'
    r'nonce="([A-Za-z0-9_-]{16,64})";keyid="([0-9a-f]{64})";alg="ed25519"\Z'
)
_SIGNATURE = re.compile(r"fh=:([A-Za-z0-9+/=]{86,90}):\Z")


class Callers:
    """Finds out who calls, once per request."""

    def __init__(self, verifier: Verifier, wall_s: Callable[[], float]) -> None:
        """Take a verifier and the wall clock in seconds."""
        self._verifier = verifier
        self._wall_s = wall_s
        self._nonces: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def local(self, request: web.Request) -> str | None:
        """The caller on the Unix socket, or None for a request that came over TCP."""
        transport = request.transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None or sock.family != socket.AF_UNIX:
            return None
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        return f"socket:{uid}"

    def signed(self, request: web.Request) -> str:
        """The key (hex) that signed a request over TCP; its body is checked by `check_digest` once it was read.

        Raises ProblemError 401, naming what is wrong with the signature, or 429 when this address was wrong too often.
        """
        address = request.remote or ""
        now_s = self._wall_s()
        count, since_s = self._failures.get(address, (0, now_s))
        if not 0 <= now_s - since_s < FAILURES_WITHIN_S:
            count, since_s = 0, now_s
        if count >= FAILURES_MAX:
            raise ProblemError(
                429, "caller.too-many-failures", "too many bad signatures",
                f"{FAILURES_MAX} requests from this address had no good signature; wait a minute", "freehold login LINE",
            )  # fmt: skip
        try:
            return self._signer_of(request)
        except ProblemError:
            self._failures[address] = (count + 1, since_s)
            self._failures.move_to_end(address)
            while len(self._failures) > ADDRESSES_MAX:
                self._failures.popitem(last=False)
            raise

    def check_digest(self, request: web.Request, digest: bytes) -> None:
        """Hold a body's SHA-256 against the one that its caller signed. Raises ProblemError 401."""
        if request.headers.get("Content-Digest") != digest_field(digest):
            raise _unauthorized("Content-Digest is not the SHA-256 of the body")

    def _signer_of(self, request: web.Request) -> str:
        given = request.headers.get("Signature-Input", "")
        found = _INPUT.match(given)
        signature = _SIGNATURE.match(request.headers.get("Signature", ""))
        if found is None or signature is None:
            raise _unauthorized(f"a signature over {COVERED} is missing or has another form")
        created_s, nonce, key = int(found[1]), found[2], found[3]
        if abs(self._wall_s() - created_s) > CREATED_TOLERANCE_S:
            raise _unauthorized("the signature is older or newer than two minutes; check this machine's clock")
        try:
            raw = base64.b64decode(signature[1], validate=True)
        except binascii.Error:
            raise _unauthorized("the signature is not base64") from None
        target = f"https://{request.host}{request.raw_path}"
        covered = request.headers.get("Content-Digest", "")
        base = signature_base(request.method, target, covered, given.removeprefix("fh="))
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
