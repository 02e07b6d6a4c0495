"""Voters come and go: nodes say which store they could vote with, and a voter proposes the set that policy wants.

Automatic are growth (1 to 3 to 5 to 7, up to the policy's target), the replacement of a revoked voter, and of a store
that its own node has lost; whether the state machine lets a change happen without a person is its own decision. Not
here: the checks on a reconfiguration (the state machine's), and who may be a voter (policy).
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.chain.ballots import key_of
from protocols.chain.context import ChainContext
from protocols.chain.decision import VOTER_COUNTS, VOTER_READY_DOMAIN, Voter, VoterReady
from protocols.chain.messages import Ready
from protocols.chain.quorum import majority
from protocols.envelope import DecodeError, Signed, decode, open_signed, sign
from protocols.machine import PeerId

READY_MAX = 64
"""Candidates remembered: twice the nodes of the largest mesh."""


@dataclass(frozen=True)
class _Candidate:
    signed: Signed
    ready: VoterReady
    heard_ms: int


class Growing:
    """One node's part in the change of voters."""

    def __init__(self, context: ChainContext) -> None:
        self._at = context
        self._ready: dict[PeerId, _Candidate] = {}
        self._since_ms: dict[PeerId, int] = {}
        self._say_due_ms = 0
        self._plan_due_ms = 0

    # --- candidates ---------------------------------------------------------------------------------------------------

    def statement(self) -> Signed:
        """Return this node's signed readiness to vote with the store it has now."""
        context = self._at
        head = context.ledger.position
        ready = VoterReady(context.setup.node, context.acceptor.record.store_id, head.era, head.slot)
        return sign(context.setup.signer, VOTER_READY_DOMAIN, context.setup.mesh, ready)

    def candidates(self) -> tuple[tuple[VoterReady, Signed], ...]:
        """Return the newest readiness of every node heard, this node's own among them."""
        own = self.statement()
        mine: VoterReady = decode(own.payload, VoterReady)
        return (*((candidate.ready, candidate.signed) for candidate in self._ready.values()), (mine, own))

    def on_ready(self, peer: PeerId, message: Ready) -> None:
        """A node says which store it could vote with."""
        context = self._at
        try:
            ready: VoterReady = open_signed(
                context.setup.verifier, VOTER_READY_DOMAIN, context.setup.mesh, message.ready, VoterReady
            )
        except DecodeError as error:
            context.reject(peer, "chain.ready-malformed", str(error))
            return
        if ready.node != peer or message.ready.key != key_of(peer):
            context.reject(peer, "chain.ready-of-another")
            return
        if peer in self._ready or len(self._ready) < READY_MAX:
            self._ready[peer] = _Candidate(message.ready, ready, context.now.mono_ms)

    def on_connected(self, peer: PeerId) -> None:
        """A peer is up from now on, and may want to hear that this node could vote."""
        self._since_ms.setdefault(peer, self._at.now.mono_ms)
        self._say_due_ms = min(self._say_due_ms, self._at.now.mono_ms + self._at.pacer.base_ms)

    def on_disconnected(self, peer: PeerId) -> None:
        """A peer is gone."""
        self._since_ms.pop(peer, None)
        self._ready.pop(peer, None)

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> tuple[bytes, tuple[bytes, ...]] | None:
        """Say that this node is ready, or return the reconfiguration that is due, with its evidence."""
        context = self._at
        now_ms = context.now.mono_ms
        if now_ms >= self._say_due_ms:
            self._say_due_ms = now_ms + context.setup.times.ready_ms
            growth = context.setup.machine.growth(context.ledger.state)
            if (
                not context.muted
                and context.setup.node in growth.candidates
                and (not context.is_voter or len(context.ledger.voters) < growth.target)
            ):
                context.to_other_voters(Ready(self.statement()))
        if now_ms < self._plan_due_ms:
            return None
        self._plan_due_ms = now_ms + context.setup.times.ready_ms + context.my_rank * context.setup.times.ready_ms
        if not context.speaking:
            return None
        wanted = self._plan()
        if wanted is None:
            return None
        names = [voter.node for voter in wanted]
        signed = tuple(signed for ready, signed in self.candidates() if ready.node in names)
        return context.setup.machine.reconfigure(context.ledger.state, wanted, signed)

    def deadline_ms(self) -> int | None:
        """When `tick` is next due; a sole voter without peers has nobody to grow with."""
        return min(self._say_due_ms, self._plan_due_ms) if self._at.peers else None

    def _plan(self) -> tuple[Voter, ...] | None:
        """Return the voters that should be, or None if those that are will do."""
        context = self._at
        growth = context.setup.machine.growth(context.ledger.state)
        present = context.ledger.voters
        revoked = context.setup.is_revoked
        stores = {node: candidate.ready.store_id for node, candidate in self._ready.items()}
        voters = [
            Voter(voter.node, stores.get(voter.node, voter.store_id)) for voter in present if not revoked(voter.node)
        ]
        names = {voter.node for voter in voters}
        spare = [
            Voter(node, stores[node])
            for node in growth.candidates
            if node in stores and node not in names and not revoked(node) and self._long_up(node)
        ]
        size = max(count for count in VOTER_COUNTS if count <= max(min(growth.target, len(voters) + len(spare)), 1))
        wanted = tuple(sorted((voters + spare)[:size]))
        if size < len(present) or wanted == present:
            return None
        ready = sum(voter.node in stores or voter == context.acceptor.voter for voter in wanted)
        return wanted if ready >= majority(len(wanted)) else None

    def _long_up(self, node: PeerId) -> bool:
        since_ms = self._since_ms.get(node)
        return since_ms is not None and self._at.now.mono_ms - since_ms >= self._at.setup.times.growth_ms
