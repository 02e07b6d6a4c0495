"""One request as it comes off the wire. Not here: what parses it (connection.py), and what answers it."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from runtime.exchange import BodyFailure
from runtime.ingress.response_head import IngressProblem

CLIENT_GONE = 499
"""Status in the log for a client that left before the answer; no such status is ever sent."""


class Incoming:
    """One request as it comes off the wire: the head is whole, the body may still be on its way."""

    __slots__ = (
        "bytes_in", "chunked", "chunks", "complete", "discard", "expects", "failure", "headers", "held", "http_1_0",
        "keep_alive", "length", "method", "problem", "since_s", "target", "trailers", "waiter",
    )  # fmt: skip

    def __init__(self, method: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.http_1_0 = False
        self.keep_alive = True
        self.expects = False
        self.length: int | None = None
        self.chunked = False
        self.chunks: deque[bytes] = deque()
        self.held = 0
        self.bytes_in = 0
        self.complete = False
        self.discard = False
        self.failure: BodyFailure | None = None
        self.trailers: list[tuple[bytes, bytes]] = []
        self.problem: IngressProblem | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.since_s = time.monotonic()

    def wake(self) -> None:
        """Tell the feeder that something changed."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
