"""What a key may ask for: near misses (right project, wrong environment; a look for a write) beside what is allowed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from node.api.callers.access import OF_ONE_PROJECT, authorize
from node.api.callers.scope import EVERYTHING, Scope
from node.api.handlers import OPERATIONS
from node.api.operations import Operation
from node.api.problems import ProblemError
from node.api.secrets import file_secret
from node.keys import SystemEntropy
from protocols.changes.secrets import SealedSecret, SecretPaper, SecretRemoval, seal, sign_paper
from protocols.envelope import encode
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.trust.grants import ALL_ROLES, VERBS_OF_ROLE, Rights, Role

MESH = b"m" * 32
KEY = Ed25519Signer(b"k" * 32)
BY_NAME = {operation.name: operation for operation in OPERATIONS}


def rights(
    *roles: Role, projects: tuple[str, ...] = ("shop",), environments: tuple[str, ...] = ("staging",), verbs: Any = None
) -> Rights:
    able = verbs if verbs is not None else tuple(dict.fromkeys(verb for role in roles for verb in VERBS_OF_ROLE[role]))
    key = KEY.public_key
    return Rights(key, key, "person", "ada", roles, able, projects, environments, 1 << 62, (key,), ())


def control(*each: Rights, filed: list[str] | None = None) -> Any:
    whole = each[0]
    core = SimpleNamespace(
        dossiers=SimpleNamespace(rights=lambda _key, _ms: whole),
        trust=SimpleNamespace(mesh=MESH, verifier=Ed25519Verifier()),
        state=SimpleNamespace(lane=lambda _project, _environment: object(), lanes=()),
    )  # fmt: skip

    async def file(key: str, _body: bytes, *, tombstone: bool = False, payer: str = "") -> None:
        assert filed is not None
        filed.append(key)

    return SimpleNamespace(
        core=core, clock=lambda: SimpleNamespace(wall_ms=1), filing=SimpleNamespace(file=file),
        secrets=SimpleNamespace(in_use=set, versions=list),
    )  # fmt: skip


def asked(who: Rights, operation: Operation, **named: str) -> str:
    try:
        authorize(control(who), KEY.public_key.hex(), operation, named)
    except ProblemError as error:
        return error.problem.rule or error.problem.detail
    return ""


LANE = BY_NAME["lane"]


@pytest.mark.parametrize(
    ("project", "environment", "allowed"),
    [
        ("shop", "staging", True), ("shop", "prod", False), ("blog", "staging", False), ("blog", "prod", False),
        ("shop2", "staging", False), ("sho", "staging", False), ("shop", "staging2", False), ("shop", "stagin", False),
    ],
)  # fmt: skip
def test_a_key_of_one_place_reads_that_lane_and_not_its_neighbours(
    project: str, environment: str, *, allowed: bool
) -> None:
    for role in ("viewer", "proposer", "deployer", "approver"):
        text = asked(rights(role), LANE, project=project, environment=environment)  # type: ignore[arg-type]
        assert text == ("" if allowed else "caller.not-allowed"), role


def test_stars_cover_everything_and_only_in_their_own_part() -> None:
    assert asked(rights("viewer", projects=("*",)), LANE, project="blog", environment="staging") == ""
    assert asked(rights("viewer", projects=("*",)), LANE, project="blog", environment="prod") == "caller.not-allowed"
    assert asked(rights("viewer", environments=("*",)), LANE, project="shop", environment="prod") == ""
    assert (
        asked(rights("viewer", environments=("*",)), LANE, project="blog", environment="prod") == "caller.not-allowed"
    )


def test_each_write_is_refused_to_who_may_only_look_and_each_call_to_who_may_not_even_look() -> None:
    for operation in OPERATIONS:
        if operation.access == "write":
            looks = "" if operation.name == "carry_approval" else "caller.not-allowed"  # it proves its author's right
            assert asked(rights("viewer", projects=("*",), environments=("*",)), operation) == looks
        if operation.access in {"read", "write"}:
            blind = rights(projects=("*",), environments=("*",), verbs=("propose",))
            assert asked(blind, operation) == "caller.not-allowed", operation.name


def test_what_concerns_one_project_is_not_asked_without_it_by_a_key_of_some_projects() -> None:
    for name in sorted(OF_ONE_PROJECT & set(BY_NAME)):
        assert asked(rights("deployer"), BY_NAME[name]) == "caller.not-allowed", name
        assert asked(rights("deployer", projects=("*",)), BY_NAME[name]) == "", name


def test_two_grants_do_not_add_up_to_a_place_that_neither_covers() -> None:
    chosen_rights, other = rights("viewer"), rights("viewer", projects=("blog",), environments=("prod",))
    assert (
        asked(replace(chosen_rights, beside=(other,)), LANE, project="shop", environment="prod") == "caller.not-allowed"
    )
    assert asked(replace(chosen_rights, beside=(other,)), LANE, project="blog", environment="prod") == ""


# --- secrets ----------------------------------------------------------------------------------------------------------

PLACES = [("shop", "staging"), ("shop", "prod"), ("blog", "staging")]


def paper(kind: str, project: str, environment: str) -> SecretPaper:
    if kind == "removal":
        return SecretRemoval(project, environment, "TOKEN", (b"v" * 32,), 1)
    blank = SealedSecret(project, environment, "TOKEN", 1, 1, b"", ())
    return seal(MESH, blank, b"hunter2", [peer_id(KEY.public_key)], SystemEntropy())


def filing(who: Rights, said: SecretPaper, scope: Scope) -> str:
    filed: list[str] = []
    body = SimpleNamespace(paper=encode(sign_paper(KEY, MESH, said)))
    call = SimpleNamespace(node=control(who, filed=filed), body=body, scope=scope)
    try:
        asyncio.run(file_secret(cast(Any, call)))
    except ProblemError as error:
        assert filed == []
        return error.problem.rule
    return ""


@pytest.mark.parametrize("kind", ["version", "removal"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("role", ALL_ROLES)
def test_who_sets_or_removes_a_secret_has_that_right_in_that_place(
    kind: str, place: tuple[str, str], role: Role
) -> None:
    who = rights(role)
    scope = Scope(KEY.public_key.hex(), (who,))
    able = "secret" in who.verbs and place == ("shop", "staging")
    assert filing(who, paper(kind, *place), scope) == ("" if able else "secret.not-allowed")


def test_on_the_socket_the_signature_counts_and_not_who_carries_it() -> None:
    assert filing(rights("viewer"), paper("version", "shop", "staging"), EVERYTHING) == "secret.not-allowed"
    assert filing(rights("deployer"), paper("version", "shop", "staging"), EVERYTHING) == ""


def test_a_caller_may_not_hand_over_the_secret_of_a_place_that_it_does_not_cover() -> None:
    signer = rights("deployer", environments=("staging", "prod"))
    caller = Scope("ab" * 32, (rights("deployer"),))
    assert filing(signer, paper("version", "shop", "staging"), caller) == ""
    assert filing(signer, paper("version", "shop", "prod"), caller) == "secret.not-allowed"
