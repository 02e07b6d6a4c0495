"""What a transport is told at its start, and the limits over many connections, each with its reason.

The limits of one connection stand in `protocols.libp2p`; those of one frame channel in `channel`.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.libp2p.multiaddr import Multiaddr

HELLO_PROTOCOL = "/freehold/hello/1"
CONTROL_PROTOCOL = "/freehold/control/1"

AGENT = "freehold"
PROTOCOL_VERSION = "freehold/1"

HALF_OPEN_MAX = 256
"""Inbound links that are not admitted yet, in all. Each may hold 64 KiB, so strangers hold 16 MiB at most."""

HALF_OPEN_PER_ADDRESS_MAX = 32
"""The same per IPv4 address or IPv6 /64: a mesh of 32 nodes behind one address translator still connects at once.
When either limit is reached the oldest such link gives way: a member's handshake takes milliseconds, a slowloris has
nothing but its age."""

DIAL_STAGGER_S = 0.25
"""The next address of a peer is tried after this, without waiting for the earlier one to fail (RFC 8305, section 5)."""

DIAL_TIMEOUT_S = 10.0
"""TCP connect and upgrade of one address."""

ADDRESSES_MAX = 16
"""Addresses of one peer that are tried; a machine has two or three, its records could name thousands."""

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
"""Times U(0.5, 1.5): a node that returns after a day is reached within 45 s, by one peer after the other."""

STABLE_S = 10.0
"""A link that lasted this long resets its peer's back-off; one that dies earlier does not."""

LINGER_S = 2.0
"""A closing link has this long to pass on its last bytes."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """`listen`: TCP addresses, port 0 for any; `advertise`: what identify tells peers, if not those."""

    listen: tuple[Multiaddr, ...] = ()
    advertise: tuple[Multiaddr, ...] = ()
    agent_version: str = AGENT
