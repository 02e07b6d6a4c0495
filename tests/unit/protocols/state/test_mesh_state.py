"""The mesh's own commands: names, nodes, voters, and what keeps the state bounded and equal."""

from __future__ import annotations

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
from protocols.changes.demands import SOLO, TEAM, Policy
from protocols.envelope import DecodeError, Signed, decode, digest, digest_of, encode, sign
from protocols.machine import PeerId
from protocols.refusal import Refusal
from protocols.state import transitions
from protocols.state.apply import MeshMachine, genesis_state, read_command
from protocols.state.commands import (
    Command,
    ConfirmNode,
    CreateEnvironment,
    CreateProject,
    DrainNode,
    Exhibits,
    Pause,
    Reconfigure,
    RemoveNode,
    SetAdmins,
    SetPolicy,
    SetRules,
    Signature,
    SignedCommand,
    sign_command,
)
from protocols.state.governance import RULES_VERSION
from protocols.state.model import NODES_MAX, RECENT_IDS_MAX, ConfirmedNode, MeshState, Project
from protocols.trust.invites import Bundle, Invite, JoinRequest, countersign, make_invite, make_join
from tests.support.protocols.mesh_world import MeshWorld, Shown, node_id, refused, signer
from tests.support.protocols.state_asks import STRANGER, FakeView, world
from tests.support.protocols.trust_world import DAY_MS, WALL_MS

# --- genesis and the face ---------------------------------------------------------------------------------------------


def test_genesis_founds_one_confirmed_voter_under_the_first_policy() -> None:
    w = MeshWorld(TEAM)
    assert w.state.voters == (Voter(node_id("n1"), b"s" * 16),)
    assert w.state.policy == TEAM
    assert w.state.era == w.mesh
    assert [node.node for node in w.state.nodes] == [node_id("n1")]


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
    assert [node.labels for node in w.state.nodes if node.node == n2] == [(("zone", "a"),)]
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
    pair = machine.reconfigure(w.state, voters, tuple(ready))
    assert pair is not None
    command, material = pair
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
