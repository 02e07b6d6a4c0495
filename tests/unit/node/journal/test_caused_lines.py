"""One caller's writes are so many lines of the node's log a minute; the node's own lines and other callers' all stay."""

from __future__ import annotations

import logging

from node.journal.caused_lines import LINES_MAX, PAYERS_MAX, WINDOW_S, CausedLines


class Lines:
    """A log behind the filter, at a time of the test's."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.budget = CausedLines(lambda: self.now_s)

    def said(self, payer: str = "") -> logging.LogRecord | None:
        record = logging.LogRecord("freehold.audit", logging.INFO, "", 0, "publish done", (), None)
        if payer:
            record.payer = payer
        return record if self.budget.filter(record) else None


def test_a_payer_causes_so_many_lines_a_minute_and_the_next_minute_tells_how_many_there_were() -> None:
    log = Lines()
    assert sum(log.said("token") is not None for _ in range(1_000)) == LINES_MAX
    assert all(log.said("another") for _ in range(LINES_MAX))
    assert all(log.said() for _ in range(1_000)), "what nobody caused is always written"
    log.now_s += WINDOW_S - 0.001
    assert log.said("token") is None, "not yet"
    log.now_s += 0.001
    told = log.said("token")
    assert told is not None
    assert getattr(told, "count", None) == 1_001 - LINES_MAX + 1
    following = log.said("token")
    assert following is not None
    assert getattr(following, "count", None) is None


def test_a_payer_that_keeps_to_its_lines_is_told_of_without_a_count() -> None:
    log = Lines()
    assert all(log.said("token") for _ in range(LINES_MAX))
    log.now_s += WINDOW_S
    again = log.said("token")
    assert again is not None
    assert getattr(again, "count", None) is None


def test_payers_that_are_counted_have_an_end() -> None:
    log = Lines()
    for number in range(PAYERS_MAX + 100):
        assert log.said(f"key {number}") is not None
    assert len(log.budget._minutes) == PAYERS_MAX
