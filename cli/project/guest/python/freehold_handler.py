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
    response = returned if isinstance(returned, freehold.Response) else freehold.Response(_plain(returned))
    status, fields, pieces = _head_of(response)
    answer.start(status, fields)
    for piece in pieces:
        if piece and method != "HEAD":
            answer.send(piece)
    answer.end()


def _plain(returned):
    """Return a handler's value where it can be a body; a dict or a tuple is most likely meant as another framework's."""
    if isinstance(returned, (bytes, bytearray, memoryview, str)):
        return returned
    way = "freehold.Response.json(value)" if isinstance(returned, (dict, list)) else "freehold.Response(body, status, headers)"
    raise freehold_http.WrongAnswer(
        f"handle returned {freehold_http.kind_of(returned)}; return {way}, or bytes or str"
    )


def _head_of(response):
    """Return status, header fields and body pieces, all checked before the first byte leaves."""
    status = response.status
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise freehold_http.WrongAnswer(f"the status is {status!r}; it must be a number from 200 to 599")
    headers = response.headers
    pairs = headers.items() if hasattr(headers, "items") else headers
    fields = []
    try:
        for name, value in pairs:
            if not isinstance(name, str) or not isinstance(value, (str, int)):
                raise TypeError
            fields.append((name, str(value).encode("latin-1")))
    except (TypeError, ValueError):
        raise freehold_http.WrongAnswer("the headers must be a mapping, or pairs, of str to str in Latin-1") from None
    body = response.body
    if isinstance(body, (bytes, bytearray, memoryview, str)):
        return status, fields, [freehold_http.octets(body, "the body")]
    if body is None or isinstance(body, (dict, tuple, int, float)) or not hasattr(body, "__iter__"):
        raise freehold_http.WrongAnswer(
            f"the body is {freehold_http.kind_of(body)}; it must be bytes, str or an iterable of them"
        )
    rest = iter(body)
    first = next(rest, b"")  # the first piece is asked for before the head leaves: most mistakes show there
    return status, fields, _pieces(freehold_http.octets(first, "a piece of the body"), rest)


def _pieces(first, rest):
    yield first
    for piece in rest:
        yield freehold_http.octets(piece, "a piece of the body")
