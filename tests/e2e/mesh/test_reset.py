"""A majority of the voters lost for good, and a sole voter that lost its store: an admin begins a new era by one command."""

from __future__ import annotations

import pytest

from protocols.state.governance import RULES_VERSION
from tests.support.mesh.nodes import Fleet, Machine, until


def decides(machine: Machine, project: str) -> bool:
    return machine.typed("project", "create", project, "--json").code == 0


@pytest.mark.timeout(200)
def test_an_admin_goes_on_with_the_one_voter_that_is_left_and_the_mesh_shows_it_ever_after(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("reset"))
    try:
        first = fleet.found("one", "--policy", "solo")
        others = [
            fleet.join(fleet.invite(first, "--role", "voter", "--role", "worker"), name) for name in ("two", "three")
        ]
        until(lambda: sum(member["voter"] for member in first.members().values()) == 3, 60, "three voters")
        assert decides(first, "before")
        for machine in others:
            machine.kill()
        until(lambda: "nothing can be decided" in " ".join(first.status()["warnings"]), 60, "the loss to be noticed")
        doctor = first.run("doctor", "--data", str(first.data), "--json")
        assert doctor.code == 1
        refused = first.run("mesh", "reset", "one", "-m", "both burnt", "-y")
        assert refused.code == 3, "without the passphrase nobody resets a mesh"
        done = first.typed_ok("mesh", "reset", "one", "-m", "both burnt", "-y")
        assert done["voters"] == [first.status()["node"]]
        assert decides(first, "after")
        assert {entry["name"] for entry in first.ok("project", "list")["projects"]} == {"before", "after"}
        assert any("was reset 1 times" in warning for warning in first.status()["warnings"])
        shown = next(entry for entry in first.ok("decisions")["decisions"] if entry["action"] == "reset")
        assert shown["slot"] == done["slot"]
        late = others[0]
        late.start()
        until(
            lambda: late.status()["slot"] == first.status()["slot"], 60, "a voter that was not lost after all to follow"
        )
        assert not late.status()["voter"]
    finally:
        fleet.close()


@pytest.mark.timeout(120)
def test_an_admin_raises_the_rules_once_and_twice_is_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("rules"))
    try:
        sole = fleet.found("sole", "--policy", "solo", "--rules", "1")
        before = sole.ok("mesh", "rules")
        assert (before["rules"], before["supported"]) == (1, RULES_VERSION)
        refused = sole.run("mesh", "rules", "--raise", "-y")
        assert refused.code == 3, "without the passphrase nobody changes the rules"
        assert sole.ok("mesh", "rules")["rules"] == 1
        raised = sole.typed_ok("mesh", "rules", "--raise", "-y")
        assert raised["rules"] == RULES_VERSION
        assert raised["slot"] > 0
        again = sole.ok("mesh", "rules", "--raise", "-y")
        assert (again["rules"], again["slot"]) == (RULES_VERSION, 0)
        assert decides(sole, "after")
    finally:
        fleet.close()


@pytest.mark.timeout(120)
def test_a_sole_voter_that_lost_its_store_votes_again_with_a_new_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("reset"))
    try:
        sole = fleet.found("sole", "--policy", "solo")
        assert decides(sole, "before")
        sole.stop()
        (sole.data / "fence").unlink()
        sole.start()
        until(lambda: bool(sole.status()["quarantined"]), 30, "the store to be given up")
        assert any("freehold mesh reset" in warning for warning in sole.status()["warnings"])
        sole.typed_ok("mesh", "reset", "sole", "-m", "its fence was lost", "-y")
        assert decides(sole, "after")
        assert not sole.status()["quarantined"]
    finally:
        fleet.close()
