"""Two connections back to back, with seeded randomness, for the tests of protocols/libp2p. Not a test."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.libp2p.connection import Connection, ConnectionEvent, OpenableProtocols
from protocols.libp2p.noise_payload import Identity, make_identity
from protocols.libp2p.upgrade import MUXERS
from protocols.libp2p.yamux_frames import Ponged

SERVICES = OpenableProtocols(probation=("/hello",), admitted=("/hello", "/echo", "/control"), held=("/control",))


class SeededEntropy:
    """Entropy from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


def identity(seed: int, muxers: tuple[str, ...] = MUXERS) -> Identity:
    return make_identity(Ed25519Signer(bytes([seed]) * 32), SeededEntropy(seed), muxers)


def connection(*, initiator: bool, seed: int, muxers: tuple[str, ...] = MUXERS, **settings: object) -> Connection:
    return Connection(
        initiator=initiator,
        identity=identity(seed, muxers),
        entropy=SeededEntropy(seed + 100),
        verifier=Ed25519Verifier(),
        services=SERVICES,
        now_ms=0,
        **settings,  # type: ignore[arg-type]
    )


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@dataclass
class Pair:
    """A dialler and a listener; `run` carries bytes both ways until neither has any, in pieces of `chunk` bytes."""

    dialler: Connection = field(default_factory=lambda: connection(initiator=True, seed=1))
    listener: Connection = field(default_factory=lambda: connection(initiator=False, seed=2))
    chunk: int = 1 << 20
    now_ms: int = 0
    pongs: int = 0
    dialler_events: list[ConnectionEvent] = field(default_factory=list)
    listener_events: list[ConnectionEvent] = field(default_factory=list)

    def run(self) -> None:
        while True:
            there, back = self.dialler.data_to_send(), self.listener.data_to_send()
            if not there and not back:
                return
            for piece in pieces(there, self.chunk):
                self._hear(self.listener.receive_data(piece, self.now_ms), self.listener_events)
            for piece in pieces(back, self.chunk):
                self._hear(self.dialler.receive_data(piece, self.now_ms), self.dialler_events)

    def _hear(self, events: list[ConnectionEvent], heard: list[ConnectionEvent]) -> None:
        # Pongs come whenever a side pinged; only their number is of interest.
        self.pongs += sum(isinstance(event, Ponged) for event in events)
        heard += [event for event in events if not isinstance(event, Ponged)]

    def admitted(self) -> Pair:
        """Finish the upgrade and admit both sides."""
        self.run()
        self.dialler.admit()
        self.listener.admit()
        self.dialler_events.clear()
        self.listener_events.clear()
        return self
