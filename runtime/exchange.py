"""The conversation of one HTTP request between a worker's event loop and the guest's thread.

The loop feeds the request body and takes the response; the thread reads and writes without ever waiting on the loop
except through `Call.sleep`. Both directions hold a bounded number of bytes. What the guest writes is published when it
waits, when it returns, when half the buffer is full, or at the next epoch tick, so a small response crosses threads
once, with its outcome. Not here: HTTP syntax (the worker's) and the guest's view of it (`runtime/wasi/http_*`).

Loop side:  `await body.feed(chunk)`, `body.feed_end()`, `await exchange.take()` until `Batch.outcome` is set,
            `exchange.cancel()`.
Thread side: everything else, and `exchange.close(outcome)` exactly once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

from runtime.call import GuestCall
from runtime.outcome import Outcome

Headers = tuple[tuple[str, bytes], ...]
"""Header fields in order: lower-case names, raw values."""

ErrorCode = tuple[str, Any]
"""A `wasi:http/types.error-code`: its case and payload, None for a case without one."""

TRACEPARENT: Final = "traceparent"
"""https://www.w3.org/TR/trace-context/: a request's place in a trace."""

REQUEST_BUFFER_MAX_BYTES: Final = 256 * 1024
"""Request body bytes held for a slow guest; above it `feed` waits, so the client's TCP window closes."""

RESPONSE_BUFFER_MAX_BYTES: Final = 256 * 1024
"""Response bytes held for a slow client; above it the guest's stream gives no permit."""

PUBLISH_AT_BYTES: Final = RESPONSE_BUFFER_MAX_BYTES // 4
"""The guest's output is handed over early from here on, so that the socket and the guest work at the same time."""


class BodyFailure(Enum):
    """Why a request body stopped before its end; the value is the `wasi:http` error-code the guest sees."""

    CONNECTION_LOST = "connection-terminated"
    TOO_LARGE = "HTTP-request-body-size"
    MALFORMED = "HTTP-protocol-error"
    TIMED_OUT = "connection-read-timeout"


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request line and its fields; `scheme` is "http" or "https"; guests need both scheme and authority."""

    method: str
    scheme: str
    authority: str
    path_with_query: str
    headers: Headers


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A status and the response's fields."""

    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class Batch:
    """What the guest has sent since the last `take`.

    `head` is set in the first batch of a response; `chunks` are body bytes in order; `complete` says the body ended
    well, with `trailers`; `outcome` says the guest is done and this is the last batch. A batch with an outcome and
    without `complete` leaves the response unfinished: answer 5xx if no head was sent, else break the connection.
    `whole` is True when head, all bytes and the end are in this one batch; `aborted` when the guest gave the body up.
    """

    head: ResponseHead | None
    chunks: tuple[bytes, ...]
    complete: bool
    trailers: Headers
    outcome: Outcome | None
    whole: bool
    aborted: bool


class BodyTaker(Protocol):
    """Where a request's body goes: to a guest, or to another node."""

    async def feed(self, data: bytes) -> bool:
        """Take one piece when there is room; False when no more is wanted."""
        ...

    def feed_end(self, trailers: Headers = ()) -> None:
        """The body is whole."""
        ...

    def feed_failure(self, failure: BodyFailure) -> None:
        """The body will never be whole."""
        ...


class RequestBody:
    """A bounded pipe from the loop to the guest. Without a body, call `feed_end()` before the guest starts."""

    __slots__ = ("_chunks", "_feeder", "_lock", "_loop", "_size", "_wake", "closed", "ended", "failure", "trailers")

    def __init__(self, wake: Callable[[], None], loop: asyncio.AbstractEventLoop | None) -> None:
        self._wake = wake
        self._loop = loop
        self._lock = threading.Lock()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._feeder: asyncio.Future[None] | None = None
        self.ended = False
        self.closed = False
        self.failure: BodyFailure | ErrorCode | None = None
        self.trailers: Headers = ()

    async def feed(self, data: bytes) -> bool:
        """Add `data`, waiting while the buffer is full; False once the guest no longer reads (discard the rest)."""
        while self._size >= REQUEST_BUFFER_MAX_BYTES and not self.closed:
            assert self._loop is not None
            self._feeder = self._loop.create_future()
            if self._size >= REQUEST_BUFFER_MAX_BYTES and not self.closed:  # the reader may have made room meanwhile
                await self._feeder
            self._feeder = None
        if self.closed:
            return False
        with self._lock:
            self._chunks.append(data)
            self._size += len(data)
        self._wake()
        return True

    def feed_end(self, trailers: Headers = ()) -> None:
        """Say the body ended well."""
        self.trailers = trailers
        self.ended = True
        self._wake()

    def feed_failure(self, failure: BodyFailure | ErrorCode) -> None:
        """Say the body will not come to its end; the guest reads what is here, then the failure."""
        self.failure = failure
        self._wake()

    def read(self, max_bytes: int) -> bytes:
        """Take up to `max_bytes`; empty when nothing is here now (then look at `ended` and `failure`)."""
        if not self._chunks or max_bytes <= 0:
            return b""
        with self._lock:
            data = self._chunks.popleft()
            if len(data) > max_bytes:
                self._chunks.appendleft(data[max_bytes:])
                data = data[:max_bytes]
            self._size -= len(data)
        if self._feeder is not None and self._size < REQUEST_BUFFER_MAX_BYTES:
            self._release_feeder()
        return data

    @property
    def readable(self) -> bool:
        """Whether `read` would give bytes, the end or a failure now."""
        return bool(self._chunks) or self.ended or self.failure is not None

    @property
    def drained(self) -> bool:
        """Whether the body ended well and every byte was read."""
        return self.ended and not self._chunks

    def discard(self) -> None:
        """Drop what is buffered, so that the end and the trailers can arrive."""
        with self._lock:
            self._chunks.clear()
            self._size = 0
        if self._feeder is not None:
            self._release_feeder()

    def close(self) -> None:
        """The guest will read no more; a waiting `feed` returns False."""
        self.closed = True
        self.discard()

    def _release_feeder(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake_feeder)

    def _wake_feeder(self) -> None:
        if self._feeder is not None and not self._feeder.done():
            self._feeder.set_result(None)


