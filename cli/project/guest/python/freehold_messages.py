"""The app's `message(message)` behind wasi:http: what it returns from is done with, what it raises is delivered again.

Runs only inside the sandbox. Not here: where messages wait (docs/guides/messaging.md).
"""

from __future__ import annotations

import freehold
import freehold_http

PATH = "/.freehold/messages/"


def handler(inner, on_message):
    """Return the component's handler class: messages go to `on_message`, all else to what `inner` makes."""

    class IncomingHandler:
        def __init__(self) -> None:
            self._inner = inner()

        def handle(self, request, response_out) -> None:
            path = request.path_with_query() or "/"
            if not path.startswith(PATH):
                self._inner.handle(request, response_out)
                return
            freehold_http.serve(request, response_out, lambda *exchange: _respond(on_message, path, *exchange))

    return IncomingHandler


def nothing_else():
    """Make the handler of an app that has nothing but messages to handle."""

    class IncomingHandler:
        def handle(self, request, response_out) -> None:
            freehold_http.serve(request, response_out, lambda request, body, answer: _answer(answer, 404))

    return IncomingHandler


def _respond(on_message, path, request, body, answer) -> None:
    headers = {}
    with request.headers() as fields:
        for name, value in fields.entries():
            headers[name.lower()] = value.decode("latin-1")
    pieces = []
    while piece := body.piece(freehold_http.READ_MAX_BYTES):
        pieces.append(piece)
    on_message(
        freehold.Message(
            path.removeprefix(PATH),
            b"".join(pieces),
            headers.get("freehold-message", ""),
            int(headers.get("freehold-message-attempt", "1")),
            int(headers.get("freehold-message-published-ms", "0")),
        )
    )
    _answer(answer, 204)


def _answer(answer, status: int) -> None:
    answer.start(status, [])
    answer.end()
