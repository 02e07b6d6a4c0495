"""The stage of `make demo`: three machines that form a mesh, who acts on it, and what runs before the story begins.

Three daemons run on loopback with a data folder, a home and a wire of their own. Three act: a developer, who also founded
the mesh; Ann, who approves from a laptop; and an agent with a key of its own. Not here: the change (story.py).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.checks import Teller, address_of, answers, call
from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, until

EXAMPLES = Path(__file__).resolve().parent
BOT = "home-bot"
DEPLOY_TIMEOUT_S = 240


@dataclass
class Scene:
    """Who and what is on stage."""

    teller: Teller
    fleet: Fleet
    machines: list[Machine]
    ann: Machine
    projects: dict[str, Path]
    first_release: str = ""

    @property
    def first(self) -> Machine:
        """The machine that founded the mesh; its user is the developer."""
        return self.machines[0]

    def lane(self, project: str) -> dict[str, Any]:
        """Return what runs of a project, and what is under way."""
        found = json.loads(self.first.get(f"/v1/lanes?project={project}"))
        return found[0] if found else {}

    def approve(self, change: str) -> None:
        """Ann reads the diff and types her passphrase on a terminal of her laptop."""
        given = self.ann.typed("approve", change, "--json")
        self.teller.check(f"Ann approves {change[:12]} with her sealed key, typed at a terminal", given.code == 0, given)

    def run(self, *arguments: str) -> tuple[int, float]:
        """Run one of the developer's commands and pass on what it tells as it tells it; return its exit code and seconds."""
        self.teller.say(f"$ freehold {' '.join(arguments)}")
        began_s = time.monotonic()
        command = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
        with subprocess.Popen(command, env=self.first.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, cwd=self.projects["greeter"]) as running:  # fmt: skip
            for line in running.stderr or ():
                self.teller.quote(line.rstrip())
        return running.returncode, time.monotonic() - began_s


def copy(name: str, folder: Path) -> Path:
    """Copy an example out of the repository, so that its data starts empty."""
    left_out = shutil.ignore_patterns(".freehold", "node_modules", "__pycache__")
    return Path(shutil.copytree(EXAMPLES / name, folder / name, ignore=left_out))


def found(teller: Teller, fleet: Fleet, folder: Path, projects: dict[str, Path]) -> Scene:
    """Found the mesh, let two machines join, a person log in and an agent have a key."""
    first = fleet.found("one", "--policy", "team", "--api", "127.0.0.1:0")
    teller.say("machine one    $ freehold mesh create home --policy team")
    teller.say("               $ freehold node run")
    lines = [fleet.invite(first, "--role", "voter", "--role", "worker") for _ in ("two", "three")]
    with ThreadPoolExecutor() as pool:
        joined = list(pool.map(fleet.join, lines, ("two", "three")))
    for name, line in zip(("two", "three"), lines, strict=True):
        teller.say(f"machine {name:<7}$ freehold mesh join {line[:16]}...; freehold node run")
    machines = [first, *joined]
    for name in ("greeter", "guestbook"):
        first.typed_ok("project", "create", name, "--owner", "web-team")
    refused = first.run("env", "create", "production", "-y")
    teller.check("without a typed passphrase nobody makes an environment", refused.code == 3, refused)
    first.typed_ok("env", "create", "production", "-y")
    line = fleet.invite(first, "--kind", "principal", "--role", "approver", "--for", "ann")
    ann = fleet.machine("ann")
    answer = ann.typed("login", line, "--name", "work", "--json", typing=(PASSPHRASE, PASSPHRASE))
    teller.check("Ann logs in from her laptop over HTTPS, and may approve", answer.code == 0, answer)
    first.ok("token", "create", "bot", "--role", "proposer", "--role", "deployer", "--project", "greeter")
    teller.say("The agent gets a key of its own, for one project, for 7 days.")
    until(lambda: sum(one["voter"] for one in first.members().values()) == 3, 60, "three voters")
    members = first.members()
    held = len(members) == 3 and all(one["confirmed"] for one in members.values())
    teller.check("three members; all three vote; any two decide", held, members)
    return Scene(teller, fleet, machines, ann, projects)


def first_releases(scene: Scene) -> None:
    """Test, propose, approve and roll out the two apps that run when the story begins."""
    teller, first = scene.teller, scene.first
    teller.say("greeter keeps nothing: it runs on all three. guestbook is a Flask app")
    teller.say("with a key-value store: it runs where its data is.")

    def propose(name: str) -> str:
        folder = str(scene.projects[name])
        tested = first.run("test", "--folder", folder, timeout_s=DEPLOY_TIMEOUT_S)
        assert tested.code == 0, tested
        answer = first.run("deploy", "--folder", folder, "-m", f"first release of {name}", "--detach", "--json",
                           timeout_s=DEPLOY_TIMEOUT_S)  # fmt: skip
        assert (answer.code, answer.json["outcome"]) == (5, "waiting"), answer  # for Ann, below
        return str(answer.json["change"])

    with ThreadPoolExecutor() as pool:
        changes = list(pool.map(propose, ("greeter", "guestbook")))
    for change in changes:
        scene.approve(change)
    for name in ("greeter", "guestbook"):
        until(lambda name=name: bool(scene.lane(name).get("base")), 120, f"{name} to be deployed")
    scene.first_release = scene.lane("greeter")["base"]["release"]
    seen = answers(scene.machines, "/greeter")
    teller.check("greeter answers on every machine: hello", seen == [(200, "hello\n")] * 3, seen)
    form = urllib.parse.urlencode({"name": "<b>Ann</b>", "words": "hello"}).encode()
    signed = call(address_of(scene.machines[1]), "/guestbook/sign", form, "application/x-www-form-urlencoded")
    pages = [page for _, page in answers(scene.machines, "/guestbook/")]
    held = all("1 signed so far" in page and "&lt;b&gt;Ann&lt;/b&gt;" in page for page in pages)
    data = scene.lane("guestbook")["data_node"]
    teller.check(f"guestbook: signed through machine two, read through any; data on ..{data[-6:]}", held, (signed, pages))