class ResponseWriter:
    """A bounded pipe from the guest to the loop: `start`, `write` any number of times, then `finish` or `abort`."""

    __slots__ = (
        "_chunks", "_dirty", "_end_taken", "_head", "_lock", "_loop", "_outcome", "_published", "_size",
        "_starved", "_taker", "_trailers", "_wake", "abandoned", "closed", "complete", "refusal", "started",
    )  # fmt: skip

    def __init__(self, wake: Callable[[], None], loop: asyncio.AbstractEventLoop | None) -> None:
        self._wake = wake
        self._loop = loop
        self._lock = threading.Lock()
        self._head: ResponseHead | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._trailers: Headers = ()
        self._outcome: Outcome | None = None
        self._dirty = False
        self._starved = False
        self._end_taken = False
        self._published = False
        self._taker: asyncio.Future[None] | None = None
        self.refusal: ErrorCode | None = None
        self.started = False
        self.complete = False
        self.abandoned = False
        self.closed = False
        """Set by the loop once nobody takes what is written; the guest may then write no more."""

    def start(self, head: ResponseHead) -> None:
        """Give status and fields; once."""
        assert not self.started, "the guest interface refuses a second response before it comes here"
        self._head = head
        self.started = True
        self._dirty = True

    def permit(self) -> int:
        """How many bytes `write` takes now; 0 means wait until the client has read some."""
        room = RESPONSE_BUFFER_MAX_BYTES - self._size
        if room > 0:
            return room
        self._starved = True
        room = RESPONSE_BUFFER_MAX_BYTES - self._size  # the loop may have taken all just before the flag
        return max(room, 0)

    def write(self, data: bytes) -> None:
        """Queue body bytes; the caller has a permit for them."""
        if not data:
            return
        with self._lock:
            self._chunks.append(data)
            self._size += len(data)
            self._dirty = True
        if self._size >= PUBLISH_AT_BYTES:
            self.publish()

    def finish(self, trailers: Headers = ()) -> None:
        """The body is whole."""
        with self._lock:
            self._trailers = trailers
            self.complete = True
            self._dirty = True

    def abort(self) -> None:
        """The body will never be whole."""
        with self._lock:
            self.abandoned = True
            self._dirty = True

    def publish(self) -> None:
        """Hand over what is queued; wakes the loop only if it waits and something is new."""
        if not self._dirty or not (self.started or self._outcome):
            return
        with self._lock:
            self._dirty = False
            self._published = True
        if self._taker is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake_taker)

    def close(self, outcome: Outcome) -> None:
        """The guest is done: the last batch."""
        with self._lock:
            self._outcome = outcome
            self._dirty = True
        self.publish()

    async def take(self) -> Batch:
        """Wait for published output and take all there is. After a batch with an outcome there is no more."""
        assert self._loop is not None
        while not self._published:
            self._taker = self._loop.create_future()
            if not self._published:  # the guest may have published between the look and the future
                await self._taker
            self._taker = None
        return self.collect()

    def _wake_taker(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    def collect(self) -> Batch:
        """Take what is queued now, published or not, without waiting."""
        with self._lock:
            first = self._head is not None
            complete = self.complete and not self._end_taken
            batch = Batch(
                self._head,
                tuple(self._chunks),
                complete,
                self._trailers,
                self._outcome,
                first and self.complete,
                self.abandoned,
            )
            self._end_taken = self.complete
            self._head = None
            self._chunks.clear()
            self._size = 0
            self._dirty = self._published = False
            starved, self._starved = self._starved, False
        if starved:
            self._wake()
        return batch


class Exchange:
    """One request and its response. Made on the loop, run on a guest thread, closed by the sandbox.

    `deadline_s` is on the `time.monotonic` scale and covers queueing too. `loop` is None only in synchronous tests.
    """

    __slots__ = ("body", "call", "closed_s", "request", "response", "retry_after_s")

    def __init__(self, request: RequestHead, *, deadline_s: float, loop: asyncio.AbstractEventLoop | None) -> None:
        self.request = request
        self.call = GuestCall(deadline_s)
        self.body = RequestBody(self.call.waker.wake, loop)
        self.response = ResponseWriter(self.call.waker.wake, loop)
        self.call.before_sleep(self.response.publish)
        self.retry_after_s: int | None = None
        """Set once a service that the guest needed was away: what fails then is answered with 503, and when to try."""
        self.closed_s = 0.0
        """When the guest was done (`time.monotonic`), before anybody hears of it; 0 while it is not."""

    @property
    def traceparent(self) -> bytes:
        """The request's place in a trace, as the host gave it to the guest; empty for none."""
        return next((value for name, value in reversed(self.request.headers) if name == TRACEPARENT), b"")

    def cancel(self) -> None:
        """The client is gone: stop the guest (any thread). `take` still ends with an outcome."""
        self.call.cancel()

    async def take(self) -> Batch:
        """Wait for the guest's next output; see `Batch`."""
        return await self.response.take()

    def close(self, outcome: Outcome) -> None:
        """Thread side, exactly once, last: no more reading, and the final batch goes to the loop."""
        self.closed_s = self.closed_s or time.monotonic()  # a guest that was answered for ends once more, late
        self.body.close()
        self.response.close(outcome)
