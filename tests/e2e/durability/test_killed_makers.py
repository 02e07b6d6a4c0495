"""Commands that make a file, a folder or a key, killed before each of several file operations and run again.

The whole of it is there after the second run, and nothing of the first is beside it. Every command of the tree is in one of
this file's lists: what makes something here, what is killed elsewhere, and what asks a node and keeps nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import pytest

from cli.frame import run
from cli.main import freehold
from tests.support.mesh.killed_at import NEVER, Ended, run_killed
from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, free_port
from tests.support.mesh.site import Site

POINTS = 20
FEW = 3

COMMANDS: dict[str, tuple[str, ...]] = {
    "new": ("new", "fresh"),
    "ci init": ("ci", "init", "github", "--folder", "site"),
    "context use": ("context", "use", "home"),
    "key create": ("key", "create", "ann", "--use"),
    "key use": ("key", "use", "home-admin"),
    "key passphrase": ("key", "passphrase"),
    "token create": ("token", "create", "bot{n}"),
    "build": ("build", "--folder", "site"),
    "deploy": ("deploy", "--folder", "site"),
    "test": ("test", "--folder", "site"),
    "evidence export": ("evidence", "export", "{change}", "--to", "papers"),
    "release export": ("release", "export", "release.tar", "--folder", "site"),
    "release import": ("release", "import", "{release}", "--folder", "imported"),
    "data export": ("data", "export", "site", "--to", "data", "-y"),
    "data import": ("data", "import", "site", "{data}", "--replace", "-y"),
    "mesh backup": ("mesh", "backup", "node.tgz", "--data", "{node}"),
}
"""What is killed here: its words, with the places of this test."""

MADE_ONCE = {"exists", "key-exists"}
"""Where the first attempt's last step was taken, the second says that it is there: only its answer was lost."""

LOST_ANSWER = 10
"""Operations that may come after the step that makes it: syncs, taking back a note, and a reminder that is due."""

ELSEWHERE = {
    "mesh create", "mesh join", "mesh restore", "login", "node install",  # test_killed_commands.py
    "data move",  # tests/e2e/data/test_move_kills.py
}  # fmt: skip

ONE_WRITE = {
    "abort", "approve", "ci exchange", "data freeze", "data promote", "data standby", "data thaw", "env create",
    "env freeze", "env networks", "env set", "env unfreeze", "key renew", "mesh acknowledge", "mesh address",
    "mesh admins add", "mesh admins remove", "mesh admins sign", "mesh cosign", "mesh invite",
    "mesh label", "mesh leave", "mesh remove",
    "mesh reset", "mesh rules", "mesh upgrade abort", "mesh upgrade pause", "mesh upgrade start", "mesh voters",
    "node drain", "node uninstall", "node undrain", "passkey add", "passkey remove", "pause", "policy set",
    "project create", "project place", "promote", "propose", "reject", "release push", "resume", "rollback", "secret rm",
    "secret set", "token revoke", "trust add", "trust remove", "webhook add", "webhook remove", "webhook test",
}  # fmt: skip
"""Each has a node decide or keep one thing, which is done or not; here it keeps nothing but what it was reminded of.

`propose` builds as `deploy` does, and `mesh leave`, `mesh remove` and `mesh voters` go on from what is decided already.
"""

CACHES = {"release pull", "wheels build"}
"""Each fills a folder named by a digest, under another name until it is whole, as `release import` does."""

LOOKS = {
    "audit", "changes", "console", "context ca", "context list", "data list", "decisions", "dev", "diff", "dns", "doctor",
    "env list", "evidence show", "evidence verify", "key paper", "logs", "mcp", "mesh admins list", "mesh members",
    "mesh upgrade plan", "node run", "node status", "passkey list", "policy show", "project list", "release sbom",
    "releases", "rollouts", "secret list", "status", "token list", "trust list", "webhook list", "wheels list", "why",
}  # fmt: skip


