"""A project of one Python app on a real node, deployed by the command from its source. Not here: any test."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh.durable import call
from tests.support.mesh.nodes import Answer, Fleet, Machine, free_port, until
from tests.support.runtime.projects import own_cache

ENVIRONMENT = "production"
DEPLOY_TIMEOUT_S = 240.0


class PythonApp:
    """The project's folder; its app answers at the host NAME.test."""

    def __init__(self, folder: Path, name: str, *, language: str = "python", rest: str = "") -> None:
        """Take the app's further lines and tables of the project file."""
        self.folder, self.name, self.host = folder / name, name, f"{name}.test"
        (self.folder / "web").mkdir(parents=True)
        self.configure(language, rest)

    def configure(self, language: str, rest: str) -> None:
        """Write the project file."""
        text = (
            f'[project]\nname = "{self.name}"\nowners = ["me"]\n[app.web]\nlanguage = "{language}"\nsource = "web"\n'
            f'routes = ["{self.host}"]\n{rest}\n[rollout]\nstages = ["100%"]\nmin_healthy_time = "0s"\n'
        )
        if "[[test.smoke]]" not in text:
            text += '[[test.smoke]]\napp = "web"\npath = "/"\n'
        (self.folder / "freehold.toml").write_text(text)

    def write(self, files: Mapping[str, str]) -> None:
        """Write files of the app."""
        for name, text in files.items():
            path = self.folder / "web" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def deploy(self, machine: Machine, *options: str) -> Answer:
        """Build it and deploy it."""
        return machine.run(
            "deploy", "--folder", str(self.folder), "--json", *options, timeout_s=DEPLOY_TIMEOUT_S
        )  # fmt: skip

    def deployed(self, machine: Machine, *options: str) -> dict[str, Any]:
        """Deploy it; it must succeed, and serve."""
        answer = self.deploy(machine, *options)
        assert answer.code == 0, (answer, machine.log.read_text()[-3_000:])
        until(lambda: self.get(machine)[0] == 200, 30, "the app to be served")
        return answer.json

    def get(self, machine: Machine, path: str = "/", timeout_s: float = 25.0) -> tuple[int, str]:
        """Ask the app through a node."""
        status, _, body = call(machine.ingress, self.host, path, timeout_s)
        return status, body

    def refused_for_a_while(self, machine: Machine, path: str = "/") -> None:
        """What it rests on is away: visitors hear so at once, and when to come again."""
        began_s = time.monotonic()
        request = urllib.request.Request(f"http://{machine.ingress}{path}", headers={"Host": self.host})
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request)
        refusal.value.close()
        assert (refusal.value.code, bool(refusal.value.headers["Retry-After"])) == (503, True)
        assert time.monotonic() - began_s < 10, "visitors wait for what is away"


@contextmanager
def node_alone(folder: Path, *projects: str) -> Iterator[Machine]:
    """A real node with these projects, which builds into the tests' own cache."""
    fleet = Fleet(folder)
    try:
        with own_cache():
            yield solo(fleet, *projects)
    finally:
        fleet.close()


def solo(fleet: Fleet, *projects: str) -> Machine:
    """Found a mesh of one node, with these projects in an environment."""
    machine = fleet.found("one", "--policy", "solo", "--ingress", f"127.0.0.1:{free_port()}")
    machine.typed_ok("env", "create", ENVIRONMENT, "-y")
    for project in projects:
        machine.typed_ok("project", "create", project)
    return machine
