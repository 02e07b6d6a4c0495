"""Linearizable reads: learn how far the chain had gone when the read began, then wait until this node is there.

Every operation that returned before the read began was accepted by a majority; any majority of the voters therefore
holds one that either stored that slot or accepted it above its head. The highest such slot among a majority's answers
is where the read must wait; if it is only accepted, it is completed first. When the voters changed on the way, the new
ones are asked too. Not here: what is read (the node reads `Chain.state` when told).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.chain.context import ChainContext
from protocols.chain.decision import NOOP, Voter
from protocols.chain.messages import Forward, Probe, Probed, ReadDone
from protocols.chain.quorum import majority, voter_of
from protocols.machine import PeerId

READS_MAX = 256
NONCE_BYTES = 8


@dataclass
class _Reading:
    request_id: bytes
    deadline_ms: int
    nonce: bytes = b""
    voters: tuple[Voter, ...] = ()
    answers: dict[PeerId, int] = field(default_factory=dict)
    target_slot: int | None = None
    retry_ms: int = 0


class Reads:
    """The reads under way at one node."""

    def __init__(self, context: ChainContext) -> None:
        self._at = context
        self._readings: dict[bytes, _Reading] = {}

    def start(self, request_id: bytes) -> None:
        """Begin a read."""
        context = self._at
        if request_id in self._readings:
            return
        if len(self._readings) >= READS_MAX:
            context.notify(ReadDone(request_id, -1))
            return
        reading = _Reading(request_id, context.now.mono_ms + context.setup.times.submit_ms)
        self._readings[request_id] = reading
        self._ask(reading)

    def _ask(self, reading: _Reading) -> None:
        context = self._at
        reading.nonce = context.setup.entropy.random_bytes(NONCE_BYTES)
        reading.voters = context.ledger.voters
        reading.answers = {}
        reading.target_slot = None
        reading.retry_ms = context.now.mono_ms + context.pacer.base_ms
        if context.speaking:
            self._count(
                reading, context.setup.node, context.ledger.position.slot, context.acceptor.accepted is not None
            )
        if reading.request_id in self._readings:
            context.to_other_voters(Probe(reading.nonce, context.ledger.position))

    def on_probed(self, peer: PeerId, answer: Probed) -> None:
        """Count a voter's answer."""
        for reading in list(self._readings.values()):
            if reading.nonce == answer.nonce and voter_of(reading.voters, peer) is not None:
                self._count(reading, peer, answer.position.slot, answer.accepted)

    def _count(self, reading: _Reading, peer: PeerId, head: int, accepted: bool) -> None:
        if reading.target_slot is not None:
            return
        reading.answers[peer] = head + accepted
        if len(reading.answers) >= majority(len(reading.voters)):
            reading.target_slot = max(reading.answers.values())
            self._settle(reading)

    def _settle(self, reading: _Reading) -> None:
        context = self._at
        if reading.target_slot is None:
            return
        if context.ledger.position.slot < reading.target_slot:
            if reading.target_slot == context.open_slot:
                self._complete(reading)
            return
        if context.ledger.voters != reading.voters:
            self._ask(reading)
            return
        del self._readings[reading.request_id]
        context.notify(ReadDone(reading.request_id, context.ledger.position.slot))

    def _complete(self, reading: _Reading) -> None:
        context = self._at
        if context.speaking:
            context.completion_slot = context.open_slot
            return
        holders = [node for node, slot in reading.answers.items() if slot == reading.target_slot]
        context.send(holders[0], Forward(reading.nonce, NOOP, ()))

    def on_grown(self) -> None:
        """Finish what waited for this head."""
        for reading in list(self._readings.values()):
            self._settle(reading)

    def tick(self) -> None:
        """Ask again, or give up."""
        now_ms = self._at.now.mono_ms
        for reading in list(self._readings.values()):
            if now_ms >= reading.deadline_ms:
                del self._readings[reading.request_id]
                self._at.notify(ReadDone(reading.request_id, -1))
            elif now_ms >= reading.retry_ms:
                reading.retry_ms = now_ms + self._at.pacer.base_ms
                if reading.target_slot is None:
                    self._ask(reading)
                else:
                    self._settle(reading)

    def deadline_ms(self) -> int | None:
        """When `tick` is next due."""
        return min((min(r.deadline_ms, r.retry_ms) for r in self._readings.values()), default=None)
