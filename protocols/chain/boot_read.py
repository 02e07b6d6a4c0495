"""The boot read: before a store that may have been rolled back speaks, it learns what it may have said.

After a reboot or a restore, database and fence may both be old, and agree. So the voter asks the others, and waits for
n - majority + 1 of them: they meet every majority it ever took part in. Whoever answers promises the asker's ballot,
so nothing the forgotten life voted for can still complete, and sets a floor under the asker's counter, so nothing it
promised can still be used; the asker takes over the highest decision found. If one was found, its slot may already be
decided and the forgotten life may have spoken in the next one: that slot needs a boot read too. Voters that are
themselves waiting do answer, from disk: after a power cut everybody is waiting. A sole voter has nobody to ask, which
is a stated limit. So is this: fewer answers than that are never enough, because what the forgotten life voted for may
have been decided with just the one that is silent. Of three voters, when one is dead, another that reboots therefore
waits until the dead one returns or the mesh is reset; the mutant boot-read-of-one forks the chain.
"""

from __future__ import annotations

from protocols.chain.ballots import Ballot
from protocols.chain.context import ChainContext
from protocols.chain.fence import BOOT_LEAP
from protocols.chain.messages import BootAnswer, BootRead
from protocols.chain.quorum import boot_quorum, voter_of
from protocols.envelope import digest
from protocols.machine import PeerId

LEAP_DOUBLINGS_MAX = 16


class Recovery:
    """One node's boot read."""

    def __init__(self, context: ChainContext) -> None:
        self._at = context
        self._ballot: Ballot | None = None
        self._floor = 0
        self._answers: dict[PeerId, BootAnswer] = {}
        self._due_ms = 0
        self._attempts = 0

    @property
    def _needed(self) -> bool:
        context = self._at
        return context.takes_part and not context.recovered and not context.stalled

    def tick(self) -> None:
        """Ask the other voters, again with a higher ballot when too few answered."""
        context = self._at
        if not self._needed or context.now.mono_ms < self._due_ms:
            return
        if len(context.ledger.voters) == 1:
            context.out += context.acceptor.recover(context.promised_above(), context.acceptor.record.counter, None, ())
            context.recovered_slot = context.open_slot
            return
        # The leap doubles, so that proposers and other boot reads, which count by one, cannot outrun it for long.
        self._ballot = context.promised_above(1 << min(self._attempts, LEAP_DOUBLINGS_MAX))
        context.saw(self._ballot)
        self._floor = context.acceptor.record.counter + BOOT_LEAP
        self._answers = {}
        wait_ms = context.pacer.base_ms * 2 ** min(self._attempts, 6) * context.setup.entropy.uniform(1.0, 2.0)
        self._due_ms = context.now.mono_ms + min(int(wait_ms), context.setup.times.retry_max_ms)
        self._attempts += 1
        store_id = context.acceptor.record.store_id
        context.to_other_voters(
            BootRead(context.open_slot, self._ballot, store_id, self._floor, context.ledger.position)
        )

    def on_answer(self, peer: PeerId, answer: BootAnswer) -> None:
        """Count a voter's answer; with enough of them, speak again."""
        context = self._at
        if not self._needed or answer.ballot != self._ballot or answer.slot != context.open_slot:
            return
        if voter_of(context.ledger.voters, peer) is None:
            context.reject(peer, "chain.not-a-voter")
            return
        accepted = answer.accepted
        if accepted is not None:
            problem = context.accepted_problem(accepted, (accepted.ballot, digest(accepted.decision)))
            if problem:
                context.reject(peer, "chain.promise-incomplete", problem)
                return
        self._answers[peer] = answer
        if len(self._answers) < boot_quorum(len(context.ledger.voters)):
            return
        told = [answer.accepted for answer in self._answers.values() if answer.accepted is not None]
        highest = max(told, key=lambda accepted: accepted.ballot, default=None)
        floors = tuple(pair for answer in self._answers.values() for pair in answer.floors)
        context.out += context.acceptor.recover(self._ballot, self._floor, highest, floors)
        context.recovered_slot = context.open_slot
        self._ballot = None
        self._attempts = 0

    def on_grown(self) -> None:
        """The slot moved on: what was asked no longer matters."""
        self._ballot = None
        self._attempts = 0
        self._due_ms = self._at.now.mono_ms

    def deadline_ms(self) -> int | None:
        """When `tick` is next due."""
        return self._due_ms if self._needed else None
