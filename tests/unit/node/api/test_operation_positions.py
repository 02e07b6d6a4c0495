"""The trust table, operations: who reaches which object through the API. Positions x operations x places, unit-fast.

Each aimed operation is called as the server calls it: the caller's grants are held against the operation (access.py), then
its own handler runs, over a state with two projects in two environments. A call is `in` if it gets past both, whatever
happens behind; `out` if it is refused for the caller's rights, or answered as what is not there. What a row of the table
must be is said here in words of its own.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from node.api.callers.access import authorize
from node.api.callers.scope import EVERYTHING, Scope
from node.api.handlers import OPERATIONS
from node.api.operations import Call
from node.api.problems import ProblemError
from protocols.api_data import MoveBody
from protocols.api_models import CommandBody, RecordBody, SecretBody
from protocols.changes.change import CHANGE_DOMAIN, Change
from protocols.changes.secrets import SecretRemoval, sign_paper
from protocols.envelope import digest, encode, sign
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.rollout.dossiers import Proposed
from protocols.state.commands import Command, CreateEnvironment, CreateProject, Freeze, sign_command
from protocols.state.model import MeshState
from protocols.trust.bearer import BEARER_VERBS
from protocols.trust.grants import VERBS_OF_ROLE, Rights, Role, united
from tests.support.protocols.mesh_world import PLAN, MeshWorld
from tests.support.protocols.trust_world import WALL_MS, signer

W = MeshWorld().furnish()
for _action in (CreateProject("blog"), CreateEnvironment("staging")):
    assert isinstance(W.govern(_action, W.admin), MeshState)
KEY, AUTHOR = Ed25519Signer(b"k" * 32), Ed25519Signer(b"a" * 32)
"""Who calls, and who signed what is handed over: the author may do all, so that a refusal is the caller's own."""

PLACES = list(itertools.product(("shop", "blog"), ("prod", "staging")))
BY_NAME = {operation.name: operation for operation in OPERATIONS}
ABSENT = "absent"


class ReachedError(Exception):
    """What was asked for would be done now."""


def reached(*_: Any, **__: Any) -> Any:
    raise ReachedError


def change_of(project: str, environment: str) -> Proposed:
    named = digest(f"{project} {environment}".encode())
    change = Change(
        project, environment, "x", named, b"", named, bytes(32), AUTHOR.public_key, WALL_MS, PLAN,
    )  # fmt: skip
    signed = sign(AUTHOR, CHANGE_DOMAIN, W.mesh, change)
    return Proposed(Digest(digest(signed.payload)), change, signed)


CHANGES = {place: change_of(*place) for place in PLACES}


class Position:
    """A caller: its grants, or the socket; `None` as roles: it has no grant at all."""

    def __init__(self, *grants: tuple[Role, str, str], local: bool = False, bearer: bool = False) -> None:
        self.grants, self.local, self.bearer = grants, local, bearer

    @property
    def rights(self) -> Rights | Refusal:
        if not self.grants:
            return Refusal("grant.none", "no grant")
        entries = [_rights(*grant) for grant in self.grants]
        if self.bearer and entries[0].roles == ("proposer",):
            entries[0] = replace(entries[0], verbs=BEARER_VERBS)
        return united(entries)


def _rights(role: Role, project: str, environment: str) -> Rights:
    key = KEY.public_key
    return Rights(
        key, key, "person", "ada", (role,), VERBS_OF_ROLE[role], (project,), (environment,), 1 << 62, (key,), ()
    )


POSITIONS = {
    "operator on the socket": Position(local=True),
    "key without a grant": Position(),
    **{f"{role} of shop in prod": Position((role, "shop", "prod")) for role in VERBS_OF_ROLE},
    **{f"{role} of shop in staging": Position((role, "shop", "staging")) for role in VERBS_OF_ROLE},
    **{f"{role} of blog everywhere": Position((role, "blog", "*")) for role in VERBS_OF_ROLE},
    **{f"{role} everywhere": Position((role, "*", "*")) for role in VERBS_OF_ROLE},
    "viewer here, deployer there": Position(("viewer", "shop", "prod"), ("deployer", "shop", "staging")),
    "proposer of two halves": Position(("proposer", "shop", "staging"), ("proposer", "blog", "prod")),
    "token of shop in staging": Position(("proposer", "shop", "staging"), bearer=True),
    "token with a deployer's grant": Position(("deployer", "shop", "prod"), bearer=True),
}

AIMED: dict[str, tuple[str, str]] = {
    # Operation: the right that its caller needs at the object's place, and what it is answered with if that lacks.
    "lane": ("view", "refused"), "statements": ("view", "refused"), "data": ("view", "refused"),
    "change": ("view", ABSENT), "change_bytes": ("view", ABSENT), "papers": ("view", ABSENT),
    "get_artifact": ("view", ABSENT), "has_artifact": ("view", ABSENT),
    "move_data": ("write", "refused"), "submit": ("write", "refused"), "start": ("write", "refused"),
    "export_data": ("write", "refused"), "exported_file": ("view", "refused"), "drop_export": ("write", "refused"),
    "begin_import": ("write", "refused"), "put_imported": ("write", "refused"), "install_import": ("write", "refused"),
    "set_standby": ("write", "refused"), "freeze_data": ("write", "refused"), "thaw_data": ("write", "refused"),
    "withdraw_start": ("abort", ABSENT), "publish": ("write", "refused"), "file_secret": ("write", "refused"),
}  # fmt: skip
UNAIMED = {
    # Of the node, the mesh or the caller itself; lists are filtered by the same function, and a daemon's test walks them.
    "health", "ready", "node", "peer", "metrics", "leave", "enrol", "voters", "mesh", "genesis", "state", "read",
    "authorities", "tell_addresses", "members", "decisions", "lanes", "changes", "reset", "put_artifact", "carry_approval",
    "logs", "events", "principals", "principal", "secrets", "audit", "audit_links", "draft", "propose", "sign_draft", "mcp",
    "resource", "mcp_resource", "upgrade", "show_upgrade", "webhooks", "add_webhook", "remove_webhook", "test_webhook",
    "names", "trusts", "add_trust", "remove_trust", "exchange_token", "acknowledge", "show_acknowledgement",
    "drain",
}  # fmt: skip
TOKENS = {"put_artifact", "propose"}
"""The writes for which a token may be shown."""


