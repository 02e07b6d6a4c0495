"""The two phases of a slot, from both sides: opening ballots, promising, proposing, voting, deciding.

Order of effects is the safety argument: what a promise or vote says is in the vote database, then in the fence, and
only then in a message; a decision is durable before anybody hears of it. A proposal is judged in full by every voter:
what all nodes must agree on always, what depends on this voter's clock and view only when the decision is fresh, so
that an adopted one can always be finished. Not here: catch-up (follower.py), clients (clients.py), boot reads.

Source: L. Lamport, "Paxos Made Simple" (2001), section 2.2; docs/concepts/protocol.md section 4, steps 1 to 6.
"""

from __future__ import annotations

from protocols.chain.ballots import NO_BALLOT, ROUND_MAX, Promise, Proposal, Vote, sign_statement, statement_holds
from protocols.chain.clients import Clients
from protocols.chain.context import ChainContext
from protocols.chain.decision import CLOCK_TOLERANCE_MS, Decided, Voter, material_of, voters_digest
from protocols.chain.follower import Follower
from protocols.chain.grounds import adopted, built_on, grounds_problem
from protocols.chain.ledger import Judged
from protocols.chain.messages import (
    BootAnswer,
    BootRead,
    Declined,
    Nack,
    Prepare,
    Promised,
    Propose,
    Voted,
)
from protocols.chain.proposer import Attempt
from protocols.chain.quorum import voter_of
from protocols.envelope import digest
from protocols.machine import Effect, Now, PeerId
from protocols.refusal import Refusal


