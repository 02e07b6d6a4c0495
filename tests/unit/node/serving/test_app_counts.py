"""Counts of apps: they grow whichever worker counted, never shrink, and end with what is deployed."""

from __future__ import annotations

from msgspec.structs import replace

from node.serving.app_counts import AppCounts, AppName
from runtime.messages import AppStatus, Status

LOADED = {"k": ("site", "production", "aa"), "other": ("site", "staging", "bb")}
NAME = AppName("site", "production", "web", "aa")


def app(count: int, errors: int = 0, key: str = "k") -> AppStatus:
    statuses = {"2xx": count, "5xx": errors}
    return AppStatus(key, "web", count + errors, 1, 2, {"ok": count}, statuses, (count, errors), 10 * count, 0)


def look(*apps: tuple[int, AppStatus]) -> list[Status]:
    by_pid: dict[int, list[AppStatus]] = {}
    for pid, app_status in apps:
        by_pid.setdefault(pid, []).append(app_status)
    return [Status(1, pid, 0, 0, 0, 0, 0, 0, {}, tuple(entry)) for pid, entry in by_pid.items()]


def test_totals_add_workers_up_and_survive_their_deaths() -> None:
    counts = AppCounts()
    counts.add(look((1, app(5, 1)), (2, app(3))), LOADED)
    counts.add(look((1, app(7, 1)), (3, app(2))), LOADED)  # worker 2 died, 3 took its place
    total = counts.totals[NAME]
    assert total.statuses == {"2xx": 5 + 3 + 2 + 2, "5xx": 1}
    assert total.buckets == [12, 1]
    assert total.latency_sum_us == 120
    assert (total.in_flight, total.queued) == (2, 4), "what goes on now is no total"


def test_what_is_not_deployed_any_more_has_no_series_and_other_environments_are_other_ones() -> None:
    counts = AppCounts()
    counts.add(look((1, app(5)), (1, app(4, key="other")), (1, app(9, key="stranger"))), LOADED)
    assert {app_name.environment: total.statuses["2xx"] for app_name, total in counts.totals.items()} == {
        "production": 5,
        "staging": 4,
    }
    counts.add(look((1, app(6))), {"k": LOADED["k"]})
    assert list(counts.totals) == [NAME]
    assert counts.totals[NAME].statuses["2xx"] == 6


def test_why_an_app_is_left_to_python_is_kept_until_it_no_longer_is() -> None:
    counts = AppCounts()
    counts.add(look((1, replace(app(5), engine_reason="it asks for more")), (2, app(3))), LOADED)
    assert counts.totals[NAME].engine_reason == "it asks for more"
    counts.add(look((1, app(5)), (2, app(3))), LOADED)
    assert counts.totals[NAME].engine_reason == ""


def test_the_engine_of_the_workers_and_of_each_app_is_named() -> None:
    counts = AppCounts()
    first, second = (
        replace(status, engine=engine, engine_reason=reason)
        for status, engine, reason in zip(
            look((1, replace(app(5), engine="native")), (2, app(3))),
            ("native", "python"),
            ("", "not built"),
            strict=True,
        )
    )
    counts.add([first], LOADED)
    assert (counts.engine, counts.engine_reason, counts.totals[NAME].engine) == ("native", "", "native")
    counts.add([first, second], LOADED)
    assert (counts.engine, counts.engine_reason) == ("native+python", "not built")
    assert counts.totals[NAME].engine == "native+python"
    counts.add([second], LOADED)
    assert (counts.engine, counts.totals[NAME].engine) == ("python", "python"), "what a worker was is not remembered"
