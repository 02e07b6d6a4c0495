"""Where a request goes whose app does not run here: which routes lead away, and which nodes should answer."""

from __future__ import annotations

import msgspec

from node.mesh.request_relay import routes_away, runners
from protocols.changes.change import Plan, Route
from protocols.changes.demands import SOLO
from protocols.keys import Ed25519Signer, peer_id
from protocols.machine import Digest
from protocols.state.model import (
    ConfirmedNode,
    Deployed,
    Environment,
    Lane,
    MeshState,
    OpenStage,
    Project,
    Rollout,
    RouteClaim,
)
from runtime.messages import WorkerRoute

NODES = tuple(sorted(peer_id(Ed25519Signer(bytes([number]) * 32).public_key) for number in range(1, 5)))
A, B, C, D = NODES
LANE = ("shop", "live")
BOTH, OLD, NEW = Route("", "/both"), Route("", "/old"), Route("shop.test", "/")


def deployed(*routes: Route, data: bool = False, replicas: int = 0) -> Deployed:
    return Deployed(
        change=Digest(b"c" * 32), release=Digest(b"r" * 32), configuration=Digest(b"f" * 32), secrets=(), routes=routes,
        schedules=(), data=data, replicas=replicas, required=0, approvers=(), break_glass="", author=b"", applied=1,
    )  # fmt: skip


def rollout(candidate: Deployed, size: int) -> Rollout:
    stage = OpenStage(size=size, min_healthy_ms=0, pause_ms=0, approve=False)
    return Rollout(
        id=Digest(b"o" * 32), candidate=candidate, plan=Plan(stages=()), order=NODES, stages=(stage,), stage=0, opened=1,
        stage_at_ms=0, started_at_ms=0,
    )  # fmt: skip


def state(lane: Lane, draining: tuple[str, ...] = ()) -> MeshState:
    return MeshState(
        name="home", era=Digest(b"e" * 32), applied=9, sequence=0, rules_version=1, admins=(), threshold=1, policy=SOLO,
        voters=(), nodes=tuple(ConfirmedNode(node, (), ("worker",), 1, node in draining) for node in NODES),
        projects=(Project("shop", ()),), environments=(Environment("live", (), None, False),), lanes=(lane,),
    )  # fmt: skip


def forwards(routes: list[WorkerRoute]) -> dict[str, str]:
    assert not any(route.key or route.app for route in routes)
    return {f"{route.host or ''}{route.prefix}": route.forward for route in routes}


def test_a_lane_that_runs_elsewhere_has_all_its_routes_lead_away() -> None:
    lane = Lane(*LANE, base=deployed(BOTH, OLD))
    assert forwards(routes_away(state(lane), {})) == {"/both": "shop live any", "/old": "shop live any"}


def test_a_route_served_here_never_leads_away() -> None:
    lane = Lane(*LANE, base=deployed(BOTH, OLD))
    assert forwards(routes_away(state(lane), {LANE: [("", "/both"), ("", "/old")]})) == {}


def test_a_route_only_the_candidate_has_leads_to_the_cohort() -> None:
    lane = Lane(*LANE, base=deployed(BOTH, OLD), rollout=rollout(deployed(BOTH, NEW), 2))
    mesh = state(lane)
    served_by_base = {LANE: [("", "/both"), ("", "/old")]}
    assert forwards(routes_away(mesh, served_by_base)) == {"shop.test/": "shop live candidate"}
    assert runners(mesh, LANE, "candidate") == (A, B)
    assert runners(mesh, LANE, "base") == (C, D)
    assert runners(mesh, LANE, "any") == NODES


def test_a_first_deploy_is_reached_through_its_cohort_alone() -> None:
    lane = Lane(*LANE, rollout=rollout(deployed(NEW), 1))
    assert forwards(routes_away(state(lane), {})) == {"shop.test/": "shop live candidate"}
    assert runners(state(lane), LANE, "any") == (A,)


def test_what_is_claimed_before_the_first_release_leads_to_nobody_yet() -> None:
    mesh = msgspec.structs.replace(
        state(Lane(*LANE)), routes=(RouteClaim(NEW, *LANE), RouteClaim(OLD, "other", LANE[1]))
    )
    assert forwards(routes_away(mesh, {})) == {"shop.test/": "shop live any"}
    assert runners(mesh, LANE, "any") == ()


def test_an_app_with_data_is_only_on_its_node_down_or_not() -> None:
    lane = Lane(*LANE, base=deployed(BOTH, data=True), data_node=C)
    assert runners(state(lane), LANE, "any") == (C,)
    assert runners(state(lane), LANE, "any", down=[C]) == (C,)


def test_replicas_are_looked_for_where_they_belong_and_where_they_moved() -> None:
    lane = Lane(*LANE, base=deployed(BOTH, replicas=1))
    (home,) = runners(state(lane), LANE, "any")
    moved = runners(state(lane), LANE, "any", down=[home])
    assert len(moved) == 2
    assert home in moved


def test_a_draining_node_is_asked_no_more() -> None:
    lane = Lane(*LANE, base=deployed(BOTH))
    assert runners(state(lane, draining=(B,)), LANE, "any") == (A, C, D)


def test_nobody_runs_what_nobody_decided() -> None:
    lane = Lane(*LANE)
    assert runners(state(lane), LANE, "any") == ()
    assert runners(state(lane), ("other", "live"), "any") == ()
    assert routes_away(state(lane), {}) == []
    withdrawn = msgspec.structs.replace(lane, base=deployed())
    assert routes_away(state(withdrawn), {}) == []
