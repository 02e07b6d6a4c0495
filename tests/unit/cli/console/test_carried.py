"""What a lying node can make the console's server do, and put into its origin: nothing but data, from itself alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.console import console
from cli.console.console import Console
from cli.console.serving import serving
from cli.errors import CommandError
from protocols.keys import Ed25519Signer
from tests.support.mesh.nodes import free_port

MINE = Ed25519Signer(bytes(32))
SIGNED = {"Signature": "fh=:AA==:", "Signature-Input": "fh=()"}


@asynccontextmanager
async def served(app: web.Application, site: type[web.BaseSite], *at: object) -> AsyncIterator[None]:
    runner = web.AppRunner(app)
    await runner.setup()
    await site(runner, *at).start()
    try:
        yield
    finally:
        await runner.cleanup()


class Liar:
    """A node that answers as it likes, and somebody else whom it would have asked."""

    def __init__(self, folder: Path) -> None:
        self.socket, self.elsewhere, self.asked = folder / "s", free_port(), list[str]()

    async def answer(self, request: web.Request) -> web.Response:
        kinds = {"html": "text/html", "script": "text/javascript", "json": "application/json", "svg": "image/svg+xml"}
        word = request.path.rpartition("/")[2]
        if word in kinds:
            return web.Response(text="{}", content_type=kinds[word])
        if word == "endless":
            return web.Response(body=b"x" * 2_000, content_type="application/json")
        raise web.HTTPTemporaryRedirect(f"http://127.0.0.1:{self.elsewhere}/taken")

    async def note(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        return web.json_response({})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[NodeClient]:
        node, other = web.Application(), web.Application()
        node.router.add_route("*", "/{path:.*}", self.answer)
        other.router.add_route("*", "/{path:.*}", self.note)
        async with AsyncExitStack() as ends:
            await ends.enter_async_context(served(node, web.UnixSite, str(self.socket)))
            await ends.enter_async_context(served(other, web.TCPSite, "127.0.0.1", self.elsewhere))
            yield await ends.enter_async_context(NodeClient(Context("ab" * 32, str(self.socket), "")))


@pytest.fixture
async def liar(tmp_path: Path) -> AsyncIterator[tuple[Liar, NodeClient]]:
    liar = Liar(tmp_path)
    async with liar.running() as client:
        yield liar, client


async def test_no_answer_of_a_node_leads_this_machine_elsewhere(liar: tuple[Liar, NodeClient], tmp_path: Path) -> None:
    node, client = liar
    (tmp_path / "paper").write_bytes(b"secret")
    with pytest.raises(CommandError):
        await client.get("/v1/node")
    with pytest.raises(CommandError):
        await client.post("/v1/commands", {"secret": 1})
    with pytest.raises(CommandError):
        await client.fetch_file("/v1/artifacts/x", lambda piece: None)
    with pytest.raises(CommandError):
        async for _ in client.follow("/v1/events"):
            pass
    async with client.carried("/v1/node", {}) as answer:
        assert answer.status == 307
    assert node.asked == []
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{node.elsewhere}/x"):
        assert node.asked == ["GET /x"], "who was not asked would have told"


async def test_a_nodes_answer_is_data_to_the_page_and_has_an_end(
    liar: tuple[Liar, NodeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = liar
    port = free_port()
    carrier = Console("home", Context("ab" * 32, "", ""), client, MINE, port)
    address = f"http://localhost:{port}/v1"
    async with (
        serving(port, "code", "console.html", carrier.by_code, signed=carrier.signed),
        aiohttp.ClientSession() as page,
    ):
        for word, kind in (("json", "application/json"), ("html", None), ("script", None), ("svg", None)):
            async with page.get(f"{address}/{word}", headers=SIGNED) as answer:
                assert answer.status == 200
                assert answer.content_type == (kind or "application/octet-stream"), word
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        async with page.get(f"{address}/json") as answer:
            assert answer.status == 401, "a page's address, a script's, a picture's: none of them signs"
        async with page.get(f"{address}/away", headers=SIGNED, allow_redirects=False) as answer:
            assert "Location" not in answer.headers
        async with page.get(f"{address}/endless", headers=SIGNED) as answer:
            assert len(await answer.read()) == 2_000
        monkeypatch.setattr(console, "CARRIED_MAX_BYTES", 1_999)
        with pytest.raises(aiohttp.ClientError):
            async with page.get(f"{address}/endless", headers=SIGNED) as answer:
                await answer.read()
