"""Scope as a matrix: position x kind of object x where it lies x reading or writing, against an oracle of its own."""

from __future__ import annotations

import itertools

import pytest

from node.api.callers.scope import EVERYTHING, NOTHING, OF_MESH, OF_NOBODY, Owned, Place, Scope, covered, overlap
from node.api.reports.views import peers_view
from protocols.api_models import AppEngineView
from protocols.trust.grants import ANY, VERBS_OF_ROLE, Rights, Role
from tests.support.protocols.answers import node_view

PROJECTS, ENVIRONMENTS = ("shop", "blog"), ("prod", "staging")
NAMES: tuple[tuple[str, ...], ...] = (("shop",), ("blog",), (ANY,), ("shop", "blog"), ())
WHERE: tuple[tuple[str, ...], ...] = (("prod",), ("staging",), (ANY,), ())


def rights(role: Role, projects: tuple[str, ...], environments: tuple[str, ...]) -> Rights:
    return Rights(
        b"k", b"k", "person", "ada", (role,), VERBS_OF_ROLE[role], projects, environments, 1 << 62, (b"k",), ()
    )


POSITIONS = {
    f"{role} of {'+'.join(projects) or 'nothing'} in {'+'.join(environments) or 'nowhere'}": (
        role,
        projects,
        environments,
    )
    for role, projects, environments in itertools.product(("viewer", "proposer", "approver"), NAMES, WHERE)
}
OBJECTS = {
    **{f"{kind} of {p} in {e}": (p, e) for kind in ("lane", "change", "artifact", "secret", "log line") for p in PROJECTS
       for e in ENVIRONMENTS},
    **{f"project {p}": (p, "") for p in PROJECTS},
    **{f"environment {e}": ("", e) for e in ENVIRONMENTS},
}  # fmt: skip


def may(
    role: str, projects: tuple[str, ...], environments: tuple[str, ...], place: tuple[str, str], *, writing: bool
) -> bool:
    """The rule said once more, in other words: each part of a place is free, named, or covered by the star."""
    if writing and role == "viewer":
        return False
    allowed_projects = set(PROJECTS) if "*" in projects else set(projects)
    allowed_environments = set(ENVIRONMENTS) if "*" in environments else set(environments)
    return bool(
        allowed_projects & ({place[0]} if place[0] else set(PROJECTS))
        and allowed_environments & ({place[1]} if place[1] else set(ENVIRONMENTS))
    )


CELLS = [
    (position, thing, writing)
    for position, thing, writing in itertools.product(POSITIONS, OBJECTS, (False, True))
]  # fmt: skip


def test_the_matrix_is_as_large_as_it_is_said_to_be() -> None:
    assert len(CELLS) >= 400
    answers = [may(*POSITIONS[position], OBJECTS[thing], writing=writing) for position, thing, writing in CELLS]
    assert 0.1 < sum(answers) / len(answers) < 0.9, "a matrix of one answer tells nothing"


@pytest.mark.parametrize("position", POSITIONS)
def test_a_grant_covers_what_lies_in_its_projects_and_environments_and_nothing_beside(position: str) -> None:
    role, projects, environments = POSITIONS[position]
    scope = Scope("k", (rights(role, projects, environments),))  # type: ignore[arg-type]
    for thing, place in OBJECTS.items():
        for writing in (False, True):
            expected = may(role, projects, environments, place, writing=writing)
            owned = Owned((Place(*place),))
            assert covered(scope, owned, writing=writing) is expected, (thing, writing)
            assert covered(EVERYTHING, owned, writing=writing)
            assert not covered(NOTHING, owned, writing=writing)


def test_two_grants_never_lend_each_other_a_part() -> None:
    scope = Scope("k", (rights("proposer", ("shop",), ("staging",)), rights("proposer", ("blog",), ("prod",))))
    assert covered(scope, Owned((Place("shop", "staging"),)), writing=True)
    assert covered(scope, Owned((Place("blog", "prod"),)), writing=True)
    assert not covered(scope, Owned((Place("shop", "prod"),)))
    assert not covered(scope, Owned((Place("blog", "staging"),)))
    looks = Scope("k", (rights("viewer", ("shop",), ("prod",)), rights("proposer", ("shop",), ("staging",))))
    assert covered(looks, Owned((Place("shop", "prod"),)))
    assert not covered(looks, Owned((Place("shop", "prod"),)), writing=True), "the verb of one, the place of the other"


def test_one_place_suffices_and_a_principals_own_is_its_own() -> None:
    scope = Scope("ada", (rights("viewer", ("shop",), ("staging",)),))
    shared = Owned((Place("shop", "prod"), Place("shop", "staging")))
    assert covered(scope, shared)
    assert not covered(scope, Owned((Place("shop", "prod"), Place("blog", "staging"))))
    assert covered(scope, Owned(keys=("ada",)))
    assert not covered(scope, Owned(keys=("bob",)))
    assert not covered(Scope("", ()), Owned(keys=("",))), "no key is nobody's key"


def test_what_is_nobodys_is_seen_by_those_who_see_all_and_the_mesh_by_all_with_a_grant() -> None:
    everywhere = Scope("k", (rights("viewer", (ANY,), (ANY,)),))
    scope = Scope("k", (rights("viewer", ("shop",), (ANY,)),))
    assert covered(everywhere, OF_NOBODY)
    assert not covered(scope, OF_NOBODY)
    assert covered(scope, OF_MESH)
    assert not covered(NOTHING, OF_MESH)
    assert not covered(scope, OF_MESH, writing=True)


def test_scopes_of_names_overlap_by_a_name_or_the_star() -> None:
    assert overlap(("shop",), ("blog", "shop"))
    assert overlap((ANY,), ("blog",))
    assert overlap(("blog",), (ANY,))
    assert not overlap(("shop",), ("blog",))


def test_a_neighbours_view_keeps_to_itself_which_apps_of_others_are_left_to_python() -> None:
    scope = Scope("k", (rights("viewer", ("shop",), ("prod",)),))
    places = (("shop", "prod"), ("shop", "staging"), ("blog", "prod"))
    seen, near, far = (AppEngineView(*place, "web", "why") for place in places)
    assert peers_view(node_view(left_to_python=(seen, near, far)), scope).left_to_python == (seen,)
