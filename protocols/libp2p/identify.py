"""/ipfs/id/1.0.0: one message that says who a peer is, where it listens and what it speaks.

The answerer sends a length-prefixed `Identify` message and finishes the stream. What it claims is a hint, except the
key, which must be the one the connection was secured with. Not here: identify/push and signed peer records; addresses
of members travel as Freehold's own signed records. Addresses we cannot dial are skipped, not refused.
Source: libp2p specs, identify/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols import keys
from protocols.libp2p import multiaddr, peer_id, protobuf, varint
from protocols.libp2p.errors import RemoteProtocolError
from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import PeerId

PROTOCOL = "/ipfs/id/1.0.0"

MESSAGE_MAX_BYTES = 8 * 1024
"""go-libp2p's own limit for the unsigned part; a node with 50 addresses and 100 protocols fits."""

ADDRESSES_MAX = 64
PROTOCOLS_MAX = 256
TEXT_MAX_CHARS = 256
"""Caps on what is kept of a claim; longer lists are cut, longer text too."""


@dataclass(frozen=True, slots=True)
class Identify:
    """What a peer says of itself. `observed` is our address as the peer sees it."""

    public_key: bytes
    listen: tuple[Multiaddr, ...] = ()
    protocols: tuple[str, ...] = ()
    observed: Multiaddr | None = None
    protocol_version: str = ""
    agent_version: str = ""


def encode(message: Identify) -> bytes:
    """Return the message with its length prefix, as it goes on the stream."""
    fields: list[tuple[int, int | bytes]] = [(1, peer_id.encode_public_key(message.public_key))]
    fields += [(2, address.encode()) for address in message.listen]
    fields += [(3, name.encode()) for name in message.protocols]
    if message.observed is not None:
        fields.append((4, message.observed.encode()))
    fields += [(5, message.protocol_version.encode()), (6, message.agent_version.encode())]
    body = protobuf.encode(fields)
    return varint.encode(len(body)) + body


class IdentifyReader:
    """Collects one answer. Memory: MESSAGE_MAX_BYTES."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes, peer: PeerId) -> Identify | None:
        """Return the message once it is whole; RemoteProtocolError if it is too long, malformed or not `peer`'s."""
        self._buffer += data
        decoded = varint.decode(self._buffer)
        if decoded is None:
            return None
        length, start = decoded
        if length > MESSAGE_MAX_BYTES:
            raise RemoteProtocolError("identify.length", f"{length} bytes, over {MESSAGE_MAX_BYTES}")
        if len(self._buffer) < start + length:
            return None
        return decode(bytes(self._buffer[start : start + length]), peer)


def decode(body: bytes, peer: PeerId) -> Identify:
    """Return the message without its length prefix; RemoteProtocolError unless the key in it is `peer`'s."""
    fields = protobuf.decode(body)
    key_message = protobuf.last_bytes(fields, 1)
    public_key = keys.public_key_of(peer) if key_message is None else peer_id.decode_public_key(key_message)
    if keys.peer_id(public_key) != peer:
        raise RemoteProtocolError("identify.key", "not the key this connection was secured with")
    observed = protobuf.last_bytes(fields, 4)
    return Identify(
        public_key=public_key,
        listen=tuple(
            address for data in protobuf.all_bytes(fields, 2)[:ADDRESSES_MAX] if (address := _address(data)) is not None
        ),
        protocols=tuple(_text(name) for name in protobuf.all_bytes(fields, 3)[:PROTOCOLS_MAX]),
        observed=None if observed is None else _address(observed),
        protocol_version=_text(protobuf.last_bytes(fields, 5) or b""),
        agent_version=_text(protobuf.last_bytes(fields, 6) or b""),
    )


def _address(data: bytes) -> Multiaddr | None:
    try:
        return multiaddr.decode(data)
    except RemoteProtocolError:
        return None


def _text(data: bytes) -> str:
    text = data.decode("utf-8", "replace")[:TEXT_MAX_CHARS]
    return "".join(character if character.isprintable() else "?" for character in text)
