"""A connection's bytes, in order, to requests: llhttp reads heads, bodies are read here, and nothing is ever guessed.

Each head is given to llhttp alone, up to its empty line; llhttp refuses two framings in one. Its fields then say how the
body is framed (RFC 9112, 6.3), and the body is counted or unchunked here, so that no two readers can disagree about where
the next request begins. Not here: sockets, time limits and answers (connection.py), and what the fields mean to a guest
(request_head.py).
"""

from __future__ import annotations

import re
from typing import Final, Protocol

import httptools

from runtime.ingress.chunked import ChunkDecoder, ChunkError
from runtime.ingress.incoming import Incoming
from runtime.ingress.response_head import (
    BAD_CODING,
    BAD_METHOD,
    BAD_VERSION,
    EXPECTATION,
    FIELDS_TOO_LARGE,
    MALFORMED,
    TARGET_TOO_LONG,
    IngressProblem,
)
from runtime.ingress.settings import IngressSettings

HEAD_END: Final = b"\r\n\r\n"

METHODS: Final = frozenset(
    {
        "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "QUERY",
        "ACL", "BIND", "CHECKOUT", "COPY", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE",
        "PROPFIND", "PROPPATCH", "PURGE", "REBIND", "REPORT", "SEARCH", "UNBIND", "UNLINK", "UNLOCK",
    }
)  # fmt: skip
"""What is passed on: the parser knows methods of other protocols too, which no HTTP request has."""

REQUEST_LINE: Final = re.compile(rb"(?:\r\n)*([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64})(?: [!-~]+ HTTP/[0-9.]+\r\n|\Z)")
"""A sound request line, or the beginning of one: where llhttp stops at it, the method is not one that it knows."""


class StopParsing(Exception):  # noqa: N818 - an answer, not an error
    """Stop parsing and answer `problem`; nothing after it can be understood."""

    def __init__(self, problem: IngressProblem) -> None:
        super().__init__(problem.slug)
        self.problem = problem


class RequestSink(Protocol):
    """Who is told what came."""

    def on_request(self, incoming: Incoming) -> None:
        """A head is whole."""
        ...

    def on_data(self, data: bytes) -> None:
        """A piece of the body of the newest request."""
        ...

    def on_end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        """The newest request is whole."""
        ...


class RequestParser:
    """See the module. After a StopParsing it must not be fed again."""

    __slots__ = (
        "_began",
        "_chunks",
        "_fields_bytes",
        "_head_bytes",
        "_headers",
        "_incoming",
        "_left",
        "_llhttp",
        "_settings",
        "_sink",
        "_tail",
        "_target",
        "in_head",
    )  # fmt: skip

    def __init__(self, sink: RequestSink, settings: IngressSettings) -> None:
        """Tell `sink` what is in the bytes that are fed; `settings` bounds each head."""
        self._sink = sink
        self._settings = settings
        self._llhttp = httptools.HttpRequestParser(self)
        self._incoming: Incoming | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._tail = b""
        self._chunks: ChunkDecoder | None = None
        self._left = 0
        self._fields_bytes = self._head_bytes = 0
        self._began = False
        self.in_head = False
        """Whether a head has begun and is not whole."""

    def feed(self, data: bytes) -> None:
        """Take what came. Raises StopParsing at the first fault."""
        while data:
            if self._chunks is not None:
                data = self._unchunk(self._chunks, data)
            elif self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                self._sink.on_data(piece)
                if not self._left:
                    self._sink.on_end([])
            else:
                cut = self._head_cut(data)
                self._head(data[:cut])
                data = data[cut:]

    def _head_cut(self, data: bytes) -> int:
        """How much of `data` belongs to the head that is being read: to its empty line, which may be cut in two."""
        tail = self._tail
        across = (tail + data[:3]).find(HEAD_END) if tail else -1
        if across >= 0:
            cut = across + len(HEAD_END) - len(tail)
        else:
            number = data.find(HEAD_END)
            cut = number + len(HEAD_END) if number >= 0 else len(data)
            if number < 0:
                self._tail = (tail + data)[-3:]
                return cut
        self._tail = b""
        return cut

    def _head(self, data: bytes) -> None:
        self._began = False
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # a wish to switch protocols is ignored (RFC 9110, 7.8); llhttp has read the head all the same
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, StopParsing):
                raise cause from None
            line = REQUEST_LINE.match(data)
            unknown = line is not None and line[1].decode("ascii") not in METHODS
            raise StopParsing(BAD_METHOD if unknown else MALFORMED) from None
        if self.in_head:
            self._head_bytes += 0 if self._began else len(data)
            if self._head_bytes > self._settings.fields_max_bytes:
                raise StopParsing(FIELDS_TOO_LARGE)
            return
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            return  # empty lines before a request
        if incoming.chunked:
            self._chunks = ChunkDecoder(self._settings.fields_max, self._settings.fields_max_bytes)
        elif incoming.length:
            self._left = incoming.length
        if incoming.chunked or incoming.length:
            self._llhttp = httptools.HttpRequestParser(self)  # it waits for a body that it will not see
        self._sink.on_request(incoming)
        if not incoming.chunked and not incoming.length:
            self._sink.on_end([])

    def _unchunk(self, chunks: ChunkDecoder, data: bytes) -> bytes:
        try:
            pieces, rest = chunks.feed(data)
        except ChunkError as error:
            raise StopParsing(FIELDS_TOO_LARGE if error.too_large else MALFORMED) from None
        for piece in pieces:
            self._sink.on_data(piece)
        if chunks.done:
            self._chunks = None
            self._sink.on_end(chunks.trailers)
        return rest

    # --- llhttp's callbacks -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request line begins."""
        self._headers = []
        self._target = b""
        self._fields_bytes = self._head_bytes = 0
        self._began = self.in_head = True

    def on_url(self, data: bytes) -> None:
        """A piece of the request target."""
        self._target += data
        if len(self._target) > self._settings.target_max_bytes:
            raise StopParsing(TARGET_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field."""
        self._fields_bytes += len(name) + len(value)
        self._headers.append((name, value.rstrip(b" \t")))  # llhttp leaves the white space behind a value (RFC 9112, 5)
        settings = self._settings
        if self._fields_bytes > settings.fields_max_bytes or len(self._headers) > settings.fields_max:
            raise StopParsing(FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """The head is whole: decide what it says of its body and its connection."""
        parser = self._llhttp
        self.in_head = False
        incoming = Incoming(parser.get_method().decode("ascii"), self._target, self._headers)
        incoming.keep_alive = parser.should_keep_alive()
        version = parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            raise StopParsing(BAD_VERSION)
        if incoming.method not in METHODS:
            raise StopParsing(BAD_METHOD)
        incoming.http_1_0 = version == "1.0"
        for name, value in self._headers:
            size = len(name)
            if size == 14 and name.lower() == b"content-length":
                incoming.length = int(value)
            elif size == 17 and name.lower() == b"transfer-encoding":
                if value.strip(b" \t").lower() != b"chunked":
                    raise StopParsing(BAD_CODING)  # a guest would get what it cannot read
                incoming.chunked = True
                # Whoever passed this on knew no chunks, so what follows may be part of it (RFC 9112, 6.1).
                incoming.keep_alive = incoming.keep_alive and not incoming.http_1_0
            elif size == 6 and name.lower() == b"expect":
                if value.lower() != b"100-continue":
                    raise StopParsing(EXPECTATION)
                incoming.expects = True
        self._incoming = incoming
