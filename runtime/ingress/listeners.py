"""Listening sockets by their address text: "host:port", "[v6]:port" or "unix:/path"; "tls:" before one asks for TLS.

Not here: who accepts from them (every worker's ingress, from one shared queue).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

BACKLOG: Final = 1024
"""Connections the kernel keeps while all workers are busy or being replaced; above it clients retry by themselves."""

UNIX_PREFIX: Final = "unix:"
TLS_PREFIX: Final = "tls:"
"""The socket is the same; whoever accepts from it speaks TLS."""


def bind(address: str) -> socket.socket:
    """Return a listening, non-blocking socket; raises `OSError`. A Unix path nobody listens on is taken over."""
    if address.startswith(UNIX_PREFIX):
        return _bind_unix(Path(address.removeprefix(UNIX_PREFIX)))
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, int(port)))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _bind_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def is_plain(address: str) -> bool:
    """Whether an address is one of TCP, without TLS."""
    return not address.startswith((UNIX_PREFIX, TLS_PREFIX))


def address_of(listener: socket.socket) -> str:
    """Return the address text of a bound socket."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"{UNIX_PREFIX}{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"


def forget(addresses: Iterable[str]) -> None:
    """Remove the Unix sockets among `addresses` from the file system; for whoever stops listening for good."""
    for address in addresses:
        if address.startswith(UNIX_PREFIX):
            Path(address.removeprefix(UNIX_PREFIX)).unlink(missing_ok=True)
