"""Where a request is for: its authority and path, as the request line and the Host field say, and whether that is here.

Not here: which app has a path (routing.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from runtime.ingress.incoming import Incoming
from runtime.ingress.request_head import UNIX, Client
from runtime.ingress.response_head import BAD_METHOD, MALFORMED, NO_HOST, IngressProblem
from runtime.ingress.routing import normal_host

LOCAL_HOST: Final = re.compile(r"(?:[a-z0-9-]+\.)*localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")
"""Hosts that no name server of elsewhere can lead here: browsers never ask for them (RFC 6761, 6.3)."""

AUTHORITY: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=%-]+(:[0-9]{0,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{0,5})?")
"""RFC 3986, 3.2, without user information, which no request line or Host field may have."""


def is_from_here(incoming: Incoming, client: Client, authority: str, claims: Callable[[str], bool]) -> bool:
    """Whether host and origin of a request are this machine's, or hosts that a route claims: no page of elsewhere has both."""
    if client.address == UNIX:
        return True
    hosts = [authority]
    for name, value in incoming.headers:
        if len(name) == 6 and name.lower() == b"origin":
            scheme, _, origin = value.decode("latin-1").strip().partition("://")
            if scheme.lower() not in {"http", "https"}:
                return False  # a page without an origin of its own, or an extension
            hosts.append(origin)
    return all(LOCAL_HOST.fullmatch(normal_host(host)) or claims(host) for host in hosts)


def address_of(incoming: Incoming) -> tuple[str, str, IngressProblem | None]:
    """Return authority and path with query of a request (RFC 9112, 3.2 and 3.3), or what is wrong with them."""
    if incoming.method == "CONNECT":
        return "", "", BAD_METHOD
    hosts = [value for name, value in incoming.headers if len(name) == 4 and name.lower() == b"host"]
    if len(hosts) > 1 or (not hosts and not incoming.http_1_0):
        return "", "", NO_HOST
    authority = hosts[0].decode("latin-1") if hosts else "localhost"
    target = incoming.target.decode("latin-1")
    if "#" in target:
        return "", "", MALFORMED  # a fragment is never sent (RFC 9112, 3.2)
    if not target.startswith("/"):
        if target == "*" and incoming.method == "OPTIONS":
            return authority, "/", None
        scheme, separator, rest = target.partition("://")
        if not separator or scheme.lower() not in {"http", "https"}:
            return "", "", MALFORMED
        cut = min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest))
        authority, target = rest[:cut], rest[cut:] if rest[cut : cut + 1] == "/" else "/" + rest[cut:]
    if not AUTHORITY.fullmatch(authority):
        return "", "", NO_HOST
    return authority, target, None
