"""A command that is stopped says what goes on without it, and the command that it names for stopping that works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh.nodes import Answer, Fleet, Machine, free_port, until
from tests.support.mesh.site import Site


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[tuple[Machine, Site]]:
    folder = tmp_path_factory.mktemp("i")
    fleet = Fleet(folder)
    try:
        machine = fleet.found("one", "--policy", "solo", "--ingress", f"127.0.0.1:{free_port()}")
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "site")
        site = Site(folder, component("services"))
        site.configure("first", '["100%"]')
        answer = site.deploy(machine)
        assert answer.code == 0, answer
        yield machine, site
    finally:
        fleet.close()


COMMAND = "import faulthandler, signal; faulthandler.register(signal.SIGUSR1); from cli.main import main; main()"
"""The command; SIGUSR1 has it say where it is."""

END_S = 60.0
"""At a load of 24 on two cores 45 of 45 commands ended within 5.3 s; a machine that also writes may take longer."""


def stopped(one: Machine, site: Site, number: signal.Signals, when: Callable[[], bool], *options: str) -> Answer:
    """Deploy, and send the command a signal once `when` is so."""
    arguments = ["deploy", "--folder", str(site.folder), "--json", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env=one.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        until(when, 60, "the moment to interrupt")
        process.send_signal(number)
        output, errors = process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(
            f"it had not ended {END_S:.0f} s after the signal, and was here:\n{process.communicate()[1].decode()}"
        )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return Answer(process.returncode, output.decode(), errors.decode())


def told(answer: Answer, number: signal.Signals) -> dict[str, Any]:
    assert answer.code == 128 + number, answer
    document: dict[str, Any] = json.loads(answer.stdout)
    assert document["error"]["kind"] == "interrupted"
    assert document["error"]["message"] in " ".join(answer.stderr.split()), "people are told the same"
    return document


def follow(one: Machine, step: str) -> Answer:
    """Run a next step as it was printed."""
    words = step.split()
    assert words[0] == "freehold"
    return one.run(*words[1:])


@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_a_deploy_that_is_stopped_says_that_the_rollout_goes_on_and_how_to_end_it(
    mesh: tuple[Machine, Site], number: signal.Signals
) -> None:
    machine, site = mesh
    site.configure(f"held {number.name}", '["100%"]')
    text = (site.folder / "freehold.toml").read_text().replace('"1s"', '"60s"')
    (site.folder / "freehold.toml").write_text(text)
    answer = stopped(machine, site, number, lambda: site.lane(machine)["rollout"] is not None)
    said = told(answer, number)
    assert "goes on by itself" in said["error"]["message"]
    assert said["outcome"] == "started"
    rollout = site.lane(machine)["rollout"]
    assert rollout is not None
    assert rollout["change"] == said["change"], "it goes on"
    assert follow(machine, said["error"]["next_step"]).code == 0
    until(lambda: site.lane(machine)["rollout"] is None, 20, "the rollout to end")
    assert site.ask(machine) == (200, "first")


@pytest.mark.timeout(200)
def test_a_start_that_waits_is_withdrawn_by_the_same_command(mesh: tuple[Machine, Site]) -> None:
    machine, site = mesh
    machine.typed_ok("env", "freeze", "production", "-m", "audit", "-y")
    site.configure("frozen out", '["100%"]')

    def waits() -> bool:
        views = json.loads(machine.get("/v1/changes"))
        return any(view["start"] is not None and view["start"]["outcome"] == "waiting" for view in views)

    answer = stopped(machine, site, signal.SIGINT, waits, "--wait", "5m")
    said = told(answer, signal.SIGINT)
    done = follow(machine, said["error"]["next_step"])
    assert done.code == 0, done
    assert "withdrawn" in done.stdout
    machine.typed_ok("env", "unfreeze", "production", "-y")
    assert not waits()
    time.sleep(3)  # a start that waits is looked at every second
    assert site.lane(machine)["rollout"] is None
    assert site.ask(machine) == (200, "first")
    assert follow(machine, said["error"]["next_step"]).code == 1, "nothing is left to end, and it says so"
