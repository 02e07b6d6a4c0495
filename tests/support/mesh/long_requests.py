"""Requests that last: a body sent slowly to a component that echoes it, and the same read piece by piece as it comes.

Not here: which component answers (the fixture `probe`), and any test.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PIECES = 10
HEAD = "POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


def slow_request(address: str, host: str, lasts_s: float) -> str:
    """Send PIECES lines over `lasts_s` seconds; return what the answer lacks, "" if it is whole."""
    name, _, port = address.rpartition(":")
    try:
        with socket.create_connection((name, int(port)), timeout=lasts_s + 20) as connection:
            connection.sendall(HEAD.format(host=host).encode())
            for number in range(PIECES):
                line = f"line {number}\n".encode()
                connection.sendall(b"%x\r\n%s\r\n" % (len(line), line))
                time.sleep(lasts_s / PIECES)
            connection.sendall(b"0\r\n\r\n")
            answer = b""
            while part := connection.recv(65536):
                answer += part
    except OSError as error:
        return repr(error)
    missing = [n for n in range(PIECES) if b"line %d\n" % n not in answer]
    return "" if answer.startswith(b"HTTP/1.1 200") and not missing else f"{answer[:40]!r} without {missing}"


class Streams:
    """What became of each request that lasted: "" if it was whole."""

    def __init__(self) -> None:
        self.ends: list[str] = []


@contextmanager
def long_requests(address: str, host: str, *, count: int = 2, lasts_s: float = 10.0) -> Iterator[Streams]:
    """Have `count` requests under way for `lasts_s` seconds from now on; the block ends when they have."""
    streams = Streams()
    threads = [
        threading.Thread(target=lambda: streams.ends.append(slow_request(address, host, lasts_s))) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield streams
    finally:
        for thread in threads:
            thread.join()
