"""All nodes of a mesh start on new addresses: told where one is, or by a name that stays, they find each other again.

And labels after joining: the environments that choose by them follow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.mesh.nodes import Fleet, Machine, free_port, until

FOUND_WITHIN_S = 60


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    new_fleet = Fleet(tmp_path_factory.mktemp("a"))
    try:
        new_fleet.found("one")
        new_fleet.grow(3)
        yield new_fleet
    finally:
        new_fleet.close()


def ids(fleet: Fleet) -> list[str]:
    return [machine.status()["node"] for machine in fleet.machines]


def all_connected(fleet: Fleet) -> bool:
    return all(machine.connected() == 3 for machine in fleet.machines)


def where(machine: Machine) -> str:
    """The HOST:PORT at which a node listens now."""
    _, _, host, _, port = machine.status()["mesh_addresses"][0].split("/")
    return f"{host}:{port}"


def moved(fleet: Fleet, *options: str) -> None:
    """Start every node on another port, and see that none finds another by itself."""
    for machine in fleet.machines:
        machine.stop()
    for machine in fleet.machines:
        machine.start("--listen", f"127.0.0.1:{free_port()}", *options)


@pytest.mark.timeout(240)
def test_nodes_that_all_moved_are_found_by_telling_one_of_them(fleet: Fleet) -> None:
    until(lambda: all_connected(fleet), 60, "three nodes")
    moved(fleet)
    time.sleep(5)
    first = fleet.machines[0]
    assert first.connected() == 1, "nobody knows where the others are"
    for other in fleet.machines[1:]:
        plan = first.run("mesh", "address", other.name, where(other))
        assert plan.code == 1, "it asks first"
        assert f"from now {where(other)}" in plan.stderr
        told = first.ok("mesh", "address", other.name, where(other), "-y")
        assert told["connected"], told
    until(lambda: all_connected(fleet), FOUND_WITHIN_S, "the two others to hear of each other")
    until(lambda: first.status()["speaking"], 30, "the voters to be together")
    listed = {entry["name"]: entry for entry in first.ok("mesh", "address")["members"]}
    for other in fleet.machines[1:]:
        assert [where(other)] == [":".join(entry.split("/")[2::2]) for entry in listed[other.name]["addresses"]]
    first.typed_ok("env", "create", "staging", "-y")


@pytest.mark.timeout(240)
def test_an_address_of_the_settings_is_tried_for_whoever_is_not_reached(fleet: Fleet) -> None:
    port = free_port()
    for machine in fleet.machines:
        machine.stop()
    seed = f"localhost:{port}"  # a name, as a site's DNS would have it
    fleet.machines[0].start("--listen", f"127.0.0.1:{port}")
    for other in fleet.machines[1:]:
        other.start("--listen", f"127.0.0.1:{free_port()}", "--peer", seed)
    until(lambda: all_connected(fleet), FOUND_WITHIN_S, "everybody to be found through one")


@pytest.mark.timeout(240)
def test_what_was_told_is_forgotten_on_demand_and_strangers_are_refused(fleet: Fleet) -> None:
    first, other = fleet.machines[0], fleet.machines[1]
    nowhere = f"127.0.0.1:{free_port()}"
    assert first.ok("mesh", "address", other.name, nowhere, "-y")["told"] == [nowhere]
    assert first.ok("mesh", "address", other.name, "--forget", "-y")["told"] == []
    for wrong, kind in (
        (("mesh", "address", "nobody", nowhere, "-y"), "no-such-node"),
        (("mesh", "address", first.name, nowhere, "-y"), "own-node"),
        (("mesh", "address", other.name, "nowhere", "-y"), "usage"),
        (("mesh", "address", other.name, "-y"), "usage"),
    ):
        answer = first.run(*wrong, "--json")
        assert (answer.code, answer.json["error"]["kind"]) == (2, kind), answer


@pytest.mark.timeout(240)
def test_a_label_set_after_joining_decides_where_an_environment_is(fleet: Fleet) -> None:
    first, other = fleet.machines[0], fleet.machines[1]
    first.typed_ok("env", "create", "europe", "--select", "zone=eu", "-y")

    def nodes() -> list[str]:
        entry = first.ok("env", "list")["environments"]
        return next(candidate["nodes"] for candidate in entry if candidate["name"] == "europe")

    assert nodes() == []
    done = first.typed_ok("mesh", "label", other.name, "zone=eu", "disk=fast", "-y")
    assert done["labels"] == {"disk": "fast", "zone": "eu"}
    assert nodes() == [ids(fleet)[1]]
    again = first.typed_ok("mesh", "label", other.name, "zone=eu", "-y")
    assert again["slot"] is None, "twice is once"
    assert first.ok("mesh", "label", other.name)["labels"] == done["labels"]
    back = first.typed_ok("mesh", "label", other.name, "zone-", "disk-", "-y")
    assert (back["labels"], nodes()) == ({}, [])
    answer = first.run("mesh", "label", other.name, "zone-", "--json")
    assert answer.code == 2
