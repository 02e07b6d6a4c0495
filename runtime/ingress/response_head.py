"""The bytes of a response: status line, fields, framing, trailers, problem details.

A guest chooses status, fields and body; the framing is ours (RFC 9112, 6): a `content-length` that the guest declares
is held to, anything longer than one batch without one is chunked, and no field value can smuggle a line break. Not
here: writing them (`connection.py`). Problems follow RFC 9457.
"""

from __future__ import annotations

import http
import time
from dataclasses import dataclass
from typing import Final

import msgspec

from runtime.exchange import Headers, ResponseHead

DROPPED: Final = frozenset(
    {
        "connection", "content-length", "date", "freehold-release", "http2-settings", "keep-alive",
        "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "x-request-id",
    }
)  # fmt: skip
"""Fields the guest may not set itself: framing, the connection, and what this node says about itself."""

PROBLEM_TYPE: Final = "urn:freehold:problem:"

CHUNK_END: Final = b"\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_status_lines = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus if status >= 200
}
_encode_json = msgspec.json.Encoder().encode


class BadResponseError(ValueError):
    """The guest's response cannot be put on the wire; the reason is for the log."""


class DateField:
    """The `date` field, made once a second."""

    __slots__ = ("_field", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._field = b""

    def field(self, now_s: float) -> bytes:
        """Return `date: ...` with its line end, for a Unix time."""
        second = int(now_s)
        if second != self._second:
            self._second = second
            self._field = time.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(second)).encode()
        return self._field


@dataclass(slots=True)
class Framing:
    """How the body goes out. `length` is what was declared (None: unknown); `sent` counts body bytes."""

    chunked: bool
    bodiless: bool
    length: int | None
    keep_alive: bool
    sent: int = 0


def frame_head(
    head: ResponseHead,
    own_fields: bytes,
    *,
    method: str,
    http_1_0: bool,
    keep_alive: bool,
    whole_bytes: int | None,
    trailers: bool,
) -> tuple[bytes, Framing]:
    """Return the head's bytes and the framing of the body.

    `whole_bytes` is the body's size where all of it is known; `trailers` says that trailers are to follow. Raises
    `BadResponseError` on a status, field or content-length that must not leave.
    """
    status = head.status
    parts, declared = _guest_fields(head)
    bodiless = method == "HEAD" or status in {204, 304}
    length = declared
    chunked = False
    if whole_bytes is not None and not bodiless:
        if declared is not None and declared != whole_bytes:
            raise BadResponseError(f"content-length {declared}, but {whole_bytes} bytes")
        length = whole_bytes
    if trailers and not http_1_0 and not bodiless and declared is None:
        chunked = True
    elif length is None and not bodiless:
        chunked = not http_1_0
        keep_alive = keep_alive and chunked
    if chunked:
        parts.append(b"transfer-encoding: chunked\r\n")
        length = None
    elif length is not None and status not in {204, 304}:
        parts.append(b"content-length: %d\r\n" % length)
    if not keep_alive:
        parts.append(b"connection: close\r\n")
    elif http_1_0:
        parts.append(b"connection: keep-alive\r\n")
    parts.append(own_fields)
    data = b"".join(parts)
    # one line per part, and `own_fields` counts its own: any other line break came out of a field value
    lines = len(parts) - 1 + own_fields.count(b"\n")
    if data.count(b"\n") != lines or data.count(b"\r") != lines or b"\0" in data:
        raise BadResponseError("a field value has a control character")
    return data + b"\r\n", Framing(chunked, bodiless, length, keep_alive)


def _guest_fields(head: ResponseHead) -> tuple[list[bytes], int | None]:
    """Return the status line and the fields a guest may set, a line each, and the length it declared."""
    status_line = _status_lines.get(head.status)
    if status_line is None:
        if not 200 <= head.status <= 999:
            raise BadResponseError(f"status {head.status}")
        status_line = b"HTTP/1.1 %d \r\n" % head.status
    lines = [status_line]
    declared: int | None = None
    for name, value in head.headers:
        if name not in DROPPED:
            lines.append(b"%b: %b\r\n" % (name.encode("latin-1"), value))
        elif name == "content-length":
            if not value.isdigit() or len(value) > 18 or (declared is not None and declared != int(value)):
                raise BadResponseError("content-length is not one number")
            declared = int(value)
    return lines, declared