def leaves(command: click.Command, name: str = "") -> Iterator[str]:
    if isinstance(command, click.Group):
        for word in command.list_commands(click.Context(command)):
            subcommand = command.get_command(click.Context(command), word)
            assert subcommand is not None
            yield from leaves(subcommand, f"{name} {word}".strip())
    else:
        yield name


def test_every_command_is_in_one_list() -> None:
    lists = [set(COMMANDS), ELSEWHERE, ONE_WRITE, CACHES, LOOKS]
    assert set().union(*lists) == set(leaves(freehold))
    assert sum(map(len, lists)) == len(set().union(*lists)), "a command is in two"


@dataclass
class World:
    """A node with an app, the places that commands name, and how many attempts were made."""

    machine: Machine
    site: Site
    folder: Path
    places: dict[str, str]
    attempts: int = 0

    def fresh(self) -> tuple[Path, dict[str, str]]:
        """A folder with a home and a project of its own, for one pair of attempts."""
        self.attempts += 1
        place = self.folder / f"a{self.attempts}"
        place.mkdir()
        shutil.copytree(self.machine.folder / "home", place / "home")
        shutil.copytree(self.site.folder, place / "site", ignore=shutil.ignore_patterns(".freehold"))
        return place, {**self.machine.environment, "FREEHOLD_HOME": str(place / "home")}

    def attempt(self, place: Path, environment: dict[str, str], words: tuple[str, ...], before: int = NEVER) -> Ended:
        line = [word.format(n=self.attempts, **self.places) for word in words]

        def command() -> int:
            os.chdir(place)
            return run(freehold, [*line, "--json"])

        return run_killed(partial(command), environment, PASSPHRASE, before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("w")
    fleet = Fleet(folder / "m")
    try:
        machine = fleet.found("one", "--api", f"127.0.0.1:{free_port()}")
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "site")
        site = Site(folder, component("services"))
        site.configure("hello", '["100%"]', app='keyvalue = ["visits"]')
        answer = site.deploy(machine)
        assert answer.code == 0, answer
        places = {"data": str(folder / "exported"), "release": str(folder / "made.tar"), "node": str(machine.data)}
        world = World(machine, site, folder, {**places, "change": answer.json["change"]})
        for words in (
            ("data", "export", "site", "--to", "{data}", "-y"),
            ("release", "export", "{release}", "--folder", "site"),
        ):
            place, environment = world.fresh()
            done = world.attempt(place, environment, words)
            assert done.code == 0, done
        yield world
    finally:
        fleet.close()


def left_over(place: Path) -> list[str]:
    """What is there that was to be renamed, or taken back."""
    notes = [path for path in (place / "home").glob("*.json") if path.stem.startswith(("key-", "token-", "login-"))]
    parts = [path for path in place.rglob("*") if path.suffix in {".part", ".new"} or path.name.startswith("writing-")]
    return sorted(str(path.relative_to(place)) for path in notes + parts)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [FEW, pytest.param(POINTS, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_done_when_it_is_run_again(world: World, name: str, count: int) -> None:
    words = COMMANDS[name]
    place, environment = world.fresh()
    whole = world.attempt(place, environment, words)
    assert whole.code == 0, whole
    assert whole.operations > 0, "it makes something"
    for before in sorted({round(step * (whole.operations - 1) / (count - 1)) for step in range(count)}):
        place, environment = world.fresh()
        killed = world.attempt(place, environment, words, before)
        if killed.code is not None:  # what it does beside, such as a reminder that is due, is not the same each time
            assert killed.code == 0, (before, killed)
            continue
        again = world.attempt(place, environment, words)
        if again.code != 0:
            assert json.loads(again.stdout)["error"]["kind"] in MADE_ONCE, (before, again)
            assert before >= whole.operations - LOST_ANSWER, (before, whole.operations, again)
        assert left_over(place) == [], (before, again)