class Voting:
    """One node's voting and proposing."""

    def __init__(self, context: ChainContext, follower: Follower, clients: Clients) -> None:
        self._at = context
        self._follower = follower
        self._clients = clients
        self._attempt: Attempt | None = None
        self._accepted_ms = 0
        self._may_stand_by = False

    # --- when to propose ----------------------------------------------------------------------------------------------

    def start_due_ms(self) -> int | None:
        """When this node should open a ballot, or None if nothing waits to be decided."""
        context = self._at
        if not context.speaking:
            return None
        if self._wanted:
            attempt = self._attempt
            if attempt is not None and attempt.stands_by and not attempt.is_promised:
                return max(context.pacer.next_ms, attempt.started_ms + context.pacer.base_ms)
            return context.pacer.next_ms
        base_ms = context.pacer.base_ms
        if context.acceptor.accepted is not None:
            # Its proposer has the first turn; whoever is next in rank finishes what it left behind.
            return max(context.pacer.next_ms, self._accepted_ms + base_ms * (2 + context.my_rank))
        if context.ledger.voters_changed_at and context.ledger.voters_changed_at == context.ledger.position.slot:
            return context.pacer.next_ms + base_ms * context.my_rank
        return None

    @property
    def _wanted(self) -> bool:
        """Whether a command or a read waits for the open slot."""
        return self._clients.waiting or self._at.completion_slot == self._at.open_slot

    def tick(self) -> None:
        """Open a ballot if one is due, or propose with one that was opened before."""
        if self._may_stand_by:
            self._may_stand_by = False
            if self._at.speaking and self._attempt is None:
                self.open_ballot(stands_by=True)
        self._stop_standing_by()
        due_ms = self.start_due_ms()
        if due_ms is not None and self._at.now.mono_ms >= due_ms:
            self.open_ballot()

    def _stop_standing_by(self) -> None:
        """Propose with held promises once something waits; too old ones, or such as were overtaken, are let go.

        So are those from before the wall clock was set, or the machine slept: they would date a decision in the past.
        """
        context, attempt = self._at, self._attempt
        if attempt is None or not attempt.stands_by or not self._wanted:
            return
        if abs(_lead_ms(context.now) - attempt.lead_ms) > CLOCK_TOLERANCE_MS:
            self._attempt = None
            return
        overtaken = attempt.ballot < context.acceptor.promised
        if not attempt.is_promised:
            if not overtaken and attempt.needed - len(attempt.promises) == 1:
                self._promise_too(attempt)
            return
        attempt.stands_by = False
        if overtaken or context.now.mono_ms - attempt.started_ms > context.setup.times.stand_by_ms:
            self._attempt = None
        else:
            context.pacer.start_attempt(context.now.mono_ms, context.my_rank)
            self._propose(attempt)

    def on_grown(self) -> None:
        """The slot is decided: an attempt on it is over."""
        self._attempt = None

    def on_silenced(self) -> None:
        """This node says no more, perhaps never again under this store: its own vote can complete nothing."""
        self._attempt = None

    # --- phase 1, proposer --------------------------------------------------------------------------------------------

    def open_ballot(self, *, stands_by: bool = False) -> None:
        """Ask the others for a new ballot, and promise it oneself while they do.

        Who just decided `stands_by` for the next slot: what comes next often comes through the same node, and then
        needs votes only. It costs nothing: promises are asked for once a slot either way. Then the own promise is given
        only if the others' are no majority by the time something waits: mostly it is not needed. It is durable before it
        counts. A process that ends before that asks again with another ballot: every ballot names the process's nonce.
        """
        context = self._at
        ballot = context.promised_above()
        context.saw(ballot)
        if not stands_by:
            context.pacer.start_attempt(context.now.mono_ms, context.my_rank)
        voters = context.ledger.voters
        self._attempt = attempt = Attempt(
            context.open_slot, context.ledger.position.era, ballot, voters, voters_digest(voters),
            context.now.mono_ms, stands_by, _lead_ms(context.now),
        )  # fmt: skip
        context.to_other_voters(Prepare(attempt.slot, ballot, context.ledger.position))
        if not stands_by or len(voters) == 1:
            self._promise_too(attempt)

    def _promise_too(self, attempt: Attempt) -> None:
        """Add the proposer's own promise."""
        context = self._at
        effects, promise = context.acceptor.promise(attempt.ballot)
        context.out += effects
        if attempt.add_promise(promise, context.now, context.acceptor.accepted):
            self._promised(attempt)

    def on_promised(self, peer: PeerId, message: Promised) -> None:
        """Count a promise whose claims can be checked; with a majority, propose."""
        context = self._at
        attempt = self._current(message.promise.slot)
        promise = message.promise
        if attempt is None or attempt.proposing or promise.ballot != attempt.ballot:
            return
        problem = "chain.statement-of-another" if promise.node != peer else context.counts(promise)
        if problem or promise.era != attempt.era:
            context.reject(peer, problem or "chain.era")
            return
        claim = promise.accepted_ballot, promise.accepted_digest
        problem = context.accepted_problem(message.accepted, claim)
        if problem:
            context.reject(peer, "chain.promise-incomplete", problem)
            return
        context.pacer.sample(context.now.mono_ms - attempt.started_ms)
        self._witness(promise)
        if attempt.add_promise(promise, Now(context.now.mono_ms, message.wall_ms), message.accepted):
            self._promised(attempt)

    def _promised(self, attempt: Attempt) -> None:
        """A majority promised: propose, unless there is nothing to finish and nothing waits."""
        self._at.majority_ms = self._at.now.mono_ms
        if attempt.stands_by and attempt.accepted is None:
            self._stop_standing_by()
        else:
            attempt.stands_by = False
            self._propose(attempt)

    def on_nack(self, peer: PeerId, message: Nack) -> None:
        """Somebody promised a higher ballot: this attempt is lost, the next one starts above."""
        context = self._at
        if message.slot != context.open_slot or voter_of(context.ledger.voters, peer) is None:
            return
        if message.promised.round > ROUND_MAX:
            context.reject(peer, "chain.round")
            return
        context.saw(message.promised)
        context.pacer.crowd(context.now.mono_ms)
        if self._attempt is not None and message.ballot == self._attempt.ballot and not self._attempt.proposing:
            self._attempt = None
            context.pacer.forestalled(context.now.mono_ms, context.my_rank)

    # --- phase 2, proposer --------------------------------------------------------------------------------------------

    def _propose(self, attempt: Attempt) -> None:
        context = self._at
        if attempt.ballot < context.acceptor.promised:
            self._attempt = None
            return
        accepted = attempt.accepted
        promises = tuple(promise for _, promise in sorted(attempt.promises.items()))
        attempt.grounds = built_on(promises, () if accepted is None else accepted.grounds)
        if accepted is not None:
            attempt.decision, attempt.material = accepted.decision, accepted.material
        else:
            attempt.decision, attempt.material = self._clients.next_decision(attempt.wall_ms(context.now.mono_ms))
        judged = context.ledger.judge(attempt.decision, attempt.material)
        if isinstance(judged, Refusal):
            # Only a lying majority of acceptors could have accepted what fails the deterministic checks.
            context.reject(attempt.ballot.node, judged.rule, judged.detail)
            self._attempt = None
            return
        attempt.judged = judged
        proposal = sign_statement(
            context.setup.signer,
            context.setup.mesh,
            Proposal(context.acceptor.record.store_id, attempt.era, attempt.slot, attempt.ballot, judged.digest),
        )
        attempt.proposal = proposal
        context.to_other_voters(
            Propose(proposal, attempt.decision, attempt.material, attempt.grounds, context.ledger.position)
        )
        self._vote_last(attempt)

    def _vote_last(self, attempt: Attempt) -> None:
        """Add the proposer's own vote once it completes the majority.

        Not before: accepted here and declined by all others, the decision would come back in the next ballot as one to
        adopt, which no voter's own view can stop.
        """
        context = self._at
        barriers: list[Effect] = []
        missing = attempt.needed - len(attempt.votes)
        if missing == 1 and context.acceptor.voter not in attempt.votes and context.acceptor.promised <= attempt.ballot:
            assert attempt.proposal is not None
            barriers, vote = context.acceptor.accept(
                attempt.proposal, attempt.decision, attempt.material, attempt.grounds, attempt.voters_digest
            )
            self._accepted_ms = context.now.mono_ms
            attempt.add_vote(vote)
            missing = 0
        if missing <= 0:
            self._decide(attempt, barriers)

    def on_voted(self, peer: PeerId, message: Voted) -> None:
        """Count a vote; with a majority, the slot is decided."""
        context = self._at
        vote = message.vote
        attempt = self._current(vote.slot)
        if attempt is None or attempt.judged is None or vote.ballot != attempt.ballot:
            return
        problem = "chain.statement-of-another" if vote.node != peer else context.counts(vote)
        if problem:
            context.reject(peer, problem)
            return
        self._witness(vote)
        if (vote.era, vote.digest, vote.voters_digest) != (attempt.era, attempt.judged.digest, attempt.voters_digest):
            context.reject(peer, "chain.vote-elsewhere")
            return
        attempt.add_vote(vote)
        self._vote_last(attempt)

    def on_declined(self, peer: PeerId, message: Declined) -> None:
        """A voter refuses; when no majority is left, the command is given up in favour of a no-op."""
        context = self._at
        attempt = self._current(message.slot)
        if attempt is None or attempt.judged is None or message.ballot != attempt.ballot:
            return
        if voter_of(context.ledger.voters, peer) is not None and attempt.decline(peer, message.rule, message.detail):
            self._clients.on_declined(attempt.judged.decision.command, Refusal(message.rule, message.detail))
            self._attempt = None
            context.completion_slot = context.open_slot

    def _decide(self, attempt: Attempt, barriers: list[Effect]) -> None:
        context = self._at
        assert attempt.judged is not None
        entry = Decided(attempt.decision, attempt.certificate(), attempt.material, attempt.grounds)
        self._attempt = None
        context.store(entry, attempt.judged, barriers)
        self._follower.announce(entry, attempt.voters)
        self._may_stand_by = True

    def _current(self, slot: int) -> Attempt | None:
        attempt = self._attempt
        return attempt if attempt is not None and attempt.slot == slot == self._at.open_slot else None

    # --- acceptor -----------------------------------------------------------------------------------------------------

    def on_prepare(self, peer: PeerId, message: Prepare) -> None:
        """Promise a ballot above all promised, or say which one is in the way."""
        context = self._at
        if not self._may_answer(peer, message.ballot.round, message.slot) or not self._level(peer, message):
            return
        problem = context.may_propose(peer, message.ballot)
        if problem:
            context.reject(peer, problem)
            return
        if not context.speaking:
            return
        context.saw(message.ballot)
        if message.ballot <= context.acceptor.promised:
            if message.ballot < context.acceptor.promised:
                context.send(peer, Nack(message.slot, message.ballot, context.acceptor.promised))
            return
        context.pacer.crowd(context.now.mono_ms)
        effects, promise = context.acceptor.promise(message.ballot)
        context.out += effects
        context.send(peer, Promised(promise, context.now.wall_ms, context.acceptor.accepted))

    def on_propose(self, peer: PeerId, message: Propose) -> None:
        """Accept a proposal that its promises entitle and every rule allows; else say why not."""
        context = self._at
        proposal = message.proposal
        if not self._may_answer(peer, proposal.ballot.round, proposal.slot) or not self._level(peer, message):
            return
        problem = context.may_propose(peer, proposal.ballot) or self._proposal_problem(message)
        if problem:
            context.reject(peer, problem)
            return
        if not context.speaking:
            return
        context.saw(proposal.ballot)
        acceptor = context.acceptor
        if proposal.ballot < acceptor.promised:
            context.send(peer, Nack(proposal.slot, proposal.ballot, acceptor.promised))
            return
        self._witness(proposal)
        if proposal.ballot <= acceptor.record.accepted_ballot or proposal.store_id in context.liars:
            return
        judged = context.ledger.judge(message.decision, message.material)
        refusal = judged if isinstance(judged, Refusal) else None
        if isinstance(judged, Judged) and adopted(message.grounds[0])[0] == NO_BALLOT:
            refusal = self._fresh_refusal(judged, message.material)
        if refusal is not None:
            context.send(peer, Declined(proposal.slot, proposal.ballot, refusal.rule, refusal.detail))
            return
        effects, vote = acceptor.accept(
            proposal, message.decision, message.material, message.grounds, voters_digest(context.ledger.voters)
        )
        context.out += effects
        self._accepted_ms = context.now.mono_ms
        context.send(peer, Voted(vote))

    def _may_answer(self, peer: PeerId, round_: int, slot: int) -> bool:
        if not 0 < round_ <= ROUND_MAX or slot < 1:
            self._at.reject(peer, "chain.round")
            return False
        return True

    def _level(self, peer: PeerId, message: Prepare | Propose | BootRead) -> bool:
        """Return whether the proposer stands at our head; bring whoever is behind up to the other."""
        slot = message.proposal.slot if isinstance(message, Propose) else message.slot
        if slot != message.position.slot + 1:
            self._at.reject(peer, "chain.slot", "a slot is proposed from the head before it")
            return False
        return self._follower.level_with(peer, message.position)

    def _proposal_problem(self, message: Propose) -> str:
        """Return the rule a proposal breaks before anything in it is judged: signatures, promises, adoption."""
        context = self._at
        proposal = message.proposal
        if digest(message.decision) != proposal.digest:
            return "chain.proposal-malformed"
        if Voter(proposal.ballot.node, proposal.store_id) not in context.ledger.voters:
            return "chain.not-a-voter"
        if proposal.era != context.ledger.position.era or not statement_holds(
            context.setup.verifier, context.setup.mesh, proposal
        ):
            return "chain.signature"
        if grounds_problem(
            context.setup.verifier,
            context.setup.mesh,
            context.ledger.voters,
            message.grounds,
            (proposal.era, proposal.slot, proposal.ballot),
            proposal.digest,
        ):
            return "chain.grounds"
        for promise in message.grounds[0]:
            own = Voter(promise.node, promise.store_id) == context.acceptor.voter
            problem = context.counts(promise)
            if problem:
                return problem
            if own and promise.ballot > context.acceptor.promised:
                return "chain.forgotten-life"
            self._witness(promise)
        return ""

    def _fresh_refusal(self, judged: Judged, items: tuple[bytes, ...]) -> Refusal | None:
        """Return why this voter, by its clock and view, does not accept a decision that nobody accepted before."""
        context = self._at
        decision = judged.decision
        # A chain once dated ahead (by a sole voter with a wrong clock) stands still in time until clocks catch up.
        latest_ms = max(context.now.wall_ms + CLOCK_TOLERANCE_MS, context.ledger.at_ms)
        if not context.now.wall_ms - CLOCK_TOLERANCE_MS <= decision.at_ms <= latest_ms:
            return Refusal("chain.clock", f"the decision's time is over {CLOCK_TOLERANCE_MS // 1000} s from this clock")
        if not decision.command:
            return None
        return context.setup.machine.fresh_refusal(
            context.ledger.state, decision.command, material_of(items), decision.at_ms
        )

    def on_boot_read(self, peer: PeerId, message: BootRead) -> None:
        """Tell a voter that may have forgotten what it said what we know, and let its old life complete nothing."""
        context = self._at
        if not self._may_answer(peer, message.ballot.round, message.slot) or not self._level(peer, message):
            return
        if message.ballot.node != peer or Voter(peer, message.store_id) not in context.ledger.voters:
            context.reject(peer, "chain.not-a-voter")
            return
        if not context.takes_part or context.stalled:
            return
        context.saw(message.ballot)
        before = context.acceptor.promised
        if message.ballot <= before:
            if message.ballot < before:
                context.send(peer, Nack(message.slot, message.ballot, before))
            return
        context.out += context.acceptor.bow(message.ballot, message.store_id, message.floor)
        context.send(
            peer, BootAnswer(message.slot, message.ballot, context.acceptor.record.floors, context.acceptor.accepted)
        )

    def _witness(self, statement: Promise | Vote | Proposal) -> None:
        proof = self._at.witness.see(statement)
        if proof is not None:
            self._at.accuse(proof)


def _lead_ms(now: Now) -> int:
    """How far the wall clock is ahead of the monotonic one: it changes only where one of them jumps."""
    return now.wall_ms - now.mono_ms
