"""wasi:filesystem and wasi:sockets: present, because toolchains import them for hello, and closed.

There are no preopened directories and no socket is ever made, so most functions have no object they could be called on.
"""

from __future__ import annotations

from typing import Any, Final

from runtime.engine.codecs import Err
from runtime.engine.guest import Guest, GuestTrap, Resource
from runtime.engine.interface import Interface
from runtime.wasi.poll import IoError


class Descriptor(Resource, wit="descriptor"):
    """Never made."""

    __slots__ = ()


class DirectoryEntryStream(Resource, wit="directory-entry-stream"):
    """Never made."""

    __slots__ = ()


class RefusedNetwork(Resource, wit="network"):
    """A capability that opens nothing."""

    __slots__ = ()


class TcpSocket(Resource, wit="tcp-socket"):
    """Never made."""

    __slots__ = ()


class UdpSocket(Resource, wit="udp-socket"):
    """Never made."""

    __slots__ = ()


class IncomingDatagramStream(Resource, wit="incoming-datagram-stream"):
    """Never made."""

    __slots__ = ()


class OutgoingDatagramStream(Resource, wit="outgoing-datagram-stream"):
    """Never made."""

    __slots__ = ()


class ResolveAddressStream(Resource, wit="resolve-address-stream"):
    """Never made."""

    __slots__ = ()


def _unreachable(guest: Guest, *arguments: Any) -> Any:
    raise GuestTrap("a filesystem or socket function was called on an object that cannot exist")


filesystem_types: Final = Interface("wasi:filesystem/types", absent=_unreachable)
filesystem_preopens: Final = Interface("wasi:filesystem/preopens")
network: Final = Interface("wasi:sockets/network")
instance_network: Final = Interface("wasi:sockets/instance-network")
ip_name_lookup: Final = Interface("wasi:sockets/ip-name-lookup", absent=_unreachable)
tcp: Final = Interface("wasi:sockets/tcp", absent=_unreachable)
tcp_create_socket: Final = Interface("wasi:sockets/tcp-create-socket")
udp: Final = Interface("wasi:sockets/udp", absent=_unreachable)
udp_create_socket: Final = Interface("wasi:sockets/udp-create-socket")

INTERFACES: Final = (
    filesystem_types, filesystem_preopens, network, instance_network, ip_name_lookup,
    tcp, tcp_create_socket, udp, udp_create_socket,
)  # fmt: skip


@filesystem_types.function("filesystem-error-code")
@network.function("network-error-code")
def _no_code(guest: Guest, error: IoError) -> None:
    return None


@filesystem_preopens.function("get-directories")
def _no_directories(guest: Guest) -> list[Any]:
    return []


@instance_network.function("instance-network")
def _instance_network(guest: Guest) -> RefusedNetwork:
    return RefusedNetwork()


@tcp_create_socket.function("create-tcp-socket")
@udp_create_socket.function("create-udp-socket")
def _refuse_socket(guest: Guest, family: str) -> Err:
    return Err("access-denied")


@ip_name_lookup.function("resolve-addresses")
def _refuse_lookup(guest: Guest, network: RefusedNetwork, name: str) -> Err:
    return Err("access-denied")
