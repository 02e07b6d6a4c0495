"""In which order `make test` takes the files: the longest first, those that wait beside those that compute, the short last.

Each process takes a whole file at a time. Taken by name, or by their number of tests, the long walks of one test come at
the end, where all but one process have nothing left to do; and meshes, which wait for each other, come all at once while
the processors idle. Not here: what a test costs (docs/project/tests.md).
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = (
    "tests/e2e/install/test_readme.py",
    "tests/e2e/dev/test_python_apps.py",
    "tests/e2e/mesh/test_leaving.py",
    "tests/conformance/test_same_answers.py",
    "tests/e2e/mesh/test_partitions.py",
    "tests/e2e/dev/test_python_guest.py",
    "tests/e2e/durability/test_losses.py",
    "tests/e2e/dev/test_build_templates.py",
    "tests/e2e/mesh/test_rollouts.py",
    "tests/simulation/test_seeds.py",
    "tests/e2e/durability/test_kills.py",
    "tests/e2e/dev/test_javascript_sources.py",
    "tests/e2e/dev/test_python_clients.py",
    "tests/e2e/dev/test_build_jobs.py",
    "tests/e2e/dev/test_websocket_guests.py",
    "tests/e2e/dev/test_javascript_platform.py",
)
WAITING = tuple(f"tests/e2e/{room}/" for room in ("api", "console", "data", "durability", "mesh", "transport"))
"""Where tests wait for other processes most of their time."""

SHORT = ("tests/unit/", "tests/test_")


def running_order(files: Iterable[str]) -> list[str]:
    """Return the files, relative to the repository, in the order in which they are to run; each stays as it was named."""
    named = dict.fromkeys(files)
    rest = [file for file in named if file not in LONGEST]
    waiting = [file for file in rest if file.startswith(WAITING)]
    short = [file for file in rest if file.startswith(SHORT)]
    computing = [file for file in rest if file not in {*waiting, *short}]
    middle = sorted(
        (place / max(1, len(kind)), number, file)
        for number, kind in enumerate((waiting, computing))
        for place, file in enumerate(kind)
    )
    return [*(file for file in LONGEST if file in named), *(file for _, _, file in middle), *short]
