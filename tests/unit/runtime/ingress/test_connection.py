"""No bytes from a client, whole, cut or mixed up, do more to a connection than end it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from runtime.ingress.connection import ClientConnection
from runtime.ingress.dispatch import Dispatcher, HostedApp
from runtime.ingress.front import Ingress
from runtime.ingress.request_head import Identifiers
from runtime.ingress.routing import RouteTable
from runtime.ingress.settings import IngressSettings
from runtime.services.log_sink import LogBuffer

PIECES = [
    b"GET / HTTP/1.1\r\n",
    b"POST /a HTTP/1.1\r\n",
    b"GET / HTTP/1.0\r\n",
    b"Host: a\r\n",
    b"Host:",
    b"\r\n",
    b"\n",
    b"\r",
    b"Content-Length: 3\r\n",
    b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"abc",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\0",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"x" * 3000,
    b"X: y\r\n" * 50,
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET http://b/ HTTP/1.1\r\n",
]


class FakeTransport:
    """Remembers what was written and whether it was closed."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False
        self.on_close: Callable[[], None] = lambda: None

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1)

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.on_close()

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        return None

    def pause_reading(self) -> None:
        return None

    def resume_reading(self) -> None:
        return None


async def converse(pieces: list[bytes]) -> tuple[bytes, int]:
    """Feed `pieces` to a connection without any route; return what it wrote and how many defects were logged."""
    async with asyncio.TaskGroup() as tasks:
        ingress = Ingress(
            settings=IngressSettings(fields_max=20, fields_max_bytes=2000, target_max_bytes=1000),
            dispatcher=Dispatcher(1),
            listeners=[],
            proxies=(),
            identifiers=Identifiers(1),
            logs=LogBuffer(),
            node="n",
            tasks=tasks,
        )
        ingress.activate(cast("RouteTable[HostedApp]", RouteTable()))
        connection = ClientConnection(ingress)
        transport = FakeTransport()
        loop = asyncio.get_running_loop()
        transport.on_close = lambda: loop.call_soon(connection.connection_lost, None) and None
        connection.connection_made(cast(asyncio.Transport, transport))
        serving = tasks.create_task(connection.serve())
        for piece in pieces:
            if not transport.closing and connection.reading:
                connection.data_received(piece)
            for _ in range(6):
                await asyncio.sleep(0)
        if not transport.closing:
            transport.close()
        async with asyncio.timeout(5):
            await serving
    return transport.written, ingress.refused["defect"]


@given(st.lists(st.sampled_from(PIECES), max_size=20))
def test_mixed_up_pieces_of_requests_end_in_answers_or_silence(pieces: list[bytes]) -> None:
    written, defects = asyncio.run(converse(pieces))
    assert defects == 0
    assert written == b"" or written.startswith(b"HTTP/1.1 ")


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_noise_ends_in_answers_or_silence(pieces: list[bytes]) -> None:
    written, defects = asyncio.run(converse(pieces))
    assert defects == 0
    assert written == b"" or written.startswith(b"HTTP/1.1 ")


@given(st.integers(1, 120))
def test_a_request_cut_anywhere_means_the_same(cut: int) -> None:
    data = b"POST /x?y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n" * 2
    whole, _ = asyncio.run(converse([data]))
    pieces, defects = asyncio.run(converse([data[start : start + cut] for start in range(0, len(data), cut)]))
    assert defects == 0
    assert whole.count(b"HTTP/1.1 404") == 2
    assert pieces.count(b"HTTP/1.1 404") >= 1  # an early answer may end the connection before the rest is there
