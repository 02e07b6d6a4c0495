"""Requests of nobody, odd in every part, on both listeners: never a 5xx without Retry-After, never a traceback."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.support.mesh.in_process import House, a_house

SHORT, LONG = 500, 2_500
"""Calls on each listener: in every run of the tests, and in the long one, 5,000 together."""

AT_ONCE: Final = 8
STATUS: Final = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")

METHODS = [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"PATCH", b"OPTIONS", b"FOO", b"get", b"CONNECT", b"TRACE"]
ODD = [
    b"",
    b" ",
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x92\xa9",
    b"%ff",
    b"%00",
    b"%0d%0a",
    b"\t",
    b"\x7f",
    b"a" * 9000,
    b"(" * 3000,
    b'"' + b"x" * 100,
    b":" * 40,
    b"sha-256=:AAAA:",
    b"sha-256=:\xff:",
    b"sig1=()",
    b"sig1=:AA==:",
    b"-1",
    b"1e999",
    b"NaN",
    b"0" * 400,
    b"../../..",
    b"\\",
    b"'; --",
    b"${x}",
    b"{{7*7}}",
    b"null",
    b"*",
    b"[::1",
    b"@",
    b",,,,",
    b"sig1=" * 500,
]
FIELDS = [
    b"Content-Digest",
    b"Signature",
    b"Signature-Input",
    b"Authorization",
    b"Host",
    b"Origin",
    b"Idempotency-Key",
    b"Range",
    b"If-None-Match",
    b"Last-Event-ID",
    b"Accept",
    b"Accept-Encoding",
    b"Content-Type",
    b"Content-Encoding",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Freehold-Node",
    b"Cookie",
    b"Expect",
    b"Upgrade",
    b"Connection",
    b"X-HTTP-Method-Override",
    b"Sec-Fetch-Site",
    b"Forwarded",
    b"MCP-Protocol-Version",
    b"Mcp-Session-Id",
]
BODIES = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"{",
    b"\xff\xfe",
    b"[" * 20_000,
    b'{"a":' * 5_000,
    b"1" * 5_000,
    b'"\\ud800"',
    b'{"kind":"change","scope":1}',
    b'{"body":"\xff"}',
    b"\x00" * 100,
    b'{"jsonrpc":"2.0","id":' + b"9" * 400 + b"}",
    b"-0",
    b'{"a":1,"a":2}',
]


CONTEXT: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""One for all calls: the default one reads every authority of the system, which took most of the time."""
CONTEXT.check_hostname, CONTEXT.verify_mode = False, ssl.CERT_NONE


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(1) as chosen_house:
        await chosen_house.prepare_lane()
        yield chosen_house


def a_request(dice: random.Random, known: list[bytes], *, sane: bool) -> bytes:
    path = re.sub(rb"\{[^}]*\}", lambda _: dice.choice([b"x", b"00" * 32, *ODD[:12]]), dice.choice(known))
    if dice.random() < 0.5:
        path += b"?" + b"&".join(
            dice.choice([b"limit", b"cursor", b"project", b"x"]) + b"=" + dice.choice(ODD)
            for _ in range(dice.randrange(1, 4))
        )
    fields = {b"Host": b"127.0.0.1", b"Connection": b"close"}
    for _ in range(dice.randrange(0, 5)):
        fields[dice.choice(FIELDS)] = dice.choice(ODD)
    if sane:  # past the parser, to what is behind it
        fields[b"Host"] = b"127.0.0.1"
        for name in (b"Content-Length", b"Transfer-Encoding", b"Origin", b"Sec-Fetch-Site", b"Expect", b"Upgrade"):
            fields.pop(name, None)
        fields[b"Connection"] = b"close"
        path = re.sub(rb"[^!-~]", b"%ff", path)[:2000]
    body = dice.choice(BODIES)
    if b"Content-Length" not in fields and body:
        fields[b"Content-Length"] = str(len(body)).encode()
    lines = [dice.choice(METHODS[:5] if sane else METHODS) + b" " + path + b" HTTP/1.1"]
    return b"\r\n".join([*lines, *[name + b": " + value for name, value in fields.items()], b"", body])


async def ask(house: House, data: bytes, *, secure: bool) -> bytes:
    if secure:
        host, _, port = house.control(0).api.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=CONTEXT)
    else:
        reader, writer = await asyncio.open_unix_connection(str(house.daemons[0].runtime / "api.sock"))
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(3):
            return await reader.read(4096)
    except (ConnectionError, TimeoutError):
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("secure", [False, True], ids=["socket", "https"])
@pytest.mark.parametrize("calls", [SHORT, pytest.param(LONG, marks=pytest.mark.long)], ids=["short", "long"])
async def test_odd_requests_of_nobody_are_no_defects_of_the_node(
    house: House, calls: int, secure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.client() as client:
        known = [path.encode() for path in sorted((await client.get("/v1/openapi.json"))["paths"])]
    known = [path for path in known if path != b"/v1/node/stop"]
    dice = random.Random(7 + secure)
    places = asyncio.Semaphore(AT_ONCE)
    seen: dict[int, int] = {}
    bad: list[tuple[bytes, bytes]] = []

    async def one(data: bytes) -> None:
        async with places:
            answer = await ask(house, data, secure=secure)
        match = STATUS.match(answer)
        status = int(match[1]) if match else 0
        seen[status] = seen.get(status, 0) + 1
        if status >= 500 and status != 501 and not (status == 503 and b"retry-after" in answer.lower()):
            bad.append((data[:600], answer[:300]))

    with caplog.at_level(logging.WARNING):
        requests = [a_request(dice, known, sane=number % 3 > 0) for number in range(calls)]
        await asyncio.gather(*[one(data) for data in requests])
    assert not bad, bad[:5]
    traces = [record for record in caplog.records if record.exc_info or "Traceback" in record.getMessage()]
    assert not traces, [(trace.name, trace.getMessage()[:200], str(trace.exc_info)[:400]) for trace in traces[:5]]
    assert sum(count for status, count in seen.items() if 400 <= status < 500) > calls / 4, seen
    async with house.client() as client:
        assert (await client.get("/v1/node"))["node"]
