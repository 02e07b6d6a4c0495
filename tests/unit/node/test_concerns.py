"""What an operator is warned of: each time with what to do."""

from __future__ import annotations

from node.concerns import voter_warnings
from protocols.machine import PeerId

VOTERS = [PeerId(name) for name in ("a", "b", "c")]


def test_all_voters_up_is_no_warning_and_neither_is_a_boot_read_under_way() -> None:
    assert voter_warnings(VOTERS, [], 0) == []
    assert voter_warnings(VOTERS, [], 2) == []
    assert voter_warnings(VOTERS[:1], [], 0) == []


def test_a_voter_of_three_that_is_not_reached_is_looked_at_before_another_reboots() -> None:
    (warning,) = voter_warnings(VOTERS, VOTERS[:1], 0)
    assert "voter a is down, or not reached" in warning
    assert "reboot" in warning
    assert "freehold doctor" in warning
    assert "replace" not in warning, "it may be well, and its network cut"


def test_a_voter_that_rebooted_beside_a_dead_one_says_whom_it_waits_for() -> None:
    _, warning = voter_warnings(VOTERS, VOTERS[:1], 2)
    assert "2 other voters have answered, and 1 are up" in warning
    assert "start the others" in warning


def test_a_lost_majority_is_said_once() -> None:
    (warning,) = voter_warnings(VOTERS, VOTERS[:2], 0)
    assert warning.startswith("2 of 3 voters are down")
