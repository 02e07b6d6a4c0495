"""When to try again: back-off for attempts on a slot, from measured round trips, with jitter and a preference.

A fixed retry time live-locks proposers on slow links, so the wait doubles, is drawn at random, and one proposer per
slot is preferred (rendezvous hash); the others stand back by rank. Not here: what an attempt does (proposer.py).

Source: D. Ongaro, J. Ousterhout, "In Search of an Understandable Consensus Algorithm" (2014), section 9.3, on
randomised retries; the doubling is Ethernet's (R. Metcalfe, D. Boggs, 1976).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from protocols.machine import Entropy

SAMPLES_MAX = 64
DOUBLINGS_MAX = 16


@dataclass(frozen=True, slots=True)
class ChainTimes:
    """Every duration of the chain, in ms; `scaled` makes a quicker set for simulations and tests.

    `retry_min_ms` and `retry_max_ms` bound the wait between attempts; `stagger_ms` is what each rank adds.
    `submit_ms` is how long a client waits for an outcome. `forward_ms` is when a forwarded command tries another voter.
    `fetch_ms` is when a fetch asks someone else. `gossip_ms` is between heads told to a random peer. `ready_ms` is
    between a candidate's `Ready` messages, `growth_ms` how long a node must have been connected before it may vote.
    `stand_by_ms` is how long promises are held for a command that may come: clocks drift, and they date the decision.
    """

    retry_min_ms: int = 300
    retry_max_ms: int = 30_000
    stagger_ms: int = 50
    submit_ms: int = 30_000
    forward_ms: int = 2_000
    fetch_ms: int = 1_000
    gossip_ms: int = 10_000
    ready_ms: int = 10_000
    growth_ms: int = 60_000
    stand_by_ms: int = 60_000

    def scaled(self, divisor: int) -> ChainTimes:
        """Return the slow timers divided; those bound by the network's delay stay."""
        return ChainTimes(
            retry_max_ms=max(self.retry_min_ms, self.retry_max_ms // divisor),
            submit_ms=self.submit_ms // divisor,
            gossip_ms=self.gossip_ms // divisor,
            ready_ms=self.ready_ms // divisor,
            growth_ms=self.growth_ms // divisor,
        )


class Pacer:
    """Decides when the next attempt on the open slot may start."""

    def __init__(self, times: ChainTimes, entropy: Entropy) -> None:
        self._times = times
        self._entropy = entropy
        self._samples: deque[int] = deque(maxlen=SAMPLES_MAX)
        self._slowest_ms = 0
        self.attempts = 0
        self.next_ms = 0
        self._crowded_until_ms = 0
        self.network_ms = 0
        """A pessimistic round trip that somebody else measured; 0 if nobody did."""

    @property
    def base_ms(self) -> int:
        """max(retry_min, 4 x the slowest of the recent round trips); with 64 samples that is their p99."""
        return max(self._times.retry_min_ms, 4 * self._slowest_ms, 4 * self.network_ms)

    def sample(self, rtt_ms: int) -> None:
        """Take one measured round trip, fsync included."""
        self._samples.append(rtt_ms)
        self._slowest_ms = max(self._samples)

    def crowd(self, now_ms: int) -> None:
        """Another proposer is at work: stand back by rank for a while."""
        self._crowded_until_ms = now_ms + 8 * self.base_ms

    def open_slot(self, now_ms: int, rank: int) -> None:
        """A new slot opened: start at once, or by rank when proposers were seen to collide."""
        self.attempts = 0
        self.next_ms = now_ms + (rank * self._times.stagger_ms if now_ms < self._crowded_until_ms else 0)

    def start_attempt(self, now_ms: int, rank: int) -> None:
        """An attempt starts: the next one may follow when this one had its time."""
        wait_ms = self.base_ms * 2 ** min(self.attempts, DOUBLINGS_MAX) * self._entropy.uniform(1.0, 2.0)
        self.next_ms = now_ms + min(int(wait_ms), self._times.retry_max_ms) + rank * self._times.stagger_ms
        self.attempts += 1

    def forestalled(self, now_ms: int, rank: int) -> None:
        """A ballot was in the way, of a proposer that may only stand by: try once more soon, and wait after that.

        By rank, a round trip apart: those who were forestalled together would stand in each other's way again.
        """
        if self.attempts <= 1:
            self.next_ms = min(self.next_ms, now_ms + rank * max(self._times.stagger_ms, self.base_ms // 4))

    def hurry(self, now_ms: int, rank: int) -> None:
        """The network changed for the better: forget the doubling."""
        self.attempts = 0
        self.next_ms = min(self.next_ms, now_ms + self.base_ms + rank * self._times.stagger_ms)
