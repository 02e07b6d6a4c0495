"""HTTP clients of other people, unmodified, in the sandbox: over http and https, sync and async, to listed hosts only."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.runtime.projects import serving_project
from tests.support.runtime.served import Served, request

PROJECT = """
[project]
name = "clients"
[app.web]
language = "python"
source = "web"
routes = ["/"]
timeout = "30s"
allow_hosts = ["up.example:1"]
"""

APP = """
import asyncio, gc, http.client, json, socket, ssl, urllib.request
import aiohttp, freehold, httpx, requests, urllib3


async def together(base):
    async with httpx.AsyncClient() as client:
        answers = await asyncio.gather(*(client.get(base + "/slow") for _ in range(4)))
    return [answer.text for answer in answers]


async def by_aiohttp(base):
    async with aiohttp.ClientSession() as session:
        async with session.post(base + "/echo", data=b"y" * 700_000) as answer:
            size = (await answer.json())["size"]
        async with session.get(base + "/stream") as answer:
            lines = [line async for line in answer.content]
    return [size, len(lines)]


def by_http_client(base):
    kind = http.client.HTTPSConnection if base.startswith("https") else http.client.HTTPConnection
    connection = kind(base.partition("://")[2])
    connection.request("PUT", "/echo?a=1", body=b"abc", headers={"X-A": "1"})
    return json.loads(connection.getresponse().read())["size"]


def by_httpx_stream(base):
    with httpx.stream("GET", base + "/stream") as answer:
        return len(list(answer.iter_lines()))


WAYS = {
    "http.client": by_http_client,
    "urllib": lambda base: json.load(urllib.request.urlopen(base + "/echo?q=1"))["path"],
    "urllib3": lambda base: urllib3.PoolManager().request("POST", base + "/echo", fields={"f": ("a", b"x" * 9)}).status,
    "requests": lambda base: requests.post(base + "/redirect", data=iter([b"x" * 1000] * 50)).json()["path"],
    "requests large": lambda base: requests.post(base + "/echo", data=b"x" * 3_000_000).json()["size"],
    "requests stream": lambda base: len(list(requests.get(base + "/stream", stream=True).iter_lines())),
    "httpx": lambda base: httpx.post(base + "/echo", json=[1]).json()["size"],
    "httpx stream": by_httpx_stream,
    "httpx together": lambda base: asyncio.run(together(base)),
    "aiohttp": lambda base: asyncio.run(by_aiohttp(base)),
}


def abandoned(base):
    for turn in range(6):
        answer = requests.get(base + "/stream", stream=True)
        held = [answer]
        held.append(held)
        try:
            requests.get(base + "/slow", timeout=0.01)
        except requests.RequestException as error:
            held = [error]
            held.append(held)

        async def leave():
            async with httpx.AsyncClient() as client:
                await asyncio.wait_for(client.get(base + "/slow"), 0.01)

        try:
            asyncio.run(leave())
        except (TimeoutError, httpx.HTTPError):
            pass
    del answer, held
    gc.collect()
    import freehold_outbound
    return len(freehold_outbound._held)


def raw(base):
    connection = socket.create_connection(base.partition("://")[2].split(":"))
    connection.sendall(b"*1\\r\\n$4\\r\\nPING\\r\\n")


REFUSED = {
    "unlisted": lambda base: httpx.get("https://example.com/"),
    "unchecked": lambda base: requests.get(base + "/echo", verify=False),
    "own authorities": lambda base: requests.get(base + "/echo", verify="/1/app.py"),
    "other host": lambda base: requests.get(base + "/echo", headers={"Host": "other.example"}),
    "proxy": lambda base: httpx.get("http://example.com/", proxy=base.replace("https", "http")),
    "other name": lambda base: requests.get(base.replace("localhost", "127.0.0.1") + "/echo"),
    "not HTTP": raw,
    "server": lambda base: socket.create_server(("0.0.0.0", 80)),
}


