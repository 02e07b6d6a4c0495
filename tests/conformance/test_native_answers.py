"""The native engine answers as `wasmtime serve` does: the cases of `test_same_answers.py` that reach no other host.

The engine serves no app that may connect elsewhere, so those cases are Python's alone. Skipped where it is not built.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.native.choice import load_module
from tests.conformance.cases import BY_FIXTURE, DEAD, REUSABLE, UPSTREAM
from tests.conformance.compare import ask, differences
from tests.conformance.ours import serve_ours
from tests.conformance.record import golden
from tests.conformance.wire import Answer

MODULE, WHY = load_module()

pytestmark = pytest.mark.skipif(MODULE is None, reason=WHY or "built")


@pytest.mark.parametrize(
    ("fixture", "instances"),
    [*((fixture, "fresh") for fixture in BY_FIXTURE), *((fixture, "reuse") for fixture in REUSABLE)],
)
def test_the_native_engine_answers_the_same(fixture: str, instances: str, component: Callable[[str], Path]) -> None:
    recorded = golden(fixture)["answers"]
    cases = [case for case in BY_FIXTURE[fixture] if UPSTREAM not in case.ask.path and DEAD not in case.ask.path]
    assert cases
    with serve_ours(component(fixture), engine="native", instances=instances) as server:
        assert server.engine == "native"
        found = {
            case.name: differences(ask(server.port, case, "127.0.0.1:1"), Answer.from_json(recorded[case.name]), case)
            for case in cases
        }
    assert not {name: sentences for name, sentences in found.items() if sentences}
