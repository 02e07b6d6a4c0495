"""A node that stops says so: no deploy waits for it, no visitor meets it, and what it served goes on without a gap.

Four real daemons and one built component serve all tests of this module, in order.
"""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.mesh.test_rollouts import ROOT, Story, call
from tests.support.mesh.nodes import Fleet, free_port, until

VISITS_PER_S = 200
STOP_MAX_S = 30.0


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("fleet")
    fleet = Fleet(folder, compiled=folder / "compiled")
    try:
        ingress = ("--ingress", f"127.0.0.1:{free_port()}", "--listen", f"127.0.0.1:{free_port()}")
        first = fleet.found("one", "--policy", "solo", *ingress)
        line = fleet.invite(first, "--role", "voter", "--role", "worker", "--uses", "3")
        for name in ("two", "three", "four"):  # its own addresses: it is visited before and after a stop
            fleet.join(line, name, "--ingress", f"127.0.0.1:{free_port()}", "--listen", f"127.0.0.1:{free_port()}")
        until(lambda: sum(member["voter"] for member in first.members().values()) == 3, 60, "three voters")
        until(lambda: sum(member["confirmed"] for member in first.members().values()) == 4, 60, "four confirmed nodes")
        first.typed_ok("env", "create", "production", "-y")
        first.typed_ok("project", "create", "greeter")
        ignored = shutil.ignore_patterns(".freehold")
        project = shutil.copytree(ROOT / "examples" / "greeter", folder / "greeter", ignore=ignored)
        new_story = Story(fleet, fleet.machines, project)
        new_story.configure("hello", '["1", "2", "100%"]')
        answer = new_story.deploy("-m", "greet")
        assert answer.code == 0, answer
        yield new_story
    finally:
        fleet.close()


@contextmanager
def visited(address: str, path: str = "/greeter") -> Iterator[Counter[int]]:
    """Visit an address VISITS_PER_S times a second, each on a connection of its own; yield what became of them."""
    seen: Counter[int] = Counter()
    stop = threading.Event()

    def visit() -> None:
        while not stop.wait(8 / VISITS_PER_S):
            seen[call(address, path)[0]] += 1

    visitors = [threading.Thread(target=visit) for _ in range(8)]
    for visitor in visitors:
        visitor.start()
    try:
        yield seen
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()


@pytest.mark.timeout(400)
def test_a_deploy_right_after_a_node_stopped_does_not_wait_for_it(story: Story) -> None:
    gone = story.machines[3]
    began_s = time.monotonic()
    assert gone.stop() == 0
    assert time.monotonic() - began_s < STOP_MAX_S
    until(lambda: story.first.members()[_id(story, 3)]["belief"] == "down", 3, "the goodbye to arrive")
    assert story.first.members()[_id(story, 3)]["left"]
    story.configure("good day", '["1", "2", "100%"]')
    began_s = time.monotonic()
    answer = story.deploy("-m", "while one is away")
    assert answer.code == 0, answer
    assert time.monotonic() - began_s < 60, "it was waited for"
    gone.start()
    until(lambda: story.first.members()[_id(story, 3)]["belief"] == "alive", 10, "it to be back")
    until(lambda: call(gone.ingress, "/greeter") == (200, "good day"), 60, "it to serve what was decided meanwhile")


@pytest.mark.timeout(400)
def test_a_node_that_stops_during_a_rollout_holds_it_up_no_longer_than_the_rules_say(story: Story) -> None:
    story.configure("good evening", '["1", "100%"]', healthy="8s")
    done: list[object] = []
    deploying = threading.Thread(target=lambda: done.append(story.deploy("-m", "one stops")))
    deploying.start()
    until(lambda: story.lane()["rollout"] is not None, 120, "the rollout to be under way")
    cohort = story.lane()["rollout"]["cohort"]
    index = next(n for n, machine in enumerate(story.machines) if n and _id(story, n) not in cohort)
    assert story.machines[index].stop() == 0
    deploying.join(200)
    assert done, "the deploy still waits"
    assert done[0].code == 0, done[0]  # type: ignore[attr-defined]
    story.machines[index].start()


