"""Bodies of wasi:http/types: incoming ones read from a bounded pipe, outgoing ones written to one, both with trailers.

An outgoing body may be written before anyone takes it: up to `UNBOUND_MAX_BYTES` wait in it. A stream is a child of its
body: finishing or dropping the body while the stream lives traps, as in wasmtime. Source: wasi:http 0.2 WIT.
Not here: heads.
"""

from __future__ import annotations

from typing import Final, Literal

from runtime.engine.codecs import Err, Ok
from runtime.engine.guest import Guest, Resource
from runtime.engine.interface import Interface
from runtime.exchange import BodyFailure, ErrorCode, Headers, RequestBody, ResponseWriter
from runtime.wasi.http_fields import Fields, incoming
from runtime.wasi.poll import Pollable
from runtime.wasi.streams import CLOSED, InputStream, OutputStream, failed

UNBOUND_MAX_BYTES: Final = 64 * 1024
"""Bytes of a body whose head has not been sent yet."""

Direction = Literal["request", "response"]


def error_code(failure: BodyFailure | ErrorCode) -> ErrorCode:
    """Return what a failed body is to the guest."""
    return (failure.value, None) if isinstance(failure, BodyFailure) else failure


class IncomingBody(Resource, wit="incoming-body"):
    """A body from outside; its stream can be had once."""

    __slots__ = ("pipe", "streamed")

    def __init__(self, pipe: RequestBody) -> None:
        super().__init__()
        self.pipe = pipe
        self.streamed = False

    def dropped(self, guest: Guest) -> None:
        """Nobody reads on: let the sender discard."""
        self.pipe.close()


class BodyInput(InputStream):
    """The bytes of an incoming body."""

    __slots__ = ("_failure_told", "_pipe")

    def __init__(self, body: IncomingBody) -> None:
        super().__init__(body)
        self._pipe = body.pipe
        self._failure_told = False

    def read(self, max_bytes: int) -> bytes | Err:
        """Return what is here; after a failure has been told once, closed."""
        data = self._pipe.read(max_bytes)
        if data or not self._pipe.readable:
            return data
        if self._pipe.drained or self._failure_told:
            return CLOSED
        if self._pipe.failure is None:  # bytes are here, but none were asked for
            return b""
        self._failure_told = True
        code = error_code(self._pipe.failure)
        return failed(code[0], code)

    def readable(self) -> bool:
        """Whether bytes, the end or a failure are here."""
        return self._pipe.readable


class FutureTrailers(Resource, wit="future-trailers"):
    """The trailers of an incoming body, once its end is here."""

    __slots__ = ("pipe", "taken")

    def __init__(self, pipe: RequestBody) -> None:
        super().__init__()
        self.pipe = pipe
        self.taken = False

    def ready(self) -> bool:
        """Whether the end, or a failure, is here; unread bytes before it are dropped."""
        if not self.pipe.ended and self.pipe.failure is None:
            self.pipe.discard()
        return self.pipe.ended or self.pipe.failure is not None

    def dropped(self, guest: Guest) -> None:
        """Nobody waits for trailers any more."""
        self.pipe.close()


class TrailersReady(Pollable):
    """The future resolved."""

    __slots__ = ()
    parent: FutureTrailers

    def ready(self) -> bool:
        """Whether `get` gives something."""
        return self.parent.ready()


