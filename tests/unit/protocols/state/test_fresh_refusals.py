"""Routes, fresh refusals and bounds: what the state of a mesh refuses."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

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
from protocols.changes.demands import TEAM, Demands, FreezeWindow
from protocols.envelope import Signed, digest, encode
from protocols.refusal import Refusal
from protocols.state.commands import (
    ClaimRoutes,
    CreateEnvironment,
    CreateProject,
    Freeze,
    Pause,
    Promote,
    SignedCommand,
    Start,
)
from protocols.state.exhibits import open_case
from protocols.state.freshness import fresh_refusal
from protocols.state.governance import conflicts
from protocols.state.model import LANES_MAX, Lane, MeshState
from protocols.trust.grants import Grant
from protocols.trust.store import TrustStore
from tests.support.protocols.mesh_world import MeshWorld, Shown, node_id, refused, signer
from tests.support.protocols.state_asks import STRANGER, FakeView, world
from tests.support.protocols.trust_world import VERIFIER

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
    signed_command = w.command(
        Pause(w.rollout.id), (signer("dep"),), shown, project="shop", environment="prod", expect=w.lane.sequence
    )
    trust = TrustStore(VERIFIER, encode(w.genesis))
    view = FakeView()
    view.revoked = trust.key_revoked  # type: ignore[method-assign]
    assert _fresh(w, signed_command, shown, view) is None


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
