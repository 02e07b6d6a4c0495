"""What one client can do to the ingress: nothing to the others, and every abuse has its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.ingress.settings import IngressSettings
from runtime.messages import AppLimits
from tests.support.runtime.served import ENGINES, Served, request, running, stub_release

QUICK = IngressSettings(
    connections_max=8,
    head_timeout_s=0.4,
    body_idle_timeout_s=0.4,
    keep_alive_s=0.6,
    write_idle_timeout_s=0.5,
    linger_s=0.3,
    half_closed_s=0.4,
    fields_max=20,
    fields_max_bytes=4096,
    target_max_bytes=1024,
)
APPS = ("hello", "echo", "describe", "wait", "large", "smuggle", "short", "hang", "unread")


@pytest.fixture(params=ENGINES)
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with running(tmp_path, ingress=QUICK, engine=request.param) as served:
        limits = AppLimits(concurrency=2, queue_max=1, request_body_max_bytes=100_000)
        await served.serve(stub_release("r1", *APPS, timeout_ms=2_000, limits=limits))
        yield served


async def test_a_slow_head_is_cut_off_while_others_are_served(served: Served) -> None:
    slow = await served.connect()
    await slow.send(b"GET /hello HTTP/1.1\r\nHost: a")
    dripping = asyncio.create_task(_drip(slow.writer))  # noqa: TID251 - the test owns it
    assert (await served.get("/hello")).body == b"hello"
    answer = await slow.receive()
    assert (answer.status, answer.problem) == (408, "request-timeout")
    assert await slow.closed()
    dripping.cancel()
    slow.close()


async def _drip(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"a")
        await asyncio.sleep(0.05)


async def test_a_body_that_stops_coming_is_refused_and_its_guest_ended(served: Served) -> None:
    client = await served.connect()
    await client.send(request("POST", "/describe", "Content-Length: 100") + b"abc")
    answer = await client.receive()
    assert (answer.status, answer.problem) == (408, "request-timeout")
    assert await client.closed()
    client.close()
    await served.logged("request", app="describe", outcome="cancelled")


async def test_an_idle_connection_is_closed_without_a_word(served: Served) -> None:
    client = await served.connect()
    assert (await client.get("/hello")).body == b"hello"
    assert await client.closed()
    client.close()


async def test_a_client_that_does_not_read_is_dropped_and_its_guest_ended(served: Served) -> None:
    client = await served.connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(request("GET", "/large"))
    entry = await served.logged("request", app="large", outcome="cancelled")
    assert entry["bytes_out"] < 64 * 1024 * 1024
    client.writer.transport.abort()


@pytest.mark.parametrize(
    ("data", "status", "problem"),
    [
        (b"GET /hello HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 30 + b"\r\n", 431, "fields-too-large"),
        (b"GET /hello HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 5000 + b"\r\n\r\n", 431, "fields-too-large"),
        (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "target-too-long"),
        (b"GET /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000\r\n\r\n", 413, "body-too-large"),
        (b"GET /hello HTTP/1.1\r\n\r\n", 400, "bad-host"),
        (b"GET /hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad-host"),
        (b"GET /hello HTTP/1.1\r\nHost: user@a\r\n\r\n", 400, "bad-host"),
        (b"GET /hello HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad-host"),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed-request"),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501, "method-not-supported"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed-request"),
        (b"GET /hello HTTP/1.1\r\nHost : a\r\n\r\n", 400, "malformed-request"),
        (
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            400,
            "malformed-request",
        ),
        (
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "malformed-request",
        ),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "coding-not-supported"),
        (b"GET /hello HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", 417, "expectation-failed"),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed-request"),
        (b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 404, "no-route"),
        (b"GET /.freehold/x HTTP/1.1\r\nHost: a\r\n\r\n", 404, "no-route"),
    ],
)
async def test_a_bad_request_is_named_and_the_next_one_served(
    served: Served, data: bytes, status: int, problem: str
) -> None:
    answer = await served.fetch(data)
    assert (answer.status, answer.problem) == (status, problem)
    assert (await served.get("/hello")).body == b"hello"


async def test_a_header_bomb_without_end_is_cut_off_early(served: Served) -> None:
    client = await served.connect()
    await client.send(b"GET /hello HTTP/1.1\r\nHost: a\r\nBomb: ")
    answer = None
    sent = 0
    while answer is None and sent < 10_000_000:
        try:
            await client.send(b"x" * 2048)
            sent += 2048
            async with asyncio.timeout(0.01):
                answer = await client._receive(head_only=False)
        except TimeoutError:
            continue
    assert answer is not None
    assert answer.problem == "fields-too-large"
    assert sent < 1_000_000
    client.close()


async def test_a_chunked_body_beyond_the_cap_is_refused_midway(served: Served) -> None:
    client = await served.connect()
    await client.send(request("POST", "/describe", "Transfer-Encoding: chunked"))
    for _ in range(20):
        await client.send(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
    answer = await client.receive()
    assert (answer.status, answer.problem) == (413, "body-too-large")
    client.close()


async def test_a_broken_chunk_ends_the_guest_that_waits_for_it(served: Served) -> None:
    client = await served.connect()
    await client.send(request("POST", "/describe", "Transfer-Encoding: chunked") + b"5\r\nhello\r\nnonsense\r\n")
    answer = await client.receive()
    assert (answer.status, answer.problem) == (400, "malformed-request")
    assert await client.closed()
    client.close()


async def test_a_client_that_leaves_ends_its_guest(served: Served) -> None:
    client = await served.connect()
    await client.send(request("GET", "/wait?1900"))
    await asyncio.sleep(0.1)
    client.close()
    entry = await served.logged("request", app="wait")
    assert (entry["status"], entry["outcome"]) == (499, "cancelled")
    assert entry["duration_ms"] < 1500


async def test_a_full_queue_says_when_to_come_back(served: Served) -> None:
    clients = [await served.connect() for _ in range(4)]
    for client in clients:
        await client.send(request("GET", "/wait?600"))
    answers = [await client.receive() for client in clients]
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 503]
    refused = next(answer for answer in answers if answer.status == 503)
    assert refused.problem == "app-busy"
    assert refused.header("retry-after") == "1"
    assert (await served.get("/hello")).status == 200
    (status,) = await served.pool.status()
    (app,) = [app for app in status.apps if app.app == "wait"]
    assert app.outcomes == {"refused": 1, "completed": 3}
    assert app.statuses == {"2xx": 3, "5xx": 1}
    for client in clients:
        client.close()


async def test_guests_that_ignore_their_deadline_are_answered_for_and_so_is_who_waits_behind_them(
    served: Served,
) -> None:
    clients = [await served.connect() for _ in range(3)]
    for client in clients:
        await client.send(request("GET", "/hang"))
    answers = [await client.receive() for client in clients]
    assert [(answer.status, answer.problem) for answer in answers] == [(504, "app-timeout")] * 3
    assert (await served.get("/hello")).body == b"hello"
    (status,) = await served.pool.status()
    (app,) = [app for app in status.apps if app.app == "hang"]
    assert (app.outcomes, app.in_flight) == ({"expired": 1}, 2)


@pytest.mark.parametrize("app", ["smuggle", "short"])
async def test_a_response_that_would_lie_on_the_wire_never_leaves_whole(served: Served, app: str) -> None:
    answer = await served.get(f"/{app}")
    if app == "smuggle":
        assert answer.problem == "app-failed"
        assert answer.header("set-cookie") is None
    else:
        assert (answer.status, answer.whole) == (200, False)
    entry = await served.logged("app.host_failed", app=app)
    assert entry["reason"].startswith("bad response")


async def test_a_request_id_ties_the_plain_answer_to_the_log(served: Served) -> None:
    answer = await served.get("/smuggle")
    await served.logged("app.host_failed", request_id=answer.header("x-request-id"))


async def test_connections_beyond_the_limit_wait_and_are_served_later(served: Served) -> None:
    await served.serve(stub_release("r2", "hello"))
    clients = [await served.connect() for _ in range(12)]
    for client in clients:
        await client.send(request("GET", "/hello", "Connection: close"))
    assert [(await client.receive()).body for client in clients] == [b"hello"] * 12
    for client in clients:
        client.close()


async def test_a_guest_that_never_reads_its_body_answers_all_the_same(served: Served) -> None:
    answer = await served.fetch(request("POST", "/unread", body=b"x" * 90_000))
    assert answer.body == b"hello"