def frame_chunks(framing: Framing, chunks: tuple[bytes, ...]) -> bytes:
    """Return body bytes as they go on the wire; raises `BadResponseError` when they exceed the declared length."""
    size = sum(map(len, chunks))
    framing.sent += size
    if framing.bodiless or not size:
        return b""
    if framing.chunked:
        return b"".join((b"%x\r\n" % size, *chunks, CHUNK_END))
    if framing.length is not None and framing.sent > framing.length:
        raise BadResponseError(f"more than content-length {framing.length}")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def frame_end(framing: Framing, trailers: Headers) -> bytes:
    """Return what ends the body; raises `BadResponseError` when it is shorter than declared or a trailer is bad."""
    if framing.chunked:
        if not trailers:
            return LAST_CHUNK
        lines = [b"%b: %b\r\n" % (name.encode("latin-1"), value) for name, value in trailers if name not in DROPPED]
        data = b"".join(lines)
        if data.count(b"\n") != len(lines) or data.count(b"\r") != len(lines) or b"\0" in data:
            raise BadResponseError("a trailer has a control character")
        return b"0\r\n" + data + b"\r\n"
    if framing.length is not None and not framing.bodiless and framing.sent != framing.length:
        raise BadResponseError(f"{framing.sent} bytes, but content-length {framing.length}")
    return b""


@dataclass(frozen=True, slots=True)
class IngressProblem:
    """An answer of the node itself. `slug` ends the stable type; `detail` and `next_step` are sentences for people."""

    status: int
    slug: str
    title: str
    next_step: str = ""
    retry_after_s: int | None = None


def problem_response(problem: IngressProblem, request_id: str) -> tuple[ResponseHead, bytes]:
    """Return head and body of a problem; it says nothing about the inside of the app or the node."""
    content = {
        "type": PROBLEM_TYPE + problem.slug,
        "title": problem.title,
        "status": problem.status,
        "request_id": request_id,
    }
    if problem.next_step:
        content["next"] = problem.next_step
    headers: Headers = (("content-type", b"application/problem+json"), ("cache-control", b"no-store"))
    if problem.retry_after_s is not None:
        headers = (*headers, ("retry-after", str(problem.retry_after_s).encode()))
    return ResponseHead(problem.status, headers), _encode_json(content)


MALFORMED = IngressProblem(400, "malformed-request", "The request is not valid HTTP/1.1.")
NO_HOST = IngressProblem(400, "bad-host", "The request needs exactly one valid Host field.")
FOREIGN_HOST = IngressProblem(
    421, "foreign-host", "This address is for this machine: the request names a host or an origin of elsewhere.",
    "Use http://127.0.0.1 or http://localhost with the port, or a host that a route of the project names.",
)  # fmt: skip
TIMED_OUT = IngressProblem(408, "request-timeout", "The request did not arrive in time.")
BODY_TOO_LARGE = IngressProblem(413, "body-too-large", "The request body is larger than this app accepts.")
TARGET_TOO_LONG = IngressProblem(414, "target-too-long", "The request target is too long.")
FIELDS_TOO_LARGE = IngressProblem(431, "fields-too-large", "The request has too many or too large header fields.")
BAD_METHOD = IngressProblem(501, "method-not-supported", "This node knows no such method, and opens no tunnels.")
BAD_CODING = IngressProblem(501, "coding-not-supported", "Of transfer codings this node knows chunked, and only alone.")
BAD_VERSION = IngressProblem(505, "version-not-supported", "This node speaks HTTP/1.1 and HTTP/1.0.")
EXPECTATION = IngressProblem(417, "expectation-failed", "This node knows only Expect: 100-continue.")
NO_ROUTE = IngressProblem(404, "no-route", "No app answers at this address.")
BUSY = IngressProblem(503, "app-busy", "The app has more requests waiting than it may.", "Try again later.", 1)
UNAVAILABLE = IngressProblem(503, "service-away", "What the app needs is away for now.", "Try again later.", 2)
FAILED = IngressProblem(
    500, "app-failed", "The app failed to answer.", "The app's log has the reason under the request id."
)
DEADLINE = IngressProblem(504, "app-timeout", "The app did not answer in time.")
