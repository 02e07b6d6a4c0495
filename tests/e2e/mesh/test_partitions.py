"""Cut links between three real nodes: a minority serves and decides nothing, and after healing all agree again.

One fleet serves all tests of this module, in order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.mesh.nodes import Fleet, Machine, until
from tests.support.mesh.site import Site

SILENCE_S = 15.0
"""How soon a link through which nothing comes is given up: pings every 5 s, three of them unanswered."""


class Story:
    def __init__(self, fleet: Fleet, site: Site) -> None:
        self.fleet, self.site, self.wires = fleet, site, fleet.wires

    @property
    def three(self) -> tuple[Machine, Machine, Machine]:
        machine, two, three = self.fleet.machines
        return machine, two, three

    def slots(self) -> list[int]:
        return [machine.status()["slot"] for machine in self.fleet.machines]

    def heal(self) -> None:
        self.wires.heal()
        for machine in self.three:
            until(lambda machine=machine: machine.connected() == 3, 60, "all to be connected")  # type: ignore[misc]
        until(lambda: len(set(self.slots())) == 1, 20, "equal heads")
        heads = [machine.ok("decisions")["decisions"] for machine in self.three]
        assert heads[0] == heads[1] == heads[2], "the same decisions with the same certificates, everywhere"


@pytest.fixture(autouse=True)
def mended(story: Story) -> None:
    """No test begins with what another one cut and, failing, did not mend."""
    story.wires.heal()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("fleet")
    fleet = Fleet(folder, wired=True)
    try:
        first = fleet.found("one")
        fleet.grow(3)
        until(lambda: sum(member["voter"] for member in first.members().values()) == 3, 60, "three voters")
        for machine in fleet.machines[1:]:
            machine.take_keys_of(first)
        first.typed_ok("env", "create", "production", "-y")
        first.typed_ok("project", "create", "site")
        site = Site(folder, component("services"))
        site.configure("one")
        answer = site.deploy(first)
        assert answer.code == 0, answer
        yield Story(fleet, site)
    finally:
        fleet.close()


@pytest.mark.timeout(240)
def test_a_minority_serves_what_was_decided_and_decides_nothing_while_the_majority_goes_on(story: Story) -> None:
    site = story.site
    site.configure("two", rollout='auto_promote = false\ncandidate_ttl = "10s"')
    assert site.deploy(story.three[1], "--detach").code == 0
    until(lambda: "two" in site.greetings(story.three), 60, "the first stage")
    canary = story.three[site.greetings(story.three).index("two")]
    rest = [machine for machine in story.three if machine is not canary]
    until(
        lambda: "pass" in {entry["verdict"] for entry in site.lane(canary)["rollout"]["verdicts"]},
        30,
        "the stage to pass",
    )
    slot = canary.status()["slot"]
    story.wires.close_between({canary.name}, {machine.name for machine in rest})
    until(lambda: canary.connected() == 1, 10, "the cut to be seen")
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(canary.run, *command, "--project", "site", "--json", timeout_s=90)
            for command in (("promote",), ("abort", "-m", "alone"), ("rollback", "-m", "alone"))
        ]
        # The minority leaves what was never certified, and goes on with what was.
        until(lambda: site.greetings([canary]) == ["one"], 30, "the lonely candidate to be reverted")
        # The majority decides without it.
        assert rest[0].run("abort", "--project", "site", "-m", "its canary is gone").code == 0
        until(lambda: any(node["belief"] == "down" for node in rest[1].members().values()), 60, "the canary to be down")
        site.configure("three")
        answer = site.deploy(rest[1])
        assert answer.code == 0, answer
        assert site.greetings(rest) == ["three"] * 2
        site.configure("four")
        start = site.deploy(canary, "--supersede", timeout_s=90)
        for refused in (start, *(future.result() for future in asked)):
            assert refused.code == 1, refused
            assert refused.json["error"]["kind"] == "unknown-outcome"
            assert "no majority" in refused.json["error"]["message"]
            assert refused.json["error"]["next_step"] == "freehold mesh members"
    assert canary.status()["slot"] == slot
    assert site.greetings([canary]) == ["one"]

    healed_s = time.monotonic()
    story.heal()
    until(lambda: site.greetings(story.three) == ["three"] * 3, 30, "the majority's release, everywhere")
    print(f"healed to one release in {time.monotonic() - healed_s:.1f} s")
    # Who decided what: the abort and the release by the two that were together, and nothing of the one alone.
    since = [entry for entry in canary.ok("decisions")["decisions"] if entry["slot"] > slot]
    pair = {machine.status()["node"] for machine in rest}
    assert [entry["action"] for entry in since] == ["promote", "start", "abort"] or [entry["action"] for entry in since] == [
        "promote", "promote", "start", "abort",
    ]  # fmt: skip
    assert all(set(entry["voters"]) == pair for entry in since)
    assert since[-1]["reason"] == "its canary is gone"
    why = canary.ok("why", "site")
    answers = {entry["question"]: entry for entry in why["answers"]}
    sources = answers["Who may approve it, and who did?"]["sources"]
    start_slot = next(entry["slot"] for entry in since if entry["action"] == "start")
    assert {"kind": "decision", "id": str(start_slot)}.items() <= sources[0].items()
    assert set(sources[0]["signed_by"]) == {node[-8:] for node in pair}


@pytest.mark.timeout(200)
def test_two_nodes_that_hear_each_other_one_way_only_decide_through_the_third(story: Story) -> None:
    machine, two, _ = story.three
    story.wires.mute("one", "two")
    story.site.configure("five")
    answer = story.site.deploy(machine)
    assert answer.code == 0, answer
    assert story.site.greetings([machine]) == ["five"]
    # What the first decided last does not reach the second from it: it hears of that from the third, a moment later.
    slot = machine.status()["slot"]
    until(lambda: two.status()["slot"] >= slot, 30, "the second to hear what was decided")
    story.site.configure("six")
    answer = story.site.deploy(two)
    assert answer.code == 0, answer
    assert story.site.greetings([two]) == ["six"]
    story.heal()
    until(lambda: story.site.greetings(story.three) == ["six"] * 3, 20, "the last release, everywhere")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_node_in_a_black_hole_serves_on_and_is_caught_up_when_packets_flow_again(story: Story) -> None:
    lost, *rest = story.three
    before = story.site.greetings([lost])
    story.wires.mute_between({lost.name}, {machine.name for machine in rest})
    began_s = time.monotonic()
    until(lambda: lost.connected() == 1 and rest[0].connected() == 2, 2 * SILENCE_S, "the silence to be noticed")
    print(f"noticed after {time.monotonic() - began_s:.1f} s")
    until(lambda: any(node["belief"] == "down" for node in rest[0].members().values()), 60, "it to be down")
    print(f"down after {time.monotonic() - began_s:.1f} s")
    story.site.configure("seven")
    answer = story.site.deploy(rest[0])
    assert answer.code == 0, answer
    assert story.site.greetings([lost]) == before
    story.heal()
    until(lambda: story.site.greetings(story.three) == ["seven"] * 3, 30, "the release of the others")
