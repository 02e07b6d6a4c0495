"""The load table: what one process writes, the others see; an empty place never looks idle."""

from __future__ import annotations

from pathlib import Path

from runtime.ingress.load_table import CLOSED, SLOTS_MAX, LoadTable


def test_a_new_table_shows_no_worker_at_all(tmp_path: Path) -> None:
    table = LoadTable(tmp_path / "load")
    assert table.least() == CLOSED
    table.close()


def test_counts_are_seen_through_every_view_and_outlive_them(tmp_path: Path) -> None:
    first, second = LoadTable(tmp_path / "load"), LoadTable(tmp_path / "load")
    first.set(0, 5)
    second.set(SLOTS_MAX - 1, 3)
    assert (first.least(), second.least()) == (3, 3)
    first.set(0, 1)
    first.close()
    second.close()
    third = LoadTable(tmp_path / "load")
    assert third.least() == 1
    third.set(0, CLOSED)
    assert third.least() == 3
    third.close()


def test_the_table_is_for_its_user_alone(tmp_path: Path) -> None:
    LoadTable(tmp_path / "load").close()
    assert (tmp_path / "load").stat().st_mode & 0o777 == 0o600
