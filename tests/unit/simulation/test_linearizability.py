"""The judge of histories itself: it accepts what slots explain and names what they do not."""

from __future__ import annotations

from simulation.chain.linearizability import HistoryRead, HistoryWrite, problem


def test_a_history_that_slots_explain_is_accepted() -> None:
    writes = [HistoryWrite("a", 2, 1, 0, 10), HistoryWrite("a", 3, 2, 5, 30), HistoryWrite("b", 1, 3, 40, -1)]
    reads = [
        HistoryRead("a", 2, 1, 12, 15),
        HistoryRead("a", 5, 2, 31, 35),
        HistoryRead("b", 0, 2, 32, 36),
        HistoryRead("b", 1, 3, 50, 60),
    ]
    assert problem(writes, reads) == ""


def test_an_operation_below_one_that_had_returned_is_named() -> None:
    assert "began after" in problem([HistoryWrite("a", 1, 5, 0, 10), HistoryWrite("a", 1, 4, 20, 30)], [])
    assert "began after" in problem([HistoryWrite("a", 1, 5, 0, 10)], [HistoryRead("a", 0, 4, 20, 30)])
    assert "began after" in problem([HistoryWrite("a", 1, 5, 20, 30)], [HistoryRead("a", 1, 5, 0, 10)])


def test_overlapping_operations_may_land_either_way() -> None:
    assert problem([HistoryWrite("a", 1, 5, 0, 25), HistoryWrite("a", 1, 4, 20, 30)], []) == ""


def test_a_value_that_the_chain_never_had_is_named() -> None:
    assert "instead of 1" in problem([HistoryWrite("a", 1, 1, 0, 10)], [HistoryRead("a", 0, 1, 20, 30)])
