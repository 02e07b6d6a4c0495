"""Whether a caller's grants cover an object: the one place where that is decided, for every operation, list and stream.

Each object belongs to places (a project in an environment), to keys (a principal's own), or to the mesh as a whole. One
grant must cover one of its places by itself; what no grant covers is answered as what does not exist. Not here: which
places an object belongs to (objects.py), and whether a key may ask for an operation at all (access.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from protocols.trust.grants import ANY, Rights, Verb, covers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """A project in an environment; an empty part is not said, and any grant covers it."""

    project: str = ""
    environment: str = ""


@dataclass(frozen=True, slots=True)
class Owned:
    """What an object belongs to. `mesh`: to everybody who has a grant; nothing at all: to nobody but who sees all."""

    places: tuple[Place, ...] = ()
    keys: tuple[str, ...] = ()
    mesh: bool = False


OF_MESH = Owned(mesh=True)
OF_NOBODY = Owned()


@dataclass(frozen=True, slots=True)
class Scope:
    """How far a caller sees: `rights` of each of its grants; `everything` for the operator on the node's own machine."""

    key: str = ""
    rights: tuple[Rights, ...] = ()
    everything: bool = False
    payer: str = ""
    """The principal behind the key, in hex: it pays for what the key holds at once, for a key makes others as it likes."""

    @property
    def whole(self) -> bool:
        """Whether it sees every project in every environment."""
        return self.everything or any(
            "view" in rights.verbs and ANY in rights.projects and ANY in rights.environments for rights in self.rights
        )

    def sees(self, project: str = "", environment: str = "") -> bool:
        """Whether it covers a place."""
        return covered(self, Owned((Place(project, environment),)))


EVERYTHING = Scope(everything=True)
NOTHING = Scope()


def covered(scope: Scope, owned: Owned, *, writing: bool = False) -> bool:
    """Return whether a grant of the caller covers an object; `writing` asks for a right beyond looking, there."""
    if scope.everything:
        return True
    if scope.key and scope.key in owned.keys:
        return True
    able = [
        rights for rights in scope.rights if "view" in rights.verbs and (not writing or set(rights.verbs) != {"view"})
    ]
    if owned.mesh:
        return bool(able)
    if scope.whole and not writing:
        return True
    return any(_covers_place(rights, place) for rights in able for place in owned.places)


def may(scope: Scope, verb: Verb, place: Place) -> bool:
    """Return whether a grant of the caller has this right there; whoever owns the node's machine has every right."""
    return scope.everything or any(verb in rights.verbs and _covers_place(rights, place) for rights in scope.rights)


def _covers_place(rights: Rights, place: Place) -> bool:
    in_project = covers(rights.projects, place.project) if place.project else bool(rights.projects)
    in_environment = covers(rights.environments, place.environment) if place.environment else bool(rights.environments)
    return in_project and in_environment


def seen(scope: Scope, items: Iterable[tuple[T, Owned]]) -> list[T]:
    """Return the items that the caller's grants cover, in their order."""
    return [item for item, owned in items if covered(scope, owned)]


def overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two scopes of names have one in common."""
    return ANY in one or ANY in other or not set(one).isdisjoint(other)


def place_of(value: Any) -> Owned:
    """Return what anything with a `project` and an `environment` belongs to."""
    return Owned((Place(value.project, value.environment),))
