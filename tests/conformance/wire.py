"""One HTTP/1.1 exchange seen from the wire: what was sent, and exactly what came back, in which pieces, how it ended.

A raw socket rather than a client library, because the suite compares what libraries hide: truncation, trailers, the
order of fields, when each piece arrived. Not here: what is asked (`cases.py`) or how answers are compared.
"""

from __future__ import annotations

import hashlib
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

PIECE_GAP_S: Final = 0.03
"""Bytes that arrive closer together than this are one piece: guests pause 80 ms between pieces they want seen."""

BODY_SHOWN_MAX_BYTES: Final = 4096
"""Longer bodies are recorded as length and digest, to keep transcripts readable."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `pieces` are sent with `pause_s` between them; `chunked` frames them so, `trailers` follow."""

    path: str = "/"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    pieces: tuple[bytes, ...] = ()
    pause_s: float = 0.0
    chunked: bool = False
    trailers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `ending` is "whole", "cut" (the framing promised more), or "none" (no response at all)."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str
    pieces: int
    trailers: tuple[tuple[str, str], ...]
    ending: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Answer:
        pairs = {key: tuple(tuple(pair) for pair in data[key]) for key in ("headers", "trailers")}
        return Answer(data["status"], pairs["headers"], data["body"], data["pieces"], pairs["trailers"], data["ending"])


def exchange(port: int, ask: Ask, timeout_s: float = 20.0) -> Answer:
    """Send `ask` to 127.0.0.1:`port` on a connection of its own and read the whole answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _send(connection, port, ask)
        return _Reader(connection).answer(ask.method)


def _send(connection: socket.socket, port: int, ask: Ask) -> None:
    fields = [("host", f"127.0.0.1:{port}"), *ask.headers]
    if ask.chunked:
        fields.append(("transfer-encoding", "chunked"))
    elif ask.pieces:
        fields.append(("content-length", str(sum(map(len, ask.pieces)))))
    head = f"{ask.method} {ask.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
    try:
        connection.sendall(head.encode("latin-1"))
        for number, piece in enumerate(ask.pieces):
            if number and ask.pause_s:
                time.sleep(ask.pause_s)
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if ask.chunked else piece)
        if ask.chunked:
            end = "".join(f"{name}: {value}\r\n" for name, value in ask.trailers)
            connection.sendall(b"0\r\n" + end.encode() + b"\r\n")
    except OSError:
        return  # the server answered before it had read everything, which is its right


class _CutError(Exception):
    """The connection ended before the framing said so."""


class _Reader:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._arrivals: list[float] = []

    def answer(self, method: str) -> Answer:
        try:
            status, headers = self._head()
            while 100 <= status < 200:
                status, headers = self._head()
        except _CutError:
            return Answer(0, (), "", 0, (), "none")
        self._arrivals = [time.monotonic()] if self._buffer else []
        body = bytearray()
        trailers: tuple[tuple[str, str], ...] = ()
        ending = "whole"
        names = {name.lower(): value for name, value in headers}
        try:
            if method == "HEAD" or status in (204, 304):
                pass
            elif "chunked" in names.get("transfer-encoding", ""):
                trailers = self._chunks(body)
            elif "content-length" in names:
                self._exactly(int(names["content-length"]), body)
            else:
                self._until_end(body)
        except _CutError:
            ending = "cut"
        return Answer(status, tuple(headers), _shown(bytes(body)), self._pieces(), trailers, ending)

    def _pieces(self) -> int:
        gaps = [later - sooner for sooner, later in zip(self._arrivals, self._arrivals[1:], strict=False)]
        return (1 if self._arrivals else 0) + sum(gap > PIECE_GAP_S for gap in gaps)

    def _more(self) -> None:
        try:
            data = self._connection.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            raise _CutError
        self._arrivals.append(time.monotonic())
        self._buffer += data

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            self._more()
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.rstrip(b"\r").decode("latin-1")

    def _fields(self) -> list[tuple[str, str]]:
        fields = []
        while line := self._line():
            name, _, value = line.partition(":")
            fields.append((name, value.strip(" \t")))
        return fields

    def _head(self) -> tuple[int, list[tuple[str, str]]]:
        status = int(self._line().split(" ", 2)[1])
        return status, self._fields()

    def _exactly(self, count: int, body: bytearray) -> None:
        while count:
            if not self._buffer:
                self._more()
            piece, self._buffer = self._buffer[:count], self._buffer[count:]
            body += piece
            count -= len(piece)

    def _until_end(self, body: bytearray) -> None:
        try:
            while True:
                body += self._buffer
                self._buffer = b""
                self._more()
        except _CutError:
            return

    def _chunks(self, body: bytearray) -> tuple[tuple[str, str], ...]:
        while size := int(self._line().split(";")[0], 16):
            self._exactly(size, body)
            self._line()
        last = len(self._arrivals)
        trailers = tuple(self._fields())
        del self._arrivals[last:]  # the end of the body is not a piece of it
        return trailers


def _shown(body: bytes) -> str:
    if len(body) > BODY_SHOWN_MAX_BYTES:
        return f"{len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}"
    return body.decode("latin-1")
