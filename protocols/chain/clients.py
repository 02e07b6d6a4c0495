"""Commands on their way: what clients of this node and of others asked to have decided, and what became of it.

A command waits here until it is decided, refused for good, or its time is up. A voter proposes it, unless another one
holds promises for the open slot and so needs votes only: that one is asked first. It asks another one too when things
take long: it may itself be the one who reaches no majority. Any other node forwards it to a voter and asks the next one
if that stays silent. "Refused" is said only when no store can have
accepted the command: after it was once proposed in a slot, that slot must be decided first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.chain.context import ChainContext
from protocols.chain.decision import COMMAND_MAX_BYTES, NOOP, material_fits, material_of
from protocols.chain.messages import REQUEST_ID_MAX_BYTES, Answer, Forward, Outcome
from protocols.envelope import digest
from protocols.machine import Digest, PeerId
from protocols.refusal import Refusal

REFUSED_MAX = 256
"""Refusals to other nodes that are remembered: as many as may wait."""
PENDING_MAX = 256
"""Commands waiting at one node; tens are decided per second, so a longer queue only delays the refusal."""
NOT_VOTER = "chain.not-a-voter"
VOTER_PATIENCE = 3
"""How many times `forward_ms` a voter hears no majority before it asks another one, who may reach it."""


@dataclass
class Pending:
    """One command that waits. `origin` is the peer that forwarded it, None for a client of this node."""

    origin: PeerId | None
    request_id: bytes
    command: bytes
    material: tuple[bytes, ...]
    digest: Digest
    deadline_ms: int
    admitted: bool = False
    proposed_slot: int = 0
    declined: Refusal | None = None
    decided_slot: int = 0
    asked: dict[PeerId, bool] = field(default_factory=dict)
    """Voters it was forwarded to, and whether they answered."""
    uncertain: bool = False
    forward_ms: int = 0
    yields_until_ms: int = 0
    """Until when this voter leaves it to the one who holds promises; 0: it proposes it itself."""


class Clients:
    """The queue of one node."""

    def __init__(self, context: ChainContext) -> None:
        self._at = context
        self._pending: dict[tuple[PeerId | None, bytes], Pending] = {}
        self._refused: dict[tuple[PeerId, bytes, Digest], tuple[str, Refusal | None]] = {}
        """What was lately refused to other nodes, so that a request which comes again is not taken up anew."""
        self._due_ms = 0
        """No command needs `tick` before this; 0 after a change."""

    # --- in -----------------------------------------------------------------------------------------------------------

    def submit(
        self, origin: PeerId | None, request_id: bytes, command: bytes, material: tuple[bytes, ...], wait_ms: int = 0
    ) -> None:
        """Take a command; it ends in exactly one answer to `origin`, within `wait_ms` if that is above 0 and shorter."""
        context = self._at
        longest_ms = context.setup.times.submit_ms
        # What a client has given up on only keeps a busy voter from those that still wait.
        deadline_ms = context.now.mono_ms + (min(wait_ms, longest_ms) if wait_ms > 0 else longest_ms)
        pending = Pending(origin, request_id, command, material, digest(command), deadline_ms)
        key = (origin, request_id)
        if key in self._pending:
            return
        problem = self._problem(pending)
        if problem is not None:
            self._tell(pending, "refused", refusal=problem)
            return
        slot = context.ledger.slot_of(pending.digest)
        if slot is not None and command != NOOP:
            self._tell(pending, "decided", slot)
            return
        before = None if origin is None else self._refused.get((origin, request_id, pending.digest))
        if before is not None:
            self._tell(pending, before[0], refusal=before[1])
            return
        if len(self._pending) >= PENDING_MAX:
            # Final only for a client of this node: another node may ask elsewhere, and its request may come here again.
            busy = Refusal("chain.busy", "too many commands wait here; try again")
            self._tell(pending, "refused" if origin is None else "unknown", refusal=busy)
            return
        if origin is not None and not context.takes_part:
            self._tell(pending, "unknown", refusal=Refusal(NOT_VOTER, context.muted or "this node is no voter now"))
            return
        self._pending[key] = pending
        self._due_ms = 0
        pending.forward_ms = context.now.mono_ms + VOTER_PATIENCE * context.setup.times.forward_ms
        if not context.takes_part:
            self._forward(pending)
        elif origin is None and command != NOOP and (holder := context.promise_holder) is not None:
            pending.yields_until_ms = context.now.mono_ms + context.pacer.base_ms
            self._ask(pending, holder)

    def _problem(self, pending: Pending) -> Refusal | None:
        if len(pending.request_id) > REQUEST_ID_MAX_BYTES:
            return Refusal("chain.request-id", f"a request id has at most {REQUEST_ID_MAX_BYTES} bytes")
        if len(pending.command) > COMMAND_MAX_BYTES:
            return Refusal("chain.command-size", f"a command has at most {COMMAND_MAX_BYTES} bytes")
        if not material_fits(pending.material):
            return Refusal("chain.material-size", "there is more evidence than one decision carries")
        return None

    def on_answer(self, peer: PeerId, answer: Answer) -> None:
        """A voter says what became of a forwarded command."""
        for pending in list(self._pending.values()):
            if pending.request_id != answer.request_id or pending.origin is not None or peer not in pending.asked:
                continue
            refusal = Refusal(answer.rule, answer.detail)
            match answer.outcome:
                case "decided":
                    self._end(pending, "decided", answer.slot)
                case "refused" | "superseded" if pending.yields_until_ms:
                    # By that voter's view; this one may propose what only the others must like.
                    del pending.asked[peer]
                    pending.yields_until_ms = 0
                    self._due_ms = 0
                case "refused" | "superseded":
                    pending.asked[peer] = True
                    proposed = pending.proposed_slot == self._at.open_slot
                    if proposed or pending.uncertain or not all(pending.asked.values()):
                        pending.declined = refusal
                    else:
                        self._end(pending, answer.outcome, refusal=refusal)
                case _:
                    pending.asked[peer] = True
                    pending.yields_until_ms = 0
                    pending.uncertain = pending.uncertain or answer.rule != NOT_VOTER
                    pending.forward_ms = min(pending.forward_ms, self._at.now.mono_ms + self._at.pacer.base_ms)
                    self._due_ms = 0

    # --- proposing ----------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether anything here wants the open slot decided: a command to propose, or one whose slot must close."""
        if not self._pending:
            return False
        open_slot = self._at.open_slot
        return any(
            not pending.decided_slot
            and not pending.yields_until_ms
            and (pending.declined is None or pending.proposed_slot == open_slot)
            for pending in self._pending.values()
        )

    def next_decision(self, wall_ms: int) -> tuple[bytes, tuple[bytes, ...]]:
        """Return the fresh decision to propose at `wall_ms`, encoded, and its evidence: a command, or a no-op."""
        context = self._at
        at_ms = max(context.ledger.at_ms, wall_ms)
        for pending in list(self._pending.values()):
            if pending.decided_slot or pending.declined is not None or pending.yields_until_ms:
                continue
            draft = context.ledger.draft(pending.command, pending.material, at_ms)
            if not isinstance(draft, Refusal):
                refusal = self._fresh_refusal(pending, at_ms)
                if refusal is None:
                    pending.admitted = True
                    pending.proposed_slot = context.open_slot
                    return draft, pending.material
                draft = refusal
            if pending.proposed_slot == context.open_slot or pending.asked:
                # A store may have accepted it, or a voter it was forwarded to may still propose it.
                pending.declined = draft
            else:
                self._end(pending, "superseded" if pending.admitted else "refused", refusal=draft)
        noop = context.ledger.draft(NOOP, (), at_ms)
        assert not isinstance(noop, Refusal), "a no-op is always allowed"
        return noop, ()

    def _fresh_refusal(self, pending: Pending, at_ms: int) -> Refusal | None:
        if pending.command == NOOP:
            return None
        context = self._at
        material = material_of(pending.material)
        return context.setup.machine.fresh_refusal(context.ledger.state, pending.command, material, at_ms)

    def on_declined(self, command: bytes, refusal: Refusal) -> None:
        """No majority will vote for this command in the open slot; it is refused once the slot went to another."""
        for pending in self._pending.values():
            if pending.command == command and command != NOOP and pending.proposed_slot == self._at.open_slot:
                pending.declined = refusal

    # --- the chain grew -----------------------------------------------------------------------------------------------

    def on_grown(self) -> None:
        """Settle what the new head settles."""
        context = self._at
        self._due_ms = 0
        head = context.ledger.position.slot
        settled = context.ledger.voters_changed_at < head or head == 0
        for pending in list(self._pending.values()):
            slot = pending.decided_slot or context.ledger.slot_of(pending.digest) or 0
            if pending.command == NOOP and pending.proposed_slot and pending.proposed_slot <= head:
                slot = pending.proposed_slot
            if slot:
                pending.decided_slot = slot
                if settled or slot != context.ledger.voters_changed_at:
                    self._end(pending, "decided", slot)
            elif pending.declined is not None and not pending.asked and pending.proposed_slot <= head:
                self._end(pending, "refused", refusal=pending.declined)
            elif pending.origin is not None and not context.takes_part:
                self._end(pending, "unknown", refusal=Refusal(NOT_VOTER, "this node is no voter any more"))

    def on_muted(self) -> None:
        """This node takes no part as a voter for now, or does again: what waits here finds its way anew."""
        context = self._at
        self._due_ms = 0
        for pending in list(self._pending.values()):
            pending.forward_ms = context.now.mono_ms
            pending.yields_until_ms = 0
            if pending.origin is not None and context.muted and not pending.decided_slot:
                self._end(pending, "unknown", refusal=Refusal(NOT_VOTER, context.muted))

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """End what ran out of time; forward again what nobody answered."""
        context = self._at
        if context.now.mono_ms < self._due_ms:
            return
        for pending in list(self._pending.values()):
            if context.now.mono_ms >= pending.yields_until_ms:
                pending.yields_until_ms = 0
            if context.now.mono_ms >= pending.deadline_ms:
                if pending.decided_slot:
                    self._end(pending, "decided", pending.decided_slot)
                else:
                    self._end(pending, "unknown", refusal=pending.declined)
            elif self._forwards(pending) and context.now.mono_ms >= pending.forward_ms:
                heard_ms = context.majority_ms if context.takes_part else None
                patient_until_ms = 0 if heard_ms is None else heard_ms + VOTER_PATIENCE * context.setup.times.forward_ms
                if context.now.mono_ms < patient_until_ms:
                    # Busy, not cut off: elsewhere it would wait as long, and longer than its client does.
                    pending.forward_ms = patient_until_ms
                else:
                    self._forward(pending)
        self._due_ms = 0

    def deadline_ms(self) -> int | None:
        """When `tick` is next due."""
        if not self._pending:
            return None
        if not self._due_ms:
            self._due_ms = min(due_ms for pending in self._pending.values() for due_ms in self._times(pending))
        return self._due_ms

    def _times(self, pending: Pending) -> tuple[int, ...]:
        forward_ms = pending.forward_ms if self._forwards(pending) else pending.deadline_ms
        return pending.deadline_ms, forward_ms, pending.yields_until_ms or pending.deadline_ms

    def _forwards(self, pending: Pending) -> bool:
        """Whether others may be asked: only for a client of this node, and by a voter only where that can help."""
        if pending.origin is not None or pending.decided_slot:
            return False
        return not self._at.takes_part or pending.command != NOOP

    def _forward(self, pending: Pending) -> None:
        context = self._at
        patience = VOTER_PATIENCE if context.takes_part else 1
        pending.forward_ms = context.now.mono_ms + patience * context.setup.times.forward_ms
        voters = [voter.node for voter in context.ledger.voters if voter.node != context.setup.node]
        if context.takes_part:
            voters = [node for node in voters if node in context.peers]
        if not voters:
            return
        first = int.from_bytes(pending.digest[:4], "big")
        order = [voters[(first + place) % len(voters)] for place in range(len(voters))]
        order.sort(key=lambda node: (node not in context.peers, node in pending.asked))
        self._ask(pending, order[0])

    def _ask(self, pending: Pending, voter: PeerId) -> None:
        pending.asked[voter] = False
        left_ms = max(1, pending.deadline_ms - self._at.now.mono_ms)
        self._at.send(voter, Forward(pending.request_id, pending.command, pending.material, left_ms))

    # --- out ----------------------------------------------------------------------------------------------------------

    def _end(self, pending: Pending, outcome: str, slot: int = 0, refusal: Refusal | None = None) -> None:
        del self._pending[pending.origin, pending.request_id]
        if pending.origin is not None and outcome in ("refused", "superseded"):
            if len(self._refused) >= REFUSED_MAX:
                del self._refused[next(iter(self._refused))]
            self._refused[pending.origin, pending.request_id, pending.digest] = (outcome, refusal)
        self._tell(pending, outcome, slot, refusal)

    def _tell(self, pending: Pending, outcome: str, slot: int = 0, refusal: Refusal | None = None) -> None:
        rule, detail = (refusal.rule, refusal.detail) if refusal is not None else ("", "")
        if pending.origin is None:
            self._at.notify(Outcome(pending.request_id, outcome, slot, rule, detail))
        else:
            self._at.send(pending.origin, Answer(pending.request_id, outcome, slot, rule, detail))
