"""Outgoing HTTP/1.1 for guests: allow-listed, resolved once, connected to that address, bounded both ways.

Calls run on a loop in a thread of their own, so that neither the worker's loop nor a guest's thread waits for them. A
guest reads and writes through the same pipes as an incoming exchange. Not here: connection reuse, redirects, cookies,
compression: a guest that wants them does them. Source: RFC 9112; error codes of wasi:http 0.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from runtime.exchange import ErrorCode, Headers, RequestBody, ResponseHead, ResponseWriter
from runtime.outbound.destinations import Destination, allowed, is_own, parse_authority, permitted
from runtime.outbound.lookups import Lookups, Resolve
from runtime.outbound.response_reader import ResponseFailed, ResponseReader
from runtime.spec import AppSpec

ADDRESSES_TRIED_MAX: Final = 3
"""Addresses of one name tried in turn, within one connect timeout."""


Settled = Callable[[ResponseHead | None, ErrorCode | None], None]
"""Hears the head of an answer, or why there is none; called on the loop of the calls."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """What the guest asked for, in seconds; None is the app's own limit."""

    connect_s: float | None
    first_byte_s: float | None
    between_bytes_s: float | None


@dataclass(frozen=True, slots=True)
class OutboundRequest:
    """One request as the guest made it; `content_length` None means chunked."""

    method: str
    tls: bool
    authority: str
    target: str
    headers: Headers
    content_length: int | None
    timeouts: Timeouts


class RequestWriter(ResponseWriter):
    """A request body: every write leaves at once, since no outcome follows that could carry it."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        """Queue and hand over."""
        super().write(data)
        self.publish()

    def finish(self, trailers: Headers = ()) -> None:
        """End and hand over."""
        super().finish(trailers)
        self.publish()

    def abort(self) -> None:
        """Give up and say so."""
        super().abort()
        self.publish()

    def hang_up(self) -> None:
        """The other side takes no more: the guest's next write finds the stream closed, and a waiting one wakes."""
        self.closed = True
        self._wake()


