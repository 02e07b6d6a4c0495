"""Whose request it is that the console's page makes: signed by a key that the browser holds (RFC 9421). No sessions.

A key counts while the node shows a grant for it that comes from this context's key. Not here: what is answered (console.py),
and requests for the node itself, which the node judges.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

from aiohttp import web

from cli.access.client import NodeClient
from cli.access.principals import principal_of
from node.api.callers.http_signatures import Presented, Target, UnreadableError, key_named, read_signature
from protocols.keys import Ed25519Verifier
from protocols.trust.request_signatures import digest_field

TOLERANCE_S = 60
NONCES_MAX = 10_000
BELIEVED_S = 10.0
"""How long a key's standing is believed before the node is asked again: a revoked browser acts no longer than that."""


class PageCallers:
    """Tells whose requests are. Mutable: nonces that were used, and keys that counted a moment ago."""

    def __init__(self, client: NodeClient, everyday: bytes) -> None:
        """Take the connection, and the key whose browsers may ask."""
        self._client, self._everyday = client, everyday.hex()
        self._nonces: OrderedDict[tuple[bytes, str], float] = OrderedDict()
        self._believed: dict[bytes, float] = {}

    async def key_of(self, request: web.Request, body: bytes) -> bytes | str:
        """Return the key that signed a request, or why it is nobody's here."""
        target = Target(request.method, "http", request.host, request.raw_path, request.headers)
        try:
            said = read_signature(target, has_body=bool(body))
        except UnreadableError as error:
            return str(error)
        key = key_named(said.keyid)
        if key is None or not Ed25519Verifier().verify(key, said.base, said.signature):
            return "the signature does not verify"
        if body and request.headers.get("Content-Digest") != digest_field(hashlib.sha256(body).digest()):
            return "the body is not the one that was signed"
        return await self._standing(key) or self._once(key, said) or key  # no stranger's nonce takes the place of ours

    def _once(self, key: bytes, said: Presented) -> str:
        now_s = time.time()
        if abs(now_s - said.created_s) > TOLERANCE_S:
            return "the signature is not of this minute"
        name = (key, said.nonce or said.signature.hex())
        if name in self._nonces:
            return "this very request was made before"
        self._nonces[name] = now_s
        while len(self._nonces) > NONCES_MAX or next(iter(self._nonces.values())) < now_s - 2 * TOLERANCE_S:
            self._nonces.popitem(last=False)
        return ""

    async def _standing(self, key: bytes) -> str:
        if self._believed.get(key, 0.0) > time.monotonic():
            return ""
        principal = await principal_of(self._client, key)
        if principal.problem or self._everyday not in principal.lineage:
            self._believed.pop(key, None)
            return "this browser's key has no grant of yours (any more)"
        self._believed[key] = time.monotonic() + BELIEVED_S
        return ""
