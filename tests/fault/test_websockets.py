"""WebSockets at the ingress of a real worker: aiohttp's client as an outside one, and frames by hand as conformance asks.

The cases by hand are those of Autobahn's testsuite by its numbers: framing (1), pings (2), reserved bits (3), opcodes (4),
fragments (5), UTF-8 (6), closing (7), limits (9). Its own program needs Python 2.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from runtime.ingress.topics import TOPICS_SOCKET, Publication, block_of, read_publication_block
from runtime.messages import AppLimits, AppLoad, ReleaseLoad
from runtime.spec import AppSpec
from tests.support.runtime.served import Client, Served, request, running

KEY = base64.b64encode(b"sixteen bytes...").decode()
SHAKE = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {KEY}",
)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def socket_release(key: str = "r1", **more: object) -> ReleaseLoad:
    spec = AppSpec(
        "project", "sockets", key, Path("/none"), "0", timeout_ms=5_000, config={"do": "sockets"},
        stores="project/production", websocket="/sockets/ws", **more,
    )  # type: ignore[arg-type]  # fmt: skip
    plain = AppSpec("project", "describe", key, Path("/none"), "0", config={"do": "describe"})
    return ReleaseLoad(key, key, "project", (AppLoad(spec, AppLimits()), AppLoad(plain, AppLimits())))


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with running(tmp_path, drain_grace_ms=2_000) as found_served:
        await found_served.serve(socket_release())
        yield found_served


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, mask: bytes | None = b"mask", rsv: int = 0) -> bytes:
    head = bytes([(128 if fin else 0) | rsv << 4 | opcode])
    bit = 0 if mask is None else 128
    size = len(data)
    if size < 126:
        length = bytes([bit | size])
    elif size < 65_536:
        length = bytes([bit | 126]) + struct.pack("!H", size)
    else:
        length = bytes([bit | 127]) + struct.pack("!Q", size)
    if mask is None:
        return head + length + data
    return head + length + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))


class Raw:
    """A socket by hand."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def send(self, *frames: bytes) -> None:
        await self.client.send(b"".join(frames))

    async def receive(self) -> tuple[int, bytes]:
        """The next frame's opcode and data; (0, b"") at the end of the connection."""
        async with asyncio.timeout(10):
            try:
                first, second = await self.client.reader.readexactly(2)
                assert not second & 128, "a server does not mask"
                size = second & 127
                if size > 125:
                    size = int.from_bytes(await self.client.reader.readexactly(2 if size == 126 else 8))
                return first & 15, await self.client.reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0, b""

    async def closed_with(self) -> int:
        """The code of the close frame that comes next but for pongs and echoes; 1006 if there is none."""
        while True:
            opcode, data = await self.receive()
            if opcode == CLOSE:
                return int.from_bytes(data[:2]) if data else 1005
            if opcode == 0:
                return 1006


async def opened(served: Served, *fields: str, path: str = "/sockets/ws") -> Raw:
    client = await served.connect()
    await client.send(request("GET", path, *SHAKE, *fields))
    answer = await client.receive(head_only=True)
    assert answer.status == 101, answer
    accept = hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    assert answer.header("sec-websocket-accept") == base64.b64encode(accept).decode()
    assert answer.header("sec-websocket-extensions") is None
    return Raw(client)


# --- an outside client ------------------------------------------------------------------------------------------------


async def test_an_outside_client_talks_to_an_app_and_ends_as_it_says(served: Served) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(f"http://127.0.0.1:{served.port}/sockets/ws", autoclose=False) as socket:
            for text in ("hello", "", "κόσμε", "x" * 200_000):
                await socket.send_str(text)
                assert (await socket.receive()).data == text
            await socket.send_bytes(b"\x00\xff" * 500)
            assert (await socket.receive()).data == b"\x00\xff" * 500
            await socket.send_str("close 4001")
            ended = await socket.receive()
            assert (ended.type, ended.data, ended.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "as you say")
        async with http.ws_connect(f"http://127.0.0.1:{served.port}/sockets/ws") as socket:
            await socket.close(code=1000)
            assert socket.close_code == 1000
    line = await served.logged("request", status=101)
    assert line["path"] == "/sockets/ws"


