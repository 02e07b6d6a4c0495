"""Frames of yamux/1.0.0: a 12-byte header, and for data frames a body. Constants, the header codec, events.

Not here: what frames do to streams (`yamux`). Source: libp2p specs, yamux/README.md (after hashicorp/yamux spec.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER_BYTES = 12
HEADER = struct.Struct(">BBHII")
"""Version, type, flags, stream id, length."""

VERSION = 0

DATA = 0
WINDOW_UPDATE = 1
PING = 2
GO_AWAY = 3

SYN = 1
ACK = 2
FIN = 4
RST = 8

SESSION_ID = 0
STREAM_ID_MAX = 0xFFFFFFFF

NORMAL = 0
PROTOCOL_ERROR = 1
INTERNAL_ERROR = 2

INITIAL_WINDOW_BYTES = 256 * 1024
"""Fixed by the specification: what either side may send on a fresh stream."""


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    """The peer opened a stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes of a stream, in order. They count against the window until `consumed` says otherwise."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamFinished:
    """The peer will send no more on this stream; we still may."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is gone in both directions; `reason` is empty if the peer reset it."""

    stream_id: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ponged:
    """The peer answered our ping after `rtt_ms`."""

    rtt_ms: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer ends the session: 0 normally, 1 accusing us of a protocol error, 2 for its own fault."""

    code: int


SessionEvent = StreamAccepted | DataReceived | StreamFinished | StreamReset | Ponged | GoneAway
