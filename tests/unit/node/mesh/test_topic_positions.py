"""The trust table, topics: whose publications count for whom. Positions x lanes, by what is decided.

Each row says in words of its own where its node is believed; all of them are members.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from node.mesh.request_relay import runs_lane
from protocols.liveness import Belief
from protocols.machine import PeerId
from protocols.state.model import Environment, Lane, MeshState, Project
from tests.unit.node.mesh.test_request_relay_choice import NODES, A, B, C, D, deployed, rollout, state

LIVE, STAGING, BLOG, DATA, FEW, NEW = (
    ("shop", "live"), ("shop", "staging"), ("blog", "live"), ("data", "live"), ("few", "live"), ("new", "live")
)  # fmt: skip
NOBODY = [("nothing", "live"), ("shop", "nowhere"), ("shop", ""), ("", ""), ("shop live", ""), ("shop/live", "")]
LANES = [LIVE, STAGING, BLOG, DATA, FEW, NEW, *NOBODY]


def mesh(decided: MeshState, down: tuple[PeerId, ...] = ()) -> Any:
    believed = SimpleNamespace(belief=lambda node: Belief.DOWN if node in down else Belief.ALIVE)
    return SimpleNamespace(core=SimpleNamespace(state=decided, liveness=believed))


def furnished(*, data_node: PeerId = C, draining: tuple[PeerId, ...] = (), shop: bool = True) -> MeshState:
    """Staging is A's and B's, live C's and D's; `few` is on one of these; `new` has its first rollout, on D."""
    mesh_state = state(Lane(*LIVE), draining)
    where = {A: "staging", B: "staging", C: "live", D: "live"}
    nodes = tuple(msgspec.structs.replace(node, labels=(("at", where[node.node]),)) for node in mesh_state.nodes)
    first = msgspec.structs.replace(rollout(deployed(), 1), order=(D, C))
    lanes = (
        Lane(*LIVE, base=deployed() if shop else None), Lane(*STAGING, base=deployed()), Lane(*BLOG, base=deployed()),
        Lane(*DATA, base=deployed(data=True), data_node=data_node), Lane(*FEW, base=deployed(replicas=1)),
        Lane(*NEW, rollout=first),
    )  # fmt: skip
    environments = tuple(Environment(name, (("at", name),), None, False) for name in ("live", "staging"))
    projects = tuple(Project(name, ()) for name in ("shop", "blog", "data", "few", "new"))
    return msgspec.structs.replace(mesh_state, nodes=nodes, lanes=lanes, environments=environments, projects=projects)


def believed_in(node: PeerId, one: Any) -> set[tuple[str, str]]:
    return {lane for lane in LANES if runs_lane(one, node, lane)}


def home() -> PeerId:
    """Where `few` is, of C and D."""
    return next(node for node in (C, D) if runs_lane(mesh(furnished()), node, FEW))


def test_a_member_is_heard_where_it_runs_the_project_in_that_environment_and_nowhere_else() -> None:
    entry = mesh(furnished())
    few = home()
    wanted = {A: {STAGING}, B: {STAGING}, C: {LIVE, BLOG, DATA}, D: {LIVE, BLOG, NEW}}
    wanted[few].add(FEW)
    for node in NODES:
        assert believed_in(node, entry) == wanted[node], node
    assert believed_in(PeerId("a stranger"), entry) == set()


def test_a_member_that_ran_it_until_the_last_decision_is_heard_no_more() -> None:
    before = mesh(furnished())
    assert runs_lane(before, C, DATA)
    moved = mesh(furnished(data_node=D))
    assert not runs_lane(moved, C, DATA)
    assert runs_lane(moved, D, DATA)
    drained = mesh(furnished(draining=(C,)))
    assert believed_in(C, drained) == set()
    withdrawn = mesh(furnished(shop=False))
    assert believed_in(D, withdrawn) & {LIVE, BLOG} == {BLOG}


def test_a_node_that_stands_in_for_one_that_is_down_is_heard_and_one_with_no_such_data_is_not() -> None:
    few = home()
    other = C if few == D else D
    assert not runs_lane(mesh(furnished()), other, FEW)
    assert runs_lane(mesh(furnished(), (few,)), other, FEW)
    assert runs_lane(mesh(furnished(), (few,)), few, FEW), "it may be up after all"
    assert not runs_lane(mesh(furnished(), (few,)), A, FEW), "it is of another environment"
    assert not runs_lane(mesh(furnished(), (C,)), D, DATA)


@pytest.mark.parametrize("ended", ["promoted", "aborted"])
def test_a_cohort_is_heard_while_its_rollout_is_open(ended: str) -> None:
    mesh_state = furnished()
    assert runs_lane(mesh(mesh_state), D, NEW)
    assert not runs_lane(mesh(mesh_state), C, NEW), "it is not of this stage's cohort"
    over = Lane(*NEW, base=deployed() if ended == "promoted" else None)
    lanes = (*mesh_state.lanes[:-1], over)
    after = mesh(msgspec.structs.replace(mesh_state, lanes=lanes))
    assert [runs_lane(after, node, NEW) for node in (C, D)] == [ended == "promoted"] * 2
