"""A loopback HTTP server for the guests' outgoing requests: well behaved on some paths, broken on purpose on others."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

DEAD_AUTHORITY: Final = "127.0.0.1:1"
"""A loopback address nobody listens on."""


def _read_request(connection: socket.socket) -> tuple[str, str, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return "", "", {}, b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "chunked" in fields.get("transfer-encoding", ""):
        while not rest.endswith(b"0\r\n\r\n"):
            rest += connection.recv(65536)
        return method, path, fields, _unchunk(rest)
    length = int(fields.get("content-length", "0"))
    while len(rest) < length:
        rest += connection.recv(65536)
    return method, path, fields, rest


def _unchunk(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        if count == 0:
            break
        body, data = body + data[:count], data[count + 2 :]
    return body


def _respond(connection: socket.socket, head: str, body: bytes = b"") -> None:
    connection.sendall(f"HTTP/1.1 {head}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)


def _serve_one(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError, ValueError):
        connection.settimeout(5)
        method, path, fields, body = _read_request(connection)
        if path == "/plain":
            _respond(connection, "200 OK\r\nx-seen-from: " + fields.get("x-from", "nobody"), b"plain from upstream\n")
        elif path == "/echo":
            _respond(connection, f"200 OK\r\nx-method: {method}", body)
        elif path == "/teapot":
            _respond(connection, "418 I'm a teapot\r\nx-one: 1\r\nx-two: a\r\nx-two: b", b"short and stout\n")
        elif path == "/slow":
            connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n")
            for number in range(4):
                time.sleep(0.3 if number else 0)
                connection.sendall(b"6\r\nslow %d\r\n" % number)
            connection.sendall(b"0\r\n\r\n")
        elif path == "/cut":
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\nonly this")
        elif path == "/silent":
            time.sleep(1.0)
        elif path == "/garbage":
            connection.sendall(b"this is not HTTP at all\r\n\r\n")
        else:
            _respond(connection, "404 Not Found")


def _accept(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve_one, args=(connection,), daemon=True).start()


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """Serve on a free loopback port; yields "127.0.0.1:PORT"."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
