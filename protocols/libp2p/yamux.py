"""A yamux/1.0.0 session: many streams over one ordered byte stream, each with its own flow control.

per stream     we send                              peer sends
open           SYN on the first frame               SYN -> StreamAccepted, ACK at once; RST over the stream cap
data           round robin, within its window       DataReceived; past our window: the session is over
finish         FIN, half-closed                     FIN -> StreamFinished
reset          RST, forgotten, late frames dropped  RST -> StreamReset
per session    ping, window updates, go-away: ahead of all data

Output is pulled (`data_to_send`) and data of streams takes turns, so a slow reader holds up its own stream alone.
A receive window grows, up to a cap per stream and per session, when the peer uses one up within four round trips; the
shortest round trip counts, because a queue of our own making must not lengthen itself. Under a millisecond none grows.
Frames that carry nothing are rationed per second, because each costs us time and its sender none.
Not here: protocol names on streams (`connection`), when to ping. Source: libp2p specs, yamux/README.md; the growing
window follows go-yamux.
"""

from __future__ import annotations

from collections import deque

from protocols.invariants import ensure
from protocols.libp2p import yamux_frames
from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError
from protocols.libp2p.yamux_frames import HEADER, HEADER_BYTES, SessionEvent
from protocols.libp2p.yamux_stream import SEND_BUFFER_MAX_BYTES, StreamState

INBOUND_STREAMS_MAX = 256
"""Streams a peer may have open here: as many requests as one node forwards to another at once."""

OUTBOUND_STREAMS_MAX = 256
"""Streams we keep open at one peer; other implementations accept at least as many."""

UNACKNOWLEDGED_MAX = 256
"""The ACK backlog of the specification: streams opened and not yet accepted by the peer."""

WINDOW_MAX_BYTES = 4 * 1024 * 1024
"""The largest receive window of a stream: 40 MiB/s at a round trip of 100 ms."""

GROWTH_MAX_BYTES = 16 * 1024 * 1024
"""All windows of a session together grow by this much: four streams at full size."""

UNREAD_MAX_BYTES = 32 * 1024 * 1024
"""Received and not consumed, over all streams; beyond it the stream that receives more is reset, alone."""

CONTROL_MAX_BYTES = 64 * 1024
"""Answers (pongs, resets, updates) waiting to leave: 5,000 frames. A peer that never reads them is cut off."""

IDLE_FRAMES_MAX_PER_S = 1000
"""Frames that carry nothing: pings, refused or at once reset streams, frames for unknown streams, empty ones."""

QUANTUM_BYTES = 16 * 1024
"""What one stream sends before the next has its turn."""

_GROWTH_RTTS = 4


