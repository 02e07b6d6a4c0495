"""What became of a change: rolled back, aborted, superseded, started anew, and all of it after a new era."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.decisions.outcomes import Fates
from protocols.api_models import DecisionView, Numbers

LANE = ("hello", "production")
OTHER = ("shop", "production")


@dataclass
class Chain:
    """Decisions as the ledger hands them out, newest last; `era` is in every digest, as the real one chains them."""

    decisions: list[DecisionView] = field(default_factory=list)
    era: str = "first"
    read: int = 0

    def decide(
        self,
        action: str,
        subject: str = "",
        *,
        lane: tuple[str, str] = LANE,
        by: str = "",
        reason: str = "",
        numbers: tuple[Numbers, ...] = (),
    ) -> None:
        slot = len(self.decisions) + 1
        signers = (by,) if by else ()
        self.decisions.append(DecisionView(slot, slot * 1000, action, *lane, signers, (), subject, reason, numbers))

    def at(self, slot: int) -> DecisionView:
        self.read += 1
        return self.decisions[slot - 1]

    def digest_at(self, slot: int) -> bytes:
        return f"{self.era} {slot} {self.decisions[slot - 1].subject if slot else ''}".encode()

    def fates(self) -> Fates:
        return Fates(self.at, self.digest_at)

    def ending(self, change: str, fates: Fates | None = None) -> str:
        fate = (fates or self.fates()).of(change, len(self.decisions))
        return fate.ending if fate is not None else ""


def test_a_change_that_health_took_back_is_rolled_back_with_the_numbers() -> None:
    chain = Chain()
    chain.decide("start", "one", by="ann")
    chain.decide("promote", "r1")
    measured = Numbers("12D3KooWabcdef", "fail", 20, 9, 0, 1, "too many errors")
    chain.decide("abort", "r1", reason="stage 2 failed", numbers=(measured,))
    fate = chain.fates().of("one", 3)
    assert fate is not None
    assert (fate.ending, fate.at_ms) == ("rolled-back", 3000)
    assert fate.why == "stage 2 failed (abcdef: 9 errors in 20 requests too many errors)"


def test_a_person_aborts_and_a_rollback_takes_back_whatever_is_there() -> None:
    chain = Chain()
    chain.decide("start", "one", by="ann")
    chain.decide("abort", "r1", by="ann", reason="wrong day")
    chain.decide("start", "two", by="ann")
    chain.decide("rollback", "zero", by="ann", reason="it was better before")
    assert (chain.ending("one"), chain.ending("two"), chain.ending("zero")) == ("aborted", "rolled-back", "")


def test_a_start_supersedes_what_was_there_and_lanes_do_not_mix() -> None:
    chain = Chain()
    chain.decide("start", "one", by="ann")
    chain.decide("start", "elsewhere", by="bob", lane=OTHER)
    chain.decide("start", "two", by="ann")
    assert (chain.ending("one"), chain.ending("two"), chain.ending("elsewhere")) == ("superseded", "", "")


def test_what_is_started_again_has_not_ended_and_each_decision_is_read_once() -> None:
    chain = Chain()
    fates = chain.fates()
    chain.decide("start", "one", by="ann")
    chain.decide("abort", "r1")
    assert chain.ending("one", fates) == "rolled-back"
    chain.decide("start", "one", by="ann")
    assert chain.ending("one", fates) == ""
    assert chain.read == 3


def test_a_new_era_that_began_before_what_was_read_is_read_anew() -> None:
    chain = Chain()
    fates = chain.fates()
    chain.decide("start", "one", by="ann")
    chain.decide("abort", "r1")
    assert chain.ending("one", fates) == "rolled-back"
    chain.era = "second"
    chain.decisions[1:] = []
    chain.decide("reset")
    assert chain.ending("one", fates) == ""
