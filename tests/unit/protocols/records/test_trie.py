"""The trie over records, and the floors below which they are forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.records.floors import MARGIN_MS, Floors, FloorVector, Moment
from protocols.records.trie import EMPTY, WIDTH, Trie, differing, id_of, leaf_of
from tests.support.protocols.record_world import Fleet, fast_id, fill, immutable
from tests.support.protocols.trust_world import DAY_MS, WALL_MS

# --- the trie ---------------------------------------------------------------------------------------------------------


def trie_of(items: dict[str, bytes]) -> Trie:
    trie = Trie()
    for key, value in items.items():
        trie.put(key, value)
    return trie


@given(st.dictionaries(st.text(max_size=4), st.binary(max_size=4), max_size=30), st.randoms(use_true_random=False))
def test_equal_contents_have_equal_roots_whatever_the_history(items, shuffler) -> None:  # type: ignore[no-untyped-def]
    order = list(items.items())
    shuffler.shuffle(order)
    other = Trie()
    for key, value in order:
        other.put(key, b"older")
        other.root()
        other.put(key, value)
        other.put("extra", value)
    other.remove("extra") if "extra" not in items else other.put("extra", items["extra"])
    other.remove("never there")
    assert other.root() == trie_of(items).root()
    assert len(other) == len(items)


@given(st.dictionaries(st.text(max_size=4), st.binary(max_size=4), max_size=30), st.text(max_size=4))
def test_one_more_record_or_another_version_changes_the_root(items: dict[str, bytes], key: str) -> None:
    trie = trie_of(items)
    before = trie.root()
    trie.put(key, items.get(key, b"") + b"!")
    assert trie.root() != before


def test_an_empty_trie_is_all_zeros_and_so_is_an_emptied_one() -> None:
    trie = Trie()
    assert trie.root() == EMPTY
    trie.put("k", b"v")
    assert trie.root() != EMPTY
    trie.remove("k")
    assert trie.root() == EMPTY
    assert trie.children(2, leaf_of("k") // WIDTH) == EMPTY * WIDTH


def test_the_differing_children_lead_to_the_leaf() -> None:
    here, there = trie_of({"a": b"1", "b": b"2"}), trie_of({"a": b"1"})
    index = 0
    for level in range(3):
        (child,) = differing(here.children(level, index), there.children(level, index))
        index = index * WIDTH + child
    assert index == leaf_of("b")
    assert here.leaf_items(index) == [(id_of("b", b"2"), "b")]
    assert here.leaf_ids(index) == [id_of("b", b"2")]


# --- floors -----------------------------------------------------------------------------------------------------------

A, B, C = (fast_id(name) for name in ("a", "b", "c"))

ALL = (A, B, C)

SILENT_MS = 60 * DAY_MS


def vector(**moments: int) -> FloorVector:
    ids = {"a": A, "b": B, "c": C}
    return FloorVector(tuple(Moment(ids[name], at_ms) for name, at_ms in moments.items()))


def test_knowledge_travels_over_a_node_in_between() -> None:
    here = Floors(A, SILENT_MS)
    assert not here.established
    here.equal_with(vector(b=1_000_000, c=900_000), 1_000_100)
    assert here.established
    assert set(here.vector(1_000_200).moments) == set(vector(a=1_000_200, b=1_000_000, c=900_000).moments)
    theirs = {B: vector(a=950_000, b=1_000_000, c=990_000), C: vector(a=970_000, b=960_000, c=1_000_000)}
    assert here.common(theirs, ALL, 1_000_200) == 900_000 - MARGIN_MS
    assert here.common({B: theirs[B]}, ALL, 1_000_200) == 0, "nothing is known of what C has seen"


def test_a_clock_far_ahead_vouches_for_no_future() -> None:
    here = Floors(A, SILENT_MS)
    here.equal_with(vector(b=10**15), 1_000_000)
    assert here.common({B: vector(a=10**15, b=10**15)}, (A, B), 1_000_000) <= 1_000_000


def test_a_member_silent_too_long_no_longer_holds_the_floor_back() -> None:
    here = Floors(A, SILENT_MS)
    here.equal_with(vector(b=WALL_MS, c=WALL_MS), WALL_MS)
    late = WALL_MS + SILENT_MS + 1
    here.equal_with(vector(b=late), late)
    theirs = {B: vector(a=late, b=late, c=WALL_MS), C: vector(a=WALL_MS, b=WALL_MS, c=WALL_MS)}
    assert here.common(theirs, ALL, late) == late - MARGIN_MS
    assert here.contact(ALL, late).live == 2


def test_of_two_that_left_each_other_out_exactly_one_resyncs() -> None:
    floors, two = Floors(A, SILENT_MS), Floors(B, SILENT_MS)
    floors.equal_with(vector(b=WALL_MS), WALL_MS)
    two.equal_with(vector(a=WALL_MS), WALL_MS)
    soon, late = WALL_MS + SILENT_MS, WALL_MS + SILENT_MS + 1
    assert floors.we_are_stale(B, two.contact(ALL, soon), ALL, soon) is None
    answers = {
        floors.we_are_stale(B, two.contact((A, B), late), (A, B), late),
        two.we_are_stale(A, floors.contact((A, B), late), (A, B), late),
    }
    assert answers == {True, False}
    two.equal_with(vector(c=late), late)
    assert floors.we_are_stale(B, two.contact(ALL, late), ALL, late) is True, "the smaller part learns"


def test_a_newcomer_forgets_nothing_and_one_that_lost_its_floors_only_what_it_was_left_out_for() -> None:
    new, old = Floors(A, SILENT_MS), Floors(B, SILENT_MS)
    assert new.we_are_stale(B, old.contact(ALL, WALL_MS), ALL, WALL_MS) is None
    old.restore(vector(b=WALL_MS, c=WALL_MS))
    assert new.we_are_stale(B, old.contact(ALL, WALL_MS), ALL, WALL_MS) is None
    assert old.we_are_stale(A, new.contact(ALL, WALL_MS), ALL, WALL_MS) is None
    old.restore(vector(a=WALL_MS - SILENT_MS - 1, b=WALL_MS, c=WALL_MS))
    assert new.we_are_stale(B, old.contact(ALL, WALL_MS), ALL, WALL_MS) is True
    assert old.we_are_stale(A, new.contact(ALL, WALL_MS), ALL, WALL_MS) is False


@pytest.mark.parametrize("who", ["n0", "n1"])
def test_a_node_whose_clock_is_far_ahead_forgets_nothing_that_its_peer_lacks(who: str) -> None:
    fleet = Fleet(["n0", "n1"])
    fleet.connect("n0", "n1")
    fleet.run(100_000)
    fleet.disconnect("n0", "n1")
    fill(fleet, who, [immutable(who, body=b"made while apart")])
    fleet.wall_offset_ms[fast_id(who)] = 365 * DAY_MS
    before = fleet[who].held_keys()
    fleet.connect("n0", "n1")
    fleet.run(120_000)
    assert set(before) <= set(fleet[who].held_keys())


def test_a_founder_that_was_alone_for_long_loses_nothing_to_newcomers_that_met_first() -> None:
    fleet = Fleet(["n0", "n1", "n2"])
    fill(fleet, "n0", [immutable("n0", body=b"%d" % number, at_ms=WALL_MS - 40 * DAY_MS) for number in range(5)])
    fleet.connect("n1", "n2")
    fleet.run(40_000)
    fleet.connect("n0", "n1")
    fleet.run(120_000)
    assert len(fleet["n0"].held_keys()) >= 5
    assert len(fleet.roots()) == 1
