"""Private networks: which addresses inside an app may be let to reach, and which never. Pure.

An app's configuration names networks, an environment of the mesh allows some; a node connects to an address inside only
where both do. The ranges stand here by number: every voter judges alike, whatever its Python knows of addresses. Not
here: judging a resolved address (runtime/outbound/destinations.py).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

NETWORKS_MAX = 16
"""Of one app, and of one environment."""
NETWORK_TEXT_MAX = 49
"""The longest an IPv6 network is written."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PRIVATE = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
"""RFC 1918, RFC 6598 and RFC 4193: a network's own. Loopback, link-local and what clouds answer at are not among them."""

ALLOWED = ", ".join(map(str, PRIVATE))


def network_problem(text: str) -> str | None:
    """Return what is wrong with a network that somebody wrote, or None."""
    network = _network(text)
    if network is None:
        return f"{text[:NETWORK_TEXT_MAX]!r} is no network in its shortest form; write for example 10.0.5.0/24"
    if not within(text, tuple(map(str, PRIVATE))):
        return f"{text} is not private; allowed are parts of {ALLOWED}"
    return None


def networks_problem(networks: Sequence[str]) -> str | None:
    """Return which bound a list of networks breaks, or None."""
    if len(networks) > NETWORKS_MAX or len(set(networks)) != len(networks):
        return f"at most {NETWORKS_MAX} distinct private networks"
    return next((problem for network in networks if (problem := network_problem(network))), None)


def within(network: str, allowed: Sequence[str]) -> bool:
    """Return whether one of the allowed networks holds a whole network."""
    mine = _network(network)
    return mine is not None and any(_holds(wider, mine) for text in allowed if (wider := _network(text)) is not None)


def _holds(wider: Network, network: Network) -> bool:
    if isinstance(wider, ipaddress.IPv4Network) and isinstance(network, ipaddress.IPv4Network):
        return network.subnet_of(wider)
    if isinstance(wider, ipaddress.IPv6Network) and isinstance(network, ipaddress.IPv6Network):
        return network.subnet_of(wider)
    return False


def _network(text: str) -> Network | None:
    """Read a network written as it is printed: equal networks are equal texts."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return None
    return network if str(network) == text else None
