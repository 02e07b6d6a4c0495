"""A CI platform's issuer of identity tokens on loopback: discovery, keys, tokens, and what jobs ask. Not here: any test."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from node.mesh.pump import system_now
from protocols.envelope import encode, sign
from protocols.keys import Ed25519Signer
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from tests.support.mesh.in_process import ENTROPY, House, until

REQUEST_SECRET = "the job's own"
LIVES_S = 600


def make_keys() -> dict[str, Any]:
    """Return private keys by the name that tokens call them."""
    return {
        "rsa-1": rsa.generate_private_key(65537, 2048),
        "ec-1": ec.generate_private_key(ec.SECP256R1()),
    }


def jwk_of(kid: str, key: Any) -> dict[str, Any]:
    """Return the public part of a key, as a key set shows it."""
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"}


@dataclass
class Issuer:
    """One issuer: `keys` sign, `shown` are those it shows; `claims` are what its tokens say of the job."""

    url: str = ""
    keys: dict[str, Any] = field(default_factory=make_keys)
    shown: set[str] = field(default_factory=lambda: {"rsa-1", "ec-1"})
    claims: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def token(self, audience: Any, kid: str = "rsa-1", algorithm: str = "", **said: Any) -> str:
        """Return a token for an audience; `said` overrides any claim, None leaves one out."""
        now_s = int(time.time())
        key = self.keys[kid]
        claims = {"iss": self.url, "aud": audience, "iat": now_s, "nbf": now_s, "exp": now_s + LIVES_S, "sub": "repo:web/site",
                  **self.claims, **said}  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        by_kind = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(claims, key, algorithm=algorithm or by_kind, headers={"kid": kid})

    def key_set(self) -> dict[str, Any]:
        return {"keys": [jwk_of(kid, key) for kid, key in self.keys.items() if kid in self.shown]}


@asynccontextmanager
async def an_issuer() -> AsyncIterator[Issuer]:
    """Serve one until the test leaves."""
    issuer = Issuer()

    async def discovery(_request: web.Request) -> web.Response:
        issuer.asked.append("discovery")
        return web.json_response({"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"})

    async def keys(_request: web.Request) -> web.Response:
        issuer.asked.append("keys")
        return web.json_response(issuer.key_set())

    async def give(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {REQUEST_SECRET}":
            return web.Response(status=401)
        return web.json_response({"value": issuer.token(request.query["audience"])})

    application = web.Application()
    application.router.add_get("/.well-known/openid-configuration", discovery)
    application.router.add_get("/keys", keys)
    application.router.add_get("/token", give)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield issuer
    finally:
        await runner.cleanup()


async def grant_to(house: House, key: bytes, *roles: Role, projects: tuple[str, ...] = ("site",)) -> None:
    """Have the admin give an agent key something, as `trust add` does with a person's own."""
    control = house.control(0)
    grant = Grant(
        key=key, kind="agent", name="forge", roles=roles or ("proposer",), projects=projects, environments=("*",),
        expires_ms=system_now().wall_ms + 86_400_000, nonce=ENTROPY.random_bytes(16),
    )  # fmt: skip
    signed = sign(house.admin, GRANT_DOMAIN, control.core.trust.mesh, grant)
    async with house.client() as client:
        await client.publish("grant", key.hex(), encode((signed,)))
    await until(lambda: key in control.core.dossiers.principals())


def a_job() -> Ed25519Signer:
    """A key that lives for one job."""
    return Ed25519Signer(ENTROPY.random_bytes(32))
