"""Rollouts on three real daemons: in stages, held and moved by hand, refused, back by themselves, back on command.

One fleet and one built component serve all tests of this module, in order; releases differ by configuration, as most do.
"""

from __future__ import annotations

import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mesh.nodes import Answer, Fleet, Machine, until

ROOT = Path(__file__).resolve().parents[3]
DEPLOY_TIMEOUT_S = 240.0


def fetch(machine: Machine, path: str = "/greeter") -> tuple[int, str]:
    address = next(entry for entry in machine.status()["ingress"] if not entry.startswith("unix:"))
    return call(address, path)


def call(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, ""
    except OSError:
        return 0, ""


class Story:
    """A running fleet, the project that is deployed to it, and its ingress addresses."""

    def __init__(self, fleet: Fleet, machines: list[Machine], project: Path) -> None:
        self.fleet, self.machines, self.project = fleet, machines, project
        self.first = machines[0]
        self.addresses = [
            next(entry for entry in machine.status()["ingress"] if not entry.startswith("unix:"))
            for machine in machines
        ]

    def configure(self, greeting: str, stages: str = '["1", "100%"]', pause: str = "", healthy: str = "1s") -> None:
        text = (ROOT / "examples" / "greeter" / "freehold.toml").read_text()
        text = text.replace('GREETING = "hello"', f'GREETING = "{greeting}"').replace('["1", "2", "100%"]', stages)
        text = text.replace('min_healthy_time = "2s"', f'min_healthy_time = "{healthy}"{pause}')
        (self.project / "freehold.toml").write_text(text)

    def deploy(self, *options: str) -> Answer:
        return self.first.run("deploy", "--folder", str(self.project), "--json", *options, timeout_s=DEPLOY_TIMEOUT_S)

    def greetings(self) -> set[tuple[int, str]]:
        return {call(address, "/greeter") for address in self.addresses}

    def lane(self) -> dict:
        return next(entry for entry in self.first.ok("status", "--project", "greeter")["lanes"])


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("fleet")
    fleet = Fleet(folder)
    try:
        first = fleet.found("one", "--policy", "solo")
        line = ("--role", "voter", "--role", "worker")
        machines = [first, *(fleet.join(fleet.invite(first, *line), name) for name in ("two", "three"))]
        until(lambda: sum(member["voter"] for member in first.members().values()) == 3, 60, "three voters")
        first.typed_ok("env", "create", "production", "-y")
        first.typed_ok("project", "create", "greeter")
        project = Path(
            shutil.copytree(
                ROOT / "examples" / "greeter", folder / "greeter", ignore=shutil.ignore_patterns(".freehold")
            )
        )
        yield Story(fleet, machines, project)
    finally:
        fleet.close()


@pytest.mark.timeout(400)
def test_a_release_reaches_every_node_in_stages(story: Story) -> None:
    story.configure("hello")
    answer = story.deploy("-m", "greet")
    assert answer.code == 0, answer
    assert answer.json["outcome"] == "succeeded"
    assert story.greetings() == {(200, "hello")}
    decided = [entry["action"] for entry in story.first.ok("rollouts", "--project", "greeter")["rollouts"]]
    assert decided == ["promote", "promote", "start", "claim_routes"]


@pytest.mark.timeout(200)
def test_no_request_fails_while_a_release_goes_through(story: Story) -> None:
    story.configure("good day")
    seen: set[tuple[int, str]] = set()
    stop = threading.Event()

    def visit(address: str) -> None:
        while not stop.wait(0.01):
            seen.add(call(address, "/greeter"))

    visitors = [threading.Thread(target=visit, args=(address,)) for address in story.addresses]
    for visitor in visitors:
        visitor.start()
    try:
        answer = story.deploy()
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()
    assert answer.code == 0, answer
    assert seen == {(200, "hello"), (200, "good day")}


@pytest.mark.timeout(200)
def test_a_release_that_fails_its_visitors_goes_back_by_itself_with_the_numbers(story: Story) -> None:
    story.configure("", healthy="20s")  # on a busy machine twenty visitors take longer than a second
    stop = threading.Event()

    def visit(address: str) -> None:
        while not stop.wait(0.02):
            call(address, "/greeter")

    visitors = [threading.Thread(target=visit, args=(address,)) for address in story.addresses]
    for visitor in visitors:
        visitor.start()
    try:
        answer = story.deploy()
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()
    assert answer.code == 4, answer
    assert "the last that it wrote:" in answer.stderr
    assert "ValueError: no greeting is configured" in answer.stderr
    until(lambda: story.greetings() == {(200, "good day")}, 20, "the release before, everywhere")
    newest = story.first.ok("rollouts", "--project", "greeter")["rollouts"][0]
    assert newest["action"] == "abort"
    assert newest["signers"] == []
    assert any(entry["errors"] > 0 for entry in newest["numbers"])
    ended = story.first.ok("changes", "--project", "greeter")["changes"][0]
    assert (ended["state"], ended["missing"]) == ("rolled-back", [])
    assert "errors in" in ended["ended"]
    assert ended["ended"] in story.first.run("changes", "--project", "greeter").stdout


@pytest.mark.timeout(200)
def test_a_stage_that_pauses_is_promoted_or_aborted_by_hand_and_another_deploy_is_refused_meanwhile(
    story: Story,
) -> None:
    story.configure("by hand", pause="\nauto_promote = false")
    assert story.deploy("--detach").code == 0
    until(lambda: (story.lane()["rollout"] or {}).get("assessment") == "pass", 60, "the first stage to pass")
    second = story.deploy()
    assert second.code == 2, second
    assert "rollout.under-way" in second.stdout
    promoted = story.first.run("promote", "--project", "greeter", "--json")
    assert promoted.code == 0, promoted
    until(lambda: story.lane()["rollout"]["stage"] == 1, 20, "the second stage")
    paused = story.first.run("pause", "--project", "greeter", "-m", "a look", "--json")
    assert paused.code == 0, paused
    assert story.lane()["rollout"]["paused"] == "a look"
    assert story.first.run("resume", "--project", "greeter").code == 0
    assert story.first.run("abort", "--project", "greeter", "-m", "not today").code == 0
    until(lambda: story.greetings() == {(200, "good day")}, 20, "the base, everywhere")
    ended = story.first.ok("changes", "--project", "greeter")["changes"][0]
    assert (ended["state"], ended["ended"]) == ("aborted", "not today")


@pytest.mark.timeout(200)
def test_a_rollback_is_whole_at_once_and_works_with_a_node_gone(story: Story) -> None:
    third = story.machines[2]
    third.kill()
    began_s = time.monotonic()
    answer = story.first.run("rollback", "--project", "greeter", "-m", "hello was better", "--json")
    assert answer.code == 0, answer
    until(
        lambda: {call(address, "/greeter") for address in story.addresses[:2]} == {(200, "hello")},
        10,
        "the release before",
    )
    assert time.monotonic() - began_s < 10, "rolling back waits for nothing but the decision"
    third.start()
    until(lambda: fetch(third) == (200, "hello"), 60, "the node that was away to follow")


@pytest.mark.timeout(200)
def test_without_a_majority_nothing_is_decided_and_what_was_decided_goes_on(story: Story) -> None:
    for machine in story.machines[1:]:
        machine.kill()
    try:
        assert call(story.addresses[0], "/greeter") == (200, "hello")
        story.configure("alone")
        entry = next(
            candidate
            for candidate in story.first.ok("releases", "--project", "greeter")["releases"]
            if candidate["state"] == "kept"
        )
        back = ("rollback", entry["change"], "--project", "greeter", "-m", "alone", "--json")
        answer = story.first.run(*back, timeout_s=90)
        assert answer.code == 1, answer
        assert "no majority" in answer.stdout
        assert call(story.addresses[0], "/greeter") == (200, "hello")
    finally:
        for machine in story.machines[1:]:
            machine.start()
