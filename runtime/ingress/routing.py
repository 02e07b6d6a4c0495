"""Which app answers a request: hosts and path prefixes, the longest match wins.

An exact host beats any host; among equal hosts the longest prefix wins, and a prefix matches whole path segments only.
The path is passed to the app as it came. Not here: who may claim a route (the chain decides) or the HTTP answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

RESERVED_PREFIX: Final = "/.freehold"
"""Paths under it are the node's own on every host; no app may claim or receive them."""

PROVING_PREFIXES: Final = ("/.well-known/acme-challenge", "/.well-known/pki-validation")
"""Where certificate authorities look whether a host is whose it says (RFC 8555, 8.3; CA/Browser Forum BR 3.2.2.4.18).

No app receives what is asked below them, on any host: routes lead by prefix, so a project could take this one path of a
host of another project, order a certificate for it elsewhere, and answer. Challenges of the mesh's own orders are answered
before routes are looked at (proofs.py).
"""

ROUTES_MAX: Final = 10_000
"""Routes of one node; a lookup walks only the prefixes of the request's own path, so this bounds memory, not time."""

SEGMENTS_MAX: Final = 64
"""Path segments looked at; a route deeper than this is refused, so nothing behind them can match."""

TargetT = TypeVar("TargetT")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A route's target on another node; `lane` is "PROJECT ENVIRONMENT ROLE", which the daemon understands."""

    lane: str


class RouteError(ValueError):
    """A route that cannot stand."""


def normal_host(authority: str) -> str:
    """Return the host of an authority ("host", "host:port", "[v6]:port"): lower case, no port, no final dot."""
    if authority.startswith("["):
        return authority[: authority.find("]") + 1].lower()
    return authority.partition(":")[0].rstrip(".").lower()


def normal_prefix(prefix: str) -> str:
    """Return a prefix without its final slash ("/" becomes ""); raises `RouteError` on one that cannot match."""
    if not prefix.startswith("/") or "?" in prefix or "#" in prefix:
        raise RouteError(f"a path prefix begins with / and has no query: {prefix}")
    prefix = prefix.rstrip("/")
    if prefix == RESERVED_PREFIX or prefix.startswith(RESERVED_PREFIX + "/"):
        raise RouteError(f"{RESERVED_PREFIX}/ is reserved")
    if prefix.count("/") > SEGMENTS_MAX:
        raise RouteError(f"a path prefix has at most {SEGMENTS_MAX} segments")
    return prefix


class RouteTable(Generic[TargetT]):
    """An immutable table; a change of routes is a new table."""

    def __init__(self, routes: Sequence[tuple[str | None, str, TargetT]] = ()) -> None:
        """Take (host or None, prefix, target); raises `RouteError` on a bad or doubly claimed route."""
        if len(routes) > ROUTES_MAX:
            raise RouteError(f"more than {ROUTES_MAX} routes")
        self._hosts: dict[str, dict[str, TargetT]] = {}
        self._any_host: dict[str, TargetT] = {}
        for host, prefix, target in routes:
            table = self._any_host if host is None else self._hosts.setdefault(normal_host(host), {})
            normal = normal_prefix(prefix)
            if normal in table:
                raise RouteError(f"{host or '*'}{prefix} is claimed twice")
            table[normal] = target

    def claims(self, authority: str) -> bool:
        """Whether a route names this very host."""
        return normal_host(authority) in self._hosts

    def find(self, authority: str, path: str) -> TargetT | None:
        """Return the target for a request's authority and path (without query), or None."""
        if path.startswith("/.") and any(_below(path, prefix) for prefix in (RESERVED_PREFIX, *PROVING_PREFIXES)):
            return None
        if self._hosts:
            table = self._hosts.get(normal_host(authority))
            if table is not None:
                target = _longest(table, path)
                if target is not None:
                    return target
        return _longest(self._any_host, path)


def _below(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and path[len(prefix) :][:1] in {"", "/"}


def _longest(table: Mapping[str, TargetT], path: str) -> TargetT | None:
    if len(table) == 1 and "" in table:
        return table[""]
    if path.count("/") > SEGMENTS_MAX:
        path = "/".join(path.split("/", SEGMENTS_MAX + 1)[: SEGMENTS_MAX + 1])
    candidate = path
    while True:
        target = table.get(candidate)
        if target is not None or not candidate:
            return target
        candidate = candidate[: candidate.rfind("/")]
