"""A clean runner with one variable: it deploys as often as it likes, and a deploy that waits for people says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine

PROJECT = """\
[project]
name = "hello"
owners = ["web-team"]
[app.web]
language = "component"
source = "web.wasm"
routes = ["/hello"]
[[test.smoke]]
app = "web"
path = "/hello"
[rollout]
stages = ["100%"]
min_healthy_time = "1s"
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Machine, str]]:
    fleet = Fleet(tmp_path_factory.mktemp("ci"))
    try:
        dev = fleet.found("d", "--api", "127.0.0.1:0", "--policy", "team")
        dev.typed_ok("env", "create", "production", "-y")
        dev.typed_ok("project", "create", "hello", "--owner", "web-team")
        answer = dev.run("token", "create", "ci", "--role", "deployer", "--runner", "--json")
        assert answer.code == 0, answer
        yield fleet, dev, answer.json["token"]
    finally:
        fleet.close()


class Runner(Machine):
    """A machine with nothing but the variable."""

    token = ""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "FREEHOLD_TOKEN": self.token, "GITHUB_ACTIONS": "true"}


def test_three_clean_runners_use_one_token_and_tell_the_truth_of_a_missing_approval(
    team: tuple[Fleet, Machine, str], component: Callable[[str], Path], tmp_path: Path
) -> None:
    fleet, dev, token = team
    changes: list[str] = []
    for number in range(3):
        runner = Runner(tmp_path / f"runner-{number}")
        runner.token = token
        project = tmp_path / f"checkout-{number}"
        project.mkdir()
        shutil.copy(component("hello"), project / "web.wasm")
        (project / "freehold.toml").write_text(
            PROJECT.replace('"/hello"]', f'"/hello"]\nconfig = {{ RUN = "{number}" }}', 1)
        )
        where = ("--folder", str(project))
        assert runner.run("test", *where).code == 0
        answer = runner.run("deploy", "--detach", "--json", *where)
        told: dict[str, Any] = json.loads(answer.stdout)
        assert (answer.code, told["ok"], told["outcome"]) == (5, False, "waiting"), answer
        assert [entry["rule"] for entry in told["missing"]] == ["approval.missing"]
        assert len(told["change"]) == 64
        assert "::error::approval.missing" in answer.stderr
        waited = runner.run("deploy", "--change", told["change"], "--wait", "1s", "--json", *where)
        assert (waited.code, json.loads(waited.stdout)["change"]) == (5, told["change"]), waited
        changes.append(told["change"])
        assert not any((runner.folder / "home").rglob("*.json")), "the key was written down"
    line = fleet.invite(dev, "--kind", "principal", "--role", "approver", "--for", "ann")
    ann = Machine(tmp_path / "laptop")
    assert ann.typed("login", line, "--name", "work", "--json", typing=(PASSPHRASE, PASSPHRASE)).code == 0
    assert ann.typed("approve", changes[-1], "--json").code == 0  # its node starts it at once, beside the runner below
    runner = Runner(tmp_path / "runner-last")
    runner.token = token
    done = runner.run("deploy", "--change", changes[-1], "--wait", "60s", "--json", timeout_s=90)
    assert (done.code, done.json["outcome"]) == (0, "succeeded"), done
    detached = runner.run("deploy", "--change", changes[-1], "--detach", "--json")
    assert (detached.code, detached.json["outcome"]) == (0, "started"), "what runs is not started again"
    stale = runner.run("deploy", "--change", changes[0], "--detach", "--json")
    assert (stale.code, stale.json["ok"], stale.json["outcome"]) == (3, False, "refused"), stale
