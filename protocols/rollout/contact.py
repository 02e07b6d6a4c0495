"""Contact: whether this node has lately heard a majority of the voters, asked for while it runs a candidate.

A round asks every voter; answers of a majority of them to one round are contact. Not here: what a lonely node does
about it (agent.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.chain.decision import Voter
from protocols.machine import Effect, Now, PeerId, Send
from protocols.rollout.orders import VoterProbe

PROBES_PER_TTL = 3
"""Rounds within the shortest time to live, or a candidate in good contact would be taken for a lonely one."""


class MajorityContact:
    """One node's rounds. `since_ms` is when a majority was last heard, or watching began (monotonic)."""

    def __init__(self, me: PeerId) -> None:
        self.since_ms = 0
        self._me = me
        self._number = 0
        self._asked_ms: int | None = None
        self._answered: set[PeerId] = set()

    def ask(self, voters: Sequence[Voter], me: Voter | None, every_ms: int, now: Now) -> list[Effect]:
        """Begin a round if one is due; `me` is this node's own store, if it has one."""
        if self._asked_ms is not None and now.mono_ms - self._asked_ms < every_ms:
            return []
        self._asked_ms = now.mono_ms
        self._number += 1
        self._answered = set()
        if me in voters:
            self._count(self._me, voters, now)
        return [Send(voter.node, VoterProbe(self._number)) for voter in voters if voter.node != self._me]

    def answered(self, peer: PeerId, number: int, voters: Sequence[Voter], now: Now) -> None:
        """Count a voter's answer to the round under way."""
        if number == self._number:
            self._count(peer, voters, now)

    def _count(self, peer: PeerId, voters: Sequence[Voter], now: Now) -> None:
        if any(voter.node == peer for voter in voters):
            self._answered.add(peer)
        if len(self._answered) > len(voters) // 2:
            self.since_ms = now.mono_ms
