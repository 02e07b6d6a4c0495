"""The compatibility suite as tests: a core in every run, the rest in the long one; and the table in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compatibility.suite import Shape, judge, lacking, shapes, table
from tests.support.runtime.projects import own_cache

ROOT = Path(__file__).resolve().parents[2]


def cases() -> list[object]:
    return [pytest.param(shape, marks=[] if shape.core else [pytest.mark.long], id=shape.name) for shape in shapes()]


@pytest.mark.parametrize("shape", cases())
async def test_every_subject_is_right_or_refused(shape: Shape, tmp_path: Path) -> None:
    with own_cache():
        missing = lacking(shape)
    if missing:
        pytest.skip(f"it needs {missing}")
    results = [judged async for judged in judge(shape, tmp_path)]
    assert len(results) == len(shape.subjects)
    assert [(judged.subject, judged.said) for judged in results if judged.verdict == "wrong"] == []


def test_the_suite_is_as_large_as_it_should_be() -> None:
    rows = [row for shape in shapes() for row in shape.subjects]
    assert len(rows) == len({(kind, subject) for kind, subject, _ in rows}), "a subject is judged once"
    assert sum(kind == "pypi" for kind, _, _ in rows) >= 40
    assert sum(kind == "npm" for kind, _, _ in rows) >= 40
    assert sum(kind in ("shape", "framework") for kind, _, _ in rows) >= 30
    assert sum(verdict == "right" for _, _, verdict in rows) >= 45


def test_the_documentation_shows_what_the_suite_holds() -> None:
    page = (ROOT / "docs" / "reference" / "compatibility.md").read_text()
    assert page == table(), "make it again: python -m tests.compatibility --table > docs/reference/compatibility.md"
