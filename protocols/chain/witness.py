"""The witness: remembers what stores signed in the open slot, and proves it when one contradicts itself.

A contradiction is two statements that no store which keeps its word signs both: two votes or promises at one ballot
that differ, a promise that hides an earlier vote, counters that run against the order of what they count, or two
proposals at one ballot. The proof is portable: whoever has the mesh id can check it. Not here: what happens to a liar.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocols.chain.ballots import NO_BALLOT, Promise, Proposal, Statement, Vote, signer_of, statement_holds
from protocols.chain.fence import BOOT_LEAP
from protocols.chain.messages import Contradiction
from protocols.machine import PeerId, Verifier

STATEMENTS_MAX = 512
"""Statements remembered of one slot: seven voters through dozens of ballots; older ones are forgotten first."""


def contradiction(first: Statement, second: Statement) -> str:
    """Return the rule that two statements break together, or ""; order does not matter."""
    if (first.era, first.slot) != (second.era, second.slot):
        return _regress(first, second)
    if _who(first) != _who(second):
        return ""
    if isinstance(first, Proposal) or isinstance(second, Proposal):
        if not (isinstance(first, Proposal) and isinstance(second, Proposal)):
            return ""
        same = first.ballot == second.ballot
        return "chain.two-proposals" if same and first.digest != second.digest else ""
    if abs(first.counter - second.counter) >= BOOT_LEAP:
        return ""  # the lower one was said by a life that is rightly forgotten
    match first, second:
        case Vote(), Vote():
            if first.ballot == second.ballot and first.digest != second.digest:
                return "chain.two-votes"
        case Promise(), Promise():
            if first.ballot == second.ballot and _claims(first) != _claims(second):
                return "chain.two-promises"
        case Promise(), Vote():
            return _hidden(first, second) or _regress(first, second)
        case Vote(), Promise():
            return _hidden(second, first) or _regress(first, second)
    return _regress(first, second)


def _claims(promise: Promise) -> tuple[object, ...]:
    return promise.accepted_ballot, promise.accepted_digest


def _hidden(promise: Promise, vote: Vote) -> str:
    if vote.counter < promise.counter and promise.accepted_ballot < vote.ballot < promise.ballot:
        return "chain.hidden-vote"
    if promise.accepted_ballot == vote.ballot != NO_BALLOT and promise.accepted_digest != vote.digest:
        return "chain.hidden-vote"
    return ""


def _regress(first: Statement, second: Statement) -> str:
    """Counters must rise with slot, ballot, and from a promise to the vote at its ballot."""
    if isinstance(first, Proposal) or isinstance(second, Proposal) or first.era != second.era:
        return ""
    if _who(first) != _who(second):
        return ""
    if abs(first.counter - second.counter) >= BOOT_LEAP:
        return ""
    said_first = (first.slot, first.ballot, isinstance(first, Vote))
    said_second = (second.slot, second.ballot, isinstance(second, Vote))
    if (first.counter < second.counter) == (said_first < said_second) and (
        (first.counter == second.counter) == (said_first == said_second)
    ):
        return ""
    if said_first == said_second:
        return ""
    return "chain.counter-regressed"


def proof(rule: str, first: Statement, second: Statement) -> Contradiction:
    """Return the two statements as one portable proof."""
    both = (first, second)
    return Contradiction(
        rule,
        tuple(s for s in both if isinstance(s, Promise)),
        tuple(s for s in both if isinstance(s, Vote)),
        tuple(s for s in both if isinstance(s, Proposal)),
    )


def proof_holds(verifier: Verifier, mesh: bytes, claimed: Contradiction) -> bool:
    """Return whether a proof is two statements by one signer that contradict each other, both signed."""
    statements = claimed.statements()
    if len(statements) != 2 or _who(statements[0]) != _who(statements[1]):
        return False
    return contradiction(*statements) == claimed.rule != "" and all(
        statement_holds(verifier, mesh, statement) for statement in statements
    )


class Witness:
    """Verified statements of the newest slots, by who signed them."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], Statement] = {}
        self._by_signer: dict[object, dict[tuple[object, ...], Statement]] = {}

    def see(self, statement: Statement) -> Contradiction | None:
        """Remember one verified statement; return a proof if it contradicts what its signer said before."""
        key = _key(statement)
        if self._seen.get(key) == statement:
            return None
        own = self._by_signer.setdefault(key[0], {})
        for other in own.values():
            rule = contradiction(other, statement)
            if rule:
                return proof(rule, other, statement)
        if key not in self._seen:
            if len(self._seen) >= STATEMENTS_MAX:
                oldest = next(iter(self._seen))
                del self._seen[oldest], self._by_signer[oldest[0]][oldest]
            self._seen[key] = own[key] = statement
        return None

    def see_all(self, statements: Iterable[Statement]) -> Contradiction | None:
        """Remember several; return the first proof found."""
        answer = None
        for statement in statements:
            answer = self.see(statement) or answer
        return answer

    def forget_before(self, slot: int) -> None:
        """Drop what is about slots before `slot`."""
        self._seen = {key: statement for key, statement in self._seen.items() if statement.slot >= slot}
        self._by_signer = {}
        for key, statement in self._seen.items():
            self._by_signer.setdefault(key[0], {})[key] = statement


def _who(statement: Statement) -> tuple[PeerId, bytes]:
    return signer_of(statement), statement.store_id


def _key(statement: Statement) -> tuple[object, ...]:
    counter = 0 if isinstance(statement, Proposal) else statement.counter
    return _who(statement), type(statement).__name__, statement.slot, statement.ballot, counter
