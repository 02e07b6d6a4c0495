"""The order of test files: long ones first, nothing lost, and every file that is named is there."""

from __future__ import annotations

from tests.support.running_order import LONGEST, running_order
from tests.test_tidy import ROOT, tracked

MESHES = [f"tests/e2e/mesh/test_{letter}.py" for letter in "abcd"]
BUILDS = [f"tests/e2e/dev/test_{letter}.py" for letter in "ab"]
UNITS = ["tests/unit/test_a.py", "tests/test_tidy.py"]


def test_meshes_and_builds_take_turns_between_the_longest_and_the_shortest() -> None:
    order = running_order([*UNITS, *MESHES, LONGEST[1], *BUILDS, LONGEST[0], LONGEST[0]])
    assert order == [
        *LONGEST[:2], MESHES[0], BUILDS[0], MESHES[1], MESHES[2], BUILDS[1], MESHES[3], *UNITS,
    ]  # fmt: skip
    assert running_order(BUILDS) == BUILDS
    assert running_order([]) == []


def test_every_test_file_runs_once_and_the_longest_are_there() -> None:
    files = [str(path.relative_to(ROOT)) for path in tracked(".py") if path.name.startswith("test_")]
    assert sorted(running_order(files)) == sorted(files)
    assert set(LONGEST) <= set(files)
