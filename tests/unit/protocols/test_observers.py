"""Observers: the same on every node, and kept as members come and go for the price of a few hashes."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import observers
from protocols.machine import PeerId
from protocols.observers import Observers, observers_of
from tests.support.protocols.trust_world import node_id

id_of = cache(node_id)
COUNT = 5


def test_observers_are_the_same_on_every_node_and_few_change_when_one_comes() -> None:
    members = [id_of(f"n{index}") for index in range(20)]
    before = {node: observers_of(node, members, 5) for node in members}
    shuffled = list(reversed(members))
    assert before == {node: observers_of(node, shuffled, 5) for node in members}
    assert all(len(observers) == 5 and node not in observers for node, observers in before.items())
    after = {node: observers_of(node, [*members, id_of("new")], 5) for node in members}
    assert sum(set(before[node]) != set(after[node]) for node in members) < 12
    assert observers_of(members[0], members[:3], 5) == observers_of(members[0], members[2::-1], 5)


@given(st.lists(st.sets(st.integers(0, 15)), max_size=8), st.integers(1, COUNT))
def test_whatever_comes_and_goes_they_are_those_of_the_members_there_are(steps: list[set[int]], count: int) -> None:
    kept_observers = Observers(count)
    for step in steps:
        members = [id_of(f"n{index}") for index in step]
        kept_observers.set(members)
        assert {node: kept_observers.of(node) for node in members} == {
            node: observers_of(node, members, count) for node in members
        }
    with pytest.raises(KeyError):
        kept_observers.of(id_of("stranger"))


@pytest.mark.parametrize("nodes", [64, 256])
def test_a_member_more_or_less_costs_a_hash_or_two_for_each_and_not_for_each_pair(
    nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [PeerId(f"peer-{index}") for index in range(nodes)]
    kept_observers, counted = Observers(COUNT), itertools.count()
    kept_observers.set(members)
    place = observers._place
    monkeypatch.setattr(observers, "_place", lambda node, peer: (next(counted), place(node, peer))[1])
    kept_observers.set([*members, PeerId("new")])
    assert next(counted) == 2 * nodes, "what it is to each, and what each is to it"
    kept_observers.set([*members[1:], PeerId("new")])
    # Those whom it observed look again: COUNT of them on average.
    assert next(counted) < 3 * COUNT * nodes
    before = next(counted)
    kept_observers.set([PeerId("new"), *members[1:]])
    assert next(counted) == before + 1, "who is in the mesh, in another order, is no change"
