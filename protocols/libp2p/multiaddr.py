"""Multiaddresses, as far as Freehold dials them: ip4, ip6, dns, dns4, dns6, tcp and p2p; text and bytes.

A value is a tuple of (protocol, argument) parts with canonical arguments, so equal addresses are equal values.
Not here: QUIC, WebSocket, relay and zones. `parse` and `decode` refuse them by name, and a caller that reads a list
of a peer's addresses skips what it cannot dial. Source: multiformats/multiaddr, protocols.csv.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from protocols.libp2p import peer_id, varint
from protocols.libp2p.errors import RemoteProtocolError
from protocols.machine import PeerId

PARTS_MAX = 4
"""An address Freehold can use is a host, a port and a peer id; one spare."""

TEXT_MAX_CHARS = 512
BYTES_MAX = 512
"""A DNS name has at most 253 characters and a peer id 52; double that is not an address."""

_CODES = {"ip4": 4, "tcp": 6, "ip6": 41, "dns": 53, "dns4": 54, "dns6": 55, "p2p": 421}
_NAMES = {code: name for name, code in _CODES.items()}
_ALIASES = {"ipfs": "p2p"}
_FIXED_BYTES = {"ip4": 4, "ip6": 16, "tcp": 2}
_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_-]{1,63}\.?")


@dataclass(frozen=True, slots=True)
class Multiaddr:
    """One address; `str()` gives the text form, `encode()` the binary form."""

    parts: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "".join(f"/{name}/{argument}" for name, argument in self.parts)

    def encode(self) -> bytes:
        """Return the binary form."""
        out = bytearray()
        for name, argument in self.parts:
            value = _argument_bytes(name, argument)
            out += varint.encode(_CODES[name])
            if name not in _FIXED_BYTES:
                out += varint.encode(len(value))
            out += value
        return bytes(out)

    def tcp(self) -> tuple[str, int] | None:
        """Return (host, port) if this address can be dialled over TCP, else None."""
        if len(self.parts) < 2 or self.parts[0][0] not in _HOSTS or self.parts[1][0] != "tcp":
            return None
        if any(name != "p2p" for name, _ in self.parts[2:]):
            return None
        return self.parts[0][1], int(self.parts[1][1])

    def peer(self) -> PeerId | None:
        """Return the peer id at the end of the address, if it names one."""
        return PeerId(self.parts[-1][1]) if self.parts and self.parts[-1][0] == "p2p" else None

    def with_peer(self, peer: PeerId) -> Multiaddr:
        """Return the same address ending in `peer`."""
        bare = self.parts[:-1] if self.peer() is not None else self.parts
        return Multiaddr((*bare, ("p2p", peer)))


def from_tcp(host: str, port: int) -> Multiaddr:
    """Return the address of a host (IP literal without zone, or DNS name) and a TCP port."""
    try:
        kind = "ip4" if ipaddress.ip_address(host).version == 4 else "ip6"
    except ValueError:
        kind = "dns"
    return Multiaddr(((kind, _canonical(kind, host)), ("tcp", _canonical("tcp", str(port)))))


def parse(text: str) -> Multiaddr:
    """Return the address written as `text`; RemoteProtocolError says what is wrong with it."""
    if len(text) > TEXT_MAX_CHARS:
        raise RemoteProtocolError("multiaddr.too-long", f"over {TEXT_MAX_CHARS} characters")
    words = text.split("/")
    if len(words) < 3 or words[0] or len(words) % 2 == 0:
        raise RemoteProtocolError("multiaddr.text", f"{text!r} is not /protocol/value pairs")
    if len(words) > 1 + 2 * PARTS_MAX:
        raise RemoteProtocolError("multiaddr.too-many-parts", f"over {PARTS_MAX}")
    names = [_ALIASES.get(word, word) for word in words[1::2]]
    return Multiaddr(tuple((name, _canonical(name, value)) for name, value in zip(names, words[2::2], strict=True)))


def decode(data: bytes) -> Multiaddr:
    """Return the address with the binary form `data`; RemoteProtocolError if it is truncated or unknown."""
    if not 0 < len(data) <= BYTES_MAX:
        raise RemoteProtocolError("multiaddr.length", f"{len(data)} bytes")
    parts: list[tuple[str, str]] = []
    offset = 0
    while offset < len(data):
        if len(parts) == PARTS_MAX:
            raise RemoteProtocolError("multiaddr.too-many-parts", f"over {PARTS_MAX}")
        code, offset = varint.decode_whole(data, offset)
        name = _NAMES.get(code)
        if name is None:
            raise RemoteProtocolError("multiaddr.protocol", f"code {code}")
        length = _FIXED_BYTES.get(name)
        if length is None:
            length, offset = varint.decode_whole(data, offset)
        if length > len(data) - offset:
            raise RemoteProtocolError("multiaddr.truncated")
        parts.append((name, _argument_text(name, data[offset : offset + length])))
        offset += length
    return Multiaddr(tuple(parts))


def _canonical(name: str, argument: str) -> str:
    return _argument_text(name, _argument_bytes(name, argument))


def _argument_bytes(name: str, argument: str) -> bytes:
    try:
        if name == "ip4":
            return ipaddress.IPv4Address(argument).packed
        if name == "ip6":
            if "%" in argument:
                raise RemoteProtocolError("multiaddr.zone", "a zone means nothing on another machine")
            return ipaddress.IPv6Address(argument).packed
    except ValueError as error:
        raise RemoteProtocolError("multiaddr.ip", str(error)) from None
    if name == "tcp":
        if not (argument.isascii() and argument.isdecimal() and len(argument) <= 5 and int(argument) < 65536):
            raise RemoteProtocolError("multiaddr.port", repr(argument))
        return int(argument).to_bytes(2, "big")
    if name in ("dns", "dns4", "dns6"):
        if not _DNS_NAME.fullmatch(argument):
            raise RemoteProtocolError("multiaddr.dns", repr(argument))
        return argument.lower().encode()
    if name == "p2p":
        return peer_id.to_bytes(peer_id.parse(argument))
    raise RemoteProtocolError("multiaddr.protocol", repr(name))


def _argument_text(name: str, value: bytes) -> str:
    if name == "ip4":
        return str(ipaddress.IPv4Address(value))
    if name == "ip6":
        return str(ipaddress.IPv6Address(value))
    if name == "tcp":
        return str(int.from_bytes(value, "big"))
    if name == "p2p":
        return peer_id.from_bytes(value)
    text = value.decode("ascii", "replace")
    if not _DNS_NAME.fullmatch(text):
        raise RemoteProtocolError("multiaddr.dns", repr(text))
    return text.lower()
