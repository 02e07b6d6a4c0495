"""What a node says of itself to everybody: its name and version, as its `status` record, and where it can be dialled.

Both are news, not authority: nothing is decided by them. Not here: standing and labels, which are certified.
"""

from __future__ import annotations

import re
import socket

import msgspec

from node.config import HOST_MAX_CHARS, INGRESS_NAMES_MAX, NAMES_MAX
from protocols.envelope import DecodeError, decode
from protocols.machine import PeerId
from protocols.records.gossip import RecordMachine
from protocols.records.key_table import make_key
from protocols.records.sites import valid_site_name

STATUS_MAX_BYTES = 4 * 1024
NAME_SHOWN_MAX = 64
_HOST = re.compile(rf"[A-Za-z0-9.:-]{{1,{HOST_MAX_CHARS}}}")
_FAR_AWAY = {socket.AF_INET: ("192.0.2.1", 9), socket.AF_INET6: ("2001:db8::1", 9)}
"""Of the documentation ranges (RFC 5737, 3849): connecting a UDP socket to one picks a route and sends nothing."""
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class NodeStatus(msgspec.Struct, frozen=True):
    """The body of a `status` record. `api` is where the HTTPS API is, "HOST:PORT", `api_pin` what its logins pin.

    `api_ca` is the certificate (DER) of the node's own authority, for clients that verify TLS as usual. `acme` says that it
    serves names with certificates that the mesh gets, `acme_except` which names it wants none for; `ingress_names` is where
    visitors reach it.
    """

    name: str
    version: str
    api: str = ""
    api_pin: str = ""
    api_ca: bytes = b""
    acme: bool = False
    acme_except: tuple[str, ...] = ()
    ingress_names: tuple[str, ...] = ()


def status_of(records: RecordMachine, node: PeerId) -> NodeStatus:
    """Return what `node` last said of itself; empty fields if it said nothing that can be read."""
    entry = records.store.entries.get(make_key("status", node))
    if entry is None:
        return NodeStatus("", "")
    try:
        said: NodeStatus = decode(entry.record.body, NodeStatus, STATUS_MAX_BYTES)
    except DecodeError:
        return NodeStatus("", "")
    name, version, api, pin = map(_printable, (said.name, said.version, said.api, said.api_pin))
    exceptions = tuple(filter(valid_site_name, said.acme_except[:NAMES_MAX]))
    hosts = tuple(filter(_HOST.fullmatch, said.ingress_names[:INGRESS_NAMES_MAX]))
    return NodeStatus(name, version, api, pin, said.api_ca, said.acme, exceptions, hosts)


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
