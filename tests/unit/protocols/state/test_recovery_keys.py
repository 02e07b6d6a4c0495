"""A recovery key signs the next set of admins and nothing else; how many signatures a set takes, just below and at."""

from __future__ import annotations

import itertools

import pytest

from protocols.changes.demands import SOLO
from protocols.envelope import encode, sign
from protocols.refusal import Refusal
from protocols.state.commands import (
    RECOVERY,
    ConfirmNode,
    CreateEnvironment,
    CreateProject,
    DrainNode,
    Freeze,
    PlaceData,
    RemoveNode,
    SetAdmins,
    SetPolicy,
    SetRules,
    admin_keys,
    recovery_keys,
)
from protocols.state.governance import RECOVERY_RULES
from protocols.state.model import MeshState
from protocols.trust.grants import GRANT_DOMAIN, Grant, Rights, rights_of
from tests.support.protocols.mesh_world import MeshWorld, Shown, node_id, refused
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, signer

A, B, PAPER, SECOND, NEW = (signer(name) for name in ("admin", "other admin", "paper", "second paper", "new admin"))


def kept(key: bytes) -> bytes:
    return RECOVERY + key


def world(admins: tuple[bytes, ...], threshold: int) -> MeshWorld:
    mesh_world = MeshWorld().furnish()
    assert isinstance(mesh_world.govern(SetRules(RECOVERY_RULES), A), MeshState)
    assert isinstance(mesh_world.govern(SetAdmins(tuple(sorted(admins)), threshold), A), MeshState)
    return mesh_world


def solo() -> MeshWorld:
    return world((A.public_key, kept(PAPER.public_key)), 1)


NEXT = SetAdmins((NEW.public_key,), 1)


def test_a_recovery_key_names_the_next_admins() -> None:
    mesh_world = solo()
    assert admin_keys(mesh_world.state.admins) == (A.public_key,)
    assert recovery_keys(mesh_world.state.admins) == (PAPER.public_key,)
    assert isinstance(mesh_world.govern(NEXT, PAPER), MeshState)
    assert mesh_world.state.admins == (NEW.public_key,)
    assert refused(mesh_world.govern(SetAdmins((PAPER.public_key,), 1), PAPER)) == "command.admin-threshold", (
        "it was taken out"
    )


@pytest.mark.parametrize(
    "action",
    [
        ConfirmNode(node_id("n9"), (), ("worker",)), DrainNode(node_id("n3")), RemoveNode(node_id("n3")), SetPolicy(SOLO),
        CreateProject("more"), CreateEnvironment("more"), CreateEnvironment("prod", replace=True),
    ],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_a_recovery_key_decides_nothing_else_about_the_mesh(action: object) -> None:
    mesh_world = solo()
    assert refused(mesh_world.govern(action, PAPER)) in {"grant.none", "command.admin-threshold"}  # type: ignore[arg-type]
    assert isinstance(mesh_world.govern(action, A), MeshState), "an admin does"  # type: ignore[arg-type]


def test_a_recovery_key_does_nothing_in_a_project_gives_no_grant_and_resets_no_chain() -> None:
    mesh_world = solo()
    for action in (Freeze("x"), PlaceData(node_id("n1"))):
        assert refused(mesh_world.on_lane(action, PAPER)) == "grant.none"
    grant = Grant(signer("x").public_key, "person", "x", ("deployer",), ("*",), ("*",), WALL_MS + DAY_MS, b"n" * 16)
    chain = (sign(PAPER, GRANT_DOMAIN, mesh_world.mesh, grant),)
    rights = rights_of(
        VERIFIER, mesh_world.mesh, mesh_world.state.admins, signer("x").public_key, chain=chain, at_ms=WALL_MS
    )
    assert isinstance(rights, Refusal)
    shown = Shown().add("grants", encode(chain))
    assert isinstance(mesh_world.on_lane(Freeze("x"), signer("x"), shown=shown), Refusal)
    by_admin = (sign(A, GRANT_DOMAIN, mesh_world.mesh, grant),)
    good = rights_of(
        VERIFIER, mesh_world.mesh, mesh_world.state.admins, signer("x").public_key, chain=by_admin, at_ms=WALL_MS
    )
    assert isinstance(good, Rights)
    # who may reset the chain are the keys of the state as they stand there (MeshMachine.admins)
    assert PAPER.public_key not in mesh_world.state.admins


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_a_set_of_admins_is_changed_by_just_as_many_different_signatures_as_it_asks_for(threshold: int) -> None:
    """Every choice of signers of three admins, two recovery keys and two strangers: 2^7 - 1 for each threshold."""
    admins = (A, B, signer("third admin"))
    papers = (PAPER, SECOND)
    strangers = (NEW, signer("n1"))
    keys = (*(admin.public_key for admin in admins), *(kept(paper.public_key) for paper in papers))
    mesh_world = world(keys, threshold)
    before = mesh_world.state
    everybody = (*admins, *papers, *strangers)
    for count in range(1, len(everybody) + 1):
        for signers in itertools.combinations(everybody, count):
            mesh_world.state = before
            able = sum(signer in (*admins, *papers) for signer in signers)
            answer = mesh_world.govern(NEXT, *signers)
            assert isinstance(answer, MeshState) is (able >= threshold), (able, count)
            mesh_world.state = before
            own = sum(signer in admins for signer in signers)
            assert isinstance(mesh_world.govern(SetPolicy(SOLO), *signers), MeshState) is (own >= threshold)


@pytest.mark.parametrize(
    ("admins", "threshold", "rule"),
    [
        ((kept(PAPER.public_key),), 1, "admins.malformed"),  # nobody would administer
        ((A.public_key, kept(PAPER.public_key)), 2, "admins.malformed"),  # more than the admins there are
        ((A.public_key, kept(A.public_key)), 1, "admins.malformed"),  # one key, twice
        ((A.public_key, b"\x02" + PAPER.public_key), 1, "admins.malformed"),
        ((A.public_key, PAPER.public_key[:31]), 1, "admins.malformed"),
        ((A.public_key, kept(PAPER.public_key) + b"x"), 1, "admins.malformed"),
        ((A.public_key, kept(PAPER.public_key)), 0, "admins.malformed"),
    ],
)
def test_a_set_that_nobody_could_use_is_refused(admins: tuple[bytes, ...], threshold: int, rule: str) -> None:
    mesh_world = solo()
    assert refused(mesh_world.govern(SetAdmins(tuple(sorted(admins)), threshold), A)) == rule


def test_before_its_rules_a_recovery_key_is_refused_as_every_older_voter_would() -> None:
    mesh_world = MeshWorld().furnish()
    wanted = SetAdmins(tuple(sorted((A.public_key, kept(PAPER.public_key)))), 1)
    assert refused(mesh_world.govern(wanted, A)) == "rules.recovery"
    assert isinstance(mesh_world.govern(SetRules(RECOVERY_RULES - 1), A), MeshState)
    assert refused(mesh_world.govern(wanted, A)) == "rules.recovery"
    assert isinstance(mesh_world.govern(SetRules(RECOVERY_RULES), A), MeshState)
    assert isinstance(mesh_world.govern(wanted, A), MeshState)
