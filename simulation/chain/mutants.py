"""Named ways to break the protocol, each of which the simulator must notice; a survivor is a hole in the simulator.

A mutant replaces attributes of the real modules while it is applied; protocols/ knows nothing of it. `kinds` may bias
the faults drawn towards those under which the bug can show at all. Not here: running them (hunt.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from protocols.chain import boot_read, chain, context, grounds, ledger, proposer, quorum, reads, voting
from protocols.chain.acceptor import Acceptor, fresh_record
from protocols.chain.ballots import NO_BALLOT
from protocols.chain.chain import Chain
from protocols.chain.clients import Clients
from protocols.chain.context import ChainContext, ChainSetup
from protocols.chain.decision import NOOP, Decided, Decision, Voter
from protocols.chain.follower import Follower
from protocols.chain.ledger import Ledger
from protocols.chain.messages import ReadDone
from protocols.chain.pacing import Pacer
from protocols.chain.proposer import Attempt
from protocols.chain.quorum import voter_of
from protocols.chain.reads import Reads
from protocols.chain.voting import Voting
from protocols.machine import Broadcast, Effect, Notify, Persist, Send
from protocols.refusal import Refusal
from simulation.chain.plan import KINDS

_HEAVY_ROLLBACK = ("lapse", "lapse", "lapse", "isolate", "crash")
_LAPSES = ("lapse", "lapse", "view", "clog")
_VIEWS = ("view", "view", "view", "isolate")
_HEAVY_ISOLATION = ("isolate", "isolate", "partition", "clog")
_CLEFT = ("isolate", "partition", "clog", "crash")
_HEAVY_LOSS = ("disk_loss", "partition", "isolate", "one_way", "crash")

Patch = tuple[Any, str, Any]


@dataclass(frozen=True)
class Mutant:
    """One bug: what it is, what it replaces, and the faults to look for it under."""

    name: str
    says: str
    patches: Callable[[], Sequence[Patch]]
    kinds: tuple[str, ...] = KINDS
    delay_max_ms: int | None = None
    expects: str = ""
    """Only this invariant counts as noticing it; empty: any."""
    voters: int | None = None
    """Hunt in fleets of just so many hosts, all of them voters."""
    whole: bool = False
    """It breaks whole nodes, not chains alone."""
    liar: bool = False
    """Hunt in fleets of which one voter lies."""
    hostile: bool = False
    """Hunt among the stores of a hostile member's neighbours."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the mutant; everything is put back afterwards."""
        undo: list[Patch] = []
        try:
            for target, name, value in self.patches():
                undo.append((target, name, target.__dict__[name]))
                setattr(target, name, value)
            yield
        finally:
            for target, name, value in reversed(undo):
                setattr(target, name, value)


def _no_adoption() -> Sequence[Patch]:
    add_promise = Attempt.add_promise

    def forgetful(self: Attempt, promise: Any, now: Any, accepted: Any) -> bool:
        del accepted
        return add_promise(self, promise, now, None)

    return [(Attempt, "add_promise", forgetful), *_grounds_unchecked()]


def _grounds_unchecked() -> Sequence[Patch]:
    return [
        (voting, "adopted", lambda promises: (NO_BALLOT, b"")),
        (voting, "grounds_problem", lambda *args: ""),
        (context, "grounds_problem", lambda *args: ""),
        (ledger, "grounds_problem", lambda *args: ""),
    ]


def _unchecked_adoption() -> Sequence[Patch]:
    """One node's proposer forgets to adopt, and no acceptor checks."""
    propose = Voting._propose

    def forgetful(self: Voting, attempt: Attempt) -> None:
        if self._at.setup.node == min(voter.node for voter in self._at.ledger.voters):
            attempt.accepted = None
        propose(self, attempt)

    return [(Voting, "_propose", forgetful), *_grounds_unchecked()]


