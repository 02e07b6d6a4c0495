"""A registry of the OCI distribution specification on loopback, in memory: push, pull, tags, tokens. Not here: any test."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import encode_basic_auth, web

USER, PASSWORD = "builder", "a password"


@dataclass
class Held:
    """What it holds; with `closed` it asks for a token, which USER and PASSWORD get."""

    host: str = ""
    closed: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _doors(held: Held, routes: web.UrlDispatcher) -> None:
    """Whoever asks is let in by a token, where it is closed."""

    async def token(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != encode_basic_auth(USER, PASSWORD):
            return web.Response(status=401)
        text = secrets.token_urlsafe(12)
        held.tokens.add(text)
        return web.json_response({"token": text})

    async def base(_request: web.Request) -> web.Response:
        return web.json_response({})

    routes.add_get("/token", token)
    routes.add_get("/v2/", base)


def _application(held: Held) -> web.Application:
    @web.middleware
    async def guard(request: web.Request, handler: web.RequestHandler) -> web.StreamResponse:  # type: ignore[name-defined]
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if held.closed and request.path.startswith("/v2/") and shown not in held.tokens:
            realm = f'Bearer realm="http://{held.host}/token",service="test",scope="repository:x:pull,push"'
            return web.json_response(
                {"errors": [{"code": "UNAUTHORIZED"}]}, status=401, headers={"WWW-Authenticate": realm}
            )
        answer: web.StreamResponse = await handler(request)
        return answer

    async def blob(request: web.Request) -> web.Response:
        data = held.blobs.get(request.match_info["digest"])
        if data is None:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN"}]}, status=404)
        return web.Response(body=data, headers={"Docker-Content-Digest": request.match_info["digest"]})

    async def begin(request: web.Request) -> web.Response:
        where = f"/v2/{request.match_info['name']}/blobs/uploads/{secrets.token_hex(8)}?state=a"
        return web.Response(status=202, headers={"Location": where, "Range": "0-0"})

    async def upload(request: web.Request) -> web.Response:
        data, named = await request.read(), request.query["digest"]
        if _digest(data) != named:
            return web.json_response({"errors": [{"code": "DIGEST_INVALID"}]}, status=400)
        held.blobs[named] = data
        return web.Response(status=201, headers={"Location": f"/v2/x/blobs/{named}"})

    async def put(request: web.Request) -> web.Response:
        data = await request.read()
        pair = (request.content_type, data)
        held.manifests[request.match_info["reference"]] = held.manifests[_digest(data)] = pair
        return web.Response(status=201, headers={"Docker-Content-Digest": _digest(data)})

    async def get(request: web.Request) -> web.Response:
        manifest = held.manifests.get(request.match_info["reference"])
        if manifest is None:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        return web.Response(
            body=manifest[1], content_type=manifest[0], headers={"Docker-Content-Digest": _digest(manifest[1])}
        )

    application = web.Application(client_max_size=1 << 28, middlewares=[guard])
    routes = application.router
    _doors(held, routes)
    routes.add_get("/v2/{name:.+}/blobs/{digest:sha256:.+}", blob)
    routes.add_post("/v2/{name:.+}/blobs/uploads/", begin)
    routes.add_put("/v2/{name:.+}/blobs/uploads/{id}", upload)
    routes.add_put("/v2/{name:.+}/manifests/{reference}", put)
    routes.add_get("/v2/{name:.+}/manifests/{reference}", get)
    return application


@asynccontextmanager
async def a_registry(*, closed: bool = False) -> AsyncIterator[Held]:
    """Serve one until the test leaves."""
    held = Held(closed=closed)
    runner = web.AppRunner(_application(held), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    held.host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield held
    finally:
        await runner.cleanup()
