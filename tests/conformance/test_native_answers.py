"""The native engine answers as `wasmtime serve` does: the cases of `test_same_answers.py`, requests to other hosts included.

Skipped where it is not built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.native.choice import load_module
from tests.conformance.cases import BY_FIXTURE, REUSABLE
from tests.conformance.compare import ask, differences
from tests.conformance.ours import serve_ours
from tests.conformance.record import golden
from tests.conformance.upstream import DEAD_AUTHORITY, upstream
from tests.conformance.wire import Answer

MODULE, WHY = load_module()

pytestmark = pytest.mark.skipif(MODULE is None, reason=WHY or "built")


@pytest.fixture(scope="module")
def authority() -> Iterator[str]:
    with upstream() as running:
        yield running


@pytest.mark.parametrize(
    ("fixture", "instances"),
    [*((fixture, "fresh") for fixture in BY_FIXTURE), *((fixture, "reuse") for fixture in REUSABLE)],
)
def test_the_native_engine_answers_the_same(
    fixture: str, instances: str, component: Callable[[str], Path], authority: str
) -> None:
    recorded = golden(fixture)["answers"]
    hosts = (authority, DEAD_AUTHORITY)
    with serve_ours(
        component(fixture), engine="native", instances=instances, allow_hosts=hosts, allow_loopback=True
    ) as server:
        assert server.engine == "native"
        found = {}
        for case in BY_FIXTURE[fixture]:
            wanted = Answer.from_json(recorded[case.name])
            found[case.name] = differences(ask(server.port, case, authority), wanted, case)
            if case.pieces and found[case.name]:  # a busy machine may join two pieces on their way
                found[case.name] = differences(ask(server.port, case, authority), wanted, case)
    assert not {name: sentences for name, sentences in found.items() if sentences}
