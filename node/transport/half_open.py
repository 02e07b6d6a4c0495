"""Inbound links that are not admitted yet, bounded in all and per address; the oldest gives way to the newest.

A refused newcomer could be a member; the oldest one has had its time: a handshake takes milliseconds. So a flood of
connections that say nothing costs strangers their places and members next to nothing.
Not here: time limits (`protocols.libp2p.connection`).
"""

from __future__ import annotations

import ipaddress

from node.transport.link import Link
from node.transport.settings import HALF_OPEN_MAX, HALF_OPEN_PER_ADDRESS_MAX


class HalfOpen:
    """The half-open links, oldest first, and by address."""

    def __init__(self) -> None:
        self._all: dict[int, Link] = {}
        self._by_source: dict[str, dict[int, Link]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, link: Link) -> None:
        """Give `link` a place; closes the oldest of its address, or of all, if there is none free."""
        source = _source(link.host)
        same = self._by_source.get(source, {})
        if len(same) >= HALF_OPEN_PER_ADDRESS_MAX:
            next(iter(same.values())).close("transport.half-open-address")
        if len(self._all) >= HALF_OPEN_MAX:
            next(iter(self._all.values())).close("transport.half-open")
        self._all[link.number] = link
        self._by_source.setdefault(source, {})[link.number] = link

    def remove(self, link: Link) -> None:
        """Free the place, if the link has one."""
        if self._all.pop(link.number, None) is None:
            return
        source = _source(link.host)
        del self._by_source[source][link.number]
        if not self._by_source[source]:
            del self._by_source[source]


def _source(host: str) -> str:
    """Return what counts as one address: an IPv4 address, or an IPv6 /64, which one customer commonly holds whole."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address) if address.version == 4 else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