class OutboundCall:
    """One call in flight: `settled` once `head` or `failure` is set."""

    __slots__ = ("_loop", "_tell", "_wake", "body", "failure", "head", "settled", "task", "writer")

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None], tell: Settled | None) -> None:
        self._loop = loop
        self._wake = wake
        self._tell = tell
        self.writer = RequestWriter(wake, loop)
        self.writer.started = True
        self.body = RequestBody(wake, loop)
        self.head: ResponseHead | None = None
        self.failure: ErrorCode | None = None
        self.settled = False
        self.task: asyncio.Task[None] | None = None

    def settle(self, head: ResponseHead | None, failure: ErrorCode | None) -> None:
        """Give the answer, or why there is none; later ones are too late."""
        if not self.settled:
            self.head = head
            self.failure = failure
            self.settled = True
            self._wake()
            if self._tell is not None:
                self._tell(head, failure)

    def fail(self, code: ErrorCode) -> None:
        """Settle without an answer, or break the body of the answer off."""
        self.settle(None, code)
        self.body.feed_failure(code)

    def cancel(self) -> None:
        """Give the call up (any thread)."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Outbound:
    """The outgoing side of one worker. Its thread starts with the first call."""

    def __init__(self, resolve: Resolve | None = None) -> None:
        self._lookups = Lookups(resolve or _resolve)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._group: asyncio.TaskGroup | None = None
        self._stop: asyncio.Event | None = None
        self._in_flight: Counter[tuple[str, str]] = Counter()

    def start(
        self, request: OutboundRequest, spec: AppSpec, wake: Callable[[], None], tell: Settled | None = None
    ) -> OutboundCall | ErrorCode:
        """Begin a call (guest thread); an error code if it is refused outright. `tell` hears once how it was settled."""
        destination = parse_authority(request.authority, tls=request.tls)
        if destination is None:
            return "HTTP-request-URI-invalid", None
        if not allowed(destination, spec.allow_hosts, tls=request.tls):
            return "HTTP-request-denied", None
        key = spec.project, spec.app
        with self._lock:
            if self._in_flight[key] >= spec.outbound_max:
                return "connection-limit-reached", None
            self._in_flight[key] += 1
            loop = self._loop or self._begin()
        call = OutboundCall(loop, wake, tell)
        loop.call_soon_threadsafe(self._spawn, call, request, destination, spec)
        return call

    def close(self) -> None:
        """Cancel every call and end the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None and self._stop is not None:
            loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    def _begin(self) -> asyncio.AbstractEventLoop:
        started = threading.Event()

        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                self._group = group
                started.set()
                await self._stop.wait()
                for task in list(self._tasks):
                    task.cancel()

        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=asyncio.run, args=(run(),), name="outbound", daemon=True)
        self._thread.start()
        started.wait()
        assert self._loop is not None
        return self._loop

    def _spawn(self, call: OutboundCall, request: OutboundRequest, destination: Destination, spec: AppSpec) -> None:
        assert self._group is not None
        call.task = self._group.create_task(self._serve(call, request, destination, spec))
        self._tasks.add(call.task)

        def ended(task: asyncio.Task[None]) -> None:  # also for a task cancelled before its first step
            self._tasks.discard(task)
            call.writer.hang_up()
            with self._lock:
                self._in_flight[spec.project, spec.app] -= 1
                self._in_flight += Counter()  # drops what is at zero: apps come and go
            if task.cancelled():
                call.fail(("connection-terminated", None))

        call.task.add_done_callback(ended)

    async def _serve(
        self, call: OutboundCall, request: OutboundRequest, destination: Destination, spec: AppSpec
    ) -> None:
        try:
            await self._converse(call, request, destination, spec)
        except ResponseFailed as failed:
            call.fail(failed.code)
        except Exception as error:  # a defect of ours ends this call, not everybody's
            call.fail(("internal-error", repr(error)))

    async def _converse(
        self, call: OutboundCall, request: OutboundRequest, destination: Destination, spec: AppSpec
    ) -> None:
        limits, timeouts = spec.timeout_ms / 1000, request.timeouts
        connect_s = min(timeouts.connect_s or limits, spec.outbound_connect_timeout_ms / 1000)
        try:
            async with asyncio.timeout(connect_s):
                reader, writer = await self._connect(destination, request.tls, spec)
        except TimeoutError:
            raise ResponseFailed(("connection-timeout", None)) from None
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(_send(call, request, writer))
                response = ResponseReader(reader, request.method)
                await _receive(call, response, timeouts.first_byte_s or limits, timeouts.between_bytes_s or limits)
                sending.cancel()
        except* ResponseFailed as failures:
            raise failures.exceptions[0] from None
        finally:
            writer.transport.abort()

    async def _connect(
        self, destination: Destination, tls: bool, spec: AppSpec
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            addresses = await self._lookups.addresses((spec.project, spec.app), destination.host, destination.port)
        except OSError as error:
            raise ResponseFailed(("DNS-error", (str(error.strerror or error), None))) from None
        except UnicodeError:
            raise ResponseFailed(("DNS-error", ("the name is no name", None))) from None
        chosen = [address for address in addresses if _may_reach(address, spec)]
        if not chosen:
            raise ResponseFailed(("destination-IP-prohibited" if addresses else "destination-not-found", None))
        failure: ErrorCode = ("destination-unavailable", None)
        for address in chosen[:ADDRESSES_TRIED_MAX]:
            try:
                return await asyncio.open_connection(
                    address,
                    destination.port,
                    ssl=_tls_context() if tls else None,
                    server_hostname=destination.host if tls else None,
                )
            except OSError as error:
                failure = connect_failure(error)
        raise ResponseFailed(failure)


def _may_reach(address: str, spec: AppSpec) -> bool:
    """Whether an app may connect to an address: a public one, or one of its private networks that is not this machine's."""
    if permitted(address, allow_loopback=spec.allow_loopback):
        return True
    networks = spec.private_networks
    return bool(networks) and permitted(address, allow_loopback=False, networks=networks) and not is_own(address)


def connect_failure(error: OSError) -> ErrorCode:
    """Return the error code of a failed connection."""
    match error:
        case ConnectionRefusedError():
            return "connection-refused", None
        case ssl.SSLCertVerificationError():
            return "TLS-certificate-error", None
        case ssl.SSLError():
            return "TLS-protocol-error", None
        case ConnectionError():
            return "connection-terminated", None
    if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
        return "destination-IP-unroutable", None
    return "destination-unavailable", None


async def _send(call: OutboundCall, request: OutboundRequest, writer: asyncio.StreamWriter) -> None:
    names = {name for name, _ in request.headers}
    chunked = request.content_length is None
    lines = [f"{request.method} {request.target} HTTP/1.1\r\nhost: {request.authority}\r\n".encode()]
    lines += [name.encode() + b": " + value + b"\r\n" for name, value in request.headers]
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif "content-length" not in names and request.method in {"POST", "PUT", "PATCH"}:
        lines.append(b"content-length: 0\r\n")
    lines.append(b"connection: close\r\n\r\n")
    with contextlib.suppress(OSError):  # a server may answer and close before it has read all: the answer counts
        writer.write(b"".join(lines))
        complete = False
        while not complete:
            batch = await call.writer.take()
            if batch.aborted:
                raise ResponseFailed(("HTTP-protocol-error", None))
            for chunk in batch.chunks:
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
            if batch.complete and chunked:
                fields = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in batch.trailers)
                writer.write(b"0\r\n" + fields + b"\r\n")
            await writer.drain()
            complete = batch.complete


async def _receive(call: OutboundCall, response: ResponseReader, first_s: float, between_s: float) -> None:
    try:
        async with asyncio.timeout(first_s):
            head = await response.read_head()
    except TimeoutError:
        raise ResponseFailed(("connection-read-timeout", None)) from None  # as wasmtime names it
    call.settle(head, None)
    while True:
        try:
            async with asyncio.timeout(between_s):
                piece = await response.read_piece()
        except TimeoutError:
            raise ResponseFailed(("connection-read-timeout", None)) from None
        if piece is None:
            call.body.feed_end(response.trailers)
            return
        if not await call.body.feed(piece):
            return


def _resolve(host: str, port: int) -> list[str]:
    pairs = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in pairs))


@cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()
