"""Five real nodes, one of which nobody can dial: rollouts under load, two operators, logs, placement, and a revocation.

One fleet serves all tests of this module, in order. The zone of two and three is eu, that of the others us.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.mesh.nodes import INGRESS, Fleet, Machine, until
from tests.support.mesh.site import COUNT, GREETING, Site, ask, visitors

HELD = "auto_promote = false"
SECONDS_TO_CUT_OFF = 5.0
NAMES = {"one", "two", "three", "four", "five"}


class Story:
    def __init__(self, fleet: Fleet, site: Site, guests: Site) -> None:
        self.fleet, self.site, self.guests = fleet, site, guests

    @property
    def five(self) -> list[Machine]:
        return self.fleet.machines[:5]

    def named(self, *names: str) -> list[Machine]:
        return [next(machine for machine in self.fleet.machines if machine.name == name) for name in names]

    def holder(self) -> Machine:
        """The machine with the guests' data."""
        node = self.guests.lane(self.five[0])["data_node"]
        return next(machine for machine in self.five if machine.status()["node"] == node)

    def settled(self, greeting: str, machines: Sequence[Machine]) -> None:
        until(lambda: self.site.greetings(machines) == [greeting] * len(machines), 60, f"{greeting}, everywhere")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("five")
    fleet = Fleet(folder)
    try:
        chosen_machine = fleet.found("one", "--label", "zone=us", "--api", "127.0.0.1:0")
        eu = fleet.invite(chosen_machine, "--uses", "2", "--label", "zone=eu")
        us = fleet.invite(chosen_machine, "--uses", "2", "--label", "zone=us")
        for name, line, options in (
            ("two", eu, ()), ("three", eu, ()), ("four", us, ()), ("five", us, ("--listen", "none", *INGRESS)),
        ):  # fmt: skip
            fleet.join(line, name, *options).take_keys_of(chosen_machine)
        until(
            lambda: sum(node["confirmed"] for node in chosen_machine.members().values()) == 5,
            60,
            "five confirmed nodes",
        )
        for machine in fleet.machines:
            until(lambda machine=machine: machine.connected() == 5, 60, "all to be connected")  # type: ignore[misc]
        for name in ("site", "guests"):
            chosen_machine.typed_ok("project", "create", name)
        chosen_machine.typed_ok("env", "create", "production", "-y")
        site, guests = Site(folder, component("services")), Site(folder, component("services"), "guests")
        guests.configure("hello", '["100%"]', app='keyvalue = ["visits"]')
        site.configure("one", '["100%"]', rollout="max_parallel = 5")
        with ThreadPoolExecutor() as pool:
            answers = [pool.submit(one_site.deploy, chosen_machine) for one_site in (site, guests)]
        assert [answer.result().code for answer in answers] == [0, 0], [answer.result() for answer in answers]
        yield Story(fleet, site, guests)
    finally:
        fleet.close()


def test_a_node_that_nobody_can_dial_takes_part_over_what_it_dialled_itself(story: Story) -> None:
    *others, five = story.five
    me = five.status()["node"]
    assert five.status()["mesh_addresses"] == []
    assert all(machine.members()[me]["addresses"] == [] for machine in others)
    assert all(machine.members()[me]["belief"] == "alive" for machine in others)
    assert story.site.ask(five) == (200, "one")
    # A request from it to the node with the data, or of the others to it: over a connection that it dialled.
    assert [story.guests.ask(machine, COUNT) for machine in story.five] == [(200, str(count)) for count in range(1, 6)]
    assert others[0].ok("logs", "--node", "five", "--contains", "node.started")["silent"] == []
    # What it asks for is decided, and what it says is kept by the others.
    five.typed_ok("project", "create", "of-five")
    until(
        lambda: "of-five" in [entry["name"] for entry in others[1].ok("project", "list")["projects"]], 10, "its project"
    )
    assert [entry["name"] for entry in others[0].ok("mesh", "members")["members"] if entry["node"] == me] == ["five"]


@pytest.mark.timeout(300)
def test_no_request_fails_in_a_staged_rollout_while_a_node_is_restarted(story: Story) -> None:
    site = story.site
    site.configure("two", '["1", "50%", "100%"]', rollout="max_parallel = 2")
    holder = story.holder()
    with ExitStack() as load, ThreadPoolExecutor() as pool:
        fresh = load.enter_context(visitors(story.five))
        kept_visits = load.enter_context(visitors(story.five, keep_alive=True))
        data = load.enter_context(visitors(story.five, "guests", COUNT, keep_alive=True))
        rolling = pool.submit(site.deploy, story.five[0])
        until(lambda: site.lane(holder)["rollout"] is not None, 60, "the rollout")
        stopped = next(machine for machine in story.named("four", "five", "three") if machine is not holder)
        stopped_s = time.monotonic()
        assert stopped.stop() == 0
        down_s = time.monotonic() - stopped_s
        stopped.start()
        answer = rolling.result()
        assert answer.code == 0, answer
        story.settled("two", story.five)
    print(
        f"{stopped.name} stopped within {down_s:.2f} s",
        [(visits.statuses(), f"{visits.slowest_s():.2f} s") for visits in (fresh, kept_visits, data)],
    )
    assert fresh.bodies() == kept_visits.bodies() == {"one", "two"}
    for visits in (fresh, kept_visits, data):
        failed = visits.failed()
        assert [pair for pair in failed if pair[0] != stopped.name] == []
        # A machine that was stopped refuses connections, and has cut off no answer (status 0 is none at all).
        assert [pair for pair in failed if pair[1] < stopped_s or pair[3] != 0] == []
    visited = [int(body) for body in data.bodies()]
    assert len(visited) == len(set(visited)) == data.statuses()[200], "each visit was counted once"


