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
    made = MeshWorld().furnish()
    assert isinstance(made.govern(SetRules(RECOVERY_RULES), A), MeshState)
    assert isinstance(made.govern(SetAdmins(tuple(sorted(admins)), threshold), A), MeshState)
    return made


def solo() -> MeshWorld:
    return world((A.public_key, kept(PAPER.public_key)), 1)


NEXT = SetAdmins((NEW.public_key,), 1)


def test_a_recovery_key_names_the_next_admins() -> None:
    made = solo()
    assert admin_keys(made.state.admins) == (A.public_key,)
    assert recovery_keys(made.state.admins) == (PAPER.public_key,)
    assert isinstance(made.govern(NEXT, PAPER), MeshState)
    assert made.state.admins == (NEW.public_key,)
    assert refused(made.govern(SetAdmins((PAPER.public_key,), 1), PAPER)) == "command.admin-threshold", (
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
    made = solo()
    assert refused(made.govern(action, PAPER)) in {"grant.none", "command.admin-threshold"}  # type: ignore[arg-type]
    assert isinstance(made.govern(action, A), MeshState), "an admin does"  # type: ignore[arg-type]


def test_a_recovery_key_does_nothing_in_a_project_gives_no_grant_and_resets_no_chain() -> None:
    made = solo()
    for action in (Freeze("x"), PlaceData(node_id("n1"))):
        assert refused(made.on_lane(action, PAPER)) == "grant.none"
    grant = Grant(signer("x").public_key, "person", "x", ("deployer",), ("*",), ("*",), WALL_MS + DAY_MS, b"n" * 16)
    chain = (sign(PAPER, GRANT_DOMAIN, made.mesh, grant),)
    found = rights_of(VERIFIER, made.mesh, made.state.admins, signer("x").public_key, chain=chain, at_ms=WALL_MS)
    assert isinstance(found, Refusal)
    shown = Shown().add("grants", encode(chain))
    assert isinstance(made.on_lane(Freeze("x"), signer("x"), shown=shown), Refusal)
    by_admin = (sign(A, GRANT_DOMAIN, made.mesh, grant),)
    good = rights_of(VERIFIER, made.mesh, made.state.admins, signer("x").public_key, chain=by_admin, at_ms=WALL_MS)
    assert isinstance(good, Rights)
    # who may reset the chain are the keys of the state as they stand there (MeshMachine.admins)
    assert PAPER.public_key not in made.state.admins


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_a_set_of_admins_is_changed_by_just_as_many_different_signatures_as_it_asks_for(threshold: int) -> None:
    """Every choice of signers of three admins, two recovery keys and two strangers: 2^7 - 1 for each threshold."""
    admins = (A, B, signer("third admin"))
    papers = (PAPER, SECOND)
    strangers = (NEW, signer("n1"))
    keys = (*(one.public_key for one in admins), *(kept(one.public_key) for one in papers))
    made = world(keys, threshold)
    before = made.state
    everybody = (*admins, *papers, *strangers)
    for count in range(1, len(everybody) + 1):
        for signers in itertools.combinations(everybody, count):
            made.state = before
            able = sum(one in (*admins, *papers) for one in signers)
            answer = made.govern(NEXT, *signers)
            assert isinstance(answer, MeshState) is (able >= threshold), (able, count)
            made.state = before
            own = sum(one in admins for one in signers)
            assert isinstance(made.govern(SetPolicy(SOLO), *signers), MeshState) is (own >= threshold)


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
    made = solo()
    assert refused(made.govern(SetAdmins(tuple(sorted(admins)), threshold), A)) == rule


def test_before_its_rules_a_recovery_key_is_refused_as_every_older_voter_would() -> None:
    made = MeshWorld().furnish()
    wanted = SetAdmins(tuple(sorted((A.public_key, kept(PAPER.public_key)))), 1)
    assert refused(made.govern(wanted, A)) == "rules.recovery"
    assert isinstance(made.govern(SetRules(RECOVERY_RULES - 1), A), MeshState)
    assert refused(made.govern(wanted, A)) == "rules.recovery"
    assert isinstance(made.govern(SetRules(RECOVERY_RULES), A), MeshState)
    assert isinstance(made.govern(wanted, A), MeshState)
