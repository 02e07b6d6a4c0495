"""What a node says of itself to everybody: its name and version, as its `status` record, and where it can be dialled.

Both are news, not authority: nothing is decided by them. Not here: standing and labels, which are certified.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from node.config import HOST_MAX_CHARS, INGRESS_NAMES_MAX, NAMES_MAX
from protocols.envelope import DecodeError, Signed, decode, encode
from protocols.machine import PeerId
from protocols.records.gossip import RecordMachine
from protocols.records.key_table import make_key
from protocols.records.sites import valid_site_name

STATUS_MAX_BYTES = 4 * 1024
NAME_SHOWN_MAX = 64
UNDRAINS_SHOWN_MAX = 32
_HOST = re.compile(rf"[A-Za-z0-9.:-]{{1,{HOST_MAX_CHARS}}}")
_FAR_AWAY = {socket.AF_INET: ("192.0.2.1", 9), socket.AF_INET6: ("2001:db8::1", 9)}
"""Of the documentation ranges (RFC 5737, 3849): connecting a UDP socket to one picks a route and sends nothing."""
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class NodeStatus(msgspec.Struct, frozen=True):
    """The body of a `status` record. `api` is where the HTTPS API is, "HOST:PORT", `api_pin` what its logins pin.

    `api_ca` is the certificate (DER) of the node's own authority, for clients that verify TLS as usual. `acme` says that it
    serves names with certificates that the mesh gets, `acme_except` which names it wants none for; `ingress_names` is where
    visitors reach it. `acknowledged` is an admin's signed word on the newest reset, which every node passes on; `undrains`
    says which drained nodes this one undrains, and when (wall ms).
    """

    name: str
    version: str
    api: str = ""
    api_pin: str = ""
    api_ca: bytes = b""
    acme: bool = False
    acme_except: tuple[str, ...] = ()
    ingress_names: tuple[str, ...] = ()
    acknowledged: Signed | None = None
    undrains: tuple[tuple[str, int], ...] = ()


def body_of(status: NodeStatus) -> bytes:
    """Return the body of a status record; what is only passed on is left out where it would make the rest unreadable."""
    body = encode(status)
    return body if len(body) <= STATUS_MAX_BYTES else encode(replace(status, acknowledged=None, undrains=()))


def status_of(records: RecordMachine, node: PeerId) -> NodeStatus:
    """Return what `node` last said of itself; empty fields if it said nothing that can be read."""
    said = _said(records, node)
    if said is None:
        return NodeStatus("", "")
    name, version, api, pin = map(_printable, (said.name, said.version, said.api, said.api_pin))
    exceptions = tuple(filter(valid_site_name, said.acme_except[:NAMES_MAX]))
    hosts = tuple(filter(_HOST.fullmatch, said.ingress_names[:INGRESS_NAMES_MAX]))
    return NodeStatus(name, version, api, pin, said.api_ca, said.acme, exceptions, hosts)


def acknowledgement_of(records: RecordMachine, node: PeerId) -> Signed | None:
    """Return the acknowledgement of a reset that `node` passes on, unchecked; None if it passes none on."""
    said = _said(records, node)
    return None if said is None else said.acknowledged


def undrains_of(records: RecordMachine, nodes: Iterable[PeerId]) -> dict[str, int]:
    """Return when drained nodes are undrained (wall ms), as some of `nodes` say that they will do it; the latest counts."""
    table: dict[str, int] = {}
    for keeper in nodes:
        said = _said(records, keeper)
        for node, until_ms in said.undrains[:UNDRAINS_SHOWN_MAX] if said is not None else ():
            table[node] = max(until_ms, table.get(node, 0))
    return table


def _said(records: RecordMachine, node: PeerId) -> NodeStatus | None:
    entry = records.store.entries.get(make_key("status", node))
    if entry is None:
        return None
    try:
        said: NodeStatus = decode(entry.record.body, NodeStatus, STATUS_MAX_BYTES)
    except DecodeError:
        return None
    return said


def outgoing_address(family: socket.AddressFamily = socket.AF_INET) -> str:
    """Return this machine's address of a family on the route to others, the loopback one if it has none."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_FAR_AWAY[family])
        except OSError:
            return _LOOPBACK[family]
        return str(probe.getsockname()[0])


def _printable(text: str) -> str:
    return "".join(char for char in text[:NAME_SHOWN_MAX] if char.isprintable())
