"""Counts of a stage: differences that every voter takes for sound, whatever was under way when it opened."""

from __future__ import annotations

from node.serving.meter import Meter, since
from protocols.changes.statements import LATENCY_BUCKETS, Counts
from runtime.messages import AppStatus, Status


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


def engine_of(*apps: tuple[str, str, int]) -> str:
    """The engine of a release whose apps were served so: (app, engine, measured answers)."""
    entries = tuple(AppStatus("k", app, count, 0, 0, {}, {}, (count, 0), 0, 0, engine) for app, engine, count in apps)
    meter = Meter()
    meter.add([Status(1, 1, 0, 0, 0, 0, 0, 0, {}, entries)])
    counts = meter.tally("k").counts()
    assert counts.sound()
    return since(counts, Counts()).engine


def test_counts_name_the_engine_that_answered() -> None:
    assert engine_of(("web", "native", 5), ("api", "native", 1)) == "native"
    assert engine_of(("web", "python", 5)) == "python"
    assert engine_of(("web", "native", 5), ("job", "python", 0)) == "native", "who answered nothing was not measured"
    assert Meter().tally("k").counts().engine == "python"


def test_a_mixture_is_alike_only_where_each_app_had_the_same_engine() -> None:
    mixed = engine_of(("web", "native", 5), ("api", "python", 1))
    assert mixed.startswith("mixed-")
    assert mixed == engine_of(("api", "python", 900), ("web", "native", 1))
    assert mixed != engine_of(("web", "python", 5), ("api", "native", 1))
