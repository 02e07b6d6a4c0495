"""A mesh of the release before this one and of this one: real daemons of both, each way round.

The previous release is the commit PREVIOUS of this repository, run from its own files; without its history (a shallow
clone) there is nothing to compare with. While both are members the mesh judges by rules 1, which both know.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.mesh.nodes import Answer, Fleet, Machine, until
from tests.support.mesh.site import Site

pytestmark = pytest.mark.long
PREVIOUS = "46a9d15"
ROOT = Path(__file__).parents[3]


@dataclass
class Dated(Machine):
    """A machine that runs the release whose files are in `code`."""

    code: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        found_environment = super().environment
        return (
            found_environment
            if self.code is None
            else {**found_environment, "PYTHONPATH": str(self.code), "PYTHONSAFEPATH": "1"}
        )


class Mixed(Fleet):
    """A fleet in which each machine says which release it runs."""

    def __init__(self, folder: Path, releases: dict[str, Path | None]) -> None:
        super().__init__(folder)
        self._releases = releases

    def machine(self, name: str) -> Machine:
        dated = Dated(self.folder / name, code=self._releases.get(name))
        self.machines.append(dated)
        return dated


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    archived = subprocess.run(["git", "-C", str(ROOT), "archive", PREVIOUS], capture_output=True, check=False)
    if archived.returncode != 0:
        pytest.skip("the history of this repository does not reach the previous release")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archived.stdout, check=True)
    return folder


@pytest.fixture(params=["this release founds", "the previous release founds"])
def mesh(
    request: pytest.FixtureRequest, previous: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Mixed, Machine]]:
    """Three voters of both releases, and the machine of this release from which people act."""
    old_founds = request.param == "the previous release founds"
    old, new = ("one", "two") if old_founds else ("two", "one")
    fleet = Mixed(tmp_path_factory.mktemp("x"), {old: previous, new: None, "three": previous})
    try:
        first = fleet.found("one", *(() if old_founds else ("--rules", "1")))
        fleet.grow(3)
        until(lambda: sum(member["voter"] for member in first.members().values()) == 3, 90, "three voters")
        acting = next(machine for machine in fleet.machines if machine.name == new)
        if acting is not first:
            acting.take_keys_of(first)
        yield fleet, acting
    finally:
        fleet.close()


def ran(answer: Answer) -> Answer:
    assert answer.code == 0, answer
    return answer


@pytest.mark.timeout(900)
def test_both_releases_decide_deploy_stop_and_come_back_together(
    mesh: tuple[Mixed, Machine], component: Callable[[str], Path]
) -> None:
    fleet, acting = mesh
    first = fleet.machines[0]
    first.typed_ok("env", "create", "production", "-y")
    first.typed_ok("project", "create", "site")
    site = Site(fleet.folder, component("services"))
    for greeting, machine in (("by the one", first), ("by the other", acting)):
        site.configure(greeting, '["1", "100%"]')
        ran(site.deploy(machine))
        until(lambda text=greeting: site.greetings(fleet.machines) == [text] * 3, 30, "all three to serve it")  # type: ignore[misc]

    for machine in fleet.machines:  # a stop says goodbye in this release, and says nothing in the one before
        others = [entry for entry in fleet.machines if entry is not machine]
        machine.stop()
        until(
            lambda machines=others: all(machine.status()["speaking"] for machine in machines),
            60,
            "the others to decide",
        )  # type: ignore[misc]
        machine.start()
        until(lambda: all(machine.connected() == 3 for machine in fleet.machines), 60, "it to come back")
    until(lambda: len({machine.status()["slot"] for machine in fleet.machines}) == 1, 30, "one chain")
    assert all(machine.status()["quarantined"] == "" for machine in fleet.machines)

    site.configure("afterwards", '["1", "100%"]')
    ran(site.deploy(acting))
    refused = acting.run("mesh", "rules", "--raise", "-y", "--json")
    assert refused.code != 0, "no rule that the other release does not know"


@pytest.mark.timeout(900)
def test_a_node_is_upgraded_and_goes_back_while_rules_1_hold(mesh: tuple[Mixed, Machine], previous: Path) -> None:
    fleet, _ = mesh
    old = next(machine for machine in fleet.machines if isinstance(machine, Dated) and machine.code is not None)
    assert isinstance(old, Dated)
    for code in (None, previous):
        old.stop()
        old.code = code
        old.start()
        until(lambda: all(machine.connected() == 3 for machine in fleet.machines), 60, "it to come back")
        until(lambda: old.status()["speaking"], 60, "it to vote again")
