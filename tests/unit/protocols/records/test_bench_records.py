"""The benchmark of records measures what the rules still allow: a row whose records are refused would be no row."""

from __future__ import annotations

import pytest

from benchmarks import records


def test_every_row_of_the_benchmark_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MERGED", 40), ("STORE_RECORDS", 2_000), ("DIFFERENCES", 20)):
        monkeypatch.setattr(records, name, value)
    rows = list(records.run())
    assert len(rows) == 9
    assert all(row.value > 0 for row in rows)
    assert {row.peer for row in rows if row.ratio} == {"bare Ed25519 verify", "two bare Ed25519 verifies"}
