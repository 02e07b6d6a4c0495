"""The libp2p wire without sockets: what a handshake, a small message and bulk data cost in bytes and CPU.

CPU time of one core, one process; "per side" is half of what both ends used. Not here: sockets (`transport`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from benchmarks.rows import Row
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.libp2p.connection import Connection, OpenableProtocols
from protocols.libp2p.noise_payload import Identity, make_identity
from protocols.libp2p.upgrade import MUXERS
from protocols.libp2p.yamux_frames import DataReceived

ECHO = "/bench/echo/1"
SERVICES = OpenableProtocols((ECHO,), (ECHO,))
MESSAGE_BYTES = 100
BLOCK_BYTES = 256 * 1024
HANDSHAKES = 300
MESSAGES = 20_000
BULK_MIB = 512


class Seeded:
    """Entropy from a seed."""

    def __init__(self) -> None:
        self._random = random.Random(1)

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


ENTROPY = Seeded()


def identity() -> Identity:
    return make_identity(Ed25519Signer(ENTROPY.random_bytes(32)), ENTROPY, MUXERS)


def connections(ours: Identity, theirs: Identity) -> tuple[Connection, Connection]:
    def one(initiator: bool, who: Identity) -> Connection:
        return Connection(
            initiator=initiator,
            identity=who,
            entropy=ENTROPY,
            verifier=Ed25519Verifier(),
            services=SERVICES,
            now_ms=0,
        )

    return one(True, ours), one(False, theirs)


def settle(a: Connection, b: Connection) -> int:
    """Carry bytes until both are silent; return how many."""
    count = 0
    while True:
        there, back = a.data_to_send(), b.data_to_send()
        if not there and not back:
            return count
        count += len(there) + len(back)
        if there:
            b.receive_data(there, 0)
        if back:
            a.receive_data(back, 0)


def admitted() -> tuple[Connection, Connection, int]:
    a, b = connections(identity(), identity())
    settle(a, b)
    a.admit()
    b.admit()
    stream = a.open_stream(ECHO, 0)
    settle(a, b)
    return a, b, stream


def handshake(count: int) -> Iterator[Row]:
    ours, theirs = identity(), identity()
    sent, began = 0, time.process_time()
    for _ in range(count):
        sent += settle(*connections(ours, theirs))
    cpu_us = (time.process_time() - began) / count / 2 * 1e6
    yield Row("handshake, bytes both ways", sent / count, "bytes", note="multistream, Noise XX, muxer agreed inside")
    yield Row("handshake, CPU per side", round(cpu_us), "us")


def consume(to: Connection, wire: bytes, stream: int) -> int:
    size = 0
    for event in to.receive_data(wire, 0):
        if isinstance(event, DataReceived):
            to.consumed(stream, len(event.data), 0)
            size += len(event.data)
    return size


def messages(count: int) -> Iterator[Row]:
    a, b, stream = admitted()
    body, sent, began = bytes(MESSAGE_BYTES), 0, time.process_time()
    for _ in range(count):
        for sender, receiver in ((a, b), (b, a)):
            sender.send(stream, body)
            wire = sender.data_to_send()
            sent += len(wire)
            consume(receiver, wire, stream)
    cpu_us = (time.process_time() - began) / count / 4 * 1e6
    yield Row("100-byte message on the wire", round(sent / count / 2, 1), "bytes")
    yield Row("100-byte message, CPU per side", round(cpu_us, 1), "us", note="frame, seal and write, or open and read")


def bulk(mib: int) -> Iterator[Row]:
    a, b, stream = admitted()
    block, total = ENTROPY.random_bytes(BLOCK_BYTES), mib * 2**20
    queued = received = wire_bytes = 0
    sending = receiving = 0.0
    while received < total:
        began = time.process_time()
        while queued < total and a.send_room(stream) >= BLOCK_BYTES:
            a.send(stream, block)
            queued += BLOCK_BYTES
        wire = a.data_to_send()
        middle = time.process_time()
        received += consume(b, wire, stream)
        answer = b.data_to_send()
        receiving += time.process_time() - middle
        if answer:
            a.receive_data(answer, 0)
        sending += middle - began
        wire_bytes += len(wire)
    yield Row("bulk, sender's CPU", round(mib / sending), "MiB/s")
    yield Row("bulk, receiver's CPU", round(mib / receiving), "MiB/s")
    yield Row("bulk, bytes on the wire per byte", round(wire_bytes / received, 4), "bytes")


def run(quick: bool) -> Iterator[Row]:
    share = 10 if quick else 1
    yield from handshake(HANDSHAKES // share)
    yield from messages(MESSAGES // share)
    yield from bulk(BULK_MIB // share)