async def test_topics_reach_who_joined_on_every_worker_and_nobody_else(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as served:
        await served.serve(socket_release())
        relay = asyncio.ensure_future(_relay(tmp_path / "run" / TOPICS_SOCKET))
        try:
            await asyncio.sleep(1.5)  # until both workers have found it
            async with aiohttp.ClientSession() as http:
                address = f"http://127.0.0.1:{served.port}/sockets/ws"
                sockets = [await http.ws_connect(address) for _ in range(8)]
                for socket in sockets[:6]:
                    await socket.send_str("join room")
                    await socket.send_str("here")
                    assert (await socket.receive()).data == "here"
                await sockets[7].send_str("tell room hello all")
                heard = [(await socket.receive(timeout=10)).data for socket in sockets[:6]]
                assert heard == ["hello all"] * 6
                await sockets[0].send_str("leave room")
                await sockets[0].send_str("left")  # messages of one socket are heard in order
                assert (await sockets[0].receive()).data == "left"
                await sockets[7].send_str("tell room again")
                assert (await sockets[1].receive(timeout=10)).data == "again"
                for silent in (sockets[0], sockets[6]):
                    await silent.send_str("still here")
                    assert (await silent.receive()).data == "still here"
                for socket in sockets:
                    await socket.close()
        finally:
            relay.cancel()
            await asyncio.wait([relay])


async def _relay(path: Path) -> None:
    """What a daemon does for topics, without any other node."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                block = block_of(await read_publication_block(reader))
                for other in writers:
                    if other is not writer:
                        other.write(block)
        except (EOFError, OSError):
            writers.remove(writer)
            writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        await asyncio.Event().wait()
    finally:
        server.close()
        for writer in writers:
            writer.close()
            await writer.wait_closed()


async def test_a_release_changes_behind_an_open_socket_and_a_node_that_stops_says_so(served: Served) -> None:
    async with aiohttp.ClientSession() as http:
        socket = await http.ws_connect(f"http://127.0.0.1:{served.port}/sockets/ws", autoclose=False)
        await socket.send_str("wait 300")
        await served.serve(socket_release("r2"))
        await served.pool.unload("r1")
        assert (await socket.receive()).data == "waited"  # of the release before, which ended it
        await socket.send_str("hello")
        assert (await socket.receive()).data == "hello"
        stopping = asyncio.ensure_future(served.pool.stop())
        ended = await socket.receive(timeout=10)
        assert (ended.type, ended.data) == (aiohttp.WSMsgType.CLOSE, 1012)
        await socket.close()
        await stopping


# --- handshakes -------------------------------------------------------------------------------------------------------

BAD_SHAKES = [
    ("no-key", SHAKE[:3], 400, "bad-handshake"),
    ("short-key", (*SHAKE[:3], "Sec-WebSocket-Key: c2hvcnQ="), 400, "bad-handshake"),
    ("no-base64", (*SHAKE[:3], "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="), 400, "bad-handshake"),
    ("two-keys", (*SHAKE, f"Sec-WebSocket-Key: {KEY}"), 400, "bad-handshake"),
    ("old-version", (*SHAKE[:2], "Sec-WebSocket-Version: 8", SHAKE[3]), 426, "websocket-version"),
    ("no-version", (*SHAKE[:2], SHAKE[3]), 426, "websocket-version"),
    ("foreign-origin", (*SHAKE, "Origin: https://evil.test"), 403, "foreign-origin"),
    ("null-origin", (*SHAKE, "Origin: null"), 403, "foreign-origin"),
    ("near-origin", (*SHAKE, "Origin: https://app.test.evil.test"), 403, "foreign-origin"),
    ("other-port", (*SHAKE, "Origin: http://app.test:8080"), 403, "foreign-origin"),
    ("tls-port", (*SHAKE, "Origin: https://app.test:8443"), 403, "foreign-origin"),
    ("other-scheme", (*SHAKE, "Origin: chrome-extension://app.test"), 403, "foreign-origin"),
    ("body", (*SHAKE, "Content-Length: 3"), 400, "bad-handshake"),
]


async def test_a_handshake_that_is_none_is_refused_by_name(served: Served) -> None:
    for name, fields, status, slug in BAD_SHAKES:
        body = b"abc" if "Content-Length: 3" in fields else b""
        answer = await served.fetch(request("GET", "/sockets/ws", *fields) + body)
        assert (name, answer.status, answer.problem) == (name, status, slug)


async def test_a_handshake_elsewhere_an_apps_refusal_and_one_that_speaks_before_it_is_answered(served: Served) -> None:
    answer = await served.fetch(request("GET", "/sockets/other", *SHAKE))
    assert (answer.status, answer.problem) == (404, "no-websocket")
    answer = await served.fetch(request("GET", "/sockets/ws?no", *SHAKE))
    assert (answer.status, answer.problem) == (403, "websocket-refused")
    answer = await served.fetch(request("POST", "/sockets/ws", *SHAKE))
    assert (answer.status, answer.problem) == (400, "bad-handshake")
    answer = await served.fetch(request("GET", "/sockets/ws", *SHAKE) + frame(TEXT, b"early"))
    assert answer.status == 400
    answer = await served.fetch(request("GET", "/describe", *SHAKE))  # an app without sockets: a plain request, as ever
    assert answer.status == 200


async def test_the_apps_own_pages_may_open_one(served: Served) -> None:
    for origin in ("http://app.test", "http://APP.test:80", "https://app.test"):  # a proxy in front may have ended TLS
        socket = await opened(served, f"Origin: {origin}")
        await socket.send(frame(TEXT, b"hi"))
        assert await socket.receive() == (TEXT, b"hi")


async def test_pages_that_an_app_names_may_open_one_and_no_others(tmp_path: Path) -> None:
    async with running(tmp_path) as served:
        await served.serve(socket_release(websocket_origins=("https://www.test",)))
        await opened(served, "Origin: https://www.test")
        for near in ("http://www.test", "https://www.test:444", "https://www.test.evil"):
            answer = await served.fetch(request("GET", "/sockets/ws", *SHAKE, f"Origin: {near}"))
            assert answer.problem == "foreign-origin"


async def test_a_client_cannot_make_itself_an_event_of_a_socket(served: Served) -> None:
    for kind in ("application/websocket-events", "Application/WebSocket-Events; charset=x"):
        for more in ((), ("freehold-forwarded: 1",)):
            fields = (f"Content-Type: {kind}", "Connection-Id: x", *more)
            answer = await served.fetch(request("POST", "/sockets/ws", *fields, body=b"OPEN\r\n"))
            assert (answer.status, answer.problem) == (403, "forged-events")


# --- frames: Autobahn's cases by number -------------------------------------------------------------------------------

ECHOES = [
    ("1.1.1", [frame(TEXT)], (TEXT, b"")),
    ("1.1.3", [frame(TEXT, b"*" * 126)], (TEXT, b"*" * 126)),
    ("1.1.6", [frame(TEXT, b"*" * 65_536)], (TEXT, b"*" * 65_536)),
    ("1.2.5", [frame(BINARY, b"\xfe" * 128)], (BINARY, b"\xfe" * 128)),
    ("2.2", [frame(PING, b"Hello, world!")], (PONG, b"Hello, world!")),
    ("2.4", [frame(PING, b"\xfe" * 125)], (PONG, b"\xfe" * 125)),
    ("2.7", [frame(PONG), frame(TEXT, b"a")], (TEXT, b"a")),
    ("5.3", [frame(TEXT, b"frag", fin=False), frame(0, b"ment")], (TEXT, b"fragment")),
    ("5.8", [frame(TEXT, b"a", fin=False), frame(PING, b"p"), frame(0, b"b")], (PONG, b"p")),
    ("5.19", [frame(TEXT, b"a", fin=False), frame(0, b"b", fin=False), frame(0, b"c")], (TEXT, b"abc")),
    (
        "6.2.2",
        [frame(TEXT, "Hello-µ".encode()[:7], fin=False), frame(0, "Hello-µ".encode()[7:])],
        (TEXT, "Hello-µ".encode()),
    ),
    ("mask-0", [frame(TEXT, b"zero", mask=b"\0\0\0\0")], (TEXT, b"zero")),
]


async def test_frames_that_are_answered_whole_and_in_pieces(served: Served) -> None:
    for name, frames, answer in ECHOES:
        for pieces in (1, 7):
            socket = await opened(served)
            data = b"".join(frames)
            for index in range(pieces):
                await socket.send(data[index * len(data) // pieces : (index + 1) * len(data) // pieces])
                await asyncio.sleep(0 if pieces == 1 else 0.002)
            assert (name, pieces, await socket.receive()) == (name, pieces, answer)
            socket.client.close()


REFUSED = [
    ("2.5-ping-126", [frame(PING, b"x" * 126)], 1002),
    ("3.1-rsv", [frame(TEXT, b"x", rsv=1)], 1002),
    ("3.7-rsv-close", [frame(CLOSE, rsv=7)], 1002),
    ("4.1-opcode-3", [frame(3, b"x")], 1002),
    ("4.2-opcode-11", [frame(11, b"x")], 1002),
    ("5.1-fragmented-ping", [frame(PING, b"x", fin=False), frame(0, b"y")], 1002),
    ("5.9-continuation-first", [frame(0, b"x")], 1002),
    ("5.18-text-in-fragments", [frame(TEXT, b"a", fin=False), frame(TEXT, b"b")], 1002),
    ("6.3-bad-utf8", [frame(TEXT, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80edited")], 1007),
    ("6.4-bad-utf8-in-a-fragment", [frame(TEXT, b"ok\xf4\x90", fin=False)], 1007),
    ("6.cut-utf8", [frame(TEXT, b"\xe2\x82")], 1007),
    ("7.3.2-close-of-one-byte", [frame(CLOSE, b"x")], 1002),
    ("7.9.1-code-0", [frame(CLOSE, (0).to_bytes(2))], 1002),
    ("7.9.5-code-1005", [frame(CLOSE, (1005).to_bytes(2))], 1002),
    ("7.5.1-reason-no-utf8", [frame(CLOSE, (1000).to_bytes(2) + b"\xce\xba\xed")], 1007),
    ("unmasked", [frame(TEXT, b"x", mask=None)], 1002),
    ("9.too-big", [frame(TEXT, b"x" * 262_145)], 1009),
    ("9.too-big-in-fragments", [frame(BINARY, b"x" * 200_000, fin=False), frame(0, b"x" * 200_000)], 1009),
    ("length-of-an-exabyte", [bytes([130, 255]) + struct.pack("!Q", 1 << 60) + b"mask"], 1009),
    ("7.1.1-close", [frame(CLOSE, (1000).to_bytes(2))], 1000),
    ("7.7.10-close-3000", [frame(CLOSE, (3000).to_bytes(2))], 3000),
    ("7.3.1-close-empty", [frame(CLOSE)], 1005),
    ("junk-of-the-app", [frame(TEXT, b"junk")], 1011),
    ("app-that-fails", [frame(TEXT, b"fail")], 1011),
]


async def test_frames_that_end_a_socket_with_their_code_and_nobody_elses(served: Served) -> None:
    steady = await opened(served)
    for name, frames, code in REFUSED:
        socket = await opened(served)
        await socket.send(*frames)
        assert (name, await socket.closed_with()) == (name, code)
    await steady.send(frame(TEXT, b"well"))
    assert await steady.receive() == (TEXT, b"well")


# --- hostile clients --------------------------------------------------------------------------------------------------


async def test_a_client_that_sends_faster_than_its_app_answers_is_not_read_and_loses_nothing(served: Served) -> None:
    socket = await opened(served)
    await socket.send(frame(TEXT, b"wait 500"))
    sending = asyncio.ensure_future(
        socket.send(*(frame(TEXT, b"%04d" % number + b"x" * 20_000) for number in range(200)))
    )
    assert await socket.receive() == (TEXT, b"waited")
    for number in range(200):
        assert (await socket.receive())[1][:4] == b"%04d" % number
    await sending


async def test_a_client_that_does_not_read_what_a_topic_says_is_given_up(served: Served) -> None:
    deaf, teller = await opened(served), await opened(served)
    await deaf.send(frame(TEXT, b"join room"), frame(TEXT, b"here"))
    assert await deaf.receive() == (TEXT, b"here")
    deaf.client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(80):
        await teller.send(frame(TEXT, b"tell room " + b"x" * 200_000), frame(TEXT, b"done"))
        assert await teller.receive() == (TEXT, b"done")
    await left(served, 1)


async def left(served: Served, most: int) -> None:
    """Wait until no more connections than that are open."""
    async with asyncio.timeout(20):
        while (await served.pool.status())[0].connections > most:  # noqa: ASYNC110 - what is awaited happens elsewhere
            await asyncio.sleep(0.1)


async def test_a_client_that_vanishes_leaves_nothing_behind(served: Served) -> None:
    for _ in range(20):
        socket = await opened(served)
        await socket.send(frame(TEXT, b"join room"))
        socket.client.writer.transport.abort()
    await left(served, 0)
    teller = await opened(served)
    await teller.send(frame(TEXT, b"tell room anybody"), frame(TEXT, b"done"))
    assert await teller.receive() == (TEXT, b"done")


async def test_random_bytes_end_their_own_socket_alone(served: Served) -> None:
    steady = await opened(served)
    for size in (1, 2, 9, 40, 400, 4000):
        socket = await opened(served)
        await socket.send(random.Random(size).randbytes(size) + b"\xff" * 16)
        assert await socket.closed_with() in {1002, 1006, 1007, 1009}
    await steady.send(frame(TEXT, b"well"))
    assert await steady.receive() == (TEXT, b"well")


def test_a_publication_travels_as_one_block() -> None:
    said = Publication("project production", "room", "TEXT", b"x")
    assert int.from_bytes(block_of(said)[:4]) == len(block_of(said)) - 4