@pytest.mark.timeout(200)
def test_the_only_entry_node_is_stopped_and_started_and_nobody_notices(story: Story) -> None:
    entry = story.machines[0]
    address = entry.ingress
    with visited(address) as seen:
        time.sleep(1)
        assert entry.stop() == 0
        time.sleep(2)
        entry.start()
        time.sleep(2)
    assert set(seen) == {200}, seen
    assert seen[200] > 200
    until(lambda: sum(member["connected"] for member in entry.members().values()) == 4, 30, "it to be connected again")


@pytest.mark.timeout(400)
def test_another_node_is_stopped_and_started_and_no_visitor_of_any_node_notices(story: Story) -> None:
    other = story.machines[1]
    with visited(story.first.ingress) as elsewhere, visited(other.ingress) as there:
        time.sleep(1)
        began_s = time.monotonic()
        assert other.stop() == 0
        assert time.monotonic() - began_s < STOP_MAX_S
        time.sleep(2)
        other.start()
        time.sleep(1)
    assert set(elsewhere) == {200}, elsewhere
    assert set(there) == {200}, there
    assert min(elsewhere[200], there[200]) > 200
    until(lambda: story.first.members()[_id(story, 1)]["belief"] == "alive", 15, "it to be back")


@pytest.mark.timeout(400)
def test_doctor_finds_no_fault_in_a_healthy_mesh_that_is_visited(story: Story) -> None:
    until(lambda: story.first.status()["warnings"] == [], 60, "what was stopped to be back and well")
    with visited(story.first.ingress), visited(story.machines[2].ingress):
        for _ in range(3):
            time.sleep(1)
            said = story.first.run("doctor")
            assert said.code == 0, said
            assert "no fault" in said.stdout, said


@pytest.mark.timeout(200)
def test_a_stop_that_nothing_follows_ends_within_half_a_minute(story: Story) -> None:
    gone = story.machines[2]
    address = gone.ingress
    host, _, port = address.rpartition(":")
    began_s = time.monotonic()
    assert gone.stop() == 0
    assert call(address, "/greeter")[0] == 200, "the workers wait for a daemon that may follow"
    until(lambda: not _listens(host, int(port)), STOP_MAX_S - (time.monotonic() - began_s), "the workers to end")
    gone.start()


@pytest.mark.timeout(200)
def test_an_interrupt_ends_the_workers_too(story: Story) -> None:
    gone = story.machines[2]
    host, _, port = gone.ingress.rpartition(":")
    assert gone.process is not None
    gone.process.send_signal(signal.SIGINT)
    assert gone.process.wait(STOP_MAX_S) == 0
    gone.process = None
    assert not _listens(host, int(port))
    gone.start()


def _id(story: Story, index: int) -> str:
    name = story.machines[index].name
    return next(node for node, member in story.first.members().items() if member["name"] == name)


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@pytest.mark.timeout(200)
def test_a_drained_node_serves_nothing_itself_until_it_is_undrained(story: Story) -> None:
    machine, target = story.first, story.machines[3]
    answer = machine.typed_ok("node", "drain", "four", "-y")
    assert answer["draining"]
    until(lambda: target.status()["running"] == [], 30, "its apps to stop")
    assert story.first.members()[_id(story, 3)]["draining"]
    assert call(target.ingress, "/greeter")[0] == 200, "visitors who come to it are led on"
    assert machine.typed_ok("node", "drain", "four", "-y")["slot"] is None, "twice is once"
    machine.typed_ok("node", "undrain", "four", "-y")
    until(lambda: target.status()["running"] != [], 60, "its apps to run again")


@pytest.mark.timeout(200)
def test_a_frozen_environment_refuses_a_deploy_and_says_why_until_it_is_unfrozen(story: Story) -> None:
    machine = story.first
    assert machine.typed_ok("env", "freeze", "production", "-m", "the sale runs", "-y")["projects"] == ["greeter"]
    story.configure("frozen")
    refused = story.deploy("-m", "in the sale", "--detach")
    assert story.lane()["frozen"] == "the sale runs"
    assert story.lane()["rollout"] is None, refused
    assert machine.typed_ok("env", "freeze", "production", "-m", "again", "-y")["projects"] == [], "twice is once"
    assert machine.typed_ok("env", "unfreeze", "production", "-y")["projects"] == ["greeter"]
    assert story.lane()["frozen"] == ""
