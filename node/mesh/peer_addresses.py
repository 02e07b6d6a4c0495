"""Where the other nodes listen: learnt from `address` records, kept for the next start, and dialled by the transport.

Not here: dialling (transport/), and where this node listens.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from node.keys import write_private
from node.mesh.mesh import Mesh
from protocols.envelope import DecodeError, decode, encode
from protocols.libp2p import multiaddr
from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import PeerId
from protocols.records.gossip import RecordsMerged
from protocols.records.record import Entry

ADDRESSES_MAX_BYTES = 256 * 1024
ADDRESSES_PER_NODE_MAX = 8

_log = logging.getLogger("freehold.daemon")


class AddressBook(msgspec.Struct, frozen=True):
    """Where peers were last known to listen, as multiaddr texts."""

    peers: dict[str, tuple[str, ...]] = {}


def read_addresses(folder: Path) -> dict[PeerId, tuple[Multiaddr, ...]]:
    """Read where peers were last known to be; an unreadable book is an empty one, the mesh tells again."""
    try:
        book: AddressBook = decode((folder / "addresses").read_bytes(), AddressBook, ADDRESSES_MAX_BYTES)
        return {PeerId(peer): tuple(multiaddr.parse(text) for text in texts) for peer, texts in book.peers.items()}
    except (OSError, DecodeError, ValueError):
        return {}


def write_addresses(folder: Path, addresses: Mapping[PeerId, tuple[Multiaddr, ...]]) -> None:
    """Remember where peers are, for the next start."""
    book = AddressBook({peer: tuple(str(one) for one in where) for peer, where in sorted(addresses.items())})
    write_private(folder / "addresses", encode(book))


class PeerAddresses:
    """Keeps the addresses of every node, and has the others dialled."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        """Take what dials, and the node's folder, in which the addresses of an earlier life are."""
        self._mesh, self._folder = mesh, folder
        self._addresses = read_addresses(folder)
        mesh.set_addresses(self._others())

    def texts(self) -> dict[PeerId, tuple[str, ...]]:
        """Return what is known, as texts."""
        return {peer: tuple(str(address) for address in held) for peer, held in self._addresses.items()}

    def hear(self, event: Any) -> None:
        """Take one of the core's notices: a record may say where a node listens now."""
        if isinstance(event, RecordsMerged):
            self.take(event.entries)

    def take(self, entries: Iterable[Entry]) -> None:
        """Learn from records."""
        changed = False
        for entry in entries:
            if entry.parsed.rule.prefix != "address" or entry.parsed.owner is None:
                continue
            with contextlib.suppress(DecodeError, ValueError):
                texts: tuple[str, ...] = decode(entry.record.body, tuple[str, ...], 4096)
                said = tuple(multiaddr.parse(text) for text in texts[:ADDRESSES_PER_NODE_MAX])
                if said != self._addresses.get(entry.parsed.owner):
                    self._addresses[entry.parsed.owner] = said
                    changed = True
        if changed:
            self._mesh.set_addresses(self._others())
            try:
                write_addresses(self._folder, self._addresses)
            except OSError as error:  # the mesh tells again; what must be durable fails elsewhere, and loudly
                _log.warning("addresses not kept: %s", error, extra={"event": "addresses.not-kept"})

    def _others(self) -> dict[PeerId, tuple[Multiaddr, ...]]:
        return {peer: held for peer, held in self._addresses.items() if peer != self._mesh.core.node and held}
