"""One yamux stream: its two windows, its send buffer, how far each direction is closed. Only `yamux` touches it.

Not here: the session's limits and scheduling. Source: libp2p specs, yamux/README.md, flow control and closing.
"""

from __future__ import annotations

from collections import deque

from protocols.libp2p import yamux_frames

SEND_BUFFER_MAX_BYTES = 1024 * 1024
"""Bytes a caller may queue on one stream beyond the peer's window; a writer that respects `send_room` never sees it."""


class StreamState:
    """State of one stream; both directions are independent until both are finished."""

    __slots__ = (
        "acknowledged",
        "buffered_bytes",
        "finish_sent",
        "finish_wanted",
        "granted_at_ms",
        "inbound",
        "owed_bytes",
        "pending",
        "queued",
        "receive_window_bytes",
        "received_any",
        "remote_finished",
        "send_window_bytes",
        "stream_id",
        "syn_sent",
        "unread_bytes",
        "window_max_bytes",
    )

    def __init__(self, stream_id: int, *, inbound: bool, now_ms: int) -> None:
        self.stream_id = stream_id
        self.inbound = inbound
        self.acknowledged = inbound
        self.syn_sent = inbound
        self.finish_wanted = False
        self.finish_sent = False
        self.remote_finished = False
        self.received_any = False
        self.queued = False
        self.pending: deque[memoryview] = deque()
        self.buffered_bytes = 0
        self.send_window_bytes = yamux_frames.INITIAL_WINDOW_BYTES
        self.receive_window_bytes = yamux_frames.INITIAL_WINDOW_BYTES
        self.window_max_bytes = yamux_frames.INITIAL_WINDOW_BYTES
        self.unread_bytes = 0
        self.owed_bytes = 0
        self.granted_at_ms = now_ms

    @property
    def sendable(self) -> bool:
        """Whether a frame could leave now: data within the window, or a SYN or FIN that needs none."""
        if self.buffered_bytes:
            return self.send_window_bytes > 0 or not self.syn_sent
        return not self.syn_sent or (self.finish_wanted and not self.finish_sent)

    @property
    def closed(self) -> bool:
        """Whether both directions ended and everything received was consumed."""
        return self.finish_sent and self.remote_finished and not self.unread_bytes

    def take(self, limit_bytes: int, parts: list[bytes | memoryview]) -> int:
        """Move up to `limit_bytes` of the send buffer into `parts`, within the window; return how many."""
        size = min(limit_bytes, self.buffered_bytes, self.send_window_bytes)
        left = size
        while left:
            chunk = self.pending[0]
            if len(chunk) <= left:
                self.pending.popleft()
            else:
                self.pending[0] = chunk[left:]
                chunk = chunk[:left]
            parts.append(chunk)
            left -= len(chunk)
        self.buffered_bytes -= size
        self.send_window_bytes -= size
        return size

    def take_flags(self, size: int) -> int:
        """Return the flags of the next frame, which carries `size` bytes, and note them as sent.

        FIN travels in a frame of its own, though the specification lets data carry it: js-yamux 8 drops such data.
        """
        flags = 0
        if not self.syn_sent:
            self.syn_sent = True
            flags |= yamux_frames.SYN
        if self.finish_wanted and not self.finish_sent and not size and not self.buffered_bytes:
            self.finish_sent = True
            flags |= yamux_frames.FIN
        return flags
