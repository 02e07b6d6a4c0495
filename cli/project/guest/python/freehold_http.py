"""wasi:http/types as plain calls: read a request, stream a response, call out. Runs only inside the sandbox.

Children are let go before their parents, as the component model demands: the stream before its body, the body before
its request. Not here: WSGI (`freehold_wsgi.py`) or the app's own handler (`freehold_handler.py`).
"""

from __future__ import annotations

import io
import re
import sys
import time
import traceback
from urllib.parse import urlsplit

from componentize_py_types import Err, Ok
from wit_world.imports import types
from wit_world.imports.streams import StreamError_Closed

import freehold

READ_MAX_BYTES = 64 * 1024
METHODS = {
    types.Method_Get: "GET", types.Method_Head: "HEAD", types.Method_Post: "POST", types.Method_Put: "PUT",
    types.Method_Delete: "DELETE", types.Method_Connect: "CONNECT", types.Method_Options: "OPTIONS",
    types.Method_Trace: "TRACE", types.Method_Patch: "PATCH",
}  # fmt: skip
# What a server decides about its own connection; wasi:http refuses these.
HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings", "te", "host",
}  # fmt: skip


def method_of(request) -> str:
    method = request.method()
    return METHODS.get(type(method)) or method.value


def scheme_of(request) -> str:
    return "https" if isinstance(request.scheme(), types.Scheme_Https) else "http"


class Body(io.RawIOBase):
    """An incoming body as a raw stream; nothing is read before it is asked for."""

    def __init__(self, owner) -> None:
        self._owner = owner
        self._body = None
        self._stream = None
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        piece = self.piece(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def piece(self, size_max: int) -> bytes:
        """Return at least one byte, or b"" at the end."""
        stream = self.stream()
        if stream is None:
            return b""
        while True:
            try:
                piece = stream.blocking_read(min(size_max, READ_MAX_BYTES))
            except Err as error:
                self.release()
                if isinstance(error.value, StreamError_Closed):
                    return b""
                raise OSError("the request body broke off") from None
            if piece:
                return piece

    def stream(self):
        """Return the input stream, taken up at the first call; None after the end."""
        if self._ended:
            return None
        if self._stream is None:
            self._body = self._owner.consume()
            self._stream = self._body.stream()
        return self._stream

    def release(self) -> None:
        """Let go of the stream and the body; reading afterwards finds the end."""
        self._ended = True
        if self._stream is not None:
            if "freehold_loop" in sys.modules:
                sys.modules["freehold_loop"].let_go(self)
            self._stream.__exit__(None, None, None)
            self._body.__exit__(None, None, None)
            self._stream = self._body = None


class WrongAnswer(TypeError):
    """The app answered with something that is no answer; the message says what, and what would be one."""


def octets(piece, what: str) -> bytes:
    """Return one piece of a body as bytes; refuses what is neither bytes nor text, by name."""
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return bytes(piece)
    raise WrongAnswer(f"{what} is {kind_of(piece)}; it must be bytes or str")


def kind_of(value) -> str:
    """Return a type as a sentence names it."""
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def lies_ahead(name: str, value: bytes) -> bool:
    """Whether this is a Last-Modified of a later year, which no server may send (RFC 9110, 8.8.2.1): a file's own time."""
    year = re.search(rb"\b[0-9]{4}\b", value) if name.lower() == "last-modified" else None
    return year is not None and int(year[0]) > time.gmtime().tm_year


class Answer:
    """One outgoing response: `start` sends status and headers, `send` pieces of the body, `end` finishes it."""

    def __init__(self, outparam) -> None:
        self._outparam = outparam
        self._body = None
        self._stream = None
        self.started = False

    def start(self, status: int, headers) -> None:
        fields = types.Fields.from_list(
            [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP and not lies_ahead(name, value)]
        )
        response = types.OutgoingResponse(fields)
        response.set_status_code(status)
        self._body = response.body()
        self.started = True
        types.ResponseOutparam.set(self._outparam, Ok(response))
        self._stream = self._body.write()

    def send(self, piece: bytes) -> None:
        write_all(self._stream, piece)

    async def send_in(self, loop, piece: bytes) -> None:
        """Write and flush; other tasks of `loop` go on while the other side is slow."""
        at = 0
        while at < len(piece):
            room = self._stream.check_write()
            if room == 0:
                await loop.ready(self._stream.subscribe(), self)
                continue
            self._stream.write(piece[at : at + room])
            at += room
        self._stream.flush()

    def end(self) -> None:
        stream, body = self._stream, self._body
        self._quiet()
        self._stream = self._body = None  # whatever comes of it, neither is let go of twice
        stream.__exit__(None, None, None)
        types.OutgoingBody.finish(body, None)

    def abandon(self) -> None:
        """Drop an unfinished body, so that the client sees it break off rather than end."""
        if self._stream is not None:
            self._quiet()
            self._stream.__exit__(None, None, None)
            self._body.__exit__(None, None, None)
            self._stream = self._body = None

    def _quiet(self) -> None:
        if "freehold_loop" in sys.modules:
            sys.modules["freehold_loop"].let_go(self)


def write_all(stream, piece: bytes) -> None:
    """Write and flush; waits while the other side is slow."""
    at = 0
    while at < len(piece):
        room = stream.check_write()
        if room == 0:
            with stream.subscribe() as pollable:
                pollable.block()
            continue
        stream.write(piece[at : at + room])
        at += room
    stream.flush()


def serve(request, outparam, respond) -> None:
    """Run `respond(request, body, answer)`; whatever it raises is logged and becomes a plain 500."""
    body, answer = Body(request), Answer(outparam)
    try:
        respond(request, body, answer)
        body.release()
    except Err as error:
        # The client or its connection went away in the middle; there is nobody left to tell.
        print(f"the response could not be sent: {error.value}", file=sys.stderr)
        answer.abandon()
    except MemoryError:
        raise  # a trap: the node names the refusal, answers, and gives up this instance with all it holds
    except Exception as error:
        traceback.print_exc()
        body.release()
        if answer.started:
            answer.abandon()
        else:
            said = f"Internal Server Error: {error}\n" if isinstance(error, WrongAnswer) else "Internal Server Error\n"
            answer.start(500, [("content-type", b"text/plain; charset=utf-8")])
            answer.send(said.encode())
            answer.end()
    finally:
        body.release()
        sys.stdout.flush()
        sys.stderr.flush()


def fetch(outgoing_handler, url, method, headers, body, timeout_s):
    """Call out and return a whole `freehold.Response`; raises `freehold.FreeholdError`."""
    import freehold_outbound

    parts = urlsplit(url)
    fields = [(name.lower(), value.encode("latin-1")) for name, value in headers.items()]
    fields = [(name, value) for name, value in fields if name not in HOP_BY_HOP and name != "content-length"]
    if body:
        fields.append(("content-length", str(len(body)).encode()))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    call = freehold_outbound.Call()
    try:
        call.start(method, parts.scheme == "https", parts.netloc, target, fields, timeout_s)
        call.finish(body)
        freehold_outbound.wait_for(call, lambda: call.status is not None, timeout_s)
        pieces = []
        while True:
            freehold_outbound.wait_for(call, lambda: call.received or call.ended, timeout_s)
            if not call.received:
                break
            pieces.append(call.take())
        return freehold.Response(b"".join(pieces), call.status, {name: value.decode("latin-1") for name, value in call.fields})
    except OSError as error:
        raise freehold.FreeholdError(f"{url}: {error}") from None
    finally:
        call.release()
