"""What a Python app says of a WebSocket is what the ingress reads; the module runs here as under an app's own tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime.ingress.socket_events import MEDIA_TYPE, SocketEvent, read_events, read_publication, write_events

MODULE = Path(__file__).parents[4] / "cli" / "project" / "guest" / "python" / "freehold.py"


@pytest.fixture(scope="module")
def freehold() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guest_freehold", MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["guest_freehold"] = module
    spec.loader.exec_module(module)
    return module


def answered(
    freehold: ModuleType, app: Any, *events: SocketEvent, **headers: str
) -> tuple[int, dict[str, str], list[SocketEvent]]:
    fields = {"connection-id": "c1", **headers}
    status, said, body = freehold.answer_events(app, fields, "/ws", "a=1", write_events(*events))
    return status, dict(said), read_events(body)


def test_an_open_socket_is_taken_and_told_in_order(freehold: ModuleType) -> None:
    def app(socket: Any, event: Any) -> None:
        assert (event.kind, socket.id, socket.path, socket.query) == ("open", "c1", "/ws", "a=1")
        socket.protocol = "chat"
        socket.subscribe("room")
        socket.send("κόσμε")
        socket.send(b"\x00")
        socket.send("")

    status, fields, said = answered(freehold, app, SocketEvent("OPEN"))
    assert (status, fields) == (200, {"content-type": MEDIA_TYPE, "sec-websocket-protocol": "chat"})
    assert said == [
        SocketEvent("OPEN"), SocketEvent("SUBSCRIBE", b"room"), SocketEvent("TEXT", "κόσμε".encode()),
        SocketEvent("BINARY", b"\x00"), SocketEvent("TEXT"),
    ]  # fmt: skip


def test_an_app_refuses_by_false_and_by_nothing_else(freehold: ModuleType) -> None:
    assert answered(freehold, lambda socket, event: False, SocketEvent("OPEN"))[0] == 403
    for other in (None, 0, "", True):
        assert answered(freehold, lambda socket, event, other=other: other, SocketEvent("OPEN"))[2] == [
            SocketEvent("OPEN")
        ]


def test_messages_publications_and_ends(freehold: ModuleType) -> None:
    heard: list[Any] = []

    def app(socket: Any, event: Any) -> None:
        heard.append((event.kind, event.data, event.code))
        if event.kind == "message":
            freehold.sockets.broadcast("room", event.data)
            freehold.sockets.send("c9", "psst")
            socket.close(4001, "bye")

    said = answered(freehold, app, SocketEvent("TEXT", b"hi"))[2]
    assert read_publication(said[0].data) == ("room", SocketEvent("TEXT", b"hi"))
    assert read_publication(said[1].data) == ("socket:c9", SocketEvent("TEXT", b"psst"))
    assert said[2] == SocketEvent("CLOSE", (4001).to_bytes(2) + b"bye")
    [told, *_] = answered(freehold, app, SocketEvent("BINARY", b"\r\n\xff"))[2]
    assert read_publication(told.data) == ("room", SocketEvent("BINARY", b"\r\n\xff"))
    answered(freehold, app, SocketEvent("CLOSE", (1001).to_bytes(2)))
    assert heard == [("message", "hi", 0), ("message", b"\r\n\xff", 0), ("close", b"", 1001)]
    with pytest.raises(freehold.FreeholdError, match="websocket"):
        freehold.sockets.broadcast("room", "outside")


def test_a_handler_that_fails_says_nothing_later(freehold: ModuleType) -> None:
    def app(socket: Any, event: Any) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        answered(freehold, app, SocketEvent("TEXT", b"hi"))
    with pytest.raises(freehold.FreeholdError):
        freehold.sockets.broadcast("room", "outside")
