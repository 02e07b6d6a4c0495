"""Where an app may connect: the hosts it lists, at public addresses only. Pure; resolving is `outbound.py`'s.

A name is resolved once and the connection goes to the address that was checked, so a name cannot point elsewhere
between check and use. Sources: RFC 6890 (special-purpose addresses), RFC 6052 (NAT64), RFC 3056 (6to4).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_AUTHORITY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Destination:
    """A host (lower case, no brackets, no trailing dot) and a port."""

    host: str
    port: int


def parse_authority(authority: str, *, tls: bool) -> Destination | None:
    """Return host and port of an authority, None if it is malformed or carries user information."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    port = int(match[3]) if match[3] is not None else (443 if tls else 80)
    host = (match[1] or match[2]).lower().rstrip(".")
    return Destination(host, port) if host and 0 < port <= 65535 else None


def allowed(destination: Destination, allow_hosts: Sequence[str], *, tls: bool) -> bool:
    """Whether a list of "host:port" texts ("*.suffix:port" for subdomains) names the destination."""
    for entry in allow_hosts:
        host, _, port = entry.rpartition(":")
        if not host or not port.isdigit():
            host, port = entry, "443" if tls else "80"
        host = host.strip("[]").lower()
        if int(port) != destination.port:
            continue
        if host == destination.host or (host.startswith("*.") and destination.host.endswith(host[1:])):
            return True
    return False


def permitted(address: str, *, allow_loopback: bool) -> bool:
    """Whether an IP address may be connected to: globally routable, or loopback where a test says so."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return permitted(str(inner), allow_loopback=allow_loopback)
    if ip.is_loopback:
        return allow_loopback
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
