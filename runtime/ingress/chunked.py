"""A chunked body, decoded piece by piece as it comes (RFC 9112, 7.1). Pure: it sees bytes, no sockets and no clock.

Extensions are read over, with the white space that the grammar allows around them; they may not cost more than the body
is worth. Lines end with CR LF and with nothing else. Not here: how large a body may be (the app's limit, connection.py).
"""

from __future__ import annotations

import re
from typing import Final

LINE_MAX_BYTES: Final = 4096
"""A chunk's size with its extensions."""

OVERHEAD_MAX_BYTES: Final = 16 * 1024
"""Bytes of size lines beyond 16 and twice the chunk's own size each: a body of tiny chunks with long extensions ends."""

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
SIZE_LINE: Final = re.compile(
    rb"0*([0-9A-Fa-f]{1,15})(?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*" % (_TOKEN, _TOKEN, _QUOTED)
)
TRAILER: Final = re.compile(rb"(%b):[ \t]*((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*" % _TOKEN)


class ChunkError(Exception):
    """The body is not what the grammar allows, or its lines are `too_large`."""

    def __init__(self, *, too_large: bool = False) -> None:
        """Say whether a limit was passed."""
        super().__init__("a line is too long" if too_large else "not a chunked body")
        self.too_large = too_large


class ChunkDecoder:
    """The state of one body. Feed it until `done`; `trailers` are then the fields behind it."""

    __slots__ = (
        "_data_left", "_fields_max", "_fields_max_bytes", "_in_trailers", "_line", "_overhead", "_trailers_bytes",
        "done", "trailers",
    )  # fmt: skip

    def __init__(self, fields_max: int, fields_max_bytes: int) -> None:
        """Take how many trailer fields there may be, and how many bytes of them."""
        self._fields_max = fields_max
        self._fields_max_bytes = fields_max_bytes
        self._line = b""
        self._data_left = -1
        """Bytes until the end of the chunk's data, its own CR LF included; -1 while a size line is read."""
        self._in_trailers = False
        self._overhead = self._trailers_bytes = 0
        self.trailers: list[tuple[bytes, bytes]] = []
        self.done = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the pieces of body in `data`, and what lies behind the body once that is `done`. Raises ChunkError."""
        pieces: list[bytes] = []
        line = 0
        while line < len(data) and not self.done:
            line = self._data(data, line, pieces) if self._data_left >= 0 else self._read_line(data, line)
        return pieces, data[line:]

    def _data(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        left = self._data_left
        if left > 2:
            piece = data[at : at + left - 2]
            pieces.append(piece)
            self._data_left = left - len(piece)
            return at + len(piece)
        if data[at : at + 1] != (b"\r" if left == 2 else b"\n"):
            raise ChunkError
        self._data_left = left - 1 if left == 2 else -1
        return at + 1

    def _read_line(self, data: bytes, at: int) -> int:
        limit = self._fields_max_bytes if self._in_trailers else LINE_MAX_BYTES
        end = data.find(b"\n", at)
        piece = data[at:] if end < 0 else data[at : end + 1]
        if len(self._line) + len(piece) > limit + 2:
            raise ChunkError(too_large=True)
        self._line += piece
        if end < 0:
            return len(data)
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise ChunkError
        if self._in_trailers:
            self._trailer(line[:-2])
        else:
            self._size(line[:-2])
        return end + 1

    def _size(self, line: bytes) -> None:
        match = SIZE_LINE.fullmatch(line)
        if match is None:
            raise ChunkError
        size = int(match[1], 16)
        self._overhead = max(0, self._overhead + len(line) + 2 - 16 - 2 * size)
        if self._overhead > OVERHEAD_MAX_BYTES:
            raise ChunkError(too_large=True)
        if size:
            self._data_left = size + 2
        else:
            self._in_trailers = True

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        match = TRAILER.fullmatch(line)
        if match is None:
            raise ChunkError
        self._trailers_bytes += len(line)
        if self._trailers_bytes > self._fields_max_bytes or len(self.trailers) >= self._fields_max:
            raise ChunkError(too_large=True)
        self.trailers.append((match[1], match[2]))