def _volatile_promise() -> Sequence[Patch]:
    promise = Acceptor.promise

    def volatile(self: Acceptor, ballot: Any) -> Any:
        _, statement = promise(self, ballot)
        return [], statement

    return [(Acceptor, "promise", volatile)]


def _say_first(effects: list[Effect]) -> list[Effect]:
    first: list[Effect] = [effect for effect in effects if isinstance(effect, Send | Broadcast)]
    return first + [effect for effect in effects if not isinstance(effect, Send | Broadcast)]


def _vote_before_fsync() -> Sequence[Patch]:
    handle = Chain.handle
    return [(Chain, "handle", lambda self, event, now: _say_first(handle(self, event, now)))]


def _fence_after_vote() -> Sequence[Patch]:
    handle = Chain.handle

    def late(self: Chain, event: Any, now: Any) -> list[Effect]:
        effects = handle(self, event, now)
        late_ones: list[Effect] = [e for e in effects if isinstance(e, Persist) and e.store.value == "fence"]
        return [effect for effect in effects if effect not in late_ones] + late_ones

    return [(Chain, "handle", late)]


def _tell_before_store() -> Sequence[Patch]:
    handle = Chain.handle

    def early(self: Chain, event: Any, now: Any) -> list[Effect]:
        effects = handle(self, event, now)
        first: list[Effect] = [effect for effect in effects if isinstance(effect, Notify)]
        return first + [effect for effect in effects if not isinstance(effect, Notify)]

    return [(Chain, "handle", early)]


def _kept_store_id() -> Sequence[Patch]:
    """A node with a new disk takes up the store id that its voter had."""
    start = Chain._start

    def zombie(self: Chain) -> None:
        start(self)
        context = self._at
        old = voter_of(context.ledger.voters, context.setup.node)
        if old is not None and old.store_id != self.store_id:
            context.acceptor.record = fresh_record(old.store_id)
            context.acceptor.open(context.ledger.position)

    return [(Chain, "_start", zombie)]


def _unfenced_rollback() -> Sequence[Patch]:
    return [(chain, "distrust_of", lambda database, fence: "")]


def _no_boot_read() -> Sequence[Patch]:
    return [(Acceptor, "suspect", lambda self: [])]


def _boot_read_one() -> Sequence[Patch]:
    return [(boot_read, "boot_quorum", lambda count: 1)]


def _two_configurations() -> Sequence[Patch]:
    """The voters named by a decision take over one slot late on some nodes, at once on others."""
    append = Ledger.append

    def late(self: Ledger, entry: Decided, judged: Any) -> Any:
        before = self.voters
        writes = append(self, entry, judged)
        if self.position.slot % 2:
            self.voters = before
        return writes

    return [(Ledger, "append", late)]


