"""Who calls the API: a local user on the Unix socket, a key that signs (RFC 9421), or who shows a token (RFC 6750).

The socket proves a uid and nothing more: it lets a local user see, and hand over commands that are signed elsewhere;
it never stands for an approval or an admin. A signed request covers method, target and the body's digest, names its
key, and is good once within two minutes, so a leaked log line is useless. A token is good until its grant ends, so it
lets little be done (protocols/trust/bearer.py). Not here: what a key may do (access.py, and the voters).
"""

from __future__ import annotations

import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from node.api.http_signatures import Target, UnreadableError, key_named, read_signature
from node.api.problems import ProblemError
from protocols.keys import Ed25519Signer
from protocols.machine import Verifier
from protocols.trust.bearer import signer_of
from protocols.trust.request_signatures import digest_field

CREATED_TOLERANCE_S = 120
NONCES_MAX = 65_536
"""Nonces remembered: 500 signed requests a second for as long as a signature is good."""

FAILURES_MAX = 20
"""Bad signatures from one address in a minute before it has to wait: typing errors are fewer, guessing is hopeless."""

FAILURES_WITHIN_S = 60.0
ADDRESSES_MAX = 4_096
"""Addresses whose failures are remembered; an attacker with more of them still meets the nonce and the signature."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A key (hex) and how it was proven: by signing, or by a token, whose signer is then here for what the node files."""

    key: str
    bearer: Ed25519Signer | None = None


class Callers:
    """Finds out who calls, once per request."""

    def __init__(
        self,
        verifier: Verifier,
        wall_s: Callable[[], float],
        mesh: bytes = b"",
        named: Callable[[str], bytes | None] = lambda _name: None,
    ) -> None:
        """Take a verifier, the wall clock in seconds, the mesh of tokens, and what finds the one key of a name."""
        self._verifier = verifier
        self._wall_s = wall_s
        self._mesh = mesh
        self._named = named
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

    def shows_key(self, request: web.Request) -> bool:
        """Whether a request claims to be a key's, by a signature or a token: it is judged as that key's everywhere."""
        return "Signature-Input" in request.headers or "Authorization" in request.headers

    def proven(self, request: web.Request) -> Proof:
        """The key behind a request; the body of a signed one is checked by `check_digest` once it was read.

        Raises ProblemError 401, naming what is wrong with the proof, or 429 when this address was wrong too often.
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
            return self._bearer_of(request) if "Authorization" in request.headers else Proof(self._signer_of(request))
        except ProblemError:
            self._failures[address] = (count + 1, since_s)
            self._failures.move_to_end(address)
            while len(self._failures) > ADDRESSES_MAX:
                self._failures.popitem(last=False)
            raise

    def check_digest(self, request: web.Request, digest: bytes) -> None:
        """Hold a body's SHA-256 against the one that its caller signed. Raises ProblemError 401."""
        field = request.headers.get("Content-Digest")
        if field is None and not request.body_exists:
            return  # there is no body, and none was signed for
        if field != digest_field(digest):
            raise _unauthorized("Content-Digest is not the SHA-256 of the body")

    def _bearer_of(self, request: web.Request) -> Proof:
        if "Signature-Input" in request.headers:
            raise _unauthorized("a request is signed, or shows a token; not both")
        scheme, _, token = request.headers["Authorization"].partition(" ")
        if scheme.lower() != "bearer":
            raise _unauthorized("Authorization takes the scheme Bearer alone")
        signer = signer_of(token.strip(), self._mesh)
        if signer is None:
            raise _unauthorized("this is no token of this mesh (fht1.…)", "freehold token create NAME --bearer")
        return Proof(signer.public_key.hex(), signer)

    def _signer_of(self, request: web.Request) -> str:
        try:
            said = read_signature(_target(request, "https"), has_body=request.body_exists)
        except UnreadableError as error:
            raise _unauthorized(str(error)) from None
        now_s = self._wall_s()
        if abs(now_s - said.created_s) > CREATED_TOLERANCE_S or (said.expires_s and now_s > said.expires_s):
            raise _unauthorized("the signature is older or newer than two minutes; check this machine's clock")
        key = key_named(said.keyid) or self._named(said.keyid)
        if key is None:
            raise _unauthorized("keyid is no public key in hex or base64, and no principal's name")
        if not self._verifies(request, key, said.base, said.signature):
            raise _unauthorized("the signature does not verify under the key it names")
        name = key.hex()
        once = said.nonce or said.signature.hex()  # without a nonce the very signature is good once
        if (name, once) in self._nonces:
            raise _unauthorized("this very request was made before; sign it again with a new nonce")
        self._nonces[name, once] = None
        while len(self._nonces) > NONCES_MAX:
            self._nonces.popitem(last=False)
        return name

    def _verifies(self, request: web.Request, key: bytes, base: bytes, signature: bytes) -> bool:
        """Whether a signature is good; on the socket, which has no TLS, a client may have written the URL with http."""
        if self._verifier.verify(key, base, signature):
            return True
        if self.local(request) is None:
            return False
        plain = read_signature(_target(request, "http"), has_body=request.body_exists)
        return self._verifier.verify(key, plain.base, signature)


def _target(request: web.Request, scheme: str) -> Target:
    return Target(request.method, scheme, request.host, request.raw_path, request.headers)


def _unauthorized(detail: str, next_step: str = "freehold login LINE") -> ProblemError:
    return ProblemError(401, "caller.unsigned", "the caller is not known", detail, next_step)
