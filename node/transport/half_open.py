"""Connections that have not proven themselves yet, bounded in all and per address; the oldest gives way to the newest.

A refused newcomer could be a member; the oldest one has had its time: a handshake takes milliseconds. So a flood of
connections that say nothing costs strangers their places and members next to nothing.
Not here: time limits (`protocols.libp2p.connection`, `api/listening.py`).
"""

from __future__ import annotations

import ipaddress
from typing import Protocol


class HalfOpenLink(Protocol):
    """As much of a connection as a place knows; `number` is its own alone."""

    @property
    def number(self) -> int: ...  # noqa: D102

    @property
    def host(self) -> str: ...  # noqa: D102

    def close(self, reason: str) -> None:
        """Close it, and free its place at once."""
        ...


class HalfOpen:
    """The half-open links, oldest first, and by address."""

    def __init__(self, max_count: int, per_address_max: int) -> None:
        """Take how many there may be in all, and of one address."""
        self._max_count, self._per_address_max = max_count, per_address_max
        self._all: dict[int, HalfOpenLink] = {}
        self._by_source: dict[str, dict[int, HalfOpenLink]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, link: HalfOpenLink) -> None:
        """Give `link` a place; closes the oldest of its address, or of all, if there is none free."""
        source = source_of(link.host)
        same = self._by_source.get(source, {})
        if len(same) >= self._per_address_max:
            next(iter(same.values())).close("transport.half-open-address")
        if len(self._all) >= self._max_count:
            next(iter(self._all.values())).close("transport.half-open")
        self._all[link.number] = link
        self._by_source.setdefault(source, {})[link.number] = link

    def remove(self, link: HalfOpenLink) -> None:
        """Free the place, if the link has one."""
        if self._all.pop(link.number, None) is None:
            return
        source = source_of(link.host)
        del self._by_source[source][link.number]
        if not self._by_source[source]:
            del self._by_source[source]


def source_of(host: str) -> str:
    """Return what counts as one address: an IPv4 address, or an IPv6 /64, which one customer commonly holds whole."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address) if address.version == 4 else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
