"""A framed stream: four bytes of length, big endian, then the frame; whole frames in, whole frames out.

Frames queued in one turn of the loop leave together. Received frames count against the peer until the daemon took
them. Not here: what frames mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from node.transport.events import ChannelName
from node.transport.link import Link
from protocols.libp2p.errors import RemoteProtocolError
from protocols.libp2p.yamux_frames import PROTOCOL_ERROR

LENGTH_BYTES = 4

FRAME_MAX_BYTES = {ChannelName.HELLO: 32 * 1024, ChannelName.CONTROL: 1024 * 1024}
"""A hello shares the 64 KiB of an unadmitted peer. Control frames carry messages; larger things are artifacts."""

OUTBOX_MAX_BYTES = 4 * 1024 * 1024
"""Frames waiting for a peer that reads slowly. What does not fit is dropped, as the network drops it:
the machines above retry, and 32 deaf peers must not take the node's memory."""

INBOX_MAX_BYTES = 2 * 1024 * 1024
"""Frames of one link the daemon has not taken yet; beyond it the peer's window stays shut."""


class Assembler:
    """Cuts bytes into frames. Memory: one incomplete frame."""

    def __init__(self, frame_max_bytes: int) -> None:
        self._frame_max_bytes = frame_max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames now complete; RemoteProtocolError for an empty one or one over the cap."""
        frames: list[bytes] = []
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < LENGTH_BYTES:
                return frames
            # A large frame arrives in many pieces: join them once, not at each piece.
            if len(self._buffer) < LENGTH_BYTES + self._checked_length(self._buffer, 0):
                return frames
            data = bytes(self._buffer)
            self._buffer.clear()
        offset, end = 0, len(data)
        while end - offset >= LENGTH_BYTES:
            stop = offset + LENGTH_BYTES + self._checked_length(data, offset)
            if stop > end:
                break
            frames.append(data[offset + LENGTH_BYTES : stop])
            offset = stop
        if offset < end:
            self._buffer += memoryview(data)[offset:]
        return frames

    def _checked_length(self, data: bytes | bytearray, offset: int) -> int:
        length = int.from_bytes(data[offset : offset + LENGTH_BYTES], "big")
        if not 0 < length <= self._frame_max_bytes:
            raise RemoteProtocolError("transport.frame-length", f"{length} bytes, not 1 to {self._frame_max_bytes}")
        return length


class Channel:
    """One framed stream of a link; a `Sink`."""

    def __init__(
        self,
        link: Link,
        name: ChannelName,
        *,
        on_open: Callable[[Channel], None],
        on_frames: Callable[[Channel, tuple[bytes, ...]], None],
    ) -> None:
        self.link = link
        self.name = name
        self.stream_id = 0
        self.is_open = False
        self.dropped_frames = 0
        self._on_open = on_open
        self._on_frames = on_frames
        self._frame_max_bytes = FRAME_MAX_BYTES[name]
        self._assembler = Assembler(self._frame_max_bytes)
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._inbox_bytes = 0
        self._owed_bytes = 0
        self._gone = False

    def attach(self, stream_id: int) -> bool:
        """Take the stream this channel runs on; False if it has one."""
        if self.stream_id:
            return False
        self.stream_id = stream_id
        return True

    def send(self, frame: bytes) -> bool:
        """Queue one frame; False if it was dropped because the outbox is full or the stream gone.

        Raises ValueError for an empty frame or one over the cap: the peer would close the link.
        """
        if not 0 < len(frame) <= self._frame_max_bytes:
            raise ValueError(f"a {self.name.value} frame has 1 to {self._frame_max_bytes} bytes, not {len(frame)}")
        if self._gone or self._outbox_bytes + len(frame) > OUTBOX_MAX_BYTES:
            self.dropped_frames += 1
            return False
        if not self._outbox:
            self.link.wants_room(self.stream_id, self)
            self.link.pump_soon()
        self._outbox.append(len(frame).to_bytes(LENGTH_BYTES, "big") + frame)
        self._outbox_bytes += len(frame) + LENGTH_BYTES
        return True

    def taken(self, frames: tuple[bytes, ...]) -> None:
        """Say that the daemon is done with a batch."""
        self._inbox_bytes -= sum(map(len, frames))
        self._give_back()

    @property
    def _may_send(self) -> bool:
        # A control stream may be held back until the peer admits us; what is sent before would lose the stream.
        return not self._gone and self.stream_id > 0 and (self.is_open or self.name is ChannelName.HELLO)

    def _give_back(self) -> None:
        if self._owed_bytes and self._inbox_bytes <= INBOX_MAX_BYTES and not self._gone:
            self.link.consumed(self.stream_id, self._owed_bytes)
            self._owed_bytes = 0

    # --- Sink ---------------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """The peer agreed."""
        self.is_open = True
        self.link.wants_room(self.stream_id, self)
        self.link.pump_soon()
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        try:
            frames = tuple(self._assembler.feed(data))
        except RemoteProtocolError as error:
            self.link.close(error.rule, PROTOCOL_ERROR)
            return
        self._owed_bytes += len(data)
        if frames:
            self._inbox_bytes += sum(map(len, frames))
            self._on_frames(self, frames)
        self._give_back()

    def finished(self) -> None:
        """The peer ended its direction: the channel is over."""
        self._gone = True

    def reset(self, reason: str) -> None:
        """The stream is gone."""
        self._gone = True
        self._outbox.clear()
        self._outbox_bytes = 0

    def room(self) -> None:
        """Move what fits from the outbox to the stream."""
        if not self._may_send:
            return
        room = self.link.send_room(self.stream_id)
        batch: list[bytes] = []
        while self._outbox and len(self._outbox[0]) <= room:
            frame = self._outbox.popleft()
            room -= len(frame)
            batch.append(frame)
        if self._outbox and not batch and room:
            # A frame larger than the room left: start it, or it would wait until the buffer is empty.
            head = self._outbox.popleft()
            batch.append(head[:room])
            self._outbox.appendleft(head[room:])
        if batch:
            data = b"".join(batch)
            self._outbox_bytes -= len(data)
            self.link.send(self.stream_id, data)
            self.link.pump_soon()
        if self._outbox:
            self.link.wants_room(self.stream_id, self)
