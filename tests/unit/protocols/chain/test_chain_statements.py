"""Statements of voters, proofs of a lie, and the rules of the proposer."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec
import pytest

from protocols.chain.ballots import (
    NO_BALLOT,
    Ballot,
    Promise,
    key_of,
    statement_holds,
)
from protocols.chain.decision import (
    voters_digest,
)
from protocols.chain.fence import BOOT_LEAP
from protocols.chain.grounds import ROUNDS_MAX, adopted, built_on, grounds_problem, promises_problem
from protocols.chain.messages import Accepted, ChainMessage
from protocols.chain.proposer import Attempt
from protocols.chain.witness import STATEMENTS_MAX, Witness, contradiction, proof, proof_holds
from protocols.envelope import decode, digest, encode
from protocols.machine import Now, PeerId
from tests.support.protocols.chain_statements import (
    BALLOT,
    HIGHER,
    MESH,
    RING,
    SIGNER_OF,
    VOTERS,
    promise,
    proposal,
    vote,
)

# --- statements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [vote(), promise(), proposal()])
def test_a_statement_is_signed_field_by_field(made: Any) -> None:
    assert statement_holds(RING, MESH, made)
    assert not statement_holds(RING, bytes(digest(b"other mesh")), made)
    for name in made.__struct_fields__:
        value = getattr(made, name)
        other = {int: lambda v: v + 1, bytes: lambda v: v + b"x", Ballot: lambda v: Ballot(9, *list_of(v)[1:])}.get(
            type(value), lambda v: VOTERS[1].node
        )
        assert not statement_holds(RING, MESH, msgspec.structs.replace(made, **{name: other(value)})), name


def list_of(ballot: Ballot) -> tuple[int, PeerId, bytes]:
    return ballot.round, ballot.node, ballot.boot_nonce


def test_a_statement_by_nobody_does_not_hold() -> None:
    assert not statement_holds(RING, MESH, msgspec.structs.replace(vote(), node=PeerId("1nobody")))


def test_keys_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocols.chain import ballots

    monkeypatch.setattr(ballots, "_KEYS_MAX", 2)
    monkeypatch.setattr(ballots, "_keys", {})
    for voter in VOTERS:
        assert key_of(voter.node) == SIGNER_OF[voter.node].public_key
    assert len(ballots._keys) <= 2


def test_ballots_order_by_round_then_node_then_life() -> None:
    ordered = [NO_BALLOT, Ballot(1, PeerId("a"), b"2"), Ballot(1, PeerId("b"), b"1"), Ballot(2, PeerId("a"), b"1")]
    for shuffled in permutations(ordered):
        assert sorted(shuffled) == ordered


# --- proofs -----------------------------------------------------------------------------------------------------------

LIES = [
    ("chain.two-votes", vote(), vote(digest=digest(b"e"), counter=5)),
    ("chain.two-promises", promise(), promise(accepted_ballot=Ballot(1, VOTERS[2].node, b"n"), counter=9)),
    ("chain.hidden-vote", vote(), promise(ballot=HIGHER, counter=5)),
    (
        "chain.hidden-vote",
        vote(),
        promise(ballot=HIGHER, counter=5, accepted_ballot=BALLOT, accepted_digest=bytes(digest(b"e"))),
    ),
    ("chain.counter-regressed", vote(), promise(ballot=HIGHER, counter=2)),
    ("chain.counter-regressed", vote(), vote(slot=2, counter=4)),
    ("chain.two-proposals", proposal(), proposal(digest=digest(b"e"))),
]

HONEST = [
    (vote(), vote()),
    (vote(), vote(1, digest=digest(b"e"))),
    (promise(), vote()),
    (vote(), promise(ballot=HIGHER, counter=5, accepted_ballot=BALLOT, accepted_digest=bytes(digest(b"d")))),
    (vote(), vote(slot=2, counter=9)),
    (proposal(), proposal(ballot=Ballot(4, VOTERS[0].node, b"n"), digest=digest(b"e"))),
    (proposal(), vote()),
    (vote(), vote(era=b"another", digest=digest(b"e"))),
    (vote(), promise(ballot=HIGHER, counter=5 + BOOT_LEAP)),
    (vote(slot=2), proposal()),
    (vote(), vote(1, slot=2, counter=1)),
    (vote(slot=3, counter=1), vote(counter=BOOT_LEAP + 1)),
]


@pytest.mark.parametrize(("rule", "first", "second"), LIES)
def test_two_statements_that_no_honest_store_makes_are_a_proof(rule: str, first: Any, second: Any) -> None:
    assert contradiction(first, second) == contradiction(second, first) == rule
    outcome = proof(rule, first, second)
    assert proof_holds(RING, MESH, outcome)
    assert proof_holds(RING, MESH, decode(encode(outcome), ChainMessage))
    assert not proof_holds(RING, MESH, msgspec.structs.replace(outcome, rule="chain.other"))
    forged = msgspec.structs.replace(second, signature=bytes(64))
    assert not proof_holds(RING, MESH, proof(rule, first, forged))
    witness = Witness()
    assert witness.see(first) is None
    answer = witness.see(second)
    assert answer is not None
    assert answer.rule == rule


@pytest.mark.parametrize(("first", "second"), HONEST)
def test_what_honest_stores_say_proves_nothing(first: Any, second: Any) -> None:
    assert contradiction(first, second) == contradiction(second, first) == ""
    assert not proof_holds(RING, MESH, proof("", first, second))
    witness = Witness()
    assert witness.see_all((first, second, first)) is None


def test_a_witness_forgets_closed_slots_and_holds_a_bounded_number() -> None:
    witness = Witness()
    for slot in range(STATEMENTS_MAX + 10):
        witness.see(vote(slot=slot, counter=slot))
    assert len(witness._seen) == STATEMENTS_MAX
    witness.forget_before(STATEMENTS_MAX)
    assert len(witness._seen) == 10


# --- the proposer's rules ---------------------------------------------------------------------------------------------


def test_the_accepted_decision_of_the_highest_ballot_must_be_adopted() -> None:
    low, high = Ballot(1, VOTERS[0].node, b"n"), Ballot(2, VOTERS[0].node, b"n")
    claims = (
        promise(0),
        promise(1, accepted_ballot=high, accepted_digest=b"high"),
        promise(2, accepted_ballot=low, accepted_digest=b"low"),
    )
    for order in permutations(claims):
        assert adopted(order) == (high, b"high")
    assert adopted(claims[:1]) == (NO_BALLOT, b"")


def rounds(count: int) -> tuple[tuple[Promise, ...], ...]:
    """Good grounds for digest(b"d"): fresh at round 1, then adopted again and again, newest first."""
    pairs = []
    for number in range(1, count + 1):
        below = (NO_BALLOT, b"") if number == 1 else (ballot_at(number - 1), digest(b"d"))
        pairs.append(
            (
                promise(0, ballot=ballot_at(number), accepted_ballot=below[0], accepted_digest=below[1]),
                promise(1, ballot=ballot_at(number)),
            )
        )
    return tuple(reversed(pairs))


def ballot_at(number: int) -> Ballot:
    return Ballot(number, VOTERS[1].node, b"nonce---")


def why_not(grounds: Any, number: int, decided: bytes = b"d") -> str:
    return grounds_problem(RING, MESH, VOTERS[:3], grounds, (MESH, 1, ballot_at(number)), digest(decided))


def test_grounds_go_down_to_the_round_that_was_free() -> None:
    for count in range(1, ROUNDS_MAX + 1):
        assert why_not(rounds(count), count) == ""
    three = rounds(3)
    assert why_not((), 1) == why_not(rounds(ROUNDS_MAX + 1), ROUNDS_MAX + 1)
    assert "no grounds" in why_not((), 1)
    assert "missing" in why_not(three[:2], 3)
    assert "another ballot" in why_not(three[1:], 3)
    assert "another ballot" in why_not((three[0], three[2]), 3)
    assert "another decision" in why_not(three, 3, b"other")
    assert "below the one that was free" in why_not((*rounds(1), *rounds(1)), 1)
    assert "no majority" in why_not((three[0][:1],), 3)
    own = promise(0, ballot=ballot_at(3), accepted_ballot=ballot_at(3), accepted_digest=digest(b"d"))
    assert "at its own ballot" in why_not(((own, three[0][1]), *three[1:]), 3)
    unsigned = msgspec.structs.replace(three[1][1], signature=bytes(64))
    assert "signature" in why_not((three[0], (three[1][0], unsigned), three[2]), 3)


def test_grounds_of_a_long_fight_lose_their_oldest_rounds_and_still_hold() -> None:
    grounds: Any = ()
    for number, newest in enumerate(reversed(rounds(ROUNDS_MAX + 5)), 1):
        grounds = built_on(newest, grounds)
        assert why_not(grounds, number) == ""
    assert len(grounds) == ROUNDS_MAX


def test_a_lie_in_a_round_below_the_last_is_found_in_the_grounds() -> None:
    """What was adopted innocently at ballot 3 was made possible by a vote hidden at ballot 2."""
    voted = vote(0, ballot=ballot_at(1), digest=digest(b"other"), counter=3)
    lie = promise(0, ballot=ballot_at(2), counter=4)
    honest = promise(1, ballot=ballot_at(2))
    shown = promise(2, ballot=ballot_at(3), accepted_ballot=ballot_at(2), accepted_digest=digest(b"d"))
    grounds = built_on((honest_at_3 := promise(1, ballot=ballot_at(3), counter=9), shown), ((lie, honest),))
    assert why_not(grounds, 3) == ""
    assert Witness().see_all((voted, shown, honest_at_3)) is None
    answer = Witness().see_all((voted, *(said for said in grounds[0]), *grounds[1]))
    assert answer is not None
    assert answer.rule == "chain.hidden-vote"


def test_an_attempt_takes_the_highest_accepted_and_the_lower_median_clock() -> None:
    attempt = Attempt(1, MESH, BALLOT, VOTERS[:3], voters_digest(VOTERS[:3]), 0)
    low, high = (Accepted(Ballot(n, VOTERS[0].node, b"n"), b"%d" % n, (), b"") for n in (1, 2))
    assert not attempt.add_promise(promise(0), Now(100, 9_100), high)
    assert attempt.add_promise(promise(1), Now(200, 1_200), low)
    attempt.add_promise(promise(2), Now(300, 5_300), None)
    assert attempt.accepted == high
    assert attempt.wall_ms(1_000) == 6_000, "the clock in the middle, and how long the promises were held"
    assert not attempt.decline(VOTERS[0].node, "r", "d")
    assert not attempt.decline(VOTERS[0].node, "r", "d")
    assert attempt.decline(VOTERS[1].node, "r", "d")


def test_a_promise_that_comes_twice_counts_its_makers_clock_once() -> None:
    attempt = Attempt(1, MESH, BALLOT, VOTERS[:3], voters_digest(VOTERS[:3]), 0, stands_by=True)
    attempt.add_promise(promise(0), Now(0, 1_000), None)
    for _ in range(2):
        attempt.add_promise(promise(1), Now(0, 2_400_000), None)
    assert attempt.wall_ms(0) == 1_000


def test_promises_entitle_only_when_a_majority_of_distinct_voters_made_them_for_this_ballot() -> None:
    attempt = (MESH, 1, BALLOT)
    three = VOTERS[:3]
    assert promises_problem((promise(0), promise(1)), attempt, three) == ""
    assert "majority" in promises_problem((promise(0),), attempt, three)
    assert "distinct" in promises_problem((promise(0), promise(0)), attempt, three)
    assert "distinct" in promises_problem((promise(0), promise(5)), attempt, three)
    assert "another ballot" in promises_problem((promise(0), promise(1, slot=2)), attempt, three)
