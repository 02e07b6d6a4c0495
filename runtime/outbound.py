"""Outgoing HTTP/1.1 for guests: allow-listed, resolved once, connected to that address, bounded both ways.

Runs on the worker's event loop; a guest's thread starts a call and reads and writes through the same pipes as an
incoming exchange. Not here: connection reuse, redirects, cookies, compression: a guest that wants them does them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from runtime.exchange import ErrorCode, Headers, RequestBody, ResponseHead, ResponseWriter
from runtime.spec import AppSpec


@dataclass(frozen=True, slots=True)
class Timeouts:
    """What the guest asked for, in seconds; None is the app's own limit."""

    connect_s: float | None
    first_byte_s: float | None
    between_bytes_s: float | None


@dataclass(frozen=True, slots=True)
class OutboundRequest:
    """One request as the guest made it; `content_length` None means chunked."""

    method: str
    tls: bool
    authority: str
    target: str
    headers: Headers
    content_length: int | None
    timeouts: Timeouts


class OutboundCall:
    """One call in flight: `settled` once `head` or `failure` is set."""

    __slots__ = ("_loop", "_wake", "body", "failure", "head", "settled", "task", "writer")

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self.writer = ResponseWriter(wake, loop)
        self.body = RequestBody(wake, loop)
        self.head: ResponseHead | None = None
        self.failure: ErrorCode | None = None
        self.settled = False
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Give the call up (any thread)."""


class Outbound:
    """The worker's outgoing side."""

    def start(self, request: OutboundRequest, spec: AppSpec, wake: Callable[[], None]) -> OutboundCall | ErrorCode:
        """Begin a call (guest thread); an error code if it is refused outright."""
        return ("HTTP-request-denied", None)
