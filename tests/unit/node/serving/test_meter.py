"""Counts of a stage: differences that every voter takes for sound, whatever was under way when it opened."""

from __future__ import annotations

from node.serving.meter import since
from protocols.changes.statements import LATENCY_BUCKETS, Counts


def buckets(count: int) -> tuple[int, ...]:
    return (count, *(0,) * (LATENCY_BUCKETS - 1))


def test_requests_under_way_at_the_first_look_are_counted_where_they_end() -> None:
    then = Counts(10, 1, buckets(8))  # two have begun and not ended
    assert since(Counts(10, 3, buckets(10)), then) == Counts(2, 2, buckets(2))
    assert since(Counts(15, 3, buckets(15)), then) == Counts(7, 2, buckets(7))
    assert since(Counts(15, 1, buckets(9)), then) == Counts(5, 0, buckets(1))


def test_a_difference_is_sound_also_when_a_count_began_anew() -> None:
    for now in (Counts(0, 0, buckets(0)), Counts(4, 9, buckets(2)), Counts(11, 0, buckets(30))):
        assert since(now, Counts(10, 1, buckets(8))).sound()


def test_the_first_stage_of_a_release_counts_from_nothing() -> None:
    assert since(Counts(3, 1, buckets(3)), Counts()) == Counts(3, 1, buckets(3))
