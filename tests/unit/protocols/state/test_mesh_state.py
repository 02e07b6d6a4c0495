"""The mesh's own commands, the face the chain drives, fresh refusals, and what keeps the state bounded and equal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocols.chain.decision import (
    NOOP,
    VOTER_READY_DOMAIN,
    Admins,
    Reset,
    Voter,
    VoterReady,
    material_of,
)
from protocols.changes.change import (
    Analysis,
    Change,
    Component,
    Plan,
    Route,
    SecretVersion,
    Stage,
    change_problem,
    plan_problem,
    release_problem,
    route_problem,
    valid_name,
)
from protocols.changes.demands import SOLO, TEAM, Demands, FreezeWindow, Policy
from protocols.changes.statements import HealthVerdict
from protocols.envelope import DecodeError, Signed, decode, digest, digest_of, encode, sign
from protocols.machine import PeerId
from protocols.refusal import Refusal
from protocols.state import transitions
from protocols.state.apply import MeshMachine, genesis_state, read_command
from protocols.state.commands import (
    ClaimRoutes,
    Command,
    ConfirmNode,
    CreateEnvironment,
    CreateProject,
    DrainNode,
    Exhibits,
    Freeze,
    Pause,
    Promote,
    Reconfigure,
    RemoveNode,
    SetAdmins,
    SetPolicy,
    SetRules,
    Signature,
    SignedCommand,
    Start,
    sign_command,
)
from protocols.state.exhibits import open_case
from protocols.state.freshness import fresh_refusal
from protocols.state.governance import RULES_VERSION, conflicts
from protocols.state.model import LANES_MAX, NODES_MAX, RECENT_IDS_MAX, ConfirmedNode, Lane, MeshState, Project
from protocols.trust.grants import Grant
from protocols.trust.invites import Bundle, Invite, JoinRequest, countersign, make_invite, make_join
from protocols.trust.store import TrustStore
from tests.support.protocols.mesh_world import MeshWorld, Shown, node_id, refused, signer
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS

STRANGER = signer("stranger")


def world() -> MeshWorld:
    return MeshWorld().furnish()


class FakeView:
    def __init__(self) -> None:
        self.revoked_keys: set[bytes] = set()
        self.let_in: set[tuple[bytes, bytes]] = set()
        self.down: set[PeerId] = set()
        self.held: dict[PeerId, HealthVerdict] = {}

    def revoked(self, key: bytes) -> bool:
        return key in self.revoked_keys

    def admitted(self, principal: bytes, invite_key: bytes) -> bool:
        return (principal, invite_key) in self.let_in

    def alive(self, node: PeerId) -> bool:
        return node not in self.down

    def verdicts(self, rollout: bytes, opened: int) -> Mapping[PeerId, HealthVerdict]:
        return {node: one for node, one in self.held.items() if (one.rollout, one.opened) == (rollout, opened)}


# --- genesis and the face ---------------------------------------------------------------------------------------------


def test_genesis_founds_one_confirmed_voter_under_the_first_policy() -> None:
    w = MeshWorld(TEAM)
    assert w.state.voters == (Voter(node_id("n1"), b"s" * 16),)
    assert w.state.policy == TEAM
    assert w.state.era == w.mesh
    assert [one.node for one in w.state.nodes] == [node_id("n1")]


def test_a_genesis_with_a_broken_policy_founds_nothing() -> None:
    w = MeshWorld()
    for policy in (b"\xc1", encode(Policy("team"))):
        with pytest.raises(DecodeError):
            genesis_state(replace(w.genesis, policy=policy), w.mesh)


def test_states_survive_their_encoding_and_hash_alike() -> None:
    w = world().deployed(1).started(2)
    machine = MeshMachine(w.genesis, w.rules, FakeView())
    again = machine.decode_state(encode(w.state))
    assert again == w.state
    assert digest_of(again) == digest_of(w.state)
    with pytest.raises(DecodeError):
        machine.decode_state(b"\xc1")


def test_the_machine_judges_bytes_and_lets_the_noop_pass() -> None:
    w = world()
    view = FakeView()
    machine = MeshMachine(w.genesis, w.rules, view)
    assert (machine.rules_version, machine.rules_version_of(w.state)) == (RULES_VERSION, 1)
    assert machine.genesis().applied == 0
    assert machine.voters(w.state) == w.state.voters
    assert machine.apply(w.state, NOOP, {}, WALL_MS) is w.state
    assert machine.fresh_refusal(w.state, NOOP, {}, WALL_MS) is None
    assert refused(machine.apply(w.state, NOOP, {digest(b"x"): b"x"}, WALL_MS)) == "command.material"
    assert refused(machine.apply(w.state, b"\xc1", {}, WALL_MS)) == "command.malformed"
    assert refused(machine.fresh_refusal(w.state, b"\xc1", {}, WALL_MS)) == "command.malformed"
    command = encode(w.command(CreateProject("blog"), (w.admin,)))
    assert isinstance(machine.apply(w.state, command, {}, WALL_MS), MeshState)
    assert machine.fresh_refusal(w.state, command, {}, WALL_MS) is None
    assert refused(machine.fresh_refusal(w.state, command, {digest(b"x"): b"x"}, WALL_MS)) == "command.material"


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_refused_command(data: bytes) -> None:
    answer = read_command(data)
    assert isinstance(answer, Refusal | SignedCommand)


# --- commands in general ----------------------------------------------------------------------------------------------


def test_a_commands_form_and_signatures_are_checked_first() -> None:
    w = world()
    good = w.command(CreateProject("blog"), (w.admin,))
    flipped = Signature(w.admin.public_key, bytes(64))
    mine = good.signatures[0]
    for command, rule in (
        (SignedCommand(good.payload, (flipped,)), "command.signature"),
        (SignedCommand(good.payload + b"x", (mine,)), "command.signature"),
        (SignedCommand(good.payload, (mine, mine)), "command.signatures"),
        (SignedCommand(b"x" * 20_000, ()), "command.too-large"),
        (SignedCommand(b"\xc1", ()), "command.malformed"),
        (SignedCommand(good.payload, ()), "command.unsigned"),
    ):
        assert refused(w.judge(command)) == rule
    short = sign_command((w.admin,), w.mesh, Command(b"short", CreateProject("blog")))
    assert refused(w.judge(short)) == "command.malformed"
    other_mesh = sign_command((w.admin,), b"o" * 32, Command(b"i" * 16, CreateProject("blog")))
    assert refused(w.judge(other_mesh)) == "command.signature"


def test_material_is_exactly_what_the_exhibits_name() -> None:
    w = world()
    shown = Shown().add("grants", encode(w.grant("ann", "admin")))
    command = w.command(CreateProject("blog"), (signer("ann"),), shown)
    assert refused(w.judge(command)) == "command.material"
    more = Shown(dict(shown.fields), {**shown.material, digest(b"extra"): b"extra"})
    assert refused(w.judge(command, more)) == "command.material"
    assert isinstance(w.judge(command, shown), MeshState)
    many = Shown().add("evidence", *(b"%d" % number for number in range(300)))
    assert refused(w.judge(w.command(CreateProject("b"), (w.admin,), many), many)) == "command.too-large"
    for bad in (encode(()), b"\xc1"):
        broken = Shown().add("grants", bad)
        assert refused(w.judge(w.command(CreateProject("b"), (w.admin,), broken), broken)) == "command.malformed"


def test_a_mesh_command_names_no_project_and_keeps_its_order() -> None:
    w = world()
    assert refused(w.judge(w.command(CreateProject("b"), (w.admin,), project="shop"))) == "command.scope"
    assert refused(w.govern(SetPolicy(TEAM), w.admin, expect=None)) == "command.expect"
    assert refused(w.govern(SetPolicy(TEAM), w.admin, expect=99)) == "command.expect"
    assert refused(w.govern(CreateProject("b"), w.admin, expect=99)) == "command.expect"
    new = CreateEnvironment("b")
    assert refused(w.govern(new, w.admin, expect=99)) == "command.expect"
    assert refused(w.govern(replace(new, name="prod", replace=True), w.admin, expect=None)) == "command.expect"
    before = w.state.sequence
    assert isinstance(w.govern(new, w.admin, expect=None), MeshState), "voters may have grown meanwhile"
    assert refused(w.govern(new, w.admin, expect=None)) == "environment.exists"
    assert w.state.sequence == before + 1, "what was computed before it is told"
    command = w.command(CreateProject("b"), (w.admin,))
    assert isinstance(w.judge(command), MeshState)
    assert refused(w.judge(command)) == "command.duplicate"
    for number in range(RECENT_IDS_MAX + 1):
        w.govern(CreateProject(f"p{number}"), w.admin)
    assert len(w.state.recent) == RECENT_IDS_MAX


# --- names ------------------------------------------------------------------------------------------------------------


def test_projects_have_a_name_an_owner_and_a_limit() -> None:
    w = world()
    assert refused(w.govern(CreateProject("shop"), w.admin)) == "project.exists"
    assert refused(w.govern(CreateProject("No"), w.admin)) == "project.name"
    assert refused(w.govern(CreateProject("a", ("",)), w.admin)) == "project.owners"
    assert refused(w.govern(CreateProject("a"), STRANGER)) == "grant.none"
    w.state = replace(w.state, projects=tuple(Project(f"p{n:03}", ()) for n in range(256)))
    assert refused(w.govern(CreateProject("a"), w.admin)) == "project.limit"


def test_environments_are_made_once_and_set_by_the_threshold() -> None:
    w = world()
    assert refused(w.govern(CreateEnvironment("prod"), w.admin)) == "environment.exists"
    assert refused(w.govern(CreateEnvironment("x", replace=True), w.admin)) == "environment.exists"
    assert refused(w.govern(CreateEnvironment("Bad"), w.admin)) == "environment.malformed"
    assert refused(w.govern(CreateEnvironment("x", policy=Policy("team")), w.admin)) == "policy.malformed"
    assert refused(w.govern(CreateEnvironment("x"), STRANGER)) == "grant.none"
    assert refused(w.govern(CreateEnvironment("x", policy=TEAM), STRANGER)) == "command.admin-threshold"
    done = w.govern(CreateEnvironment("prod", (("zone", "n2"),), replace=True), w.admin)
    assert isinstance(done, MeshState)
    assert done.environments[0].selector == (("zone", "n2"),)
    for number in range(15):
        assert isinstance(w.govern(CreateEnvironment(f"e{number}"), w.admin), MeshState)
    assert refused(w.govern(CreateEnvironment("last"), w.admin)) == "environment.limit"


def test_policy_and_admins_change_by_the_threshold_of_admins() -> None:
    w = world()
    keys = tuple(sorted((w.admin.public_key, signer("second").public_key)))
    assert isinstance(w.govern(SetAdmins(keys, 2), w.admin), MeshState)
    assert refused(w.govern(SetPolicy(TEAM), w.admin)) == "command.admin-threshold"
    assert isinstance(w.govern(SetPolicy(TEAM), w.admin, signer("second")), MeshState)
    assert w.state.policy == TEAM
    both = (w.admin, signer("second"))
    assert isinstance(w.govern(SetPolicy(SOLO, "prod"), *both), MeshState)
    assert w.state.environments[0].policy == SOLO
    assert isinstance(w.govern(SetPolicy(None, "prod"), *both), MeshState)
    assert w.state.environments[0].policy is None
    for action, rule in (
        (SetPolicy(None), "policy.malformed"),
        (SetPolicy(Policy("team")), "policy.malformed"),
        (SetPolicy(SOLO, "nowhere"), "environment.unknown"),
        (SetAdmins((), 1), "admins.malformed"),
        (SetAdmins((b"short",), 1), "admins.malformed"),
        (SetAdmins(tuple(reversed(keys)), 1), "admins.malformed"),
        (SetAdmins(keys, 3), "admins.malformed"),
        (SetRules(RULES_VERSION + 1), "rules.version"),
        (SetRules(1), "rules.version"),
    ):
        assert refused(w.govern(action, *both)) == rule
    assert refused(w.govern(SetRules(RULES_VERSION), w.admin)) == "command.admin-threshold"
    assert isinstance(w.govern(SetRules(RULES_VERSION), *both), MeshState)
    assert w.state.rules_version == RULES_VERSION
    assert refused(w.govern(SetRules(1), *both)) == "rules.version"


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_an_admin_confirms_relabels_drains_and_removes_a_node() -> None:
    w = MeshWorld()
    n2 = node_id("n2")
    assert refused(w.govern(ConfirmNode(n2), STRANGER)) == "grant.none"
    assert refused(w.govern(ConfirmNode(PeerId("nonsense")), w.admin)) == "node.malformed"
    assert refused(w.govern(ConfirmNode(n2, (("b", "1"), ("a", "1"))), w.admin)) == "node.malformed"
    assert refused(w.govern(ConfirmNode(n2, roles=("king",)), w.admin)) == "node.malformed"
    assert refused(w.govern(ConfirmNode(n2, roles=("worker", "worker")), w.admin)) == "node.malformed"
    assert isinstance(w.govern(ConfirmNode(n2, roles=("worker",)), w.admin), MeshState)
    assert isinstance(w.govern(ConfirmNode(n2, (("zone", "a"),), ("worker",)), w.admin), MeshState)
    assert [one.labels for one in w.state.nodes if one.node == n2] == [(("zone", "a"),)]
    assert refused(w.govern(ConfirmNode(n2))) == "node.confirmed"
    assert refused(w.govern(DrainNode(n2), STRANGER)) == "grant.none"
    assert refused(w.govern(DrainNode(node_id("x")), w.admin)) == "node.unknown"
    assert isinstance(w.govern(DrainNode(n2), signer("n2")), MeshState)
    assert refused(w.govern(DrainNode(n2, draining=False), signer("n2"))) == "grant.none"
    assert isinstance(w.govern(DrainNode(n2, draining=False), w.admin), MeshState)
    assert refused(w.govern(RemoveNode(n2), STRANGER)) == "grant.none"
    assert refused(w.govern(RemoveNode(node_id("x")), w.admin)) == "node.unknown"
    assert refused(w.govern(RemoveNode(node_id("n1")), w.admin)) == "node.votes"
    assert isinstance(w.govern(RemoveNode(n2), w.admin), MeshState)
    assert len(w.state.nodes) == 1


def test_a_mesh_refuses_more_nodes_than_it_carries() -> None:
    w = MeshWorld()
    nodes = tuple(ConfirmedNode(node_id(f"x{n}"), (), (), 0) for n in range(NODES_MAX))
    w.state = replace(w.state, nodes=nodes)
    assert refused(w.govern(ConfirmNode(node_id("n2")), w.admin)) == "node.limit"


def _bundle(w: MeshWorld, name: str, by: str = "n1", use: int = 0) -> bytes:
    key = signer("invite")
    invite = Invite(w.mesh, key.public_key, "node", ("worker",), (), 2, WALL_MS, WALL_MS + DAY_MS)
    signed = make_invite(w.admin, invite)
    join = make_join(key, w.mesh, JoinRequest(signer(name).public_key, name, b"j" * 16))
    bundle: Bundle = countersign(
        signer(by), w.mesh, signed, join, key=signer(name).public_key, use_index=use, wall_ms=WALL_MS, serial=1
    )
    return encode(bundle)


def test_an_admission_confirms_its_node_once_without_an_admin_at_hand() -> None:
    w = MeshWorld()
    shown = Shown().add("admission", _bundle(w, "n2"))
    n2 = ConfirmNode(node_id("n2"), (), ("worker",))
    for action, how, rule in (
        (n2, Shown(), "node.admission"),
        (n2, Shown().add("admission", b"\xc1"), "admission.malformed"),
        (n2, Shown().add("admission", _bundle(w, "n2", by="stranger")), "node.admission"),
        (n2, Shown().add("admission", _bundle(w, "n3")), "node.admission"),
        (ConfirmNode(node_id("n2"), (), ("worker", "voter")), shown, "node.admission"),
        (n2, Shown().add("admission", _bundle(MeshWorld(TEAM), "n2")), "invite.malformed"),
    ):
        assert refused(w.govern(action, shown=how)) == rule
    assert isinstance(w.govern(n2, shown=shown), MeshState)
    again = Shown().add("admission", _bundle(w, "n3"))
    assert refused(w.govern(ConfirmNode(node_id("n3"), (), ("worker",)), shown=again)) == "node.invite-used"
    second = Shown().add("admission", _bundle(w, "n3", use=1))
    assert isinstance(w.govern(ConfirmNode(node_id("n3"), (), ("worker",)), shown=second), MeshState)


# --- routes -----------------------------------------------------------------------------------------------------------


def test_routes_belong_to_one_project_and_conflicts_are_refused() -> None:
    w = world()
    assert isinstance(w.govern(CreateProject("blog"), w.admin), MeshState)
    mine = Route("", "/shop")
    assert isinstance(w.on_lane(ClaimRoutes((mine, Route("", "/"))), w.admin), MeshState)
    for taken in (mine, Route("", "/shop/pay"), Route("", "/")):
        assert refused(w.on_lane(ClaimRoutes((taken,)), w.admin, project="blog")) == "route.taken"
    assert isinstance(w.on_lane(ClaimRoutes((Route("", "/blog"),)), w.admin, project="blog"), MeshState)
    assert isinstance(w.on_lane(ClaimRoutes((Route("blog.example", "/shop"),)), w.admin, project="blog"), MeshState)
    assert refused(w.on_lane(ClaimRoutes(()), STRANGER)) == "grant.none"
    assert refused(w.on_lane(ClaimRoutes((mine, mine)), w.admin)) == "route.malformed"
    assert refused(w.on_lane(ClaimRoutes((Route("", "shop"),)), w.admin)) == "route.malformed"
    assert isinstance(w.on_lane(ClaimRoutes(()), w.admin), MeshState)


def test_one_project_may_nest_its_own_routes_across_environments_but_not_share_one() -> None:
    w = world()
    w.govern(CreateEnvironment("staging"), w.admin)
    assert isinstance(w.on_lane(ClaimRoutes((Route("", "/shop"),)), w.admin), MeshState)
    nested = ClaimRoutes((Route("", "/shop/staging"),))
    assert isinstance(w.on_lane(nested, w.admin, environment="staging"), MeshState)
    same = ClaimRoutes((Route("", "/shop"),))
    assert refused(w.on_lane(same, w.admin, environment="staging")) == "route.taken"


def test_a_route_that_a_release_serves_is_not_released() -> None:
    route = Route("", "/shop")
    w = MeshWorld().furnish(route).deployed(1, routes=(route,))
    assert refused(w.on_lane(ClaimRoutes(()), w.admin)) == "route.in-use"


def test_route_conflicts_are_symmetric_and_respect_segments() -> None:
    assert conflicts(Route("", "/a/b"), Route("", "/a"))
    assert not conflicts(Route("", "/ab"), Route("", "/a"))
    assert not conflicts(Route("h", "/a"), Route("", "/a"))
    assert not conflicts(Route("", "/"), Route("", "/a"))


def test_a_mesh_has_a_limit_of_lanes_and_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world()
    monkeypatch.setattr("protocols.state.governance.ROUTES_TOTAL_MAX", 1)
    routes = ClaimRoutes((Route("", "/a"), Route("", "/b")))
    assert refused(w.on_lane(routes, w.admin)) == "route.limit"
    w.state = replace(w.state, lanes=tuple(Lane(f"p{n}", "e") for n in range(LANES_MAX)))
    assert refused(w.on_lane(Freeze("x"), w.admin)) == "lane.limit"


def test_the_state_has_a_limit_whatever_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world()
    monkeypatch.setattr("protocols.state.apply.STATE_MAX_BYTES", 500)
    assert refused(w.govern(CreateProject("blog"), w.admin)) == "mesh.state-full"


# --- voters -----------------------------------------------------------------------------------------------------------


def _ready(w: MeshWorld, *names: str, by: str = "", era: bytes = b"") -> Shown:
    shown = Shown()
    for name in names:
        said = VoterReady(node_id(name), name.encode() * 8, era or w.state.era, 5)
        shown.add("statements", encode(sign(signer(by or name), VOTER_READY_DOMAIN, w.mesh, said)))
    return shown


def _grown(w: MeshWorld) -> tuple[Voter, ...]:
    return tuple(sorted((w.state.voters[0], Voter(node_id("n2"), b"n2" * 8), Voter(node_id("n3"), b"n3" * 8))))


def test_the_voters_grow_without_a_person_when_policy_wants_and_a_majority_is_ready() -> None:
    w = world()
    machine = MeshMachine(w.genesis, w.rules, FakeView())
    growth = machine.growth(w.state)
    assert growth.target == 3
    assert set(growth.candidates) == {node_id(name) for name in w.nodes}
    voters = _grown(w)
    ready = [decode(data, Signed) for data in _ready(w, "n2", "n3").material.values()]
    made = machine.reconfigure(w.state, voters, tuple(ready))
    assert made is not None
    command, material = made
    answer = machine.apply(w.state, command, material_of(material), WALL_MS)
    assert isinstance(answer, MeshState)
    assert answer.voters == voters
    assert answer.sequence == w.state.sequence + 1
    assert machine.reconfigure(answer, w.state.voters, ()) is None


def test_voters_that_are_not_ready_not_confirmed_or_not_a_sound_set_are_refused() -> None:
    w = world()
    voters = _grown(w)
    two = Reconfigure(voters[:2])
    unsound = Reconfigure(tuple(reversed(voters)))
    twice = Reconfigure(tuple(sorted((voters[0], *(replace(voters[0], store_id=bytes([n]) * 16) for n in (1, 2))))))
    stranger = Reconfigure(tuple(sorted((*_grown(w)[:2], Voter(node_id("x"), b"x" * 16)))))
    for action, rule in (
        (two, "voters.malformed"),
        (unsound, "voters.malformed"),
        (twice, "voters.malformed"),
        (Reconfigure(w.state.voters), "voters.same"),
        (stranger, "voters.unconfirmed"),
    ):
        assert refused(w.govern(action, w.admin)) == rule
    grow = Reconfigure(voters)
    assert refused(w.govern(grow)) == "voters.not-ready"
    assert refused(w.govern(grow, shown=_ready(w, "n2"))) == "voters.not-ready"
    assert refused(w.govern(grow, shown=_ready(w, "n2", "n3", by="n2"))) == "voters.statement"
    assert refused(w.govern(grow, shown=_ready(w, "n2", "n3", era=b"e" * 32))) == "voters.statement"
    bad = Shown().add("statements", encode(Signed(b"x", b"k" * 32, b"s" * 64)))
    assert refused(w.govern(grow, shown=bad)) == "voters.statement"
    assert refused(w.govern(grow, shown=Shown().add("statements", b"\xc1"))) == "statement.malformed"
    assert isinstance(w.govern(grow, shown=_ready(w, "n2", "n3")), MeshState)


def test_replacing_a_voter_takes_an_admin() -> None:
    w = world()
    replaced = Reconfigure((Voter(node_id("n2"), b"n2" * 8),))
    assert refused(w.govern(replaced, shown=_ready(w, "n2"))) == "command.unsigned"
    assert isinstance(w.govern(replaced, w.admin, shown=_ready(w, "n2")), MeshState)


def test_a_reset_begins_an_era_with_its_voters_and_is_remembered_forever() -> None:
    w = world()
    machine = MeshMachine(w.genesis, w.rules, FakeView())
    reset = Reset(w.mesh, 1, 9, b"p" * 32, WALL_MS + 5, (Voter(node_id("n2"), b"n2" * 8),), "majority lost")
    era = digest(encode(reset))
    answer = machine.apply_reset(w.state, reset, era)
    assert (answer.era, answer.voters, answer.resets) == (era, reset.voters, 1)
    assert answer.at_ms == WALL_MS + 5


def test_the_admins_who_may_reset_are_those_of_the_state_and_are_found_in_the_command_that_named_them() -> None:
    w = world()
    machine = MeshMachine(w.genesis, w.rules, FakeView())
    assert machine.admins(w.state) == Admins(w.state.admins, w.state.threshold)
    keys = tuple(sorted((w.admin.public_key, STRANGER.public_key)))
    named = sign_command([w.admin], w.mesh, Command(b"i" * 16, SetAdmins(keys, 2)), Exhibits())
    assert machine.admins_named(encode(named)) == Admins(keys, 2)
    for action in (CreateProject("shop"), CreateProject("set_admins")):
        other = sign_command([w.admin], w.mesh, Command(b"i" * 16, action), Exhibits())
        assert machine.admins_named(encode(other)) is None
    assert machine.admins_named(b"set_admins") is None


# --- fresh refusals ---------------------------------------------------------------------------------------------------


def _fresh(w: MeshWorld, command: SignedCommand, shown: Shown, view: FakeView) -> Refusal | None:
    case = open_case(command, shown.material, w.at_ms, w.rules, w.state.admins)
    assert not isinstance(case, Refusal)
    return fresh_refusal(w.state, case, view)


def test_whoever_a_start_rests_on_must_not_be_revoked() -> None:
    w = MeshWorld(TEAM).furnish()
    release = w.release(1, author="dev")
    change = w.change(release, author="dev")
    chains = (w.grant("dev", "deployer"), w.grant("ann", "approver"))
    shown = w.case_for(
        change,
        release,
        author="dev",
        grants=chains,
        approvals=(w.approval("ann", change),),
        evidence=(w.evidence("tester"),),
    )
    nodes = tuple(sorted(node_id(name) for name in w.nodes))
    action = Start(digest(encode(change)), nodes)
    command = w.command(action, (signer("dev"),), shown, project="shop", environment="prod", expect=0)
    view = FakeView()
    assert _fresh(w, command, shown, view) is None
    for key in (
        *(signer(name).public_key for name in ("dev", "ann", "tester", "n1", "admin")),
        digest(chains[1][0].payload),
    ):
        view.revoked_keys = {key}
        assert refused(_fresh(w, command, shown, view)) == "fresh.revoked"


def test_a_shown_grant_whose_keys_are_none_ends_no_voter() -> None:
    w = world().started()
    bad = Signed(encode(Grant(b"no key", "person", "x", (), (), (), 1, b"")), b"short", b"")
    shown = Shown().add("grants", encode(w.grant("dep", "deployer")), encode((bad,)))
    made = w.command(
        Pause(w.rollout.id), (signer("dep"),), shown, project="shop", environment="prod", expect=w.lane.sequence
    )
    trust = TrustStore(VERIFIER, encode(w.genesis))
    view = FakeView()
    view.revoked = trust.key_revoked  # type: ignore[method-assign]
    assert _fresh(w, made, shown, view) is None


def test_an_approver_whom_only_an_invites_line_vouches_for_is_not_voted_for() -> None:
    w = MeshWorld(TEAM).furnish()
    invite = w.grant("invite", "deployer", "approver", invite_uses=1)
    dev = w.grant("dev", "deployer", "approver", by=signer("invite"), parent=invite)
    puppet = w.grant("puppet", "approver", by=signer("invite"), parent=invite)
    release = w.release(1, author="dev")
    change = w.change(release, author="dev")
    approvals = (w.approval("puppet", change),)
    shown = w.case_for(change, release, author="dev", grants=(dev, puppet), approvals=approvals)
    action = Start(digest(encode(change)), tuple(sorted(node_id(name) for name in w.nodes)))
    command = w.command(action, (signer("dev"),), shown, project="shop", environment="prod", expect=0)
    view = FakeView()
    view.let_in = {(signer("dev").public_key, signer("invite").public_key)}
    assert refused(_fresh(w, command, shown, view)) == "fresh.not-admitted"
    view.let_in.add((signer("puppet").public_key, signer("invite").public_key))
    assert _fresh(w, command, shown, view) is None


def test_a_start_that_leaves_out_living_nodes_is_not_voted_for() -> None:
    w = world()
    release = w.release()
    view = FakeView()
    for fields, nodes, rule in (
        ({}, ("n1", "n2"), "fresh.nodes-missed"),
        ({"replicas": 2}, ("n1", "n2"), ""),
        ({"data": True}, ("n1",), ""),
    ):
        change = w.change(release, **fields)
        shown = w.case_for(change, release)
        action = Start(digest(encode(change)), tuple(sorted(node_id(name) for name in nodes)))
        command = w.command(action, (w.admin,), shown, project="shop", environment="prod", expect=0)
        answer = _fresh(w, command, shown, view)
        assert (answer.rule if answer else "") == rule
        view.down = {node_id("n3")}
        assert _fresh(w, command, shown, view) is None
        view.down = set()


def test_a_pause_that_nobody_signed_faces_newer_verdicts_and_a_signed_one_none() -> None:
    w = world().started()
    canary = w.rollout.cohort[0]
    w.at_ms += 30_000
    shown = w.verdicts(smoke_runs=0)
    forced = w.command(Pause(w.rollout.id), (), shown, project="shop", environment="prod", expect=w.lane.sequence)
    by_hand = w.command(
        Pause(w.rollout.id), (w.admin,), shown, project="shop", environment="prod", expect=w.lane.sequence
    )
    view = FakeView()
    assert _fresh(w, forced, shown, view) is None
    view.held = {canary: w.verdict("pass", sequence=9)}
    assert refused(_fresh(w, forced, shown, view)) == "fresh.stale-verdict"
    assert _fresh(w, by_hand, shown, view) is None


def test_a_promotion_faces_newer_verdicts_and_vanished_nodes() -> None:
    w = world().started()
    shown = w.verdicts()
    canary = w.rollout.cohort[0]
    action = Promote(w.rollout.id, 0)
    command = w.command(action, (), shown, project="shop", environment="prod", expect=w.lane.sequence)
    view = FakeView()
    assert _fresh(w, command, shown, view) is None
    view.held = {canary: w.verdict("pass", sequence=9), node_id("stranger"): w.verdict("fail", sequence=9)}
    assert _fresh(w, command, shown, view) is None
    view.held = {canary: w.verdict("fail", sequence=2)}
    assert refused(_fresh(w, command, shown, view)) == "fresh.stale-verdict"
    view.held = {canary: w.verdict("fail", sequence=1)}
    assert _fresh(w, command, shown, view) is None
    view.down = {canary}
    assert refused(_fresh(w, command, shown, view)) == "fresh.vanished"
    stale = w.verdicts(opened=99)
    command = w.command(action, (), stale, project="shop", environment="prod", expect=w.lane.sequence)
    assert refused(_fresh(w, command, stale, view)) == "health.other-stage"


def test_what_rests_on_nothing_but_a_signature_has_only_the_signer_to_lose() -> None:
    w = world().started()
    command = w.command(Pause(w.rollout.id), (w.admin,), project="shop", environment="prod", expect=0)
    view = FakeView()
    assert _fresh(w, command, Shown(), view) is None
    view.revoked_keys = {w.admin.public_key}
    assert refused(_fresh(w, command, Shown(), view)) == "fresh.revoked"


# --- bounds -----------------------------------------------------------------------------------------------------------


def _change(**fields: object) -> Change:
    w = world()
    return w.change(w.release(), **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"project": "No"},
        {"configuration": b"short"},
        {"base": b"short"},
        {"secrets": (SecretVersion("A", 1, b"d" * 32),) * 65},
        {"replicas": 33},
        {"replicas": 2, "data": True},
        {"plan": Plan(())},
    ],
)
def test_a_change_out_of_bounds_is_named(fields: dict[str, object]) -> None:
    assert change_problem(_change(**fields))


def test_plans_out_of_bounds_are_named() -> None:
    stages = (Stage("1"),)
    for plan in (
        Plan((Stage("1", min_healthy_ms=-1),)),
        Plan((Stage("1", min_healthy_ms=300_000),)),
        Plan(stages, healthy_deadline_ms=700_000),
        Plan(stages, max_parallel=0),
        Plan(stages, analysis=Analysis(max_error_ppm=2_000_000)),
        Plan(stages, analysis=Analysis(min_requests=0)),
    ):
        assert plan_problem(plan)
    assert plan_problem(Plan(stages)) is None


def test_manifests_and_routes_out_of_bounds_are_named() -> None:
    good = MeshWorld().release()
    for release in (
        replace(good, project="No"),
        replace(good, components=()),
        replace(good, components=(Component("a", b"short", 1),)),
        replace(good, demands=(("prod", Demands()),) * 17),
        replace(good, demands=(("prod", Demands(windows=(FreezeWindow("deny", 0, 0),))),)),
    ):
        assert release_problem(release)
    assert release_problem(good) is None
    for route in (Route("Host", "/"), Route("", "x"), Route("", "/.freehold/x"), Route("", "/a/"), Route("", "/a//b")):
        assert route_problem(route)
    assert route_problem(Route("a.example", "/")) is None
    assert not valid_name("")
    assert not valid_name("-a")


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_printed_table_is_the_one_in_the_code() -> None:
    page = Path(__file__).resolve().parents[4] / "docs" / "reference" / "transitions.md"
    assert page.read_text() == transitions.markdown(), (
        "run: python -m protocols.state.transitions > docs/reference/transitions.md"
    )


def test_the_table_is_total() -> None:
    assert set(transitions.OPEN) == set(transitions.FROZEN)
    assert len(transitions.OPEN) == 11
    assert all(
        len(row) == len(transitions.LanePhase)
        for table in (transitions.OPEN, transitions.FROZEN)
        for row in table.values()
    )


def test_a_step_outside_the_table_is_an_assertion() -> None:
    w = world().started()
    with pytest.raises(AssertionError):
        transitions.assert_led(w.lane, Pause(b""), replace(w.lane, rollout=None))
