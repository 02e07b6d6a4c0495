"""From a parsed request to what the guest is told: its fields, who forwarded it, which trace it belongs to.

Hop-by-hop fields end here (RFC 9110, 7.6.1), `Forwarded` and `X-Forwarded-*` count only from listed proxies, and the
trace context follows W3C Trace Context. Not here: parsing bytes (`connection.py`) or choosing the app (`routing.py`).
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from runtime.exchange import Headers

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RawHeaders = list[tuple[bytes, bytes]]

DROPPED: Final = frozenset(
    {
        "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Fields about this connection only; the host is the request's authority, which the guest gets on its own."""

SPECIAL: Final = frozenset(
    {"connection", "te", "traceparent", "tracestate", "x-forwarded-for", "x-forwarded-proto", "x-request-id"}
)
"""Fields that are looked at, and written anew or not at all."""

FORWARDING: Final = frozenset({"forwarded", "x-forwarded-host", "x-forwarded-port", "x-real-ip"})
"""Fields that pass from listed proxies only; the rest of the forwarding fields are in `SPECIAL`."""

OWN_PREFIX: Final = "freehold-"
"""Fields between nodes; a client has no business with them."""

REQUEST_ID_MAX_CHARS: Final = 64

UNIX: Final = "unix"
"""Address of a client on a Unix socket."""

TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
"""https://www.w3.org/TR/trace-context/#traceparent-header: version, trace id, parent id, flags."""

NAMES_MAX: Final = 4096
"""Distinct field names remembered as text; a client that invents names costs a conversion each, not memory."""

_names: dict[bytes, str] = {}


def field_name(raw: bytes) -> str:
    """Return a field's name in lower case; the parser has checked that it is a token."""
    name = _names.get(raw)
    if name is None:
        name = raw.decode("latin-1").lower()
        if len(_names) < NAMES_MAX:
            _names[raw] = name
    return name


class Identifiers:
    """Makes request ids and trace ids: unique, not secret, and cheap, so not from the operating system each time."""

    def __init__(self, seed: int, traced: float = 1.0) -> None:
        """Take a seed, and the share of traces that begin here and are recorded."""
        self._random = random.Random(seed)  # noqa: S311 - identifiers, not secrets
        self._traced = traced
        self._prefix = f"{self._random.getrandbits(48):012x}"
        self._count = 0

    def request_id(self) -> str:
        """Return a new id: 12 hex digits of this worker and a count."""
        self._count += 1
        return f"{self._prefix}-{self._count:x}"

    def trace_id(self) -> str:
        """Return 32 hex digits, not all zero."""
        return f"{self._random.getrandbits(128) | 1:032x}"

    def span_id(self) -> str:
        """Return 16 hex digits, not all zero."""
        return f"{self._random.getrandbits(64) | 1:016x}"

    def flags(self) -> str:
        """Return the flags of a trace that begins here: whether it is recorded is decided at its head."""
        return "01" if self._traced >= 1 or self._random.random() < self._traced else "00"


@dataclass(frozen=True, slots=True)
class Client:
    """Who is at the other end of a connection, decided once per connection."""

    address: str
    trusted: bool
    secure: bool = False


def client_of(peername: object, proxies: Sequence[Network], *, secure: bool = False) -> Client:
    """Return the client of a transport's peer name; a Unix socket (no address) is a listed proxy by its nature."""
    if not (isinstance(peername, tuple) and peername):
        return Client(UNIX, True)
    address = str(peername[0]).partition("%")[0]
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return Client(address, False, secure)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return Client(str(ip), any(ip in network for network in proxies), secure)


@dataclass(frozen=True, slots=True)
class GuestRequest:
    """The fields a guest gets, and what the log and the exchange need beside them.

    `span_id` names this request in its trace, `parent_id` what it came from ("" where the trace begins here).
    """

    headers: Headers
    scheme: str
    client: str
    trace_id: str
    request_id: str
    wants_trailers: bool
    span_id: str
    parent_id: str
    recorded: bool


def guest_request(raw: RawHeaders, client: Client, identifiers: Identifiers) -> GuestRequest:
    """Decide the guest's fields. Pure but for the identifiers drawn; never raises."""
    fields: list[tuple[str, bytes]] = []
    special: dict[str, bytes] = {}
    for raw_name, value in raw:
        name = field_name(raw_name)
        if name in SPECIAL:
            special[name] = value
        elif name in FORWARDING:
            if client.trusted:
                fields.append((name, value))
        elif name not in DROPPED and not name.startswith(OWN_PREFIX):
            fields.append((name, value))
    if special:
        if "connection" in special:
            fields = _without_named(fields, special["connection"])
        if "te" in special:
            fields.append(("te", special["te"]))
    trace_id, span_id, parent_id, flags = _continue_trace(fields, special, identifiers)
    request_id = ""
    scheme, origin, forwarded_for = "https" if client.secure else "http", client.address, client.address.encode()
    if client.trusted:
        request_id = special.get("x-request-id", b"").decode("ascii", "ignore")[:REQUEST_ID_MAX_CHARS]
        if special.get("x-forwarded-proto", b"").strip().lower() == b"https":
            scheme = "https"
        chain = special.get("x-forwarded-for")
        if chain:
            origin = chain.rpartition(b",")[2].strip().decode("latin-1")  # what the listed proxy itself saw
            forwarded_for = chain if client.address == UNIX else chain + b", " + forwarded_for
    request_id = request_id or identifiers.request_id()
    fields.append(("x-request-id", request_id.encode()))
    fields.append(("x-forwarded-for", forwarded_for))
    fields.append(("x-forwarded-proto", scheme.encode()))
    return GuestRequest(
        tuple(fields), scheme, origin, trace_id, request_id, b"trailers" in special.get("te", b"").lower(),
        span_id, parent_id, is_recorded(flags),
    )  # fmt: skip


def is_recorded(flags: str) -> bool:
    """Whether the flags of a trace context ("01") say that its head is recorded."""
    return bool(int(flags, 16) & 1)


def _without_named(fields: list[tuple[str, bytes]], connection: bytes) -> list[tuple[str, bytes]]:
    """Remove the fields that `Connection` names as this hop's own."""
    named = {field_name(option.strip()) for option in connection.split(b",")} - {"close", "keep-alive", ""}
    return [pair for pair in fields if pair[0] not in named] if named else fields


def _continue_trace(
    fields: list[tuple[str, bytes]], special: dict[str, bytes], identifiers: Identifiers
) -> tuple[str, str, str, str]:
    """Append the guest's trace context, the client's continued or a new one.

    Return the ids of the trace, of this request in it and of what it came from ("" for nothing), and the flags.
    """
    match = TRACEPARENT.fullmatch(special["traceparent"]) if "traceparent" in special else None
    if match is None:
        trace_id, parent_id, flags = identifiers.trace_id(), "", identifiers.flags()
    else:
        trace_id, parent_id, flags = match[1].decode(), match[2].decode(), match[3].decode()
        if "tracestate" in special:
            fields.append(("tracestate", special["tracestate"]))
    span_id = identifiers.span_id()
    fields.append(("traceparent", f"00-{trace_id}-{span_id}-{flags}".encode()))
    return trace_id, span_id, parent_id, flags
