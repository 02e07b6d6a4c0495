"""A plain `handle(request) -> response` function behind wasi:http. Runs only inside the sandbox."""

from __future__ import annotations

import inspect

import freehold
import freehold_http


def handler(module, handle):
    """Return the component's handler class around `handle`, which takes and returns `freehold` values."""
    if inspect.iscoroutinefunction(handle):
        raise TypeError(f"{module}.handle is async; write it as a plain function")

    class IncomingHandler:
        def handle(self, request, response_out) -> None:
            freehold_http.serve(request, response_out, lambda *exchange: _respond(handle, *exchange))

    return IncomingHandler


def _respond(handle, request, body, answer) -> None:
    path, _, query = (request.path_with_query() or "/").partition("?")
    headers = {}
    with request.headers() as fields:
        for name, value in fields.entries():
            name, text = name.lower(), value.decode("latin-1")
            headers[name] = f"{headers[name]}, {text}" if name in headers else text
    pieces = []
    while piece := body.piece(freehold_http.READ_MAX_BYTES):
        pieces.append(piece)
    method = freehold_http.method_of(request)
    returned = handle(
        freehold.Request(
            method, path, query, headers, b"".join(pieces), freehold_http.scheme_of(request), request.authority() or ""
        )
    )
    response = returned if isinstance(returned, freehold.Response) else freehold.Response(returned)
    answer.start(response.status, [(name, value.encode("latin-1")) for name, value in response.headers.items()])
    for piece in response.pieces():
        if piece and method != "HEAD":
            answer.send(piece)
    answer.end()
