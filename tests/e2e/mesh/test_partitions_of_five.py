"""Five voters on five real nodes, cut three from two, and one from all but one; and a machine killed under load.

A long haul. One fleet serves all tests of this module, in order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.mesh.nodes import Fleet, Machine, until
from tests.support.mesh.site import Site, visitors

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


class Story:
    def __init__(self, fleet: Fleet, site: Site) -> None:
        self.fleet, self.site, self.wires = fleet, site, fleet.wires
        self.five: list[Machine] = fleet.machines

    def heal(self) -> None:
        self.wires.heal()
        for machine in self.five:
            until(lambda machine=machine: machine.connected() == 5, 90, "all to be connected")  # type: ignore[misc]
        until(lambda: len({machine.status()["slot"] for machine in self.five}) == 1, 30, "equal heads")
        heads = [machine.ok("decisions", "--limit", "100")["decisions"] for machine in self.five]
        assert all(head == heads[0] for head in heads)


@pytest.fixture(autouse=True)
def mended(story: Story) -> None:
    """No test begins with what another one cut and, failing, did not mend."""
    story.wires.heal()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("five")
    fleet = Fleet(folder, wired=True)
    try:
        chosen_machine = fleet.found("one")
        chosen_machine.typed_ok("policy", "set", "--voters", "5", "-y")
        for machine in fleet.grow(5)[1:]:
            machine.take_keys_of(chosen_machine)
        until(lambda: sum(node["voter"] for node in chosen_machine.members().values()) == 5, 120, "five voters")
        chosen_machine.typed_ok("env", "create", "production", "-y")
        chosen_machine.typed_ok("project", "create", "site")
        site = Site(folder, component("services"))
        site.configure("one", '["100%"]', rollout="max_parallel = 5")
        answer = site.deploy(chosen_machine)
        assert answer.code == 0, answer
        yield Story(fleet, site)
    finally:
        fleet.close()


def test_two_of_five_serve_on_while_three_decide_and_all_agree_afterwards(story: Story) -> None:
    three, two = story.five[:3], story.five[3:]
    story.wires.mute_between({machine.name for machine in three}, {machine.name for machine in two})
    began_s = time.monotonic()
    until(lambda: two[0].connected() == 2 and three[0].connected() == 3, 60, "the silence to be noticed")
    print(f"noticed after {time.monotonic() - began_s:.1f} s")
    slot = two[0].status()["slot"]
    until(lambda: sum(member["belief"] == "down" for member in three[0].members().values()) == 2, 90, "two to be down")
    print(f"down after {time.monotonic() - began_s:.1f} s")
    story.site.configure("two", '["1", "100%"]', rollout="max_parallel = 5")
    with ThreadPoolExecutor() as pool:
        alone = pool.submit(two[0].run, "rollback", "--project", "site", "-m", "alone", "--json", timeout_s=90)
        answer = story.site.deploy(three[0])
        assert answer.code == 0, answer
        assert alone.result().code in {1, 2}, alone.result()
    assert story.site.greetings(story.five) == ["two"] * 3 + ["one"] * 2
    assert [machine.status()["slot"] for machine in two] == [slot] * 2
    healed_s = time.monotonic()
    story.heal()
    until(lambda: story.site.greetings(story.five) == ["two"] * 5, 60, "one release")
    print(f"one release {time.monotonic() - healed_s:.1f} s after healing")


def test_what_a_voter_asks_that_reaches_one_other_alone_is_decided_all_the_same(story: Story) -> None:
    lost, friend, *rest = story.five
    story.wires.close_between({lost.name}, {machine.name for machine in rest})
    until(lambda: lost.connected() == 2, 30, "the cut to be seen")
    began_s = time.monotonic()
    lost.typed_ok("project", "create", "roundabout")
    print(f"decided after {time.monotonic() - began_s:.1f} s")
    for machine in (friend, *rest):
        until(lambda machine=machine: "roundabout" in str(machine.ok("project", "list")), 20, "it")  # type: ignore[misc]
    story.heal()


def test_when_a_machine_is_killed_only_its_own_visitors_and_what_was_on_its_wires_fail(story: Story) -> None:
    *rest, killed = story.five
    story.site.configure(
        "three", '["1", "50%", "100%"]', rollout='max_parallel = 2\nhealthy_deadline = "10s"\nprogress_deadline = "2m"'
    )
    with visitors(rest) as visits, visitors([killed]) as lost, ThreadPoolExecutor() as pool:
        rolling = pool.submit(story.site.deploy, rest[0])
        until(lambda: story.site.lane(rest[0])["rollout"] is not None, 60, "the rollout")
        killed_s = time.monotonic()
        killed.kill()
        killed.kill_workers()
        answer = rolling.result()
    print(answer.code, visits.statuses(), lost.statuses())
    assert visits.failed() == []
    # A request that was under way may have begun before.
    assert [pair for pair in lost.failed() if pair[1] < killed_s - 1] == []
    assert lost.failed(), "the machine was not gone"
    assert answer.code in {0, 4}, "it went through without the machine, or back because the machine had taken it"
    killed.start()
    story.heal()
    until(lambda: len(set(story.site.greetings(story.five))) == 1, 60, "one release")
