"""Following the chain: catch-up in both directions, heads told to peers, entries checked and stored, resets obeyed.

Whoever is behind is sent what follows, in bounded batches; whoever is ahead is asked. The node that decided an entry
tells everybody it is connected to, whoever hears of it a few random peers that were not told; every so often one random
peer is told anyway, so that nobody stays behind for want of news. Nothing here assumes a connection to everyone. Not
here: deciding.
"""

from __future__ import annotations

from protocols.chain.ballots import Statement
from protocols.chain.context import ChainContext
from protocols.chain.decision import Decided, Decision, Entry, ResetTo, Voter
from protocols.chain.ledger import DECISION_MAX_BYTES, RULES_UNSUPPORTED, entry_problem
from protocols.chain.messages import BATCH_ENTRIES_MAX, Commit, Entries, EraChanged, Fetch, Head, Position
from protocols.chain.witness import Witness
from protocols.envelope import DecodeError, decode, digest
from protocols.machine import Broadcast, Digest, PeerId
from protocols.refusal import Refusal

FANOUT = 4
"""Peers told of a new head by whoever learns it: log2 of the nodes and a little, so that a flood reaches everyone."""
COMPARED_MAX = 256
"""Entries of other chains remembered as looked at: four batches, so that a long fork is gone through once."""


