"""What the guest is told of a request, and how its response is put on the wire."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.exchange import ResponseHead
from runtime.ingress.request_head import Client, Identifiers, client_of, guest_request
from runtime.ingress.response_head import (
    BadResponseError,
    Framing,
    frame_chunks,
    frame_end,
    frame_head,
)

STRANGER = Client("1.2.3.4", False)
PROXY = Client("10.0.0.1", True)
OWN = b"date: now\r\n"


def names(raw: list[tuple[bytes, bytes]], client: Client = STRANGER) -> list[str]:
    texts = {"traceparent", "x-request-id", "x-forwarded-for", "x-forwarded-proto"}
    return [name for name, _ in guest_request(raw, client, Identifiers(1)).headers if name not in texts]


def test_fields_of_the_connection_end_here() -> None:
    raw = [
        (b"Host", b"a"), (b"Connection", b"keep-alive, X-Hop"), (b"X-Hop", b"1"), (b"Keep-Alive", b"5"),
        (b"Transfer-Encoding", b"chunked"), (b"Upgrade", b"h2c"), (b"Accept", b"*/*"), (b"TE", b"trailers"),
    ]  # fmt: skip
    assert names(raw) == ["accept", "te"]


def test_repeated_fields_stay_apart_and_in_order() -> None:
    raw = [(b"A", b"1"), (b"b", b"2"), (b"a", b"3")]
    fields = guest_request(raw, STRANGER, Identifiers(1)).headers
    assert fields[:3] == (("a", b"1"), ("b", b"2"), ("a", b"3"))


def test_request_and_trace_ids_never_repeat() -> None:
    identifiers = Identifiers(7)
    guest_requests = [guest_request([], STRANGER, identifiers) for _ in range(100)]
    assert (
        len({request.request_id for request in guest_requests})
        == len({request.trace_id for request in guest_requests})
        == 100
    )


@pytest.mark.parametrize("sent", [b"x" * 500, b"\xff\xfe", b""])
def test_a_proxys_request_id_is_bounded_text(sent: bytes) -> None:
    request_id = guest_request([(b"X-Request-Id", sent)], PROXY, Identifiers(1)).request_id
    assert 0 < len(request_id) <= 64
    assert request_id.isascii()


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (("10.1.2.3", 5), Client("10.1.2.3", True)),
        (("::ffff:10.1.2.3", 5, 0, 0), Client("10.1.2.3", True)),
        (("fe80::1%eth0", 5, 0, 0), Client("fe80::1", False)),
        (("8.8.8.8", 5), Client("8.8.8.8", False)),
        ("", Client("unix", True)),
    ],
)
def test_a_client_is_trusted_only_in_a_listed_network(peer: object, client: Client) -> None:
    assert client_of(peer, (ipaddress.ip_network("10.0.0.0/8"),)) == client


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=40))), st.booleans())
def test_no_fields_whatever_make_it_fail(raw: list[tuple[bytes, bytes]], trusted: bool) -> None:
    request = guest_request(raw, Client("1.2.3.4", trusted), Identifiers(1))
    assert len(request.trace_id) == 32
    assert request.scheme in {"http", "https"}


def head(
    status: int = 200,
    *fields: tuple[str, bytes],
    method: str = "GET",
    http_1_0: bool = False,
    whole_bytes: int | None = None,
    trailers: bool = False,
) -> tuple[bytes, Framing]:
    return frame_head(
        ResponseHead(status, fields),
        OWN,
        method=method,
        http_1_0=http_1_0,
        keep_alive=True,
        whole_bytes=whole_bytes,
        trailers=trailers,
    )


def test_a_whole_body_gets_its_length_and_a_long_one_is_chunked() -> None:
    assert head(whole_bytes=5)[0] == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ndate: now\r\n\r\n"
    data, framing = head()
    assert b"transfer-encoding: chunked\r\n" in data
    assert frame_chunks(framing, (b"ab", b"c")) == b"3\r\nabc\r\n"
    assert frame_chunks(framing, (b"",)) == b""
    assert frame_end(framing, (("x-sum", b"1"),)) == b"0\r\nx-sum: 1\r\n\r\n"


def test_trailers_make_a_whole_body_chunked() -> None:
    assert head(whole_bytes=5, trailers=True)[1].chunked


def test_an_old_client_gets_the_end_of_the_connection_as_the_end_of_the_body() -> None:
    data, framing = head(http_1_0=True)
    assert b"connection: close\r\n" in data
    assert b"chunked" not in data
    assert frame_chunks(framing, (b"abc",)) == b"abc"
    assert b"connection: keep-alive\r\n" in head(http_1_0=True, whole_bytes=3)[0]


@pytest.mark.parametrize(("status", "method"), [(200, "HEAD"), (204, "GET"), (304, "GET")])
def test_a_response_without_a_body_has_none_whatever_the_guest_wrote(status: int, method: str) -> None:
    data, framing = head(status, ("content-length", b"7"), method=method, whole_bytes=3)
    assert frame_chunks(framing, (b"abc",)) == b""
    assert frame_end(framing, ()) == b""
    assert (b"content-length: 7" in data) is (status == 200)


def test_a_guest_cannot_set_the_framing_or_speak_for_the_node() -> None:
    data, _ = head(
        200, ("transfer-encoding", b"gzip"), ("connection", b"close"), ("freehold-release", b"x"), ("date", b"then"),
        whole_bytes=0,
    )  # fmt: skip
    assert data == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: now\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (100, ()),
        (99999, ()),
        (200, (("a", b"b\r\nc: d"),)),
        (200, (("a", b"b\nc: d"),)),
        (200, (("a", b"b\rc"),)),
        (200, (("a", b"\0"),)),
        (200, (("content-length", b"-1"),)),
        (200, (("content-length", b"1"), ("content-length", b"2"))),
        (200, (("content-length", b"9" * 30),)),
        (200, (("content-length", b"4"),)),
    ],
)
def test_a_head_that_would_lie_never_leaves(status: int, fields: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(BadResponseError):
        head(status, *fields, whole_bytes=5)


def test_a_declared_length_is_held_to() -> None:
    _, framing = head(200, ("content-length", b"4"))
    assert frame_chunks(framing, (b"abc",)) == b"abc"
    with pytest.raises(BadResponseError, match="3 bytes, but content-length 4"):
        frame_end(framing, ())
    with pytest.raises(BadResponseError, match="more than content-length 4"):
        frame_chunks(framing, (b"de",))


def test_a_trailer_with_a_line_break_never_leaves() -> None:
    _, framing = head()
    with pytest.raises(BadResponseError, match="trailer"):
        frame_end(framing, (("a", b"b\r\nc: d"),))
