"""Who calls the API: a local user on the Unix socket, a key that signs (RFC 9421), or who shows a token (RFC 6750).

The socket proves a uid and nothing more: it lets a local user see, and hand over commands that are signed elsewhere;
it never stands for an approval or an admin. A signed request covers method, target, the body's digest and the node it is
for, names its key, and is good once within two minutes: what one node saw is worthless at another, and a leaked log line
everywhere. A token is good until its grant ends, so it lets little be done (protocols/trust/bearer.py). Who fails is
counted by address, and only what is not proven waits for it. Not here: what a key may do (access.py, and the voters).
"""

from __future__ import annotations

import math
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from aiohttp import web

from node.api.callers.http_signatures import Presented, Target, UnreadableError, key_named, read_signature
from node.api.callers.nonces import NONCES_PER_KEY_MAX, Nonces
from node.api.problems import ProblemError
from node.transport.half_open import source_of
from protocols.keys import Ed25519Signer
from protocols.machine import Verifier
from protocols.trust.bearer import signer_of
from protocols.trust.request_signatures import NODE_FIELD, digest_field

CREATED_TOLERANCE_S = 120
"""How old a signature may be: clocks differ, and lines are slow."""

FUTURE_TOLERANCE_S = 1
"""How far ahead its date may be: dates are whole seconds. More would outlive a restart, which forgets what was made."""

NONCE_RETRY_S = 30
FAILURES_MAX = 20
"""Bad signatures from one address in a minute before it has to wait: typing errors are fewer, guessing is hopeless."""

FAILURES_WITHIN_S = 60.0
UNPROVEN = 401
BEFORE_START = "caller.before-start"
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
        *,
        node_names: Callable[[], Collection[str]] = tuple,
        granted: Callable[[bytes], bool] = lambda _key: True,
        started_s: float = 0.0,
    ) -> None:
        """Take a verifier, the wall clock in seconds, the mesh of tokens, and what finds the one key of a name.

        `node_names` is what requests may call this node: its id, and the SHA-256 of the certificate it answers with.
        `granted` says whether a key has a grant, and `started_s` when this process began.
        """
        self._verifier = verifier
        self._wall_s = wall_s
        self._mesh = mesh
        self._named = named
        self._node_names, self._granted, self._started_s = node_names, granted, started_s
        self._nonces = Nonces()
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
        try:
            return self._bearer_of(request) if "Authorization" in request.headers else Proof(self._signer_of(request))
        except ProblemError as error:
            if error.problem.status == UNPROVEN and self._failed_too_often(source_of(request.remote or "")):
                raise ProblemError(
                    429, "caller.too-many-failures", "too many bad signatures",
                    f"{FAILURES_MAX} requests from this address had no good signature; wait a minute",
                    "freehold login LINE", retry_after_s=round(FAILURES_WITHIN_S),
                ) from None  # fmt: skip
            raise

    def _failed_too_often(self, address: str) -> bool:
        """Count a failure; return whether there were too many from this address."""
        now_s = self._wall_s()
        count, since_s = self._failures.get(address, (0, now_s))
        if not 0 <= now_s - since_s < FAILURES_WITHIN_S:
            count, since_s = 0, now_s
        self._failures[address] = (count + 1, since_s)
        self._failures.move_to_end(address)
        while len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)
        return count >= FAILURES_MAX

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
        self._require_this_node(request, said)
        self._require_date(said)
        key = key_named(said.keyid) or self._named(said.keyid)
        if key is None:
            raise _unauthorized("keyid is no public key in hex or base64, and no principal's name")
        if not self._verifies(request, key, said.base, said.signature):
            raise _unauthorized("the signature does not verify under the key it names")
        if self._granted(key):
            self._require_once(key, said)
        return key.hex()

    def _require_this_node(self, request: web.Request, said: Presented) -> None:
        """Raise ProblemError unless a request over TCP was signed for this node."""
        if NODE_FIELD.lower() not in said.covered:
            if self.local(request) is not None:
                return
            raise _unauthorized(
                f'"{NODE_FIELD.lower()}" is not covered: the field {NODE_FIELD} says which node a request is for, by its id',
                "freehold mesh members",
            )
        if request.headers.getall(NODE_FIELD, ()) not in [[name] for name in self._node_names()]:
            raise _unauthorized(f"the field {NODE_FIELD} names another node than this one", "freehold mesh members")

    def _require_date(self, said: Presented) -> None:
        """Raise ProblemError for what is too old, dated in the future, or may have been made before this process began."""
        now_s = self._wall_s()
        if now_s - said.created_s > CREATED_TOLERANCE_S or (said.expires_s and now_s > said.expires_s):
            raise _unauthorized("the signature is older than two minutes; check this machine's clock")
        if said.created_s - now_s > FUTURE_TOLERANCE_S:
            raise _unauthorized("the signature is dated in the future; check this machine's clock")
        wait_s = math.ceil(self._started_s + FUTURE_TOLERANCE_S - said.created_s)
        if wait_s > 0:
            raise ProblemError(
                503, BEFORE_START, "signed before this node started",
                "this node has forgotten what was asked of it before it started; sign the request again", "try again",
                retry_after_s=min(wait_s, CREATED_TOLERANCE_S),
            )  # fmt: skip

    def _require_once(self, key: bytes, said: Presented) -> None:
        once = said.nonce or said.signature.hex()  # without a nonce the very signature is good once
        match self._nonces.take(key, once, said.created_s + CREATED_TOLERANCE_S, self._wall_s()):
            case False:
                raise _unauthorized("this very request was made before; sign it again with a new nonce")
            case None:
                raise ProblemError(
                    429, "caller.too-many-requests", "too many requests",
                    f"this key made {NONCES_PER_KEY_MAX} requests within two minutes, or all keys made too many", "wait",
                    retry_after_s=NONCE_RETRY_S,
                )  # fmt: skip

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