class Follower:
    """One node's catch-up."""

    def __init__(self, context: ChainContext) -> None:
        self._at = context
        self._heads: dict[PeerId, Position] = {}
        self._fetching_from: PeerId | None = None
        self._fetch_due_ms = 0
        self._gossip_due_ms: int | None = None
        self._compared: set[Digest] = set()
        """Other entries than ours that were looked at already."""
        self._look_back_due_ms = 0

    # --- positions ----------------------------------------------------------------------------------------------------

    def level_with(self, peer: PeerId, theirs: Position) -> bool:
        """Return whether a peer's head is ours; help it if it is behind, fetch from it if it is ahead."""
        context = self._at
        mine = context.ledger.position
        self._note(peer, theirs)
        if (theirs.era, theirs.slot, theirs.digest) == (mine.era, mine.slot, mine.digest):
            return True
        batch = context.ledger.batch_after(theirs)
        if batch is not None:
            context.send(peer, batch)
        elif self._ahead(theirs):
            self.fetch(peer)
        elif theirs.slot == mine.slot and theirs.era == mine.era:
            context.reject(peer, "chain.fork", f"another entry at slot {theirs.slot} of this era")
            # Two certificates for one slot: somebody signed both sides, and either entry helps the other find out who.
            context.send(peer, Commit(mine.slot, context.ledger.entry(mine.slot), mine))
        return False

    def _ahead(self, theirs: Position) -> bool:
        mine = self._at.ledger.position
        return (theirs.resets, theirs.slot) > (mine.resets, mine.slot)

    def _note(self, peer: PeerId, theirs: Position) -> None:
        if peer in self._at.peers:
            self._heads[peer] = theirs

    def fetch(self, peer: PeerId) -> None:
        """Ask a peer for what follows our head, unless somebody else is being asked."""
        context = self._at
        if context.stalled or (self._fetching_from is not None and context.now.mono_ms < self._fetch_due_ms):
            return
        self._fetching_from = peer
        self._fetch_due_ms = context.now.mono_ms + context.setup.times.fetch_ms
        context.send(peer, Fetch(context.ledger.position))

    # --- messages -----------------------------------------------------------------------------------------------------

    def on_head(self, peer: PeerId, message: Head) -> None:
        """A peer says where its chain ends."""
        self.level_with(peer, message.position)

    def on_fetch(self, peer: PeerId, message: Fetch) -> None:
        """A peer wants what follows its head."""
        self._note(peer, message.position)
        batch = self._at.ledger.batch_after(message.position)
        if batch is not None:
            self._at.send(peer, batch)

    def on_entries(self, peer: PeerId, message: Entries) -> None:
        """Entries in order; store those that extend our chain."""
        if peer == self._fetching_from:
            self._fetching_from = None
        self._note(peer, message.head)
        for place, entry in enumerate(message.entries):
            if not self._take(peer, message.first_slot + place, entry):
                return
        if self._ahead(message.head):
            self.fetch(peer)

    def on_commit(self, peer: PeerId, message: Commit) -> None:
        """One entry was decided."""
        self._note(peer, message.head)
        if message.slot <= self._at.open_slot:
            self._take(peer, message.slot, message.entry, message.told)
        elif self._ahead(message.head):
            self.fetch(peer)

    # --- forks --------------------------------------------------------------------------------------------------------

    def _compare(self, peer: PeerId, slot: int, entry: Decided) -> None:
        """Look for who lied when another entry than ours is proven for a slot we hold.

        Between them two entries hold every statement a proof can need (grounds.py), but only at the slot where the
        chains part: behind it both sides may be honest, so the peer is asked for what came before.
        """
        context = self._at
        setup, ledger, certificate = context.setup, context.ledger, entry.certificate
        theirs = digest(entry.decision)
        if slot <= ledger.era_slot or theirs == ledger.digest_at(slot) or theirs in self._compared:
            return
        if (certificate.era, certificate.slot) != (ledger.position.era, slot):
            return
        problem = entry_problem(setup.verifier, setup.mesh, ledger.voters_at(slot), entry)
        if problem:
            context.reject(peer, "chain.certificate", problem)
            return
        context.reject(peer, "chain.fork", f"another entry at slot {slot} of this era")
        if len(self._compared) >= COMPARED_MAX:
            self._compared.clear()
        self._compared.add(theirs)
        mine = ledger.entry(slot)
        assert isinstance(mine, Decided)
        proof = Witness().see_all((*_statements(mine), *_statements(entry)))
        if proof is not None:
            context.accuse(proof)
        else:
            self._look_back(peer, slot, entry)

    def _look_back(self, peer: PeerId, slot: int, entry: Decided) -> None:
        """Ask a peer whose entry does not follow ours for the entries before it: the chains parted earlier."""
        context = self._at
        before = slot - 1
        try:
            decision: Decision = decode(entry.decision, Decision, DECISION_MAX_BYTES)
        except DecodeError:
            return
        if before <= context.ledger.era_slot or decision.prev in (context.ledger.digest_at(before), *self._compared):
            return
        if context.now.mono_ms < self._look_back_due_ms:
            return
        self._look_back_due_ms = context.now.mono_ms + context.setup.times.fetch_ms
        first = max(context.ledger.era_slot + 1, slot - BATCH_ENTRIES_MAX)
        context.send(peer, Fetch(context.ledger.position_at(first - 1)))

    def _take(self, peer: PeerId, slot: int, entry: Entry, told: tuple[PeerId, ...] = ()) -> bool:
        """Store one entry if it extends our chain, and tell who was not told; return whether the next one may be tried."""
        context = self._at
        match entry:
            case ResetTo():
                return self.take_reset(peer, entry)
            case Decided():
                if slot < context.open_slot:
                    self._compare(peer, slot, entry)
                    return True
                if slot > context.open_slot or context.stalled:
                    return False
                judged = context.ledger.check(entry)
                if isinstance(judged, Refusal):
                    if judged.rule == RULES_UNSUPPORTED:
                        context.stall(slot, judged.detail)
                    else:
                        context.reject(peer, judged.rule, judged.detail)
                        self._look_back(peer, slot, entry)
                    return False
                proof = context.witness.see_all(entry.certificate.statements())
                context.store(entry, judged)
                if proof is not None:
                    context.accuse(proof)
                self._spread(peer, told)
                return True

    def take_reset(self, peer: PeerId | None, entry: ResetTo) -> bool:
        """Obey a reset that is signed as its mesh demands; return whether it is (now) in force."""
        context = self._at
        reset = context.ledger.check_reset(entry)
        if isinstance(reset, Refusal):
            beaten = reset.rule == "chain.reset-beaten"
            if peer is not None and not beaten:
                context.reject(peer, reset.rule, reset.detail)
            return beaten
        context.begin_era(context.ledger.reset(entry, reset), EraChanged(context.ledger.position.era, reset.slot - 1))
        self._spread(peer)
        return True

    # --- telling ------------------------------------------------------------------------------------------------------

    def on_connected(self, peer: PeerId) -> None:
        """Tell a new peer where our chain ends."""
        self._at.send(peer, Head(self._at.ledger.position))

    def on_disconnected(self, peer: PeerId) -> None:
        """Forget what a peer said."""
        self._heads.pop(peer, None)
        if self._fetching_from == peer:
            self._fetching_from = None

    def announce(self, entry: Decided, voters: tuple[Voter, ...]) -> None:
        """This node decided `entry`: send it to the voters of its slot and of the next, the head to everybody else."""
        context = self._at
        head = context.ledger.position
        told = [voter.node for voter in voters]
        told += [voter.node for voter in context.ledger.voters if voter.node not in told]
        for node in told:
            if node != context.setup.node:
                context.send(node, Commit(head.slot, entry, head, tuple(context.peers)))
        context.out.append(Broadcast(Head(head), tuple(told)))

    def _spread(self, source: PeerId | None, told: tuple[PeerId, ...] = ()) -> None:
        context = self._at
        head = context.ledger.position
        behind = [
            peer
            for peer in context.peers
            if peer != source
            and peer not in told
            and (known := self._heads.get(peer)) is not None
            and known.slot < head.slot
        ]
        for _ in range(min(FANOUT, len(behind))):
            context.send(behind.pop(int(context.setup.entropy.uniform(0, len(behind)))), Head(head))

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Fetch elsewhere if nobody answered; tell one random peer our head."""
        context = self._at
        if self._fetching_from is not None and context.now.mono_ms >= self._fetch_due_ms:
            late = self._fetching_from
            self._fetching_from = None
            ahead = [peer for peer, head in self._heads.items() if self._ahead(head)]
            others = [peer for peer in ahead if peer != late] or ahead
            if others:
                self.fetch(others[int(context.setup.entropy.uniform(0, len(others)))])
        if self._gossip_due_ms is None or context.now.mono_ms >= self._gossip_due_ms:
            gossip_ms = context.setup.times.gossip_ms
            self._gossip_due_ms = context.now.mono_ms + int(gossip_ms * context.setup.entropy.uniform(0.75, 1.25))
            peers = list(context.peers)
            if peers:
                context.send(peers[int(context.setup.entropy.uniform(0, len(peers)))], Head(context.ledger.position))

    def deadline_ms(self) -> int | None:
        """When `tick` is next due."""
        due = [] if self._gossip_due_ms is None else [self._gossip_due_ms]
        if self._fetching_from is not None:
            due.append(self._fetch_due_ms)
        return min(due, default=0)


def _statements(entry: Decided) -> tuple[Statement, ...]:
    """Return everything that voters signed to bring an entry about."""
    return (*entry.certificate.statements(), *(promise for promises in entry.grounds for promise in promises))