def control(position: Position) -> Any:
    places = {bytes(change.change.release): place for place, change in CHANGES.items()}
    trust = SimpleNamespace(mesh=W.mesh, verifier=Ed25519Verifier())
    dossiers = SimpleNamespace(
        rights=lambda key, _ms: position.rights if key == KEY.public_key else _rights("deployer", "*", "*"),
        changes={change.id: change for change in CHANGES.values()},
    )
    core = SimpleNamespace(
        trust=trust, dossiers=dossiers, state=W.state, chain=SimpleNamespace(position=SimpleNamespace(slot=0)),
        agent=SimpleNamespace(conductor=SimpleNamespace(statements=reached)),
    )  # fmt: skip
    return SimpleNamespace(
        core=core, clock=lambda: SimpleNamespace(wall_ms=WALL_MS),
        artifacts=SimpleNamespace(has=lambda named: named in places, path=reached, read=reached),
        belongings=SimpleNamespace(
            places=lambda named: {places[named]} if named in places else set(), uploaders=lambda _named: ()
        ),
        requests=SimpleNamespace(submit=reached), starter=SimpleNamespace(add=reached, withdraw=reached),
        secrets=SimpleNamespace(in_use=reached), filing=SimpleNamespace(holds=reached),
        data=SimpleNamespace(check=reached, place=SimpleNamespace(stores=reached)),
    )  # fmt: skip


def body_of(name: str, project: str, environment: str) -> Any:
    match name:
        case "submit" | "start":
            command = Command(b"i" * 16, Freeze("x"), project, environment, 1)
            return CommandBody(encode(sign_command([signer("admin")], W.mesh, command)))
        case "publish":
            return RecordBody("change", project, encode(CHANGES[(project, environment)].signed))
        case "file_secret":
            removal = SecretRemoval(project, environment, "db", (bytes(32),), WALL_MS)
            return SecretBody(encode(sign_paper(AUTHOR, W.mesh, removal)))
        case "move_data":
            return MoveBody(b"", b"", ())
        case _:
            return None


def asked(position: Position, name: str, place: tuple[str, str]) -> str:
    """How a call ends for its caller: `in`, `refused` or `absent`."""
    operation, node, change = BY_NAME[name], control(position), CHANGES[place]
    known = {
        "project": place[0], "environment": place[1], "change": change.id.hex(), "digest": change.change.release.hex(),
        "export": "ab" * 16, "number": "0", "import": "ab" * 16,
    }  # fmt: skip
    named = {parameter.name: known[parameter.name] for parameter in operation.parameters if parameter.place == "path"}
    if position.bearer and not operation.takes_tokens:
        return "refused"  # the server's first question
    try:
        scope = (
            EVERYTHING if position.local else authorize(node, KEY.public_key.hex(), operation, named, position.bearer)
        )
        assert isinstance(scope, Scope)
        call = Call(operation, None, "ada", named, {}, body_of(name, *place), node, scope)  # type: ignore[arg-type]
        asyncio.run(operation.handler(call))  # type: ignore[arg-type]
    except ProblemError as error:
        if error.problem.status == 404:
            return ABSENT
        return "refused" if error.problem.status == 403 or error.problem.rule == "change.author" else "in"
    except (ReachedError, AttributeError):
        return "in"  # it is past every question of rights: this node's parts are asked
    return "in"


def expected(position: Position, name: str, place: tuple[str, str]) -> str:
    """The row of the table, for this caller and place."""
    need, lacking = AIMED[name]
    if position.local:
        return "in"
    if not position.grants:
        return "refused"
    writes = need != "view"
    if position.bearer and (writes or any(role not in {"viewer", "proposer"} for role, _, _ in position.grants)):
        return "refused"
    able = [(VERBS_OF_ROLE[role], (project, environment)) for role, project, environment in position.grants]
    if writes and all(set(verbs) == {"view"} for verbs, _ in able):
        return "refused"
    here = [
        verbs for verbs, (project, environment) in able if project in ("*", place[0]) and environment in ("*", place[1])
    ]
    if not here:
        return lacking
    if need == "view" or (need == "write" and any(set(verbs) != {"view"} for verbs in here)):
        return "in"
    return "in" if any(need in verbs for verbs in here) else "refused"


CELLS = list(itertools.product(POSITIONS, AIMED, PLACES))


def test_every_operation_is_in_the_table_and_its_cells_are_counted() -> None:
    assert set(AIMED) | UNAIMED == set(BY_NAME)
    assert not set(AIMED) & UNAIMED
    assert len(CELLS) >= 400, len(CELLS)
    let_in = sum(expected(POSITIONS[position], name, place) == "in" for position, name, place in CELLS)
    assert len(CELLS) / 5 < let_in < len(CELLS) * 4 / 5, let_in
    assert {
        operation.name for operation in OPERATIONS if operation.access == "write" and operation.takes_tokens
    } == TOKENS


@pytest.mark.parametrize("name", AIMED)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_caller_reaches_just_the_objects_that_the_table_gives_it(position: str, name: str) -> None:
    for place in PLACES:
        assert asked(POSITIONS[position], name, place) == expected(POSITIONS[position], name, place), place
