"""Outgoing requests: where a guest may connect, and what it is told when the other side misbehaves."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runtime.call import Waker
from runtime.outbound.client import Outbound, OutboundCall, OutboundRequest, Timeouts
from runtime.outbound.destinations import Destination, allowed, parse_authority, permitted
from tests.support.runtime.wasm_parts import a_spec


@pytest.mark.parametrize(
    ("authority", "tls", "expected"),
    [
        ("A.Example:8080", False, Destination("a.example", 8080)),
        ("a.example", True, Destination("a.example", 443)),
        ("a.example.", False, Destination("a.example", 80)),
        ("[::1]:81", False, Destination("::1", 81)),
        ("user@a.example", False, None),
        ("a.example:0", False, None),
        ("a.example:70000", False, None),
        ("a b", False, None),
        ("", False, None),
    ],
)
def test_an_authority_is_a_host_and_a_port_and_nothing_else(
    authority: str, tls: bool, expected: Destination | None
) -> None:
    assert parse_authority(authority, tls=tls) == expected


def test_only_listed_hosts_are_allowed_on_their_ports() -> None:
    listed = ("api.example:443", "*.cdn.example:443", "plain.example", "[2001:db8::1]:80")
    assert allowed(Destination("api.example", 443), listed, tls=True)
    assert not allowed(Destination("api.example", 80), listed, tls=False)
    assert not allowed(Destination("evil-api.example", 443), listed, tls=True)
    assert allowed(Destination("a.cdn.example", 443), listed, tls=True)
    assert not allowed(Destination("cdn.example", 443), listed, tls=True)
    assert not allowed(Destination("xcdn.example", 443), listed, tls=True)
    assert allowed(Destination("plain.example", 443), listed, tls=True)
    assert allowed(Destination("2001:db8::1", 80), listed, tls=False)
    assert not allowed(Destination("api.example", 443), (), tls=True)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "169.254.169.254", "fe80::1", "fe80::1%eth0", "fd00::1", "224.0.0.1", "ff02::1", "255.255.255.255",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "240.0.0.1", "nonsense", "",
    ],
)  # fmt: skip
def test_addresses_inside_are_never_permitted(address: str) -> None:
    assert not permitted(address, allow_loopback=False)


def test_public_addresses_are_permitted_and_loopback_only_when_told() -> None:
    assert permitted("93.184.216.34", allow_loopback=False)
    assert permitted("2606:2800:220:1::1", allow_loopback=False)
    assert permitted("127.0.0.1", allow_loopback=True)
    assert permitted("::ffff:127.0.0.1", allow_loopback=True)
    assert not permitted("169.254.169.254", allow_loopback=True)


class Server:
    """A loopback server whose every connection runs one script."""

    def __init__(self, script: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._script = script
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            self._script(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # some systems refuse it on a listening socket, and then close wakes accept
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], Server]]:
    servers: list[Server] = []

    def start(script: Callable[[socket.socket], None]) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def outbound() -> Iterator[Outbound]:
    new_outbound = Outbound(lambda host, port: ["127.0.0.1"])
    yield new_outbound
    new_outbound.close()


class Client:
    """A guest's side of one call."""

    def __init__(self, outbound: Outbound, port: int, **changes: Any) -> None:
        values: dict[str, Any] = {
            "method": "GET", "tls": False, "authority": f"up.example:{port}", "target": "/x", "headers": (),
            "content_length": 0, "timeouts": Timeouts(None, None, None), **changes,
        }  # fmt: skip
        self.waker = Waker()
        spec = a_spec(allow_hosts=(f"up.example:{port}",), allow_loopback=True, timeout_ms=3000)
        started = outbound.start(OutboundRequest(**values), spec, self.waker.wake)
        assert isinstance(started, OutboundCall), started
        self.call = started

    def finish(self, *pieces: bytes, trailers: tuple[tuple[str, bytes], ...] = ()) -> None:
        for piece in pieces:
            self.call.writer.write(piece)
        self.call.writer.finish(trailers)

    def until(self, happened: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 5
        while not happened():
            assert time.monotonic() < end_s, "waited too long"
            self.waker.wait(0.1)

    def body(self) -> bytes:
        self.until(lambda: self.call.settled)
        got = b""
        while True:
            self.until(lambda: self.call.body.readable)
            piece = self.call.body.read(1 << 20)
            if not piece and (self.call.body.drained or self.call.body.failure is not None):
                return got
            got += piece


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return script


def reading_to_the_end(
    seen: list[bytes], end: bytes, answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n"
) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        got = b""
        while end not in got:
            got += connection.recv(65536)
        seen.append(got)
        connection.sendall(answer)

    return script


def test_an_answer_arrives_with_its_fields_body_and_trailers(outbound: Outbound, serve: Any) -> None:
    server = serve(
        answering(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 203 Odd\r\nX-A: 1 \t\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n"
        )
    )
    client = Client(outbound, server.port)
    client.finish()
    assert client.body() == b"abcde"
    assert client.call.head is not None
    assert client.call.head.status == 203
    assert ("x-a", b"1") in client.call.head.headers
    assert client.call.body.trailers == (("x-sum", b"5"),)


def test_a_request_is_sent_as_the_guest_made_it(outbound: Outbound, serve: Any) -> None:
    seen: list[bytes] = []
    server = serve(reading_to_the_end(seen, b"x-t: 1\r\n\r\n"))
    client = Client(outbound, server.port, method="POST", headers=(("x-a", b"1"),), content_length=None)
    client.finish(b"one", b"two", trailers=(("x-t", b"1"),))
    assert client.body() == b""
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST /x HTTP/1.1\r\nhost: up.example:{server.port}\r\nx-a: 1\r\n".encode())
    assert body in {b"3\r\none\r\n3\r\ntwo\r\n0\r\nx-t: 1\r\n\r\n", b"6\r\nonetwo\r\n0\r\nx-t: 1\r\n\r\n"}


def test_a_body_without_length_ends_with_the_connection_and_head_has_none(outbound: Outbound, serve: Any) -> None:
    client = Client(outbound, serve(answering(b"HTTP/1.1 200 OK\r\n\r\nuntil close")).port)
    client.finish()
    assert client.body() == b"until close"
    head = Client(outbound, serve(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")).port, method="HEAD")
    head.finish()
    assert head.body() == b""


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "HTTP-response-incomplete"),
        (b"HTTP/1.1 2", "HTTP-response-incomplete"),
        (b"nonsense\r\n\r\n", "HTTP-protocol-error"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n", "HTTP-response-header-section-size"),
    ],
)
def test_a_broken_answer_has_its_error_code(outbound: Outbound, serve: Any, answer: bytes, code: str) -> None:
    client = Client(outbound, serve(answering(answer)).port)
    client.finish()
    client.until(lambda: client.call.settled)
    assert client.call.failure is not None
    assert client.call.failure[0] == code


def test_a_body_that_breaks_off_is_incomplete(outbound: Outbound, serve: Any) -> None:
    client = Client(outbound, serve(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")).port)
    client.finish()
    assert client.body() == b"half"
    assert client.call.body.failure == ("HTTP-response-incomplete", None)


def test_silence_times_out_before_the_head_and_within_the_body(outbound: Outbound, serve: Any) -> None:
    release = threading.Event()

    def silent(connection: socket.socket) -> None:
        connection.recv(65536)
        release.wait(5)

    def half(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        release.wait(5)

    first = Client(outbound, serve(silent).port, timeouts=Timeouts(None, 0.05, None))
    second = Client(outbound, serve(half).port, timeouts=Timeouts(None, None, 0.05))
    first.finish()
    second.finish()
    first.until(lambda: first.call.settled)
    assert first.call.failure == ("connection-read-timeout", None)
    assert second.body() == b"half"
    assert second.call.body.failure == ("connection-read-timeout", None)
    release.set()


def test_nobody_listening_is_refused_and_inside_addresses_are_prohibited(outbound: Outbound) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = Client(outbound, port)
    client.until(lambda: client.call.settled)
    assert client.call.failure == ("connection-refused", None)
    request = OutboundRequest("GET", False, "up.example:80", "/", (), 0, Timeouts(None, None, None))
    waker = Waker()
    call = outbound.start(request, a_spec(allow_hosts=("up.example:80",)), waker.wake)
    assert isinstance(call, OutboundCall)
    waker.wait(5)
    assert call.failure == ("destination-IP-prohibited", None)


def test_what_is_not_listed_is_denied_at_once_and_calls_have_a_largest_number(outbound: Outbound, serve: Any) -> None:
    request = OutboundRequest("GET", False, "other.example", "/", (), 0, Timeouts(None, None, None))
    assert outbound.start(request, a_spec(), Waker().wake) == ("HTTP-request-denied", None)
    spec = a_spec(allow_hosts=("*.example",), outbound_max=0)
    assert outbound.start(request, spec, Waker().wake) == ("connection-limit-reached", None)


def test_a_cancelled_call_closes_its_connection(outbound: Outbound, serve: Any) -> None:
    closed = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        if connection.recv(10) == b"":
            closed.set()

    client = Client(outbound, serve(script).port)
    client.finish()
    client.call.cancel()
    client.until(lambda: client.call.settled)
    assert client.call.failure == ("connection-terminated", None)


def test_a_large_answer_waits_for_its_reader(outbound: Outbound, serve: Any) -> None:
    size = 3_000_000
    client = Client(
        outbound, serve(answering(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))).port
    )
    client.finish()
    assert len(client.body()) == size


def test_a_body_nobody_takes_is_closed_to_its_writer(outbound: Outbound, serve: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    refused = Client(outbound, port, method="POST", content_length=None)
    release = threading.Event()

    def deaf(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        release.wait(5)

    answered = Client(outbound, serve(deaf).port, method="POST", content_length=None)
    for client in (refused, answered):
        while client.call.writer.permit():
            client.call.writer.write(b"x" * 65536)
            client.call.writer.publish()
        client.until(lambda client=client: client.call.writer.closed)  # type: ignore[misc]
        assert client.call.settled
    assert refused.call.failure == ("connection-refused", None)
    assert answered.call.head is not None
    assert answered.call.head.status == 413
    release.set()
