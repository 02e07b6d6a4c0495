"""Events of WebSockets as bytes: what is written is read, and what an app says wrongly is refused whole."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.ingress.socket_events import (
    EVENTS_MAX,
    BadEventsError,
    SocketEvent,
    read_events,
    read_publication,
    read_topic,
    write_events,
)
from runtime.ingress.topics import Publication, block_of, read_publication_bytes

NAMES = st.sampled_from(["OPEN", "TEXT", "BINARY", "CLOSE", "SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH", "PING", "PONG"])


@given(st.lists(st.builds(SocketEvent, NAMES, st.binary(max_size=300)), max_size=20))
def test_what_is_written_is_read(events: list[SocketEvent]) -> None:
    assert read_events(write_events(*events)) == events


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadEventsError):
        read_events(data)


@pytest.mark.parametrize(
    "body",
    [b"OPEN", b"OPEN\n", b"open\r\n", b"DISCONNECT\r\n", b"TEXT 5\r\nabc\r\n", b"TEXT 3\r\nabcd\r\n", b"TEXT -1\r\n\r\n",
     b"TEXT  3\r\nabc\r\n", b"TEXT 3\r\nabc", b"TEXT fffffff\r\n", b"OPEN\r\n" * (EVENTS_MAX + 1), b"\r\n"],
    ids=["no-end", "line-feed", "lower", "not-an-apps", "short", "long", "negative", "two-spaces", "cut", "huge", "many",
         "empty"],
)  # fmt: skip
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(BadEventsError):
        read_events(body)


def test_topics_and_publications() -> None:
    assert read_topic(b"room:7/a.b-c_d@e") == "room:7/a.b-c_d@e"
    for bad in (b"", b"x" * 65, b"a b", b"a\0", "é".encode()):
        with pytest.raises(BadEventsError):
            read_topic(bad)
    assert read_publication(b"room\0thello") == ("room", SocketEvent("TEXT", b"hello"))
    assert read_publication(b"room\0b\0\1") == ("room", SocketEvent("BINARY", b"\0\1"))
    for bad in (b"room", b"room\0", b"room\0xhello", b"\0thello"):
        with pytest.raises(BadEventsError):
            read_publication(bad)


def test_a_publication_is_read_from_its_block_and_nothing_else_is_one() -> None:
    said = Publication("project production", "room", "BINARY", b"\0")
    assert read_publication_bytes(block_of(said)[4:]) == said
    for bad in (
        b"",
        b"\xc1",
        block_of(Publication("p", "t", "CLOSE", b""))[4:],
        block_of(Publication("p" * 161, "t", "TEXT", b""))[4:],
    ):
        with pytest.raises(ValueError, match=r"."):
            read_publication_bytes(bad)
