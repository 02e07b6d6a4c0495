"""The trust table, commands: who may have each action decided, and where. Positions x actions x places, from a pinned table.

Every position but the outermost is a near miss: the right role one project or one environment aside, the right place with
a role that lacks the verb, a grant that has run out. What is asked is who may; what else an action needs is not judged here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import get_args

import pytest

from protocols.chain.decision import Voter
from protocols.changes.demands import SOLO
from protocols.envelope import digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.refusal import Refusal
from protocols.state.apply import apply
from protocols.state.commands import (
    Abort,
    Action,
    ClaimRoutes,
    Command,
    ConfirmNode,
    CreateEnvironment,
    CreateProject,
    DrainNode,
    Exhibits,
    Freeze,
    LaneAction,
    MeshAction,
    Pause,
    PlaceData,
    Promote,
    Reconfigure,
    RemoveNode,
    Resume,
    Rollback,
    SetAdmins,
    SetNetworks,
    SetPolicy,
    SetRules,
    Start,
    Unfreeze,
    WithdrawApproval,
    sign_command,
)
from protocols.state.governance import RULES_VERSION
from protocols.state.model import MeshState
from protocols.trust.grants import GRANT_DOMAIN, VERBS_OF_ROLE, Grant, PrincipalKind, Role
from tests.support.protocols.mesh_world import MeshWorld, node_id
from tests.support.protocols.trust_world import DAY_MS, WALL_MS, signer

RIGHTS = frozenset({
    "command.unsigned", "command.not-allowed", "command.admin-threshold", "grant.none", "grant.expired", "grant.signature",
    "grant.not-by-admin", "grant.agent-may-not", "grant.other-key", "approval.not-yours", "node.admission",
})  # fmt: skip
"""Rules that say that the caller lacks the right; any other answer says something else of the command."""

NEEDS: dict[type[object], str] = {
    # Pinned: what the signer of each action must hold. `threshold`: as many admins of the mesh as it says.
    ConfirmNode: "admin", DrainNode: "admin", RemoveNode: "admin", SetAdmins: "threshold", SetPolicy: "threshold",
    SetRules: "threshold", SetNetworks: "threshold", CreateProject: "admin", CreateEnvironment: "admin", Reconfigure: "admin",
    ClaimRoutes: "start", Start: "start", Promote: "promote", Pause: "pause", Resume: "resume", Abort: "abort",
    Rollback: "rollback", Freeze: "admin", Unfreeze: "admin", PlaceData: "admin",
}  # fmt: skip


@dataclass(frozen=True)
class Position:
    """A key and what it shows: a grant of a role in a place, or nothing."""

    key: str
    role: Role | None = None
    project: str = "*"
    environment: str = "*"
    kind: PrincipalKind = "person"
    by: str = "admin"
    days: int = 30


POSITIONS = {
    "admin of the mesh": Position("admin"),
    "nobody signed": Position(""),
    "stranger": Position("stranger"),
    "member node": Position("n1"),
    "voter and founder": Position("n2"),
    **{f"{role} here": Position(f"{role} key", role, "shop", "prod") for role in VERBS_OF_ROLE},
    **{f"{role} of staging": Position(f"{role} key", role, "shop", "staging") for role in VERBS_OF_ROLE},
    **{f"{role} of blog": Position(f"{role} key", role, "blog", "prod") for role in VERBS_OF_ROLE},
    **{f"{role} everywhere": Position(f"{role} key", role) for role in VERBS_OF_ROLE},
    "agent that deploys here": Position("bot", "deployer", "shop", "prod", kind="agent"),
    "agent with an approver's grant": Position("bot", "approver", "shop", "prod", kind="agent"),
    "agent with an admin's grant": Position("bot", "admin", kind="agent"),
    "deployer whose grant ran out": Position("old", "deployer", "shop", "prod", days=0),
    "deployer by another's word": Position("made", "deployer", "shop", "prod", by="deployer key"),
    "admin by its own word": Position("self", "admin", by="self"),
}


def world(phase: str) -> MeshWorld:
    mesh_world = MeshWorld().furnish()
    for action in (CreateProject("blog"), CreateEnvironment("staging")):
        assert isinstance(mesh_world.govern(action, mesh_world.admin), MeshState)
    if phase == "newest":
        assert isinstance(mesh_world.govern(SetRules(RULES_VERSION), mesh_world.admin), MeshState)
    if phase == "kept":
        return mesh_world.deployed(1).deployed(2)
    if phase in {"running", "paused"}:
        mesh_world.started(1)
    if phase == "paused":
        assert isinstance(mesh_world.on_lane(Pause(mesh_world.rollout.id), mesh_world.admin), MeshState)
    if phase == "frozen":
        assert isinstance(mesh_world.on_lane(Freeze("x"), mesh_world.admin), MeshState)
    return mesh_world


WORLDS = {phase: world(phase) for phase in ("idle", "newest", "running", "paused", "frozen", "kept")}


def actions() -> dict[str, tuple[str, Action]]:
    """Each action with the world in which its transition is open."""
    running, paused, mesh_world = WORLDS["running"], WORLDS["paused"], WORLDS["kept"]
    admins = (signer("admin").public_key,)
    return {
        "confirm_node": ("idle", ConfirmNode(node_id("n9"), (), ("worker",))),
        "drain_node": ("idle", DrainNode(node_id("n3"))),
        "remove_node": ("idle", RemoveNode(node_id("n3"))),
        "set_admins": ("idle", SetAdmins(admins, 1)),
        "set_policy": ("idle", SetPolicy(SOLO)),
        "set_rules": ("idle", SetRules(2)),
        "create_project": ("idle", CreateProject("more")),
        "create_environment": ("idle", CreateEnvironment("more")),
        "set_networks": ("newest", SetNetworks("prod", ("10.0.5.0/24",))),
        "reconfigure": ("idle", Reconfigure((Voter(node_id("n2"), b"t" * 16),))),
        "claim_routes": ("idle", ClaimRoutes(())),
        "start": ("idle", Start(bytes(32), ())),
        "promote": ("running", Promote(running.rollout.id, running.rollout.stage)),
        "pause": ("running", Pause(running.rollout.id)),
        "resume": ("paused", Resume(paused.rollout.id)),
        "abort": ("running", Abort(running.rollout.id)),
        "rollback": ("kept", Rollback(mesh_world.lane.retained[0].change, "worse")),
        "freeze": ("idle", Freeze("x")),
        "unfreeze": ("frozen", Unfreeze()),
        "place_data": ("idle", PlaceData(node_id("n1"))),
        "withdraw_approval": ("idle", WithdrawApproval(bytes(32))),
    }


ACTIONS = actions()


def judged(position: Position, name: str) -> MeshState | Refusal:
    phase, action = ACTIONS[name]
    mesh_world = WORLDS[phase]
    on_mesh = isinstance(action, MeshAction)
    place = ("", "") if on_mesh else ("shop", "prod")
    expect = mesh_world.state.sequence if on_mesh else mesh_world.lane.sequence
    command = Command(b"i" * 16, action, *place, expect)
    material: dict[bytes, bytes] = {}
    if position.role is not None:
        grant = Grant(
            signer(position.key).public_key, position.kind, position.key, (position.role,), (position.project,),
            (position.environment,), WALL_MS + position.days * DAY_MS, b"n" * 16,
        )  # fmt: skip
        chain = encode((sign(signer(position.by), GRANT_DOMAIN, mesh_world.mesh, grant),))
        material[digest(chain)] = chain
    keys: list[Ed25519Signer] = [signer(position.key)] if position.key else []
    exhibits = Exhibits(grants=tuple(material))
    return apply(
        mesh_world.state, sign_command(keys, mesh_world.mesh, command, exhibits), material, WALL_MS, mesh_world.rules
    )  # type: ignore[arg-type]


def may(position: Position, name: str) -> bool:
    """The rule said once more, in words of its own: an admin key may all, a grant its verbs in its place until it ends."""
    action = ACTIONS[name][1]
    if position.key == "admin" and position.role is None:
        return True
    if position.role is None or position.by != "admin" or position.days <= 0:
        return False
    if position.kind == "agent" and position.role in {"approver", "admin"}:
        return False
    need = NEEDS[type(action)]
    if need == "threshold" or need not in VERBS_OF_ROLE[position.role]:
        return False
    everywhere = (position.project, position.environment) == ("*", "*")
    if isinstance(action, CreateProject):
        return everywhere
    if isinstance(action, MeshAction):
        return everywhere
    return everywhere or (position.project, position.environment) == ("shop", "prod")


CELLS = [(position, name) for position, name in itertools.product(POSITIONS, ACTIONS) if name != "withdraw_approval"]


def test_every_action_has_a_row_and_the_table_is_as_large_as_it_is_said_to_be() -> None:
    every = set(get_args(MeshAction) + get_args(LaneAction))
    assert {type(action) for _, action in ACTIONS.values()} == every
    assert every - set(NEEDS) == {WithdrawApproval}, "whose rule is another: one's own approval, or an approver's"
    assert len(CELLS) >= 400, len(CELLS)
    allowed = sum(may(POSITIONS[position], name) for position, name in CELLS)
    assert 50 < allowed < len(CELLS) / 2


@pytest.mark.parametrize("position", POSITIONS)
def test_an_action_is_refused_for_its_signer_just_where_the_table_says(position: str) -> None:
    for name in ACTIONS:
        if name == "withdraw_approval":
            continue
        answer = judged(POSITIONS[position], name)
        if name in {"promote", "pause", "abort"} and position == "nobody signed":
            assert isinstance(answer, Refusal), "health alone may, and none was shown"
            continue
        lacks = isinstance(answer, Refusal) and answer.rule in RIGHTS
        said = answer.rule if isinstance(answer, Refusal) else "decided"
        assert lacks is not may(POSITIONS[position], name), (name, said)


@pytest.mark.parametrize("name", sorted(set(ACTIONS) - {"start", "reconfigure", "promote", "withdraw_approval"}))
def test_who_may_has_it_decided(name: str) -> None:
    """The admin's row is no row of mere other refusals: what it asks for happens."""
    answer = judged(POSITIONS["admin of the mesh"], name)
    assert isinstance(answer, MeshState), answer
