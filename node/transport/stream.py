"""A bulk stream of one link, with back-pressure both ways.

What was received and not read holds the peer back through the stream's window; `write` waits while the send buffer is
full. A cancelled `write` resets the stream, because nobody can say how much of it left; the link goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

from node.transport.link import Link
from protocols.libp2p.errors import LocalProtocolError
from protocols.machine import PeerId

READ_MAX_BYTES = 256 * 1024
"""The most one `read` returns unless told otherwise: a full window."""

WRITE_CHUNK_BYTES = 256 * 1024
"""A long `write` is queued in pieces of this size, so a stream's buffer holds 1 MiB at most."""

BLOCK_HEAD_BYTES = 4
BLOCK_TOO_LARGE = "transport.block-too-large"


class StreamError(ConnectionError):
    """The stream was reset, refused, or its link went down; `reason` is a rule name."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream is gone: {reason or 'reset by the peer'}")
        self.reason = reason


class Stream:
    """One stream; a `Sink` of its link. Use it as a context manager: leaving by exception resets it."""

    def __init__(self, link: Link, protocol: str) -> None:
        self.link = link
        self.peer: PeerId = link.peer
        self.protocol = protocol
        self.stream_id = 0
        self._received: deque[bytes] = deque()
        self._ended = False
        self._finishing = False
        self._failure: str | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._agreed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def read(self, limit_bytes: int = READ_MAX_BYTES) -> bytes:
        """Return 1 to `limit_bytes` bytes, or empty bytes at the end; StreamError if the stream is gone."""
        while not self._received:
            if self._failure is not None:
                raise StreamError(self._failure)
            if self._ended:
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        data = self._received[0]
        if len(data) <= limit_bytes:
            self._received.popleft()
        else:
            self._received[0] = data[limit_bytes:]
            data = data[:limit_bytes]
        self.link.consumed(self.stream_id, len(data))
        return data

    async def read_exactly(self, count: int) -> bytes:
        """Return exactly `count` bytes; StreamError with reason "transport.ended-early" if the peer finishes before."""
        parts: list[bytes] = []
        while count:
            data = await self.read(count)
            if not data:
                raise StreamError("transport.ended-early")
            parts.append(data)
            count -= len(data)
        return b"".join(parts)

    async def read_block(self, limit_bytes: int) -> bytes | None:
        """Return the next block, None at the end of the peer's direction; StreamError if it is over the limit.

        A block is four bytes of length, big endian, and that many bytes.
        """
        head = await self.read(BLOCK_HEAD_BYTES)
        if not head:
            return None
        if len(head) < BLOCK_HEAD_BYTES:
            head += await self.read_exactly(BLOCK_HEAD_BYTES - len(head))
        size = int.from_bytes(head, "big")
        if size > limit_bytes:
            raise StreamError(BLOCK_TOO_LARGE)
        return await self.read_exactly(size)

    def has_block(self) -> bool:
        """Whether the next block has arrived whole, so that reading it does not wait."""
        head, have = bytearray(), 0
        for data in self._received:
            have += len(data)
            if len(head) < BLOCK_HEAD_BYTES:
                head += data[: BLOCK_HEAD_BYTES - len(head)]
            if len(head) == BLOCK_HEAD_BYTES and have >= BLOCK_HEAD_BYTES + int.from_bytes(head, "big"):
                return True
        return False

    async def write_block(self, block: bytes) -> None:
        """Queue one block, waiting as `write` does."""
        await self.write(len(block).to_bytes(BLOCK_HEAD_BYTES, "big") + block)

    async def write(self, data: bytes) -> None:
        """Queue `data`, waiting while the buffer is full; StreamError if the stream is gone or finished."""
        try:
            for start in range(0, len(data), WRITE_CHUNK_BYTES):
                chunk = data[start : start + WRITE_CHUNK_BYTES]
                await self._wait_for_room(len(chunk))
                self.link.send(self.stream_id, chunk)
                self.link.pump_soon()
        except asyncio.CancelledError:
            self.reset_stream()
            raise

    def finish(self) -> None:
        """End our direction; the peer may go on sending."""
        self._finishing = True
        self.link.finish(self.stream_id)
        self._release_if_done()

    def reset_stream(self) -> None:
        """Drop the stream in both directions; nothing happens if it is gone."""
        if self._failure is None:
            self.link.reset(self.stream_id)
            self.reset("transport.reset-here")

    async def agreed(self) -> None:
        """Wait until the peer agreed to the protocol; StreamError if it refuses. Writing need not wait for this."""
        await asyncio.shield(self._agreed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(clean=kind is None)

    def leave(self, *, clean: bool) -> None:
        """End the use of the stream: `clean` finishes it and drops what the peer may still send; else reset it."""
        if self._failure is not None:
            return
        if not clean:
            self.reset_stream()
            return
        self.link.finish(self.stream_id)
        while self._received:
            self.link.consumed(self.stream_id, len(self._received.popleft()))
        self.link.release(self.stream_id)
        self._failure = "transport.closed"

    async def _wait_for_room(self, count: int) -> None:
        while True:
            if self._failure is not None:
                raise StreamError(self._failure)
            if self._finishing:
                raise LocalProtocolError("transport.finished", "write after finish")
            if self.link.send_room(self.stream_id) >= count:
                return
            self._writer = asyncio.get_running_loop().create_future()
            self.link.wants_room(self.stream_id, self)
            await self._writer

    def _release_if_done(self) -> None:
        if self._ended and self._finishing:
            self.link.release(self.stream_id)

    # --- Sink ---------------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """The peer agreed to the protocol."""
        if not self._agreed.done():
            self._agreed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        self._received.append(data)
        self._wake_reader()

    def finished(self) -> None:
        """The peer sends no more."""
        self._ended = True
        self._release_if_done()
        self._wake_reader()

    def reset(self, reason: str) -> None:
        """The stream is gone; what was received stays readable."""
        self._failure = reason
        self._wake_reader()
        self.room()
        if not self._agreed.done():
            self._agreed.set_exception(StreamError(reason))
            self._agreed.exception()

    def room(self) -> None:
        """There may be room to write."""
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.set_result(None)

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)
