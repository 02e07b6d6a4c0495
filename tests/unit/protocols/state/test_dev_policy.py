"""The mesh of `freehold dev`: it alone runs releases from source, and it stays alone. No clock, no I/O."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocols.changes.change import Component, Release, release_problem
from protocols.changes.demands import DEV, SOLO, TEAM, Policy, policy_problem
from protocols.changes.effective import Effective, EffectiveApp, effective_problem
from protocols.envelope import decode, digest, encode
from protocols.refusal import Refusal
from protocols.state.apply import MeshState
from protocols.state.commands import ConfirmNode, SetPolicy
from tests.support.protocols.mesh_world import COMPONENT, MeshWorld, node_id, refused

SOURCE = digest(b"def app(): ...")


def from_source(w: MeshWorld) -> Release:
    return replace(w.release(), components=(Component("web", COMPONENT, 1000, "", SOURCE),))


def start(w: MeshWorld, **flags: str) -> MeshState | Refusal:
    release = from_source(w)
    change = w.change(release)
    return w.start(change, w.admin, shown=w.case_for(change, release), nodes=w.nodes, **flags)


@pytest.mark.parametrize("policy", [SOLO, TEAM])
def test_a_real_mesh_refuses_a_release_that_runs_from_source_even_by_breaking_glass(policy: Policy) -> None:
    w = MeshWorld(policy).furnish()
    answer = start(w)
    assert refused(answer) == "release.unreleasable"
    assert isinstance(answer, Refusal)
    assert "freehold deploy" in answer.detail
    assert refused(start(w, break_glass="the site is down")) == "release.unreleasable"


def test_the_mesh_of_dev_runs_it_and_says_so() -> None:
    w = MeshWorld(DEV, nodes=("n1",)).furnish()
    assert isinstance(start(w), MeshState)
    assert w.state.policy.mode == "dev"
    assert not w.rollout.candidate.required


def test_the_mesh_of_dev_stays_alone_and_a_mesh_never_becomes_or_stops_being_one() -> None:
    w = MeshWorld(DEV, nodes=("n1",)).furnish()
    assert refused(w.govern(ConfirmNode(node_id("n2")), w.admin)) == "node.development"
    assert refused(w.govern(SetPolicy(SOLO), w.admin)) == "policy.development"
    assert policy_problem(replace(DEV, voters_target=3))
    stricter = replace(DEV, demands=TEAM.demands)
    assert isinstance(w.govern(SetPolicy(stricter), w.admin), MeshState)
    real = MeshWorld().furnish()
    assert refused(real.govern(SetPolicy(DEV), real.admin)) == "policy.development"
    assert isinstance(real.govern(SetPolicy(DEV, "prod"), real.admin), MeshState)
    assert refused(start(real)) == "release.unreleasable"  # what an environment calls its own policy frees nothing


def test_the_manifest_of_a_built_release_does_not_name_the_field() -> None:
    w = MeshWorld().furnish()
    assert b"source\xc4" not in encode(w.release())
    assert not w.release().from_source
    read = decode(encode(from_source(w)), Release)
    assert read == from_source(w)
    assert read.from_source
    assert release_problem(replace(read, components=(Component("web", COMPONENT, 1, "", b"short"),)))


def test_an_app_cannot_name_the_nodes_own_configuration_keys() -> None:
    app = EffectiveApp("web", COMPONENT, "http", 1000, 1 << 20, "fresh", config=(("freehold:dev-source", "x"),))
    problem = effective_problem(Effective("shop", "prod", (app,)))
    assert problem is not None
    assert "colon" in problem
