"""Where the other nodes listen: learnt from `address` records, kept for the next start, and dialled by the transport.

After all have moved no record leads anywhere. So an operator may tell a node where another is, which counts until that
one says so itself; and addresses of the settings (`peers`, DNS names among them) are tried for whoever is not reached.
A wrong one costs a handshake: a peer proves its key, wherever it is dialled. Not here: dialling (transport/), and where
this node listens.
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
    """Where peers were last known to listen, as multiaddr texts; `told` by an operator and not said by them since."""

    peers: dict[str, tuple[str, ...]] = {}
    told: dict[str, tuple[str, ...]] = {}


def parse_address(address: str) -> Multiaddr:
    """What a "HOST:PORT" of the settings is to the transport."""
    host, _, port = address.rpartition(":")
    return multiaddr.from_tcp(host.strip("[]"), int(port))


Addresses = dict[PeerId, tuple[Multiaddr, ...]]


def read_addresses(folder: Path) -> tuple[Addresses, Addresses]:
    """Read where peers said to be, and where an operator said they are; an unreadable book is an empty one."""
    try:
        book: AddressBook = decode((folder / "addresses").read_bytes(), AddressBook, ADDRESSES_MAX_BYTES)
        return _parsed(book.peers), _parsed(book.told)
    except (OSError, DecodeError, ValueError):
        return {}, {}


def _parsed(texts: Mapping[str, tuple[str, ...]]) -> Addresses:
    return {PeerId(peer): tuple(multiaddr.parse(text) for text in where) for peer, where in texts.items()}


def _texts(addresses: Mapping[PeerId, tuple[Multiaddr, ...]]) -> dict[str, tuple[str, ...]]:
    return {str(peer): tuple(str(multiaddr) for multiaddr in where) for peer, where in sorted(addresses.items())}


def write_addresses(
    folder: Path,
    addresses: Mapping[PeerId, tuple[Multiaddr, ...]],
    told: Mapping[PeerId, tuple[Multiaddr, ...]] | None = None,
) -> None:
    """Remember where peers are, for the next start. Raises OSError."""
    book = AddressBook(_texts(addresses), _texts(told or {}))
    write_private(folder / "addresses", encode(book))


class PeerAddresses:
    """Keeps the addresses of every node, and has the others dialled."""

    def __init__(self, mesh: Mesh, folder: Path, seeds: tuple[Multiaddr, ...] = ()) -> None:
        """Take what dials, the node's folder, in which the addresses of an earlier life are, and those of the settings."""
        self._mesh, self._folder, self._seeds = mesh, folder, seeds
        self._addresses, self._told = read_addresses(folder)
        mesh.set_addresses(self._others())

    def texts(self) -> dict[PeerId, tuple[str, ...]]:
        """Return what is known, as texts."""
        return {peer: tuple(str(address) for address in held) for peer, held in self._addresses.items()}

    def told(self) -> dict[str, tuple[str, ...]]:
        """Return what an operator said and the peers have not said since, as texts."""
        return _texts(self._told)

    def tell(self, peer: PeerId, addresses: tuple[Multiaddr, ...]) -> None:
        """Dial a peer there first, from now on and until it says itself where it is; none: forget that. Raises OSError."""
        told = {**self._told, peer: addresses}
        if not addresses:
            del told[peer]
        write_addresses(self._folder, self._addresses, told)
        self._told = told
        self._mesh.set_addresses(self._others())

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
                    self._told.pop(entry.parsed.owner, None)  # it was reached since, and knows better
                    changed = True
        if changed:
            self._mesh.set_addresses(self._others())
            try:
                write_addresses(self._folder, self._addresses, self._told)
            except OSError as error:  # the mesh tells again; what must be durable fails elsewhere, and loudly
                _log.warning("addresses not kept: %s", error, extra={"event": "addresses.not-kept"})

    def _others(self) -> Addresses:
        core = self._mesh.core
        table: Addresses = {}
        members = [node.node for node in core.state.nodes] if self._seeds else []
        for peer in {*self._addresses, *self._told, *members} - {core.node}:
            everywhere = (*self._told.get(peer, ()), *self._addresses.get(peer, ()), *self._seeds)
            if everywhere:
                table[peer] = tuple(dict.fromkeys(everywhere))
        return table
