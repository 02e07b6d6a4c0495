"""What serves is said in words: by `freehold status` for the asked node, by `doctor` for each, beside a verdict."""

from __future__ import annotations

import msgspec
import pytest

from cli.commands.mesh.doctor import _served
from cli.commands.rollout.status import _numbers
from cli.views.lane_status import left_to_python, served_words
from protocols.api_models import AppEngineView, Numbers, VerdictView
from tests.support.protocols.answers import node_view


@pytest.mark.parametrize(
    ("engine", "reason", "said"),
    [
        ("native", "", "a serves in the native engine"),
        ("python", "not built; run: make native", "a serves in Python: not built; run: make native"),
        ("native+python", "", "a serves in native+python"),
    ],
)
def test_status_says_what_serves_and_why_not_the_other(engine: str, reason: str, said: str) -> None:
    assert served_words(node_view(name="a", engine=engine, engine_reason=reason)) == said


def test_status_says_which_apps_the_native_engine_leaves_to_python_and_why() -> None:
    node = node_view(name="a", engine="native", left_to_python=(AppEngineView("shop", "production", "web", "why"),))
    assert left_to_python(node) == ["shop in production, web: a serves it in Python: why"]
    assert left_to_python(node_view(name="a", engine="native")) == []


def test_doctor_names_the_engine_of_a_node_that_says_it() -> None:
    assert _served("the node a", node_view(engine="native")) == "the node a (serves in the native engine)"
    assert _served("the node a", node_view()) == "the node a", "it was not asked yet"
    assert _served("the node a", None) == "the node a", "it did not answer"


def test_a_verdict_names_an_engine_that_is_not_python() -> None:
    verdict = VerdictView("n", "pass", 1, 9, 1, "")
    plain = _numbers({"n": "a"}, verdict)
    assert _numbers({"n": "a"}, msgspec.structs.replace(verdict, engine="native")) == f"{plain}, in the native engine"
    numbers = Numbers("n", "pass", 9, 1, 1, 0, "")
    assert _numbers({"n": "a"}, numbers) == plain, "a decision keeps no engine"
