"""The ingress speaks HTTP/1.1 as it is written: streaming, trailers, continue, HEAD, pipelining, tracing, proxies."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.runtime.served import Served, request, running, stub_release

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    async with running(folder, listen=("127.0.0.1:0", f"unix:{folder}/in.sock")) as served:
        await served.serve(stub_release("r1", "hello", "echo", "describe", "wait", "large"))
        yield served


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_response_says_its_release_and_request_id(served: Served) -> None:
    answer = await served.get("/hello")
    assert answer.header("freehold-release") == "r1"
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", answer.header("x-request-id") or "")
    assert answer.header("date")


async def test_head_has_the_fields_and_no_body(served: Served) -> None:
    client = await served.connect()
    await client.send(request("HEAD", "/hello"))
    answer = await client.receive(head_only=True)
    assert answer.header("content-length") == "5"
    assert (await client.get("/hello")).body == b"hello"
    client.close()


async def test_requests_sent_ahead_are_answered_in_order(served: Served) -> None:
    client = await served.connect()
    paths = [f"/describe/{number}" for number in range(20)]
    await client.send(b"".join(request("GET", path) for path in paths))
    for path in paths:
        assert (await client.receive()).body.startswith(f"GET http app.test {path}\n".encode())
    client.close()


async def test_bodies_stream_both_ways_in_pieces(served: Served) -> None:
    client = await served.connect()
    await client.send(request("POST", "/echo", "Transfer-Encoding: chunked"))
    await client.send(b"3\r\none\r\n")
    head = await client.receive(head_only=True)
    assert head.header("transfer-encoding") == "chunked"
    assert await client.reader.readexactly(8) == b"3\r\none\r\n"
    await client.send(b"3\r\ntwo\r\n")
    assert await client.reader.readexactly(8) == b"3\r\ntwo\r\n"
    await client.send(b"0\r\n\r\n")
    assert await client.reader.readexactly(5) == b"0\r\n\r\n"
    client.close()


async def test_a_large_body_comes_back_byte_for_byte(served: Served) -> None:
    body = bytes(range(256)) * 20_000
    answer = await served.fetch(request("POST", "/echo", body=body))
    assert answer.body == body


@pytest.mark.parametrize("wants", [True, False])
async def test_trailers_pass_both_ways_to_clients_that_ask_for_them(served: Served, wants: bool) -> None:
    fields = ("Transfer-Encoding: chunked", *(("TE: trailers",) if wants else ()))
    data = request("POST", "/echo", *fields) + b"2\r\nhi\r\n0\r\nX-Sum: 5\r\n\r\n"
    answer = await served.fetch(data)
    assert answer.body == b"hi"
    assert answer.trailers == ([("x-sum", "5")] if wants else [])


async def test_continue_is_sent_before_the_body_is_wanted(served: Served) -> None:
    client = await served.connect()
    await client.send(request("POST", "/echo", "Content-Length: 2", "Expect: 100-continue"))
    assert (await client.receive()).status == 100
    await client.send(b"hi")
    assert (await client.receive()).body == b"hi"
    client.close()


async def test_http_1_0_gets_a_plain_body_and_a_closed_connection(served: Served) -> None:
    client = await served.connect()
    await client.send(b"GET /describe HTTP/1.0\r\n\r\n")
    answer = await client.receive()
    assert answer.header("connection") == "close"
    assert answer.body.startswith(b"GET http localhost /describe")
    assert await client.closed()
    client.close()


async def test_a_wish_to_upgrade_is_ignored(served: Served) -> None:
    answer = await served.get("/hello", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")
    assert answer.body == b"hello"


async def test_a_body_that_comes_with_a_wish_to_upgrade_is_read_and_the_connection_goes_on(served: Served) -> None:
    client = await served.connect()
    wish = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")
    for _ in range(2):
        await client.send(request("POST", "/echo", *wish, body=b"whole body") + request("GET", "/hello"))
        assert (await client.receive()).body == b"whole body"
        assert (await client.receive()).body == b"hello"
        await client.send(request("POST", "/echo", *wish, "Transfer-Encoding: chunked"))
        await client.send(b"2\r\nab\r\n0\r\n\r\n")
        assert (await client.receive()).body == b"ab"
    client.close()


async def test_an_absolute_target_names_its_own_authority(served: Served) -> None:
    answer = await served.fetch(b"GET http://other.test/describe?q HTTP/1.1\r\nHost: app.test\r\n\r\n")
    assert answer.body.startswith(b"GET http other.test /describe?q\n")


async def test_a_trace_is_continued_and_its_state_passed_on(served: Served) -> None:
    answer = await served.get("/describe", f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01", "tracestate: a=1")
    lines = answer.body.decode().split("\n")
    (parent,) = [line for line in lines if line.startswith("traceparent=")]
    assert re.fullmatch(rf"traceparent=00-{TRACE}-(?!00f067aa0ba902b7)[0-9a-f]{{16}}-01", parent)
    assert "tracestate=a=1" in lines
    await served.logged("request", trace_id=TRACE)


async def test_a_malformed_trace_is_replaced_with_a_new_one(served: Served) -> None:
    answer = await served.get("/describe", "traceparent: 00-" + "0" * 32 + "-00f067aa0ba902b7-01", "tracestate: a=1")
    assert b"tracestate" not in answer.body
    assert re.search(rb"traceparent=00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-01\n", answer.body)


async def test_a_strangers_word_about_forwarding_is_stripped(served: Served) -> None:
    answer = await served.get(
        "/describe", "Forwarded: for=1.2.3.4", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https",
        "X-Request-Id: chosen", "Freehold-Hop: 1",
    )  # fmt: skip
    text = answer.body.decode()
    assert "1.2.3.4" not in text
    assert "GET http app.test" in text
    assert "chosen" not in text
    assert "freehold-hop" not in text
    assert "x-forwarded-for=127.0.0.1" in text


async def test_a_listed_proxy_is_believed(tmp_path: Path) -> None:
    async with running(tmp_path, proxies=("127.0.0.0/8",)) as served:
        await served.serve(stub_release("r1", "describe"))
        answer = await served.get(
            "/describe", "X-Forwarded-For: 6.6.6.6, 1.2.3.4", "X-Forwarded-Proto: https", "X-Request-Id: chosen"
        )
        text = answer.body.decode()
        assert "GET https app.test" in text
        assert "x-forwarded-for=6.6.6.6, 1.2.3.4, 127.0.0.1" in text
        assert answer.header("x-request-id") == "chosen"
        await served.logged("request", client="1.2.3.4", request_id="chosen")


async def test_a_log_line_names_the_path_but_never_the_query(served: Served) -> None:
    await served.get("/hello/secret-test?token=in-the-query", "Authorization: Bearer in-the-header")
    entry = await served.logged("request", path="/hello/secret-test")
    # Neither can be part of a random identifier in the line: those are hexadecimal.
    assert "in-the-query" not in str(entry)
    assert "in-the-header" not in str(entry)


async def test_the_unix_socket_serves_too(served: Served) -> None:
    import asyncio

    reader, writer = await asyncio.open_unix_connection(served.pool.addresses[1].removeprefix("unix:"))
    writer.write(request("GET", "/hello", "Connection: close"))
    assert (await reader.read()).endswith(b"hello")
    writer.close()
