"""An ordinary WSGI app (PEP 3333) behind wasi:http. Runs only inside the sandbox.

Request and response bodies stream: `wsgi.input` reads from the connection as the app asks, and each piece the app
yields is sent before the next is asked for. Threads and processes do not exist here, and the environ says so.
"""

from __future__ import annotations

import io
import sys
from urllib.parse import unquote_to_bytes

import freehold_http

UNPREFIXED = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}


def handler(application, prefixes):
    """Return the component's handler class for `application`, mounted below the longest of the path `prefixes`."""

    class IncomingHandler:
        def handle(self, request, response_out) -> None:
            def respond(request, body, answer):
                _Exchange(answer, freehold_http.method_of(request) == "HEAD").run(
                    application, environ_of(request, body, prefixes)
                )

            freehold_http.serve(request, response_out, respond)

    return IncomingHandler


def environ_of(request, body, prefixes):
    path, _, query = (request.path_with_query() or "/").partition("?")
    # WSGI wants the decoded bytes of the path as latin-1 text (PEP 3333, "Unicode Issues").
    path = unquote_to_bytes(path).decode("latin-1")
    mount = next((prefix for prefix in prefixes if path == prefix or path.startswith(prefix + "/")), "")
    authority = request.authority() or "localhost"
    scheme = freehold_http.scheme_of(request)
    host, _, port = authority.rpartition(":") if authority.rpartition(":")[2].isdigit() else (authority, "", "")
    environ = {
        "REQUEST_METHOD": freehold_http.method_of(request),
        "SCRIPT_NAME": mount,
        "PATH_INFO": path[len(mount) :],
        "QUERY_STRING": query,
        "SERVER_NAME": host,
        "SERVER_PORT": port or ("443" if scheme == "https" else "80"),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": authority,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": io.BufferedReader(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    with request.headers() as fields:
        for name, value in fields.entries():
            if "_" in name:
                continue  # X_Forwarded_For would become the variable of X-Forwarded-For: a visitor could speak for a proxy
            key = UNPREFIXED.get(name.lower()) or "HTTP_" + name.upper().replace("-", "_")
            text = value.decode("latin-1")
            if key == "HTTP_HOST":
                continue
            separator = "; " if key == "HTTP_COOKIE" else ","
            environ[key] = environ[key] + separator + text if key in environ else text
    return environ


class _Exchange:
    """One request's response: what PEP 3333 calls the server side of start_response."""

    def __init__(self, answer, is_head: bool) -> None:
        self._answer = answer
        self._is_head = is_head
        self._status = None
        self._headers = None

    def run(self, application, environ) -> None:
        pieces = application(environ, self._start_response)
        if pieces is None or isinstance(pieces, (str, dict, int)):
            raise freehold_http.WrongAnswer(
                f"the WSGI app returned {freehold_http.kind_of(pieces)}; it must return an iterable of bytes"
            )
        try:
            for piece in pieces:
                if not isinstance(piece, (bytes, bytearray, memoryview)):
                    raise freehold_http.WrongAnswer(
                        f"the WSGI app gave {freehold_http.kind_of(piece)} as a piece of its body; it must give bytes"
                    )
                if piece:
                    self._send(piece)
            self._send_headers()
            self._answer.end()
        finally:
            if hasattr(pieces, "close"):
                pieces.close()

    def _start_response(self, status, headers, exc_info=None):
        if exc_info is not None and self._answer.started:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        if exc_info is None and self._status is not None:
            raise AssertionError("start_response was called twice without exc_info")
        if not isinstance(status, str) or not status[:3].isdigit():
            raise freehold_http.WrongAnswer(f"the WSGI app's status is {status!r}; it must be like '200 OK'")
        self._status, self._headers = int(status[:3]), list(headers)
        return self._send

    def _send_headers(self) -> None:
        if not self._answer.started:
            if self._status is None:
                raise AssertionError("the app returned without calling start_response")
            try:
                fields = [(name, value.encode("latin-1")) for name, value in self._headers]
            except (AttributeError, TypeError, ValueError):
                raise freehold_http.WrongAnswer("the WSGI app's headers must be pairs of str in Latin-1") from None
            self._answer.start(self._status, fields)

    def _send(self, piece: bytes) -> None:
        self._send_headers()
        if not self._is_head:
            self._answer.send(piece)
