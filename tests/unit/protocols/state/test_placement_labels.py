"""A selector of several labels takes nodes that carry every one of them, whichever is missing and whatever is more."""

from __future__ import annotations

import itertools

import pytest

from protocols.machine import PeerId
from protocols.state.model import ConfirmedNode, Environment
from protocols.state.placement import selects

LABELS = (("zone", "a"), ("disk", "ssd"), ("net", "fast"))
NEAR = (("zone", "b"), ("disk", "hdd"), ("zonea", ""), ("a", "zone"))


def node(
    labels: tuple[tuple[str, str], ...], roles: tuple[str, ...] = ("worker",), *, draining: bool = False
) -> ConfirmedNode:
    return ConfirmedNode(PeerId("n"), labels, roles, 1, draining)


SUBSETS = [subset for size in range(4) for subset in itertools.combinations(LABELS, size)]


@pytest.mark.parametrize("selector", SUBSETS)
@pytest.mark.parametrize("carried", SUBSETS)
def test_every_label_counts(selector: tuple[tuple[str, str], ...], carried: tuple[tuple[str, str], ...]) -> None:
    environment = Environment("prod", selector, None, False)
    assert selects(environment, node(carried)) == (set(selector) <= set(carried))
    assert selects(environment, node((*carried, *NEAR))) == (set(selector) <= set(carried)), "near misses add nothing"


def test_only_workers_that_stay_are_selected() -> None:
    environment = Environment("prod", (), None, False)
    assert selects(environment, node(()))
    assert not selects(environment, node((), ("voter", "issuer")))
    assert not selects(environment, node((), draining=True))
