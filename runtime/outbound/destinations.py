"""Where an app may connect: the hosts it lists, at public addresses only. Pure; resolving is `lookups.py`'s.

A name is resolved once and the connection goes to the address that was checked, so a name cannot point elsewhere
between check and use. Sources: RFC 6890 (special-purpose addresses), RFC 6052 (NAT64), RFC 3056 (6to4).
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_AUTHORITY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_OLD_IPV4: Final = re.compile(r"(?:0[xX][0-9A-Fa-f]+|[0-9]+)(?:\.(?:0[xX][0-9A-Fa-f]+|[0-9]+)){0,3}")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

_INSIDE: Final = tuple(map(ipaddress.ip_network, (
    "fec0::/10",            # site-local, deprecated and still routed by some
    "64:ff9b:1::/48",       # NAT64 of a network's own (RFC 8215): it may lead to any IPv4 address inside
    "2001::/23",            # Teredo among it, which carries IPv4
    "3fff::/20", "5f00::/16",  # documentation, segment routing
    "192.0.0.0/24", "192.88.99.0/24",  # protocol assignments, the anycast of 6to4 relays
    "168.63.129.16/32",     # a public address at which a cloud answers its own machines
)))  # fmt: skip
"""What `ipaddress` calls global in some version, and what is not."""

_PRIVATE: Final = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
"""Of these a network can be allowed; protocols/changes/networks.py has the same."""
_METADATA: Final = tuple(map(ipaddress.ip_network, ("100.100.100.200/32", "fd00:ec2::/32", "fd20:ce::254/128")))
"""Private addresses at which clouds answer their own machines, with credentials."""

_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
"""The third quarter of an address that carries an IPv4 address in its last (RFC 5214)."""


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


def address_inside(entry: str, networks: Sequence[str] = ()) -> bool:
    """Whether an entry of a list of hosts is an address that no node connects to, however it is written.

    `networks` are the private networks whose addresses it may be.

    Names are judged when they are looked up. The old spellings of IPv4 (one number, octal, hexadecimal, fewer than four
    parts) are addresses, too: the system would read them so.
    """
    host, _, port = entry.rpartition(":")
    host = (host if host and port.isdigit() else entry).strip("[]").rstrip(".")
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    if _OLD_IPV4.fullmatch(host):
        try:
            host = socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return True  # no address, and no name either: its last label is a number
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return not permitted(host, allow_loopback=False, networks=networks)


def permitted(address: str, *, allow_loopback: bool, networks: Sequence[str] = ()) -> bool:
    """Whether an IP address may be connected to: globally routable, of these private `networks`, or, in tests, loopback.

    What is link-local, at which a cloud answers its machines, or the machine itself is of no network that can be named.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and (ip in _NAT64 or int(ip) >> 32 & 0xFFFF_FFFF in _ISATAP):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:  # behind a translator lies another network than the one that was named
            return permitted(
                str(inner), allow_loopback=allow_loopback, networks=networks if ip.ipv4_mapped is not None else ()
            )
    if ip.is_loopback:
        return allow_loopback
    if any(ip in inside for inside in _INSIDE if inside.version == ip.version):
        return False
    if any(ip in own for own in _PRIVATE if own.version == ip.version):
        clouds = any(ip in entry for entry in _METADATA if entry.version == ip.version)
        return not clouds and any(ip in ipaddress.ip_network(network) for network in networks)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def is_own(address: str) -> bool:
    """Whether an address is this machine's: the one kind of address that a socket can be bound to.

    A network that is allowed holds the node itself, and what listens there alone trusts whoever is on the machine.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True