def handle(request):
    name, _, base = request.query.replace("%20", " ").partition("&")
    if name == "abandoned":
        return str(abandoned(base))
    try:
        return freehold.Response.json({**WAYS, **REFUSED}[name](base))
    except Exception as error:
        return freehold.Response(f"{type(error).__name__}: {error}", 502)
"""

EXPECTED = {
    "http.client": 3, "urllib": "/echo?q=1", "urllib3": 200, "requests": "/echo", "requests large": 3_000_000,
    "requests stream": 3, "httpx": 3, "httpx stream": 3, "httpx together": ["slow"] * 4, "aiohttp": [700_000, 3],
}  # fmt: skip

SENTENCES = {
    "unlisted": "allow_hosts", "unchecked": "verify=False", "own authorities": "authorities of the app's own",
    "other host": "the request is for other.example", "proxy": "", "other name": "TlsCertificateError",
    "not HTTP": "HTTP/1.1 only", "server": "nothing listens",
}  # fmt: skip


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    now = datetime.datetime.now(datetime.UTC)
    new_certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    public, private = folder / "upstream.pem", folder / "upstream.key"
    public.write_bytes(new_certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return public, private


async def _echo(request: web.Request) -> web.Response:
    return web.json_response({"path": request.path_qs, "size": len(await request.read())})


async def _slow(_: web.Request) -> web.Response:
    await asyncio.sleep(0.3)
    return web.Response(text="slow")


async def _stream(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    for _ in range(3):
        await answer.write(b"line\n")
        await asyncio.sleep(0.02)
    return answer


async def _redirect(request: web.Request) -> web.Response:
    await request.read()
    raise web.HTTPFound("/echo")


@dataclass(frozen=True)
class Site:
    served: Served
    plain: str
    secure: str

    async def ask(self, name: str, base: str, host: str = "web") -> tuple[int, str]:
        path = f"/?{name.replace(' ', '%20')}&{base}"
        answer = await self.served.fetch(request("GET", path, host=host))
        return answer.status, answer.body.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clients")
    (path / "web").mkdir()
    (path / "freehold.toml").write_text(PROJECT)
    (path / "web" / "app.py").write_text(APP)
    (path / "web" / "requirements.txt").write_text("aiohttp\nhttpx\nrequests\n")
    return path


@pytest.fixture
async def site(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    public, private = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    app = web.Application(client_max_size=1 << 24)
    app.add_routes([web.route("*", "/echo", _echo), web.get("/slow", _slow), web.get("/stream", _stream)])
    app.add_routes([web.post("/redirect", _redirect)])
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    plain, secure = (address[1] for address in runner.addresses)
    hosts = (f"localhost:{plain}", f"localhost:{secure}", f"127.0.0.1:{secure}")
    async with serving_project(folder, tmp_path / "work", allow_hosts=hosts) as served:
        yield Site(served, f"http://localhost:{plain}", f"https://localhost:{secure}")
    await runner.cleanup()


async def test_each_client_works_over_http_and_https(site: Site) -> None:
    for base in (site.plain, site.secure):
        answers: dict[str, Any] = {}
        for name in EXPECTED:
            status, text = await site.ask(name, base)
            assert status == 200, (name, text)
            answers[name] = json.loads(text)
        assert answers == EXPECTED
    assert await site.ask("httpx", site.secure, "web-fresh") == (200, "3")


async def test_what_the_node_cannot_honour_is_refused_by_a_sentence(site: Site) -> None:
    for name, sentence in SENTENCES.items():
        status, text = await site.ask(name, site.secure)
        assert status == 502, (name, text)
        assert sentence in text, (name, text)


async def test_abandoned_calls_leave_nothing_behind(site: Site) -> None:
    assert await site.ask("abandoned", site.secure) == (200, "0")
    assert await site.ask("httpx", site.secure) == (200, "3")