@pytest.mark.timeout(200)
def test_of_two_operators_at_once_one_wins_and_the_other_is_told_what_to_do(story: Story) -> None:
    machine, two, three, *_ = story.five
    line = story.fleet.invite(
        machine, "--kind", "principal", "--role", "proposer", "--role", "deployer", "--for", "grace"
    )
    laptop = Machine(story.fleet.folder / "laptop")
    laptop.ok("login", line, "--name", "work")
    three.take_keys_of(laptop, "work")
    sites = [story.site, Site(story.fleet.folder / "laptop", story.site.folder / "web.wasm", "site")]
    for site, greeting in zip(sites, ("mine", "hers"), strict=True):
        site.configure(greeting, rollout=HELD)
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(sites[0].deploy, two), pool.submit(sites[1].deploy, three)]
        until(lambda: any(done.done() for done in asked), 60, "one of them to be refused")
        lost = next(done.result() for done in asked if done.done())
        assert lost.code == 3, lost
        assert lost.json["error"]["kind"] in {"command.expect", "rollout.under-way"}
        assert lost.json["error"]["next_step"] == "freehold diff, then deploy again"
        until(lambda: sites[0].lane(machine)["rollout"] is not None, 20, "the other's rollout")
        steps = pool.map(
            lambda step: step[0].run(*step[1:], "--project", "site", "--json"),
            ((two, "promote"), (three, "abort", "-m", "not this one")),
        )
        promoted, aborted = steps
        # Whoever reads what the other has just decided may decide after it; on one and the same sequence only one can.
        assert 0 in {promoted.code, aborted.code}, (promoted, aborted)
        for refused in (promoted, aborted):
            if refused.code:
                assert refused.json["error"]["kind"] in {"command.expect", "rollout.none", "health.pending"}, refused
                assert refused.json["error"]["next_step"] == "freehold status"
        if sites[0].lane(machine)["rollout"] is not None:
            assert three.run("abort", "--project", "site", "-m", "the end").code == 0
        assert {done.result().code for done in asked} == {3, 4}
    story.settled("two", story.five)


@pytest.mark.timeout(200)
def test_logs_of_all_nodes_are_followed_from_one_by_app_release_and_node(story: Story) -> None:
    machine, *_ = story.five
    story.site.configure("logged", rollout="max_parallel = 5")
    with (
        story.five[4].follow(
            "logs", "-f", "--project", "site", "--app", "web", "--contains", "said", "--json"
        ) as all_of_it,
        machine.follow("logs", "-f", "--node", "four", "--contains", "said", "--json") as only_four,
        visitors(story.five, path="/log?message=said", every_s=0.2) as visits,
    ):
        until(lambda: {line["node"] for line in log_lines(all_of_it)} == NAMES, 30, "lines of all nodes")
        before = story.site.lane(machine)["base"]["release"]
        answer = story.site.deploy(machine)
        assert answer.code == 0, answer
        after = story.site.lane(machine)["base"]["release"]
        with machine.follow("logs", "-f", "--release", after[:12], "--contains", "said", "--json") as only_new:
            new = {(name, after) for name in NAMES}
            old = {(name, before) for name in NAMES}
            until(lambda: where(all_of_it) >= new | old, 30, "lines of both releases of all nodes")
            until(lambda: where(only_new) == new, 30, "lines of the new release of all nodes")
        until(lambda: where(only_four) >= {("four", before), ("four", after)}, 30, "lines of one node")
        assert {name for name, _ in where(only_four)} == {"four"}
    assert visits.failed() == []
    entry = machine.ok("logs", "--node", "four", "--app", "web", "--release", after[:12], "--contains", "said")["lines"]
    assert {(line["node"], line["app"], line["release"], line["stream"]) for line in entry} == {
        ("four", "web", after, "guest")
    }


def log_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line)["log"] for line in path.read_text().splitlines() if line.endswith("}")]


def where(path: Path) -> set[tuple[str, str]]:
    return {(line["node"], line["release"]) for line in log_lines(path)}


