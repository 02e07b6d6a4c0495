"""wasi:http/types as a guest meets it: fields, heads, bodies, trailers, the outparam; called without a guest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from runtime.call import GuestCall
from runtime.engine.codecs import Err, Ok
from runtime.engine.guest import Guest, GuestServices, GuestTrap
from runtime.exchange import BodyFailure, Exchange, RequestHead
from runtime.providers import Providers
from runtime.wasi.http_body import IncomingBody, OutgoingBody
from runtime.wasi.http_fields import FIELDS_MAX, FORBIDDEN, Fields
from runtime.wasi.http_types import (
    IncomingRequest,
    OutgoingRequest,
    OutgoingResponse,
    RequestOptions,
    ResponseOutparam,
    types,
)
from runtime.wasi.poll import IoError
from runtime.wasi.streams import CLOSED, streams
from tests.support.runtime.wasm_parts import SilentLog, a_spec, an_exchange


@pytest.fixture
def guest() -> Guest:
    new_guest = Guest(GuestServices(a_spec(), SilentLog(), Providers(), None))
    new_guest.begin(GuestCall(math.inf), None)
    return new_guest


def http(guest: Guest, name: str, *arguments: Any) -> Any:
    return types.functions[name](guest, *arguments)


def io(guest: Guest, name: str, *arguments: Any) -> Any:
    return streams.functions[name](guest, *arguments)


def test_field_names_are_case_insensitive_and_keep_their_order(guest: Guest) -> None:
    fields = http(guest, "[static]fields.from-list", [("X-A", b"1"), ("b", b"2"), ("x-a", b"3")])
    assert http(guest, "[method]fields.get", fields, "x-A") == [b"1", b"3"]
    assert http(guest, "[method]fields.has", fields, "B")
    assert http(guest, "[method]fields.entries", fields) == [("x-a", b"1"), ("b", b"2"), ("x-a", b"3")]
    http(guest, "[method]fields.set", fields, "X-a", [b"9"])
    http(guest, "[method]fields.delete", fields, "B")
    assert http(guest, "[method]fields.entries", fields) == [("x-a", b"9")]


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_fields_of_the_connection_are_refused(guest: Guest, name: str) -> None:
    refused = Err(("forbidden", None))
    assert http(guest, "[static]fields.from-list", [(name.upper(), b"x")]) == refused
    assert http(guest, "[method]fields.set", Fields(), name, [b"x"]) == refused
    assert http(guest, "[method]fields.append", Fields(), name, b"x") == refused


@pytest.mark.parametrize(("name", "value"), [("a b", b""), ("", b""), ("a", b"x\r\ny: z"), ("a", b"\0"), ("é", b"")])
def test_syntax_that_would_split_a_message_is_refused(guest: Guest, name: str, value: bytes) -> None:
    assert http(guest, "[method]fields.append", Fields(), name, value) == Err(("invalid-syntax", None))


def test_immutable_fields_refuse_every_change_and_their_clone_allows_it(guest: Guest) -> None:
    fields = http(guest, "[method]incoming-request.headers", IncomingRequest(an_exchange()))
    refused = Err(("immutable", None))
    assert http(guest, "[method]fields.append", fields, "x", b"1") == refused
    assert http(guest, "[method]fields.set", fields, "x", [b"1"]) == refused
    assert http(guest, "[method]fields.delete", fields, "x-a") == refused
    copy = http(guest, "[method]fields.clone", fields)
    assert http(guest, "[method]fields.append", copy, "x", b"1") is None


def test_fields_have_a_largest_size(guest: Guest) -> None:
    fields = Fields()
    for _ in range(FIELDS_MAX):
        assert fields.add("x", b"y") is None
    assert fields.add("x", b"y") is not None
    assert Fields().add("x", bytes(b"y" * 200_000)) is not None


def test_a_request_always_has_scheme_and_authority_and_hides_the_connections_fields(guest: Guest) -> None:
    exchange = an_exchange("/p?q=1", "PURGE", (("host", b"h"), ("connection", b"close"), ("accept", b"*/*")))
    request = IncomingRequest(exchange)
    assert http(guest, "[method]incoming-request.method", request) == ("other", "PURGE")
    assert http(guest, "[method]incoming-request.path-with-query", request) == "/p?q=1"
    assert http(guest, "[method]incoming-request.scheme", request) == ("HTTP", None)
    assert http(guest, "[method]incoming-request.authority", request) == "a.example:8080"
    fields = http(guest, "[method]incoming-request.headers", request)
    assert http(guest, "[method]fields.entries", fields) == [("accept", b"*/*")]


def test_a_body_can_be_consumed_once_and_streamed_once(guest: Guest) -> None:
    request = IncomingRequest(an_exchange())
    body = http(guest, "[method]incoming-request.consume", request)
    assert isinstance(body, IncomingBody)
    assert http(guest, "[method]incoming-request.consume", request) == Err()
    stream = http(guest, "[method]incoming-body.stream", body)
    assert http(guest, "[method]incoming-body.stream", body) == Err()
    assert io(guest, "[method]input-stream.blocking-read", stream, 10) == CLOSED


def test_a_body_that_breaks_off_tells_its_error_code_once_then_is_closed(guest: Guest) -> None:
    exchange = Exchange(RequestHead("POST", "http", "a", "/", ()), deadline_s=math.inf, loop=None)
    exchange.body.feed_failure(BodyFailure.TOO_LARGE)
    body = http(guest, "[method]incoming-request.consume", IncomingRequest(exchange))
    stream = http(guest, "[method]incoming-body.stream", body)
    failed = io(guest, "[method]input-stream.read", stream, 10)
    assert failed.value[0] == "last-operation-failed"
    error = failed.value[1]
    assert isinstance(error, IoError)
    assert http(guest, "http-error-code", error) == ("HTTP-request-body-size", None)
    assert io(guest, "[method]input-stream.read", stream, 10) == CLOSED


def test_giving_a_body_up_while_its_stream_lives_traps(guest: Guest) -> None:
    body = IncomingBody(an_exchange().body)
    rep, _ = guest.give(body)
    guest.give(http(guest, "[method]incoming-body.stream", body))
    with pytest.raises(GuestTrap, match="still held"):
        guest.drop(rep)


def test_trailers_come_after_the_end_and_only_once(guest: Guest) -> None:
    exchange = Exchange(RequestHead("POST", "http", "a", "/", ()), deadline_s=math.inf, loop=None)
    future = http(guest, "[static]incoming-body.finish", IncomingBody(exchange.body))
    assert http(guest, "[method]future-trailers.get", future) is None
    exchange.body.feed_end((("x-sum", b"1"),))
    answer = http(guest, "[method]future-trailers.get", future)
    assert answer.value.value.entries == [("x-sum", b"1")]
    assert not answer.value.value.mutable
    assert http(guest, "[method]future-trailers.get", future) == Err()


def respond(guest: Guest, fields: Fields, status: int = 200) -> tuple[Exchange, OutgoingResponse, OutgoingBody]:
    exchange = an_exchange()
    response = http(guest, "[constructor]outgoing-response", fields)
    assert http(guest, "[method]outgoing-response.set-status-code", response, status) is None
    body = http(guest, "[method]outgoing-response.body", response)
    assert http(guest, "[method]outgoing-response.body", response) == Err()
    return exchange, response, body


def test_bytes_written_before_and_after_the_answer_arrive_in_order_with_trailers(guest: Guest) -> None:
    exchange, response, body = respond(guest, Fields([("x", b"1")]), 201)
    stream = http(guest, "[method]outgoing-body.write", body)
    assert io(guest, "[method]output-stream.blocking-write-and-flush", stream, b"before ") is None
    http(guest, "[static]response-outparam.set", ResponseOutparam(exchange), Ok(response))
    assert io(guest, "[method]output-stream.blocking-write-and-flush", stream, b"after") is None
    assert http(guest, "[static]outgoing-body.finish", body, Fields([("t", b"2")])) is None
    batch = exchange.response.collect()
    assert batch.head is not None
    assert (batch.head.status, batch.head.headers) == (201, (("x", b"1"),))
    assert (b"".join(batch.chunks), batch.trailers, batch.whole) == (b"before after", (("t", b"2"),), True)
    assert io(guest, "[method]output-stream.check-write", stream) == CLOSED


def test_more_than_the_declared_length_fails_the_write_and_less_fails_the_finish(guest: Guest) -> None:
    declared = Fields([("content-length", b"3")])
    exchange, response, body = respond(guest, declared)
    http(guest, "[static]response-outparam.set", ResponseOutparam(exchange), Ok(response))
    stream = http(guest, "[method]outgoing-body.write", body)
    failed = io(guest, "[method]output-stream.blocking-write-and-flush", stream, b"four")
    assert http(guest, "http-error-code", failed.value[1]) == ("HTTP-response-body-size", 4)
    assert exchange.response.abandoned

    exchange, response, body = respond(guest, declared)
    http(guest, "[static]response-outparam.set", ResponseOutparam(exchange), Ok(response))
    assert http(guest, "[static]outgoing-body.finish", body, None) == Err(("HTTP-response-body-size", 0))
    assert exchange.response.abandoned


@pytest.mark.parametrize("lengths", [[b"x"], [b"-1"], [b"1", b"2"], [b""], [b"9" * 30]])
def test_a_length_that_is_no_number_gives_no_body(guest: Guest, lengths: list[bytes]) -> None:
    response = http(guest, "[constructor]outgoing-response", Fields([("content-length", length) for length in lengths]))
    assert http(guest, "[method]outgoing-response.body", response) == Err()


def test_writing_without_a_permit_traps(guest: Guest) -> None:
    _, _, body = respond(guest, Fields())
    stream = http(guest, "[method]outgoing-body.write", body)
    with pytest.raises(GuestTrap):
        io(guest, "[method]output-stream.write", stream, b"x")
    permit = io(guest, "[method]output-stream.check-write", stream)
    assert io(guest, "[method]output-stream.write", stream, bytes(permit)) is None
    with pytest.raises(GuestTrap):
        io(guest, "[method]output-stream.blocking-write-and-flush", stream, bytes(4097))


def test_an_error_for_an_answer_is_kept_for_the_outcome_and_a_second_answer_traps(guest: Guest) -> None:
    exchange = an_exchange()
    http(guest, "[static]response-outparam.set", ResponseOutparam(exchange), Err(("loop-detected", None)))
    assert exchange.response.refusal == ("loop-detected", None)
    with pytest.raises(GuestTrap, match="twice"):
        http(guest, "[static]response-outparam.set", ResponseOutparam(exchange), Ok(OutgoingResponse(Fields())))


def test_a_header_bomb_is_an_error_and_not_a_response(guest: Guest) -> None:
    exchange = an_exchange()
    response = OutgoingResponse(Fields([("x", b"y")] * 300))
    http(guest, "[static]response-outparam.set", ResponseOutparam(exchange), Ok(response))
    assert exchange.response.refusal is not None
    assert exchange.response.refusal[0] == "HTTP-response-header-section-size"


@pytest.mark.parametrize(
    ("setter", "good", "bad"),
    [
        ("set-method", ("other", "PURGE"), ("other", "A B")),
        ("set-path-with-query", "/a?b=%20", "/a b"),
        ("set-path-with-query", None, "/a\r\nx: y"),
        ("set-scheme", ("other", "wss"), ("other", "1:")),
        ("set-authority", "a.example:80", "a.example:99999"),
        ("set-authority", "[::1]:80", "a b"),
        ("set-authority", None, "a/b"),
    ],
)
def test_parts_of_a_request_are_checked_before_they_are_kept(guest: Guest, setter: str, good: Any, bad: Any) -> None:
    request = OutgoingRequest(Fields())
    assert http(guest, f"[method]outgoing-request.{setter}", request, good) is None
    assert http(guest, f"[method]outgoing-request.{setter.removeprefix('set-')}", request) == good
    assert http(guest, f"[method]outgoing-request.{setter}", request, bad) == Err()
    assert http(guest, f"[method]outgoing-request.{setter.removeprefix('set-')}", request) == good


def test_status_codes_have_three_digits_and_options_keep_what_they_are_told(guest: Guest) -> None:
    response = OutgoingResponse(Fields())
    assert http(guest, "[method]outgoing-response.status-code", response) == 200
    assert http(guest, "[method]outgoing-response.set-status-code", response, 99) == Err()
    assert http(guest, "[method]outgoing-response.set-status-code", response, 1000) == Err()
    options = RequestOptions()
    assert http(guest, "[method]request-options.connect-timeout", options) is None
    assert http(guest, "[method]request-options.set-connect-timeout", options, 5) is None
    assert http(guest, "[method]request-options.connect-timeout", options) == 5
