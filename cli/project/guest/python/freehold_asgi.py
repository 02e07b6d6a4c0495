"""An ASGI 3 app behind wasi:http. Runs only inside the sandbox.

One event loop lives as long as the instance; the app's lifespan starts with the first request. Bodies stream both ways.
Work that the app awaits after its response has until the app's time limit; tasks that it does not await have `GO_ON_S`. Not
here: WebSockets, which wasi:http has not.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from urllib.parse import unquote_to_bytes

from componentize_py_types import Err
from wit_world.imports.streams import StreamError_Closed

import freehold_http
import freehold_loop

STARTUP_FAILED = "the app's lifespan did not start: "
GO_ON_S = 5.0


def handler(application, prefixes):
    """Return the component's handler class for `application`, mounted below the longest of the path `prefixes`."""
    if not callable(application):
        raise TypeError(f"the ASGI app is {freehold_http.kind_of(application)}; it must be callable")
    freehold_loop.install()
    lifespan = _Lifespan(application)

    class IncomingHandler:
        def handle(self, request, response_out) -> None:
            loop = freehold_loop.kept()

            def respond(request, body, answer):
                async def run() -> None:
                    await lifespan.started()
                    before = asyncio.all_tasks()
                    exchange = _Exchange(loop, request, body, answer, prefixes, dict(lifespan.state))
                    await exchange.run(application)
                    await _let_end(asyncio.all_tasks() - before - set(freehold_loop.own_tasks))

                loop.run_until_complete(run())

            freehold_http.serve(request, response_out, respond)

    return IncomingHandler


async def _let_end(tasks) -> None:
    """Wait for what a request started and did not await; between requests nothing runs in an instance."""
    if not tasks:
        return
    _, pending = await asyncio.wait(tasks, timeout=GO_ON_S)
    if pending:
        told = f"tasks of this request still wait {GO_ON_S:.0f} s after its answer; they go on only while others are served"
        print(f"{len(pending)} {told}", file=sys.stderr, flush=True)


class _Lifespan:
    """The app's startup, once in an instance; a sandbox has no orderly shutdown to tell of."""

    def __init__(self, application) -> None:
        self._application = application
        self._task = None
        self._outcome = None
        self.state = {}

    async def started(self) -> None:
        if self._task is None:
            await self._start()
        if self._outcome is not None:
            raise RuntimeError(STARTUP_FAILED + self._outcome)

    async def _start(self) -> None:
        inbox = asyncio.Queue()
        inbox.put_nowait({"type": "lifespan.startup"})
        begun = asyncio.get_running_loop().create_future()

        async def send(message) -> None:
            if begun.done():
                return
            failed = message["type"] == "lifespan.startup.failed"
            begun.set_result(message.get("message") or "it said so" if failed else None)

        async def live() -> None:
            scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
            try:
                await self._application(scope, inbox.get, send)
            except Exception:
                # An app that does not know the lifespan raises; that is its way to say so (ASGI, "Lifespan").
                if begun.done():
                    traceback.print_exc()
            finally:
                if not begun.done():
                    begun.set_result(None)

        self._task = asyncio.get_running_loop().create_task(live())
        self._outcome = await begun


class _Exchange:
    """One request: its scope, what the app receives, and what it sends."""

    def __init__(self, loop, request, body, answer, prefixes, state) -> None:
        self._loop, self._request, self._body, self._answer = loop, request, body, answer
        self._prefixes, self._state = prefixes, state
        self._method = freehold_http.method_of(request)
        self._finished = asyncio.Event()
        self._read_whole = False
        self._head = None

    async def run(self, application) -> None:
        await application(self._scope(), self._receive, self._send)
        if not self._finished.is_set():
            raise freehold_http.WrongAnswer("the ASGI app returned without completing its response")

    def _scope(self):
        path, _, query = (self._request.path_with_query() or "/").partition("?")
        decoded = unquote_to_bytes(path).decode("utf-8", "replace")
        mount = next((each for each in self._prefixes if decoded == each or decoded.startswith(each + "/")), "")
        authority = self._request.authority() or "localhost"
        scheme = freehold_http.scheme_of(self._request)
        host, _, port = authority.rpartition(":") if authority.rpartition(":")[2].isdigit() else (authority, "", "")
        with self._request.headers() as fields:
            headers = [(name.lower().encode("latin-1"), bytes(value)) for name, value in fields.entries()]
        if all(name != b"host" for name, _ in headers):
            headers.insert(0, (b"host", authority.encode()))
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
            "method": self._method, "scheme": scheme, "path": decoded, "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"), "root_path": mount, "headers": headers,
            "server": (host, int(port) if port else (443 if scheme == "https" else 80)), "client": None,
            "state": self._state, "extensions": {},
        }  # fmt: skip

    async def _receive(self):
        if self._read_whole:
            await self._finished.wait()
            return {"type": "http.disconnect"}
        piece = await self._piece()
        self._read_whole = not piece
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def _piece(self) -> bytes:
        """Return the next bytes of the body without holding up other tasks; b"" at the end."""
        while (stream := self._body.stream()) is not None:
            try:
                piece = stream.read(freehold_http.READ_MAX_BYTES)
            except Err as error:
                self._body.release()
                if isinstance(error.value, StreamError_Closed):
                    return b""
                raise OSError("the request body broke off") from None
            if piece:
                return piece
            await self._loop.ready(stream.subscribe(), self._body)
        return b""

    async def _send(self, message) -> None:
        match message.get("type"):
            case "http.response.start":
                if self._head is not None or self._answer.started:
                    raise freehold_http.WrongAnswer("the ASGI app started its response twice")
                self._head = _head_of(message)
            case "http.response.body" if self._finished.is_set():
                return
            case "http.response.body":
                await self._send_piece(message)
            case other:
                raise freehold_http.WrongAnswer(f"the ASGI app sent {other!r}, which a response has not")

    async def _send_piece(self, message) -> None:
        piece = freehold_http.octets(message.get("body", b""), "a piece of the ASGI app's body")
        if self._head is not None:
            self._answer.start(*self._head)
            self._head = None
        elif not self._answer.started:
            raise freehold_http.WrongAnswer("the ASGI app sent a body before it started its response")
        try:
            if self._method != "HEAD":
                await self._answer.send_in(self._loop, piece)
            if not message.get("more_body", False):
                self._finished.set()
                self._answer.end()
                sys.stdout.flush()
        except Err:
            if self._finished.is_set() and self._method == "HEAD":
                return  # the head declares a length of which no byte follows: the node sends the head alone
            self._finished.set()
            raise OSError("the client went away") from None


def _head_of(message):
    status = message.get("status")
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise freehold_http.WrongAnswer(f"the status is {status!r}; it must be a number from 200 to 599")
    try:
        return status, [(name.decode("latin-1"), bytes(value)) for name, value in message.get("headers", ())]
    except (AttributeError, TypeError, ValueError):
        raise freehold_http.WrongAnswer("the ASGI app's headers must be pairs of bytes") from None
