"""What doctor makes of an app's answers."""

from __future__ import annotations

import pytest

from cli.views.apps import apps
from protocols.api_models import AppAnswersView
from tests.support.protocols.answers import node_view


def judged(requests: int, failed: int, **ends: int) -> list[tuple[bool, str]]:
    app = AppAnswersView("shop", "production", "web", requests, failed, ends)
    return [(finding.fault, finding.what) for finding in apps(node_view(name="one", apps=(app,)))]


@pytest.mark.parametrize(
    ("requests", "failed", "fault"), [(1, 1, True), (40, 20, True), (40, 19, False), (1000, 1, False)]
)
def test_an_app_that_fails_half_of_its_requests_is_a_fault(requests: int, failed: int, fault: bool) -> None:
    ((answer, what),) = judged(requests, failed)
    assert answer == fault
    assert what.startswith("shop/production: app web failed ")


def test_how_they_ended_is_told() -> None:
    ((_, what),) = judged(3, 3, trapped=2, deadline_exceeded=1)
    assert "failed each of 3 requests on one in the last minutes (deadline exceeded 1, trapped 2)" in what


def test_an_app_that_fails_nobody_is_not_mentioned_whatever_visitors_do() -> None:
    assert judged(10, 0, cancelled=10) == []
    assert apps(node_view(name="a node of the release before")) == []
