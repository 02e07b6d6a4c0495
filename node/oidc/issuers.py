"""The keys of issuers: read from where OpenID Connect Discovery 1.0 says they are, kept for an hour, or pinned.

A key that is not known is looked for once a minute at most, so a stranger's tokens cannot make a node ask its issuers all
the time. Not here: what a token says (tokens.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from node.oidc.tokens import IssuerKey, read_keys
from node.reaching import Reaching
from protocols.machine import Now

DISCOVERY = "/.well-known/openid-configuration"
DOCUMENT_MAX_BYTES = 256 * 1024
FRESH_MS = 3_600_000
AGAIN_MS = 60_000
STALE_MS = 24 * 3_600_000
"""For so long keys that were read once are good while their issuer does not answer."""

_log = logging.getLogger("freehold.oidc")


@dataclass
class _Held:
    keys: tuple[IssuerKey, ...]
    read_ms: int
    tried_ms: int


class Issuers:
    """What this node knows of issuers' keys. One question to an issuer at a time."""

    def __init__(self, clock: Callable[[], Now]) -> None:
        """Know nothing yet."""
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def keys(self, issuer: str, kid: str, *, private: bool) -> Sequence[IssuerKey]:
        """Return an issuer's keys, read anew where `kid` is not among them. Raises OSError, ValueError."""
        async with self._asking.setdefault(issuer, asyncio.Lock()):
            held, now_ms = self._held.get(issuer), self._clock().mono_ms
            if held is not None:
                known = any(key.kid == kid for key in held.keys)
                if known and now_ms - held.read_ms < FRESH_MS:
                    return held.keys
                if now_ms - held.tried_ms < AGAIN_MS:
                    return held.keys if now_ms - held.read_ms < STALE_MS else ()
                held.tried_ms = now_ms
            try:
                issuer_keys = await _fetch(issuer, private=private)
            except (OSError, ValueError) as error:
                _log.warning("issuer %s: %s", issuer, error, extra={"event": "oidc.issuer"})
                if held is not None and now_ms - held.read_ms < STALE_MS:
                    return held.keys
                self._held.setdefault(issuer, _Held((), now_ms - STALE_MS, now_ms))
                raise
            self._held[issuer] = _Held(issuer_keys, now_ms, now_ms)
            return issuer_keys

    def forget(self, issuer: str) -> None:
        """Read an issuer's keys anew the next time."""
        self._held.pop(issuer, None)


async def _fetch(issuer: str, *, private: bool) -> tuple[IssuerKey, ...]:
    reaching = Reaching()
    try:
        data = await reaching.get(issuer.rstrip("/") + DISCOVERY, DOCUMENT_MAX_BYTES, private=private)
        try:
            said = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"what it says of itself is no JSON object: {error}") from None
        if said.get("issuer") != issuer:
            raise ValueError("it says of itself that it is another issuer")
        where = said.get("jwks_uri")
        if not isinstance(where, str):
            raise ValueError("it does not say where its keys are")
        return read_keys(await reaching.get(where, DOCUMENT_MAX_BYTES, private=private))
    finally:
        await reaching.close()