class OutgoingBody(Resource, wit="outgoing-body"):
    """A body the guest writes: into itself until `bind`, then straight into the writer."""

    __slots__ = (
        "_aborted", "_finished", "_pending", "_pending_size", "_trailers", "_writer", "direction", "expected",
        "streamed", "written",
    )  # fmt: skip

    def __init__(self, direction: Direction, expected: int | None) -> None:
        super().__init__()
        self.direction = direction
        self.expected = expected
        self.written = 0
        self.streamed = False
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._writer: ResponseWriter | None = None
        self._trailers: Headers = ()
        self._finished = False
        self._aborted = False

    @property
    def open(self) -> bool:
        """Whether neither finished nor given up."""
        return not (self._finished or self._aborted)

    @property
    def refused(self) -> bool:
        """Whether the other side takes no more of it."""
        return self._writer is not None and self._writer.closed

    def bind(self, writer: ResponseWriter) -> None:
        """Send all there is to `writer`, and everything from now on."""
        self._writer = writer
        for piece in self._pending:
            writer.write(piece)
        self._pending.clear()
        if self._finished:
            writer.finish(self._trailers)
        elif self._aborted:
            writer.abort()

    def permit(self) -> int:
        """Return how many bytes fit now."""
        if self._writer is not None:
            return self._writer.permit()
        return max(UNBOUND_MAX_BYTES - self._pending_size, 0)

    def put(self, data: bytes) -> Err | None:
        """Take bytes; more than the declared content-length is a failure."""
        self.written += len(data)
        if self.expected is not None and self.written > self.expected:
            self.abort()
            code = self.size_error()
            return failed(code[0], code)
        if self._writer is not None:
            self._writer.write(data)
        else:
            self._pending.append(data)
            self._pending_size += len(data)
        return None

    def finish(self, trailers: Headers) -> ErrorCode | None:
        """End the body; an error code if its length is not the declared one."""
        if self.expected is not None and self.written != self.expected:
            self.abort()
            return self.size_error()
        self._finished = True
        self._trailers = trailers
        if self._writer is not None:
            self._writer.finish(trailers)
        return None

    def left(self) -> bool:
        """The handler returned and still held the body: it ends here, as in wasmtime; whether it ended well."""
        return self.open and self.finish(()) is None

    def abort(self) -> None:
        """Give the body up."""
        if self.open:
            self._aborted = True
            if self._writer is not None:
                self._writer.abort()

    def size_error(self) -> ErrorCode:
        """The error code of a wrong length."""
        return f"HTTP-{self.direction}-body-size", self.written

    def dropped(self, guest: Guest) -> None:
        """Dropped instead of finished: incomplete."""
        self.abort()


class BodyOutput(OutputStream):
    """The stream of an outgoing body."""

    __slots__ = ("_body",)

    def __init__(self, body: OutgoingBody) -> None:
        super().__init__(body)
        self._body = body

    def permit(self) -> int | Err:
        """Return the room, or closed once the body was given up."""
        return self._body.permit() if self._body.open and not self._body.refused else CLOSED

    def put(self, data: bytes) -> Err | None:
        """Write to the body."""
        return self._body.put(data) if self._body.open else CLOSED


def add_functions(types: Interface) -> None:
    """Register the functions with wasi:http/types."""
    for name, function in (
        ("[method]incoming-body.stream", _stream),
        ("[static]incoming-body.finish", _finish_incoming),
        ("[method]future-trailers.subscribe", _subscribe_trailers),
        ("[method]future-trailers.get", _get_trailers),
        ("[method]outgoing-body.write", _write),
        ("[static]outgoing-body.finish", _finish_outgoing),
    ):
        types.functions[name] = function


def _stream(guest: Guest, this: IncomingBody) -> InputStream | Err:
    if this.streamed:
        return Err()
    this.streamed = True
    return BodyInput(this)


def _finish_incoming(guest: Guest, this: IncomingBody) -> FutureTrailers:
    return FutureTrailers(this.pipe)


def _subscribe_trailers(guest: Guest, this: FutureTrailers) -> Pollable:
    return TrailersReady(this)


def _get_trailers(guest: Guest, this: FutureTrailers) -> Ok | Err | None:
    if not this.ready():
        return None
    if this.taken:
        return Err()
    this.taken = True
    if this.pipe.failure is not None:
        return Ok(Err(error_code(this.pipe.failure)))
    return Ok(Ok(incoming(this.pipe.trailers) if this.pipe.trailers else None))


def _write(guest: Guest, this: OutgoingBody) -> OutputStream | Err:
    if this.streamed:
        return Err()
    this.streamed = True
    return BodyOutput(this)


def _finish_outgoing(guest: Guest, this: OutgoingBody, trailers: Fields | None) -> Err | None:
    code = this.finish(trailers.frozen() if trailers is not None else ())
    return Err(code) if code is not None else None
