"""Requests that nobody wrote: the malformed corpus and sound requests, mutated by a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.support.runtime.ingress_corpus import CASES
from tests.support.runtime.served import request

PATHS = (
    "/", "/request?a=%20", "/headers", "/status/204", "/status/304", "/status/599", "/echo", "/count", "/stream", "/big",
    "/trailers", "/request-trailers", "/length", "/header-rules", "/fields", "/clocks", "/random", "/set-error", "/trap",
    "/trap-in-body", "/nothing", "/drop", "/twice", "/unfinished", "/no-body", "/unread",
)  # fmt: skip
"""Of the guest `probe`: between them they call every host function that the native engine has."""

TOKENS = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"\xff\xfe", b"%00", b"../", b"*", b"[::1]",
    b"Content-Length: 5\r\n", b"Content-Length: +5\r\n", b"content-length:5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n", b"Connection: close\r\n", b"Connection: upgrade, te\r\n", b"TE: trailers\r\n",
    b"Expect: 100-continue\r\n", b"Host: other.test\r\n", b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff", b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n", b"A" * 300, b"x: y\r\n" * 40, b"18446744073709551616",
)  # fmt: skip


def seeds() -> tuple[bytes, ...]:
    """What is mutated: every short case of the corpus, and a sound request of each kind for each path of the guest."""
    sound = [request("GET", path) for path in PATHS]
    sound += [request("POST", path, "X-A: b", body=b"some bytes of a body") for path in PATHS]
    sound += [request("HEAD", path, "Connection: close") for path in PATHS[:4]]
    return (*(case.data for case in CASES if len(case.data) <= 2000), *sound)


def mutated(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Return one input: up to four changes to a member of the corpus, which may follow another one whole."""
    data = bytearray(source.choice(corpus))
    for _ in range(source.choice((0, 1, 1, 2, 3, 4))):
        position = source.randrange(len(data) + 1)
        end = min(len(data), position + source.choice((1, 1, 2, 8, 40)))
        match source.randrange(6):
            case 0:
                data[position:end] = bytes(source.randrange(256) for _ in range(end - position))
            case 1:
                data[position:position] = source.choice(TOKENS)
            case 2:
                del data[position:end]
            case 3:
                data[position:position] = data[position:end]
            case 4:
                data[position:] = source.choice(corpus)[-max(1, len(data) - position) :]
            case _:
                data[position:end] = bytes(byte ^ (1 << source.randrange(8)) for byte in data[position:end])
    before = source.choice(corpus) if source.random() < 0.15 else b""
    return before + bytes(data)