def _minority() -> Sequence[Patch]:
    def half(count: int) -> int:
        return max(1, count // 2)

    return [(module, "majority", half) for module in (quorum, proposer, grounds, reads)]


def _votes_counted_twice() -> Sequence[Patch]:
    def add_vote(self: Attempt, vote: Any) -> bool:
        free = next((voter for voter in self.voters if voter not in self.votes), self.voters[0])
        self.votes[free] = vote
        return len(self.votes) >= self.needed

    return [(Attempt, "add_vote", add_vote)]


def _attempt_outlives_store() -> Sequence[Patch]:
    def add_vote(self: Attempt, vote: Any) -> bool:
        self.votes[Voter(vote.node, vote.store_id)] = vote
        return len(self.votes) >= self.needed

    return [(Voting, "on_silenced", lambda self: None), (Attempt, "add_vote", add_vote)]


def _revoked_counted() -> Sequence[Patch]:
    init = ChainContext.__init__

    def blind(self: ChainContext, setup: ChainSetup, *rest: Any) -> None:
        init(self, ChainSetup(**{**setup.__dict__, "is_revoked": lambda node: False}), *rest)

    return [(ChainContext, "__init__", blind)]


def _fixed_timeout() -> Sequence[Patch]:
    def fixed(self: Pacer, now_ms: int, rank: int) -> None:
        del rank
        self.next_ms = now_ms + 300

    return [(Pacer, "start_attempt", fixed), (Pacer, "crowd", lambda self, now_ms: None)]


def _stale_read() -> Sequence[Patch]:
    def local(self: Reads, request_id: bytes) -> None:
        self._at.notify(ReadDone(request_id, self._at.ledger.position.slot))

    return [(Reads, "start", local)]


def _read_ignores_accepted() -> Sequence[Patch]:
    count = Reads._count
    return [(Reads, "_count", lambda self, reading, peer, head, accepted: count(self, reading, peer, head, False))]


def _no_idempotency() -> Sequence[Patch]:
    return [(Ledger, "slot_of", lambda self, command: None)]


def _hasty_refusal() -> Sequence[Patch]:
    """A refusal is told although a store may already have accepted the command in the open slot."""

    def hasty(self: Clients, command: bytes, refusal: Refusal) -> None:
        for pending in list(self._pending.values()):
            if pending.command == command and command != NOOP:
                self._end(pending, "refused", refusal=refusal)

    return [(Clients, "on_declined", hasty)]


def _adopted_judged_fresh() -> Sequence[Patch]:
    """An adopted decision faces this voter's own view too, and can wedge its slot."""
    return [(voting, "adopted", _adopted_but_fresh)]


def _adopted_but_fresh(promises: Any) -> Any:
    ballot, must = grounds.adopted(promises)
    return (NO_BALLOT, b"") if ballot != NO_BALLOT else (ballot, must)


def _orphans_left() -> Sequence[Patch]:
    due = Voting.start_due_ms

    def only_own(self: Voting) -> int | None:
        waits = self._clients.waiting or self._at.completion_slot == self._at.open_slot
        return due(self) if waits else None

    return [(Voting, "start_due_ms", only_own), (Reads, "_complete", lambda s, r: None)]


def _no_fetch() -> Sequence[Patch]:
    return [(Follower, "fetch", lambda self, peer: None), (Ledger, "batch_after", lambda self, theirs: None)]


def _unverified_certificate() -> Sequence[Patch]:
    """Followers believe an entry without its certificate, and proposers announce after one vote."""

    def one_vote(self: Attempt) -> int:
        return 1 if self.judged is not None else quorum.majority(len(self.voters))

    return [(ledger, "certificate_problem", lambda *args: ""), (Attempt, "needed", property(one_vote))]


def _wrong_state_hash() -> Sequence[Patch]:
    """One node applies commands by other rules, and nobody compares state hashes."""
    judge = Ledger._judge

    def lax(self: Ledger, data: bytes, whole: Any, material: Any, root: Any) -> Any:
        answer = judge(self, data, whole, material, root)
        if isinstance(answer, Refusal) and answer.rule == "chain.state-hash":
            decision = msgspec.msgpack.decode(data, type=Decision)
            return ledger.Judged(decision, whole, self.after(decision.command, material, decision.at_ms))
        return answer

    draft = Ledger.draft

    def wrong(self: Ledger, command: bytes, items: Any, at_ms: int) -> Any:
        answer = draft(self, command, items, at_ms)
        if isinstance(answer, Refusal) or command == NOOP or at_ms % 7:
            return answer
        decision = msgspec.msgpack.decode(answer, type=Decision)
        return msgspec.msgpack.encode(msgspec.structs.replace(decision, state_hash=bytes(32)))

    return [(Ledger, "_judge", lax), (Ledger, "draft", wrong)]


def _endless_yield() -> Sequence[Patch]:
    """A voter that left a command to who holds promises never takes it up itself."""
    tick, forwards = Clients.tick, Clients._forwards

    def patient(self: Clients) -> None:
        for pending in self._pending.values():
            if pending.yields_until_ms:
                pending.yields_until_ms = 1 << 60
        tick(self)

    return [
        (Clients, "tick", patient),
        (Clients, "_forwards", lambda self, pending: not pending.yields_until_ms and forwards(self, pending)),
    ]


def _own_clock() -> Sequence[Patch]:
    """A decision carries its proposer's clock, and no voter compares it with its own."""
    return [
        (Attempt, "wall_ms", lambda self, mono_ms: next(iter(self.leads.values())) + mono_ms),
        (voting, "CLOCK_TOLERANCE_MS", 1 << 60),
    ]


def _forks_unexamined() -> Sequence[Patch]:
    """Nobody compares another entry than its own for a slot it holds."""
    return [(Follower, "_compare", lambda self, peer, slot, entry: None)]


MUTANTS = (
    Mutant("no-adoption", "proposers propose their own, acceptors let them", _no_adoption),
    Mutant("unchecked-adoption", "one proposer never adopts and acceptors do not check", _unchecked_adoption),
    Mutant("volatile-promise", "promises are not made durable", _volatile_promise),
    Mutant("vote-before-fsync", "messages leave before the barriers in front of them", _vote_before_fsync),
    Mutant("fence-after-vote", "the fence is written after the vote is sent", _fence_after_vote),
    Mutant("tell-before-store", "the node acts on an entry before it is durable", _tell_before_store),
    Mutant(
        "kept-store-id", "a new disk votes under the old store id", _kept_store_id, _HEAVY_LOSS, 30, "UniqueDecision"
    ),
    Mutant("unfenced-rollback", "nobody compares database and fence", _unfenced_rollback),
    Mutant("no-boot-read", "a restored machine votes at once", _no_boot_read, _HEAVY_ROLLBACK, 30, "UniqueDecision", 3),
    Mutant(
        "boot-read-of-one",
        "a boot read is content with one answer",
        _boot_read_one,
        _HEAVY_ROLLBACK,
        30,
        "UniqueDecision",
    ),
    Mutant("two-configurations", "new voters take over at different slots", _two_configurations),
    Mutant("minority-quorum", "half of the voters is enough", _minority),
    Mutant("votes-counted-twice", "a vote counts for whoever has not voted", _votes_counted_twice),
    Mutant(
        "attempt-outlives-store",
        "a proposer that gave up its store completes the majority with the next one's vote",
        _attempt_outlives_store,
        _LAPSES,
        30,
        "OneConfig",
        3,
    ),
    Mutant("revoked-voter-counted", "revocations are not heard", _revoked_counted),
    Mutant("fixed-timeout", "attempts repeat every 300 ms on 0.5 s links", _fixed_timeout, KINDS, 500),
    Mutant("stale-read", "reads are answered from the local head", _stale_read),
    Mutant(
        "read-ignores-accepted",
        "reads overlook what is accepted above the head",
        _read_ignores_accepted,
        _HEAVY_ISOLATION,
    ),
    Mutant("no-idempotency", "a retried command is decided again", _no_idempotency),
    Mutant("hasty-refusal", "a refusal is told before the slot is closed", _hasty_refusal, _VIEWS, voters=5),
    Mutant(
        "adopted-judged-fresh", "adopted decisions face a voter's own view", _adopted_judged_fresh, _VIEWS, voters=5
    ),
    Mutant("orphans-left", "nobody finishes what a dead proposer left", _orphans_left),
    Mutant("no-fetch", "nobody catches up", _no_fetch),
    Mutant("unverified-certificate", "entries are believed without a majority", _unverified_certificate),
    Mutant("wrong-state-hash", "state hashes are not compared", _wrong_state_hash),
    Mutant("endless-yield", "a command is left for ever to who holds promises", _endless_yield),
    Mutant("own-clock", "a decision carries its proposer's clock, unchecked", _own_clock),
    Mutant(
        "forks-unexamined",
        "nobody looks for the liar when two sides of a fork meet",
        _forks_unexamined,
        _CLEFT,
        30,
        "Liar",
        3,
        liar=True,
    ),
)
