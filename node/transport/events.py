"""What a transport tells the daemon; see the package's docstring for their order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import PeerId


class ChannelName(Enum):
    """The two framed streams of a link."""

    HELLO = "hello"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A peer proved its identity; nothing is admitted yet. `address` is the remote end of the TCP connection."""

    link: int
    peer: PeerId
    inbound: bool
    address: Multiaddr | None


@dataclass(frozen=True, slots=True)
class LinkReady:
    """Both sides admitted each other; control frames flow, streams may be opened."""

    link: int
    peer: PeerId


@dataclass(frozen=True, slots=True)
class FramesReceived:
    """Whole frames, in order. Their memory counts against the peer until the next event is asked for."""

    link: int
    peer: PeerId
    channel: ChannelName
    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link is gone; `reason` is a rule name, or empty if the peer went away."""

    link: int
    peer: PeerId
    reason: str


TransportEvent = LinkUp | LinkReady | FramesReceived | LinkDown