OVERLAYS = """
[env.europe]
app.web.routes = ["europe.test"]
[env.pair]
app.web.routes = ["pair.test"]
rollout.replicas = 2
"""


def runs(machine: Machine, environment: str) -> bool:
    return f"site/{environment}" in machine.status()["running"]


@pytest.mark.timeout(300)
def test_an_environment_places_by_label_or_count_and_a_node_comes_and_goes_without_a_failed_request(
    story: Story,
) -> None:
    machine, *_ = story.five
    machine.typed_ok("env", "create", "europe", "--select", "zone=eu", "-y")
    machine.typed_ok("env", "create", "pair", "-y")
    story.site.configure("placed", '["100%"]', rollout="max_parallel = 5", overlays=OVERLAYS)
    for environment in ("europe", "pair"):
        answer = story.site.deploy(machine, "--env", environment)
        assert answer.code == 0, answer
    assert [entry.name for entry in story.five if runs(entry, "europe")] == ["two", "three"]
    assert sum(runs(entry, "pair") for entry in story.five) == 2
    for host in ("europe", "pair"):
        assert [ask(entry.ingress, host, GREETING) for entry in story.five] == [(200, "placed")] * 5
    six = story.fleet.join(story.fleet.invite(machine, "--role", "worker", "--label", "zone=eu"), "six")
    until(lambda: runs(six, "europe") and runs(six, "production"), 60, "the base releases on the newcomer")
    until(lambda: sum(runs(entry, "pair") for entry in [*story.five, six]) == 2, 30, "as many replicas as before")
    with visitors([*story.five, six], "europe") as kept_visits:
        until(lambda: kept_visits.statuses("six")[200] > 5, 20, "the newcomer to be visited")
    assert kept_visits.failed() == []
    with visitors(story.five, "europe") as visits:
        until(lambda: len(visits.seen) > 50, 20, "visits")
        left = six.ok("mesh", "leave", "--data", str(six.data), "-y")
        gone = len(visits.seen)
        until(lambda: len(visits.seen) > gone + 100, 30, "visits after it has left")
    assert left["stopped"]
    assert visits.failed() == []
    assert [row["standing"] for row in machine.ok("mesh", "members")["members"] if row["name"] == "six"] == ["revoked"]


@pytest.mark.timeout(200)
def test_a_node_that_was_away_finds_those_who_moved_through_one_that_stayed(story: Story) -> None:
    two, *moving = story.named("two", "three", "four")
    assert two.stop() == 0
    before = {machine.name: machine.status()["mesh_addresses"] for machine in moving}
    for machine in moving:
        machine.stop()
        machine.start()
    assert all(before[machine.name] != machine.status()["mesh_addresses"] for machine in moving)
    two.start()
    began_s = time.monotonic()
    until(lambda: two.connected() == 5, 60, "it to have found everybody")
    print(f"found everybody in {time.monotonic() - began_s:.1f} s")
    for machine in moving:
        known = two.members()[machine.status()["node"]]["addresses"]
        assert known == machine.status()["mesh_addresses"]


@pytest.mark.timeout(240)
def test_a_revoked_node_is_cut_off_within_seconds_and_says_so_and_its_apps_move(story: Story) -> None:
    chosen_machine = story.five[0]
    until(lambda: sum(runs(machine, "pair") for machine in story.five) == 2, 30, "two replicas")
    victim = next(machine for machine in story.five[1:] if runs(machine, "pair"))
    rest = [machine for machine in story.five if machine is not victim]
    with visitors(rest, "pair") as visits:
        until(lambda: len(visits.seen) > 20, 20, "visits")
        told_s = time.monotonic()
        chosen_machine.typed_ok("mesh", "remove", victim.name, "--compromised", "-y")
        removed_s = time.monotonic()
        until(lambda: victim.status()["peers"] == [], SECONDS_TO_CUT_OFF, "the revoked node to be alone")
        cut_s = time.monotonic()
        until(lambda: sum(runs(machine, "pair") for machine in rest) == 2, 30, "its app to be elsewhere")
        moved_s = time.monotonic()
        count = len(visits.seen)
        until(lambda: len(visits.seen) > count + 50, 20, "visits afterwards")
    print(
        f"command {removed_s - told_s:.1f} s, then cut off after {cut_s - removed_s:.2f} s, moved after"
        f" {moved_s - removed_s:.1f} s; {len(visits.failed())} of {len(visits.seen)} requests failed"
    )
    assert [pair for pair in visits.failed() if pair[1] > cut_s] == []
    assert len(visits.failed()) <= len(rest), "at most the requests that were under way when the links were cut"
    said = victim.status()
    assert said["standing"] == "revoked"
    assert "this node was revoked" in said["warnings"][0]
    assert {why.partition(":")[0] for why in said["refused_by"].values()} == {"hello.revoked"}
    sick = victim.run("doctor", "--data", str(victim.data), "--json")
    assert sick.code == 1
    assert any("this node was revoked" in finding["what"] for finding in sick.json["findings"])
