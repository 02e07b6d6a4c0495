"""How pages are served to this machine's browser: localhost only, files of this installation only, no script inline.

A page is painted after one request: its styles stand in it, named by their digest in the policy.
A page of another origin can neither read nor write here (Host, Origin and Sec-Fetch-Site are looked at, and every request
but those for files shows the code that stands in the link's fragment). Not here: what a page asks (ask.py).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from types import MappingProxyType

from aiohttp import web

from cli.errors import CommandError

PORT = 4188
"""Of pages by default; a passkey is granted for its origin with the port."""
BODY_MAX_BYTES = 256 * 1024
CODE_FIELD = "Freehold-Code"
TRIES_MAX = 8
"""Wrong codes until a page is closed: nobody guesses, and somebody who tries is told to the person."""

_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_POLICY = (
    "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'"
)
_STYLES = re.compile(r'(?:<link rel="stylesheet" href="/assets/[^"]+">\n)+')
_STYLE = re.compile(r'href="/assets/([^"]+)"')
_SCRIPT = re.compile(r'(<script type="module" src="/assets/)([^"]+)')
_IMPORT = re.compile(r"^import .* from '\./([^']+)';$", re.MULTILINE)
FIELDS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def origin_of(port: int) -> str:
    """The origin of pages at a port."""
    return f"http://localhost:{port}"


def asset_names() -> tuple[str, ...]:
    """The files that pages are made of."""
    return tuple(sorted(path.name for path in files("cli.console").joinpath("assets").iterdir() if _kind(path.name)))


def asset(name: str) -> bytes:
    """The bytes of one file. Raises KeyError for a name that is none."""
    if name not in asset_names():
        raise KeyError(name)
    return files("cli.console").joinpath("assets", name).read_bytes()


@functools.cache
def composed(page: str) -> tuple[bytes, str]:
    """Return a page as it is served, and its policy: its styles inside, its modules asked for all at once.

    Nothing else that it loads stands before its first paint.
    """
    text = asset(page).decode()
    styles = "".join(asset(name).decode() for entry in _STYLES.findall(text) for name in _STYLE.findall(entry))
    named = base64.b64encode(hashlib.sha256(styles.encode()).digest()).decode()
    text = _STYLES.sub(lambda _: f"<style>{styles}</style>\n", text, count=1)
    modules = _imported(*(name for _, name in _SCRIPT.findall(text)))
    ahead = "".join(f'<link rel="modulepreload" href="/assets/{name}">\n' for name in modules)
    text = _SCRIPT.sub(lambda found: f"{ahead}{found[0]}", text)
    return text.encode(), f"{_POLICY}; style-src 'self' 'sha256-{named}'"


def _imported(*names: str) -> tuple[str, ...]:
    """The modules that these import, and those import; each once."""
    table: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        for name in _IMPORT.findall(asset(waiting.pop()).decode()):
            if name not in table:
                table[name] = None
                waiting.append(name)
    return tuple(table)


def _kind(name: str) -> str:
    return _KINDS.get(name.rpartition(".")[2], "")


class PageGuard:
    """Lets requests of our own page in: by Host, by origin, and, but for files, by the code."""

    def __init__(self, port: int, code: str) -> None:
        """Take the page's port, and the code of its link."""
        self._host, self._origin, self._code = f"localhost:{port}", origin_of(port), code.encode()
        self._tries_left = TRIES_MAX

    def refusal(self, request: web.Request, *, by_code: bool) -> str:
        """Why a request is not answered, or ""."""
        if request.host != self._host:
            return f"this page is at {self._origin}"
        if request.headers.get("Origin", self._origin) != self._origin:
            return "another site asks"
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
            return "another site asks"
        if by_code and not self._opens(request.headers.get(CODE_FIELD, "")):
            return "the link is not the one that the command printed"
        return ""

    def _opens(self, shown: str) -> bool:
        if self._tries_left > 0 and hmac.compare_digest(shown.encode(), self._code):
            return True
        self._tries_left -= 1
        return False


@asynccontextmanager
async def serving(
    port: int,
    code: str,
    page: str,
    routes: Mapping[tuple[str, str], Handler],
    *,
    signed: Mapping[tuple[str, str], Handler] = MappingProxyType({}),
) -> AsyncIterator[None]:
    """Serve `page` at / and its files, and `routes` by (method, path) to who shows the code.

    Those of `signed` ask for no code: they look for a key's signature themselves.

    Raises CommandError if the port is taken.
    """
    guard = PageGuard(port, code)

    def guarded(handler: Handler, *, by_code: bool) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            refusal = guard.refusal(request, by_code=by_code)
            if refusal:
                return web.Response(status=403, text=refusal, headers=FIELDS)
            answer = await handler(request)
            if not answer.prepared:
                answer.headers.update({**FIELDS, **answer.headers})
            return answer

        return handle

    async def front(_: web.Request) -> web.Response:
        body, policy = composed(page)
        fields = {"Content-Security-Policy": policy}
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=fields)

    async def file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            return web.Response(body=asset(name), content_type=_kind(name), charset="utf-8")
        except KeyError:
            return web.Response(status=404, text="there is no such file")

    app = web.Application(client_max_size=BODY_MAX_BYTES)
    app.router.add_get("/", guarded(front, by_code=False))
    app.router.add_get("/assets/{name}", guarded(file, by_code=False))
    for (method, path), handler in routes.items():
        app.router.add_route(method, path, guarded(handler, by_code=True))
    for (method, path), handler in signed.items():
        app.router.add_route(method, path, guarded(handler, by_code=False))
    # A page that has gone holds no stream of the node any longer: each caller has only so many.
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    try:
        await _listen(runner, port)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, port: int) -> None:
    """Listen on both loopback addresses, as a browser may choose either for localhost; IPv6 only where there is any."""
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        with contextlib.suppress(OSError):
            await web.TCPSite(runner, "::1", port).start()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise CommandError(
            f"port {port} is taken by another program", next_step="close the other page first", kind="port-taken"
        ) from None
