"""The app's `websocket(socket, event)` behind wasi:http: events in a request's body, what the app says in the answer's.

Runs only inside the sandbox. Not here: the socket itself, which the node ends (docs/guides/websockets.md).
"""

from __future__ import annotations

import freehold
import freehold_http

MEDIA_TYPE = "application/websocket-events"


def handler(inner, on_event):
    """Return the component's handler class: events of sockets go to `on_event`, all else to what `inner` makes."""

    class IncomingHandler:
        def __init__(self) -> None:
            self._inner = inner()

        def handle(self, request, response_out) -> None:
            headers = {}
            with request.headers() as fields:
                for name, value in fields.entries():
                    headers[name.lower()] = value.decode("latin-1")
            if headers.get("content-type") != MEDIA_TYPE:
                self._inner.handle(request, response_out)
                return
            freehold_http.serve(request, response_out, lambda *exchange: _respond(on_event, headers, *exchange))

    return IncomingHandler


def _respond(on_event, headers, request, body, answer) -> None:
    pieces = []
    while piece := body.piece(freehold_http.READ_MAX_BYTES):
        pieces.append(piece)
    path, _, query = (request.path_with_query() or "/").partition("?")
    status, fields, said = freehold.answer_events(on_event, headers, path, query, b"".join(pieces))
    answer.start(status, [(name, value.encode("latin-1")) for name, value in fields])
    if said:
        answer.send(said)
    answer.end()
