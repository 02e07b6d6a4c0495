"""One HTTP/1.1 response, read from a stream: head, body pieces, trailers, and every way it can be wrong.

The parser is llhttp (httptools). Sources: RFC 9112 sections 6 and 7, RFC 9110 section 15. Not here: connecting or
sending (`client.py`).
"""

from __future__ import annotations

import asyncio
from typing import Final

import httptools

from runtime.exchange import ErrorCode, ResponseHead

HEAD_MAX_BYTES: Final = 128 * 1024
"""Status line and fields of a response, and its trailers."""
READ_BYTES: Final = 64 * 1024


class ResponseFailed(Exception):  # noqa: N818 - carries an error code to the guest
    """The response is not to be had; `code` is the guest's."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code[0])
        self.code = code


class ResponseReader:
    """Reads one response. `read_head`, then `read_piece` until None, then `trailers`."""

    def __init__(self, reader: asyncio.StreamReader, method: str) -> None:
        self._reader = reader
        self._headless_body = method == "HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self._fields: list[tuple[str, bytes]] = []
        self._size = 0
        self._head: ResponseHead | None = None
        self._pieces: list[bytes] = []
        self._complete = False
        self._until_close = False
        self.trailers: tuple[tuple[str, bytes], ...] = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field, or a trailer."""
        self._size += len(name) + len(value)
        if self._size > HEAD_MAX_BYTES:
            raise ResponseFailed(("HTTP-response-header-section-size", self._size))
        self._fields.append((name.decode("latin-1").lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is whole; an informational one is dropped."""
        status = self._parser.get_status_code()
        fields, self._fields = tuple(self._fields), []
        if 100 <= status < 200 and status != 101:
            return
        names = {name for name, _ in fields}
        self._until_close = "content-length" not in names and "transfer-encoding" not in names
        self._head = ResponseHead(status, fields)
        if self._headless_body or status in {204, 304}:
            self._complete = True

    def on_body(self, data: bytes) -> None:
        """Take body bytes."""
        if not self._complete:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        """The message ended; after an informational one the real one follows."""
        if self._head is None:
            return
        self.trailers = tuple(self._fields)
        self._complete = True

    async def read_head(self) -> ResponseHead:
        """Return status and fields; raises `ResponseFailed`."""
        while self._head is None:
            if not await self._more():
                raise ResponseFailed(("HTTP-response-incomplete", None))
        return self._head

    async def read_piece(self) -> bytes | None:
        """Return the next body bytes, None at the end; raises `ResponseFailed`."""
        while not self._pieces:
            if self._complete:
                return None
            if not await self._more():
                if self._until_close:
                    self._complete = True
                    return None
                raise ResponseFailed(("HTTP-response-incomplete", None))
        return self._pieces.pop(0)

    async def _more(self) -> bool:
        try:
            data = await self._reader.read(READ_BYTES)
            if not data:
                return False
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, ResponseFailed):
                raise error.__context__ from None
            if self._complete:  # bytes after the end of the one response we asked for
                return True
            raise ResponseFailed(("HTTP-protocol-error", None)) from None
        except OSError:
            raise ResponseFailed(("connection-terminated", None)) from None
        return True
