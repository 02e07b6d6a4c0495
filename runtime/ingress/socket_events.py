"""What an app hears and says of a WebSocket: events in the body of a request and of its answer.

The framing is that of Pushpin's WebSocket-over-HTTP: NAME, or NAME SIZE in hex, a line end, SIZE bytes and a line end. An
app hears OPEN, TEXT, BINARY, CLOSE (two bytes of code) and DISCONNECT; it says OPEN to take a socket, TEXT and BINARY to its
client, CLOSE, and of ours SUBSCRIBE and UNSUBSCRIBE (a topic) and PUBLISH (a topic, a zero byte, `t` or `b`, the message).
Not here: sockets (websocket.py), and what a topic reaches (topics.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MEDIA_TYPE: Final = "application/websocket-events"
EVENTS_MAX: Final = 256
"""In one answer."""

REPLY_MAX_BYTES: Final = 1 << 20
TOPIC: Final = re.compile(rb"[A-Za-z0-9._:@/-]{1,64}")
_HEAD: Final = re.compile(rb"([A-Z]{4,12})(?: ([0-9a-fA-F]{1,6}))?")
_SAID: Final = frozenset({"OPEN", "TEXT", "BINARY", "CLOSE", "SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH", "PING", "PONG"})


class BadEventsError(ValueError):
    """The app's answer is no events; says what is wrong."""


@dataclass(frozen=True, slots=True)
class SocketEvent:
    """One event; `data` is empty for those without."""

    name: str
    data: bytes = b""


def write_events(*events: SocketEvent) -> bytes:
    """Return the body of a request or an answer."""
    return b"".join(
        b"%b %x\r\n%b\r\n" % (event.name.encode(), len(event.data), event.data)
        if event.data
        else event.name.encode() + b"\r\n"
        for event in events
    )


def read_events(body: bytes) -> list[SocketEvent]:
    """Return the events of an app's answer. Raises BadEventsError."""
    events: list[SocketEvent] = []
    position = 0
    while position < len(body):
        end = body.find(b"\r\n", position, position + 24)
        head = _HEAD.fullmatch(body[position:end]) if end >= 0 else None
        if head is None or head[1].decode() not in _SAID:
            raise BadEventsError("an event is NAME or NAME SIZE, and a line end")
        position = end + 2
        data = b""
        if head[2] is not None:
            size = int(head[2], 16)
            data = body[position : position + size]
            if len(data) != size or body[position + size : position + size + 2] != b"\r\n":
                raise BadEventsError("an event is shorter than it says")
            position += size + 2
        events.append(SocketEvent(head[1].decode(), data))
        if len(events) > EVENTS_MAX:
            raise BadEventsError(f"an answer has at most {EVENTS_MAX} events")
    return events


def read_topic(data: bytes) -> str:
    """Return a topic. Raises BadEventsError."""
    if not TOPIC.fullmatch(data):
        raise BadEventsError("a topic is 1 to 64 of letters, digits and . _ : @ / -")
    return data.decode("ascii")


def read_publication(data: bytes) -> tuple[str, SocketEvent]:
    """Return topic and message of a PUBLISH. Raises BadEventsError."""
    topic, separator, rest = data.partition(b"\0")
    name = {b"t": "TEXT", b"b": "BINARY"}.get(rest[:1])
    if not separator or name is None:
        raise BadEventsError("a publication is a topic, a zero byte, t or b, and the message")
    return read_topic(topic), SocketEvent(name, rest[1:])