class Session:
    """One side of a session. `client` is the side that dialled: its streams have odd ids."""

    def __init__(self, *, client: bool) -> None:
        self._streams: dict[int, StreamState] = {}
        self._next_id = 1 if client else 2
        self._parity = self._next_id % 2
        self._inbound = 0
        self._unacknowledged = 0
        self._ready: deque[StreamState] = deque()
        self._control = bytearray()
        self._partial = bytearray()
        self._body_left = 0
        self._body_flags = 0
        self._body_stream: StreamState | None = None
        self._unread_bytes = 0
        self._grown_bytes = 0
        self._rtt_min_ms: int | None = None
        self._ping_value = 0
        self._ping_at_ms: int | None = None
        self._idle_second = 0
        self._idle_frames = 0
        self._now_ms = 0
        self._events: list[SessionEvent] = []
        self._leaving = False

    # --- what we send -------------------------------------------------------------------------------------------------

    @property
    def wants_to_send(self) -> bool:
        """Whether `data_to_send` would return bytes."""
        return bool(self._control or self._ready)

    def open_stream(self, now_ms: int) -> int:
        """Return the id of a new stream; LocalProtocolError over a cap or after a go-away of either side.

        When the ids are used up we go away: the next connection counts from the beginning.
        """
        if self._next_id > yamux_frames.STREAM_ID_MAX:
            self.go_away(yamux_frames.NORMAL)
        if self._leaving:
            raise LocalProtocolError("yamux.leaving", "the session takes no new streams")
        if len(self._streams) - self._inbound >= OUTBOUND_STREAMS_MAX:
            raise LocalProtocolError("yamux.streams", f"over {OUTBOUND_STREAMS_MAX}")
        if self._unacknowledged >= UNACKNOWLEDGED_MAX:
            raise LocalProtocolError("yamux.backlog", f"{UNACKNOWLEDGED_MAX} streams unacknowledged")
        stream = StreamState(self._next_id, inbound=False, now_ms=now_ms)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self._unacknowledged += 1
        self._queue(stream)
        return stream.stream_id

    def send_room(self, stream_id: int) -> int:
        """Return how many bytes `send` would take now; 0 for a stream that is gone or finished."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.finish_wanted:
            return 0
        return SEND_BUFFER_MAX_BYTES - stream.buffered_bytes

    def send(self, stream_id: int, data: bytes) -> None:
        """Queue `data`; LocalProtocolError if the stream is gone, finished, or its buffer would overflow."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.finish_wanted:
            raise LocalProtocolError("yamux.closed", f"stream {stream_id} takes no data")
        if stream.buffered_bytes + len(data) > SEND_BUFFER_MAX_BYTES:
            raise LocalProtocolError("yamux.send-buffer", f"over {SEND_BUFFER_MAX_BYTES} bytes unsent")
        if data:
            stream.pending.append(memoryview(data))
            stream.buffered_bytes += len(data)
            self._queue(stream)

    def buffered(self, stream_id: int) -> int:
        """Return how many bytes of the stream have not left yet."""
        stream = self._streams.get(stream_id)
        return stream.buffered_bytes if stream else 0

    def finish(self, stream_id: int) -> None:
        """End our direction after what is queued; nothing happens if it has ended."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.finish_wanted:
            stream.finish_wanted = True
            self._queue(stream)

    def reset(self, stream_id: int) -> None:
        """Drop the stream in both directions; nothing happens if it is gone."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            if stream.syn_sent:
                self._send_control(yamux_frames.WINDOW_UPDATE, yamux_frames.RST, stream_id, 0)
            self._forget(stream)

    def consumed(self, stream_id: int, count: int, now_ms: int) -> None:
        """Say that `count` received bytes were used; the window is given back in halves, and grown if it was tight."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        ensure(count <= stream.unread_bytes, "consumed more than was received")
        stream.unread_bytes -= count
        self._unread_bytes -= count
        if stream.remote_finished:
            self._forget_if_closed(stream)
            return
        stream.owed_bytes += count
        if stream.owed_bytes * 2 < stream.window_max_bytes:
            return
        delta = stream.owed_bytes
        size = stream.window_max_bytes
        tight = now_ms - stream.granted_at_ms < _GROWTH_RTTS * (self._rtt_min_ms or 0)
        if tight and size * 2 <= WINDOW_MAX_BYTES and self._grown_bytes + size <= GROWTH_MAX_BYTES:
            self._grown_bytes += size
            stream.window_max_bytes += size
            delta += size
        stream.owed_bytes = 0
        stream.granted_at_ms = now_ms
        stream.receive_window_bytes += delta
        self._send_control(yamux_frames.WINDOW_UPDATE, 0, stream_id, delta)

    def ping(self, now_ms: int) -> None:
        """Send a ping; its answer is `Ponged`. An unanswered earlier one is forgotten."""
        self._ping_value = (self._ping_value + 1) & 0xFFFFFFFF
        self._ping_at_ms = now_ms
        self._send_control(yamux_frames.PING, yamux_frames.SYN, yamux_frames.SESSION_ID, self._ping_value)

    def go_away(self, code: int) -> None:
        """Announce the end of the session; no new streams from now on."""
        if not self._leaving:
            self._leaving = True
            self._send_control(yamux_frames.GO_AWAY, 0, yamux_frames.SESSION_ID, code)

    def data_to_send(self, limit_bytes: int) -> bytes:
        """Return up to `limit_bytes` (at least 13) of frames: session frames first, then streams in turn."""
        parts: list[bytes | memoryview] = []
        room = limit_bytes
        if self._control:
            size = min(len(self._control), room - room % HEADER_BYTES)
            parts.append(bytes(self._control[:size]))
            del self._control[:size]
            room -= size
        while self._ready and room > HEADER_BYTES:
            stream = self._ready.popleft()
            stream.queued = False
            if not stream.sendable:
                continue
            body: list[bytes | memoryview] = []
            quantum = min(QUANTUM_BYTES, room - HEADER_BYTES) if self._ready else room - HEADER_BYTES
            size = stream.take(quantum, body)
            flags = stream.take_flags(size)
            parts.append(HEADER.pack(yamux_frames.VERSION, yamux_frames.DATA, flags, stream.stream_id, size))
            parts += body
            room -= HEADER_BYTES + size
            if stream.sendable:
                self._queue(stream)
            self._forget_if_closed(stream)
        return b"".join(parts)

    def _queue(self, stream: StreamState) -> None:
        if not stream.queued and stream.sendable:
            stream.queued = True
            self._ready.append(stream)

    def _send_control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        self._control += HEADER.pack(yamux_frames.VERSION, kind, flags, stream_id, value)

    # --- what the peer sends ------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now_ms: int) -> list[SessionEvent]:
        """Consume bytes, return what they mean. Raises RemoteProtocolError: send `go_away` and close."""
        self._now_ms = now_ms
        offset, end = 0, len(data)
        while offset < end:
            if self._body_left:
                chunk = data[offset : offset + self._body_left]
                offset += len(chunk)
                self._receive_body(chunk)
                continue
            if self._partial or end - offset < HEADER_BYTES:
                missing = HEADER_BYTES - len(self._partial)
                self._partial += data[offset : offset + missing]
                offset += missing
                if len(self._partial) < HEADER_BYTES:
                    break
                header = HEADER.unpack(self._partial)
                self._partial.clear()
            else:
                header = HEADER.unpack_from(data, offset)
                offset += HEADER_BYTES
            self._receive_header(*header)
        events, self._events = self._events, []
        return events

    def _receive_header(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        if version != yamux_frames.VERSION:
            raise RemoteProtocolError("yamux.version", str(version))
        if len(self._control) > CONTROL_MAX_BYTES:
            raise RemoteProtocolError("yamux.deaf", f"{CONTROL_MAX_BYTES} bytes of answers were not read")
        if kind <= yamux_frames.WINDOW_UPDATE:
            if stream_id == yamux_frames.SESSION_ID:
                raise RemoteProtocolError("yamux.stream-zero", "data and windows belong to streams")
            stream = self._accept(stream_id) if flags & yamux_frames.SYN else self._streams.get(stream_id)
            if stream is None:
                self._unknown_stream(stream_id, flags)
            elif not stream.acknowledged:
                stream.acknowledged = True
                self._unacknowledged -= 1
            if kind == yamux_frames.DATA:
                self._receive_data_header(stream, flags, length)
            elif stream is not None:
                self._receive_window_update(stream, flags, length)
        elif stream_id != yamux_frames.SESSION_ID:
            raise RemoteProtocolError("yamux.session-frame", f"type {kind} on stream {stream_id}")
        elif kind == yamux_frames.PING:
            self._receive_ping(flags, length)
        elif kind == yamux_frames.GO_AWAY:
            self._leaving = True
            self._events.append(yamux_frames.GoneAway(length))
        else:
            raise RemoteProtocolError("yamux.type", str(kind))

    def _accept(self, stream_id: int) -> StreamState | None:
        """Return the new inbound stream, or None if it was refused."""
        if stream_id % 2 == self._parity:
            raise RemoteProtocolError("yamux.stream-parity", f"stream {stream_id} is ours to open")
        if stream_id in self._streams:
            raise RemoteProtocolError("yamux.stream-twice", f"stream {stream_id} is open")
        if self._inbound >= INBOUND_STREAMS_MAX or self._leaving:
            self._ration()
            self._send_control(yamux_frames.WINDOW_UPDATE, yamux_frames.RST, stream_id, 0)
            return None
        stream = StreamState(stream_id, inbound=True, now_ms=self._now_ms)
        self._streams[stream_id] = stream
        self._inbound += 1
        self._send_control(yamux_frames.WINDOW_UPDATE, yamux_frames.ACK, stream_id, 0)
        self._events.append(yamux_frames.StreamAccepted(stream_id))
        return stream

    def _unknown_stream(self, stream_id: int, flags: int) -> None:
        # Frames may still come for a stream that we reset; for one of ours that never was, they may not.
        if stream_id % 2 == self._parity and stream_id >= self._next_id:
            raise RemoteProtocolError("yamux.stream-unknown", f"stream {stream_id} was never opened")
        if not flags & yamux_frames.SYN:
            self._ration()

    def _receive_data_header(self, stream: StreamState | None, flags: int, length: int) -> None:
        self._body_stream = stream
        self._body_flags = flags
        self._body_left = length
        if stream is not None:
            if length > stream.receive_window_bytes:
                raise RemoteProtocolError("yamux.window-overrun", f"stream {stream.stream_id}, {length} bytes")
            if stream.remote_finished:
                raise RemoteProtocolError("yamux.data-after-fin", f"stream {stream.stream_id}")
            stream.receive_window_bytes -= length
        if length == 0:
            if not flags and stream is not None:
                self._ration()
            self._end_of_frame(stream, flags)

    def _receive_body(self, chunk: bytes) -> None:
        self._body_left -= len(chunk)
        stream = self._body_stream
        if stream is not None:
            stream.received_any = True
            stream.unread_bytes += len(chunk)
            self._unread_bytes += len(chunk)
            self._events.append(yamux_frames.DataReceived(stream.stream_id, chunk))
            if self._unread_bytes > UNREAD_MAX_BYTES:
                self._events.append(yamux_frames.StreamReset(stream.stream_id, "yamux.unread"))
                self._body_stream = None
                self.reset(stream.stream_id)
                return
        if not self._body_left:
            self._end_of_frame(stream, self._body_flags)

    def _receive_window_update(self, stream: StreamState, flags: int, delta: int) -> None:
        if not delta and not flags:
            self._ration()
        stream.send_window_bytes += delta
        if stream.send_window_bytes > 0xFFFFFFFF:
            raise RemoteProtocolError("yamux.window-overflow", f"stream {stream.stream_id}")
        self._queue(stream)
        self._end_of_frame(stream, flags)

    def _end_of_frame(self, stream: StreamState | None, flags: int) -> None:
        if stream is None or not flags & (yamux_frames.FIN | yamux_frames.RST):
            return
        if flags & yamux_frames.RST:
            if stream.inbound and not stream.received_any:
                self._ration()
            self._forget(stream)
            self._events.append(yamux_frames.StreamReset(stream.stream_id))
        elif not stream.remote_finished:
            stream.remote_finished = True
            self._events.append(yamux_frames.StreamFinished(stream.stream_id))
            self._forget_if_closed(stream)

    def _receive_ping(self, flags: int, value: int) -> None:
        if flags & yamux_frames.SYN:
            self._ration()
            self._send_control(yamux_frames.PING, yamux_frames.ACK, yamux_frames.SESSION_ID, value)
        elif value == self._ping_value and self._ping_at_ms is not None:
            rtt_ms = max(self._now_ms - self._ping_at_ms, 0)
            self._rtt_min_ms = rtt_ms if self._rtt_min_ms is None else min(rtt_ms, self._rtt_min_ms)
            self._ping_at_ms = None
            self._events.append(yamux_frames.Ponged(rtt_ms))
        else:
            self._ration()

    def _ration(self) -> None:
        second = self._now_ms // 1000
        if second != self._idle_second:
            self._idle_second = second
            self._idle_frames = 0
        self._idle_frames += 1
        if self._idle_frames > IDLE_FRAMES_MAX_PER_S:
            raise RemoteProtocolError("yamux.idle-frames", f"over {IDLE_FRAMES_MAX_PER_S} frames/s that carry nothing")

    def _forget_if_closed(self, stream: StreamState) -> None:
        if stream.closed:
            self._forget(stream)

    def _forget(self, stream: StreamState) -> None:
        if self._streams.pop(stream.stream_id, None) is None:
            return
        if self._body_stream is stream:
            self._body_stream = None
        if stream.inbound:
            self._inbound -= 1
        if not stream.acknowledged:
            self._unacknowledged -= 1
        self._unread_bytes -= stream.unread_bytes
        self._grown_bytes -= stream.window_max_bytes - yamux_frames.INITIAL_WINDOW_BYTES
        stream.pending.clear()
        stream.buffered_bytes = 0
        stream.syn_sent = stream.finish_wanted = stream.finish_sent = True
