"""Every command of the README, in its order, on a clean home: typed at a terminal, in several where the README says so.

A command that is not in STORY fails the test, and so does one of STORY that the README no longer has. What differs from a
reader's machine is named: REPLACED (installing), ADDED (free ports and a data folder, because several nodes share this
machine), one build cache, and no wait for a newcomer's patience (`min_healthy_time`). Not here: `pip install` (test_wheel.py).
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.support.mesh.nodes import PASSPHRASE, until
from tests.support.mesh.terminal import COLUMNS, Terminal

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / ".cache" / "xdg"
COMMAND_TIMEOUT_S = 60.0
BUILD_TIMEOUT_S = 240.0

REPLACED = {
    "git clone <this repository> freehold && cd freehold": "this checkout",
    "make check": "the environment that runs this test",
    ". .venv/bin/activate": "its folder of programs, put first on PATH",
}
LOOPBACK = "--listen 127.0.0.1:0 --ingress 127.0.0.1:0"
ADDED = {
    "freehold dev": "--port 0",
    "freehold mesh create home": f"--data {{data}} {LOOPBACK} --node-name {{name}}",
    "freehold mesh join": f"--data {{data}} {LOOPBACK} --node-name {{name}}",
    "freehold node run": "--data {data} --workers 1 --voter-after 2",
    "freehold doctor": "--data {data}",
}

PASS = (r"Passphrase of \S+, to [^\n]*: ", PASSPHRASE)
NEW_PASS = ((r"A passphrase for [^\n]*: ", PASSPHRASE), (r"The same again: ", PASSPHRASE))
YES = (r"\[y/N\] ", "y")


def commands_of(text: str) -> list[str]:
    """The lines of the README's blocks that are for a terminal: those without a language."""
    texts: list[str] = []
    language: str | None = None
    for line in text.splitlines():
        if line.startswith("```"):
            language = line[3:] if language is None else None
        elif language == "" and (command := re.sub(r"\s+#.*", "", line).strip()):
            texts.append(command)
    return texts


class Reader:
    """Somebody who follows the README on one machine: a home, the folder they are in, and what they left running."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.home = folder / "home"
        self.data = folder / "data"
        self.run_folder = folder / "run"
        for path in (self.home, self.run_folder):
            path.mkdir(parents=True)
        self.run_folder.chmod(0o700)
        self.here = self.home
        self.node: Terminal | None = None
        programs = Path(sys.executable).parent
        self.environment = {
            "HOME": str(self.home), "PATH": f"{programs}:{os.environ['PATH']}", "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(self.run_folder), "XDG_CACHE_HOME": str(CACHE),
        }  # fmt: skip

    def start(self, command: str) -> Terminal:
        """Type a command, with what ADDED says."""
        for begin, more in ADDED.items():
            if command == begin or command.startswith(f"{begin} "):
                command += " " + more.format(data=self.data, name=self.name)
        return Terminal(command, self.here, self.environment)

    def do(self, command: str, *typing: tuple[str, str], code: int = 0, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Type a command and its answers, wait for its end, and check its exit code; return what it showed."""
        terminal = self.start(command)
        try:
            ended, said = terminal.end(timeout_s, typing)
        finally:
            terminal.kill()
        assert ended == code, f"{command} ended with {ended}:\n{said}"
        wide = [
            line for line in said.splitlines() if len(line) > COLUMNS and " " in line.strip() and "next: " not in line
        ]
        assert wide == [], f"{command} overflows {COLUMNS} columns"
        return said

    def run_node(self, command: str) -> str:
        """Start the node in a terminal that stays; return where its apps are served."""
        if self.data.exists() and not (self.data / "compiled").exists():
            compiled = CACHE / "freehold" / "compiled"
            compiled.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.data / "compiled").symlink_to(compiled)
        self.node = self.start(command)
        self.node.wait_for(r"the node runs", COMMAND_TIMEOUT_S)
        return self.node.wait_for(r"apps\s+are\s+served\s+at\s+(127\.0\.0\.1:\d+)", COMMAND_TIMEOUT_S)[1]

    def leave(self) -> None:
        if self.node is not None:
            self.node.kill()


def fetch(address: str, path: str = "/") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read().decode()


class Story:
    """What each command of the README should do. Methods are called in the README's order, once per command."""

    def __init__(self, folder: Path) -> None:
        self.one = Reader(folder / "one")
        self.two = Reader(folder / "two")
        self.ann = Reader(folder / "ann")
        self.address = ""
        self.lines: list[str] = []
        self.change = self.release = ""
        self.steps = self._steps()

    def leave(self) -> None:
        for reader in (self.one, self.two, self.ann):
            reader.leave()

    def _steps(self) -> Iterator[tuple[str, Callable[[], None]]]:
        reader = self.one
        yield from ((command, lambda: None) for command in REPLACED)
        yield "freehold --help", lambda: shows(reader.do("freehold --help"), "Start with:", "freehold dev")
        yield (
            "freehold new hello --template wsgi",
            lambda: shows(reader.do("freehold new hello --template wsgi"), "hello/web/app.py"),
        )
        yield "cd hello", self.enter
        yield "freehold dev", self.dev
        yield (
            "freehold mesh create home",
            lambda: shows(reader.do("freehold mesh create home", YES, *NEW_PASS), "mesh home", "is founded"),
        )
        yield "freehold node run", self.node
        yield (
            "freehold env create production",
            lambda: shows(reader.do("freehold env create production", YES, PASS), "decision"),
        )
        yield (
            "freehold project create hello",
            lambda: shows(reader.do("freehold project create hello", PASS), "decision"),
        )
        yield "cd hello", self.enter
        yield (
            "freehold test",
            lambda: shows(
                reader.do("freehold test", timeout_s=BUILD_TIMEOUT_S),
                "PASSED  test in production",
                "PASSED  smoke in production",
                "signed",
            ),
        )
        yield (
            "freehold diff",
            lambda: shows(reader.do("freehold diff"), "first release", "GREETING", "opens store visits", "way back"),
        )
        yield 'freehold deploy -m "greet visitors"', self.deploy
        yield from self._after_the_first_deploy()

    def _after_the_first_deploy(self) -> Iterator[tuple[str, Callable[[], None]]]:
        reader, ann = self.one, self.ann
        yield (
            "freehold status",
            lambda: shows(reader.do("freehold status"), "hello/production", f"data on {reader.name}"),
        )
        yield "curl http://127.0.0.1:8080/", lambda: self.serves("hello from hello")
        yield 'freehold deploy -m "greet more kindly"', self.deploy_again
        yield 'freehold rollback -m "it was better before"', self.roll_back
        yield "freehold logs", lambda: shows(reader.do("freehold logs"), "GET / 200")
        yield (
            "freehold why hello",
            lambda: shows(
                reader.do("freehold why hello"),
                "1. Who may approve it",
                "test PASSED",
                "8. Which infrastructure",
                "signed by",
            ),
        )
        yield "freehold doctor", lambda: shows(reader.do("freehold doctor"), "no fault")
        yield (
            "freehold env create staging",
            lambda: shows(reader.do("freehold env create staging", YES, PASS), "decision"),
        )
        yield 'freehold deploy --env staging -m "greet testers"', self.stage
        yield "freehold releases --env staging", self.find_release
        yield 'freehold deploy --release 5c1d09 --env production -m "greet everybody as the testers were"', self.go_on
        yield "freehold mesh invite", lambda: self.invite("freehold mesh invite")
        yield "freehold mesh join fh1.k8Qgb4RY...", self.join
        yield "freehold node run", self.second_node
        yield "freehold node run --api 0.0.0.0:4180", self.node_with_api
        people = "freehold mesh invite --kind principal --role approver --for ann"
        yield people, lambda: self.invite(people)
        yield (
            "freehold policy set --mode team",
            lambda: shows(reader.do("freehold policy set --mode team", YES, PASS), "team"),
        )
        yield 'freehold deploy -m "greet everybody"', self.deploy_and_wait
        yield (
            "freehold login fh1.k8Qgb4RY...",
            lambda: shows(ann.do(f"freehold login {self.lines.pop()}", *NEW_PASS), "logged in", "as ann (approver)"),
        )
        yield "freehold approve 3f9a12", self.approve
        yield (
            "freehold token create bot --project hello",
            lambda: shows(reader.do("freehold token create bot --project hello"), "token bot", "proposer in hello"),
        )
        yield "freehold mcp --context home-bot", self.mcp

    # --- what takes more than a line ------------------------------------------------------------------------------

    def enter(self) -> None:
        self.one.here = self.one.home / "hello"

    def dev(self) -> None:
        terminal = self.one.start("freehold dev")
        try:
            address = terminal.wait_for(r"http://(127\.0\.0\.1:\d+)/", BUILD_TIMEOUT_S)[1]
            until(lambda: fetch(address)[0] == 200, COMMAND_TIMEOUT_S, "the first page")
            page = self.one.here / "web" / "templates" / "index.html"
            text = page.read_text()
            page.write_text(text.replace("Visit number", "This is visit number"))
            until(lambda: "This is visit number" in fetch(address)[1], COMMAND_TIMEOUT_S, "the next text")
            app = self.one.here / "web" / "app.py"
            code = app.read_text()
            app.write_text(code + "\nthis is a mistake\n")
            terminal.wait_for(r"SyntaxError", COMMAND_TIMEOUT_S)
            assert fetch(address)[0] == 200, "the version before goes on serving"
            app.write_text(code)
            page.write_text(text)  # what is released below is the template, which is in the build cache
            ended, said = terminal.interrupt()
            assert ended == 0, said
        finally:
            terminal.kill()

    def test(self) -> None:
        file = self.one.here / "freehold.toml"
        file.write_text(file.read_text() + '\n[rollout]\nmin_healthy_time = "1s"\n')
        said = self.one.do("freehold test", timeout_s=BUILD_TIMEOUT_S)
        shows(said, "PASSED  test in production", "PASSED  smoke in production", "signed")

    def node(self) -> None:
        self.address = self.one.run_node("freehold node run")

    def deploy(self) -> None:
        said = self.one.do('freehold deploy -m "greet visitors"', timeout_s=BUILD_TIMEOUT_S)
        shows(said, "stage 1 of 1", "succeeded")

    def serves(self, text: str) -> None:
        until(lambda: text in fetch(self.address)[1], COMMAND_TIMEOUT_S, f"{text!r} to be served")

    def deploy_again(self) -> None:
        self.greet("good day")
        shows(self.one.do('freehold deploy -m "greet more kindly"'), "succeeded")
        self.serves("good day from hello")

    def greet(self, greeting: str) -> None:
        file = self.one.here / "freehold.toml"
        file.write_text(re.sub(r'GREETING = ".*?"', f'GREETING = "{greeting}"', file.read_text()))

    def roll_back(self) -> None:
        shows(self.one.do('freehold rollback -m "it was better before"'), "rolled back")
        self.serves("hello from hello")

    def stage(self) -> None:
        self.greet("hello")
        file = self.one.here / "freehold.toml"
        file.write_text(file.read_text() + '\n[env.staging]\napp.web.routes = ["staging.example.org"]\n')
        shows(self.one.do('freehold deploy --env staging -m "greet testers"', timeout_s=BUILD_TIMEOUT_S), "succeeded")

    def find_release(self) -> None:
        said = self.one.do("freehold releases --env staging")
        self.release = re.search(r"hello/staging +([0-9a-f]{12}) ", said)[1]  # type: ignore[index]

    def go_on(self) -> None:
        more = '--env production -m "greet everybody as the testers were"'
        said = self.one.do(f"freehold deploy --release {self.release} {more}")
        assert "building" not in said
        shows(said, "succeeded")
        self.serves("hello from hello")

    def invite(self, command: str) -> None:
        said = self.one.do(command, PASS)
        self.lines.append(re.search(r"^fh1\.\S+", said, re.MULTILINE)[0])  # type: ignore[index]

    def join(self) -> None:
        shows(self.two.do(f"freehold mesh join {self.lines.pop()}", YES), "was admitted by")

    def second_node(self) -> None:
        address = self.two.run_node("freehold node run")
        until(
            lambda: "hello from hello" in fetch(address)[1], COMMAND_TIMEOUT_S, "the second machine to lead visitors on"
        )
        shows(self.one.do("freehold mesh members"), "one", "two", "alive")

    def node_with_api(self) -> None:
        assert self.one.node is not None
        ended, said = self.one.node.interrupt()
        assert ended == 0, said
        self.address = self.one.run_node("freehold node run --api 127.0.0.1:0")
        self.serves("hello from hello")

    def deploy_and_wait(self) -> None:
        self.greet("hello everybody")
        said = self.one.do('freehold deploy -m "greet everybody"', code=5)
        shows(said, "approval.missing", "next: freehold approve")
        self.change = re.search(r"freehold approve ([0-9a-f]+)", said)[1]  # type: ignore[index]

    def approve(self) -> None:
        said = self.ann.do(f"freehold approve {self.change}", PASS)
        shows(said, "GREETING  hello -> hello everybody", "is approved for 1d")
        self.serves("hello everybody from hello")

    def mcp(self) -> None:
        command = StdioServerParameters(
            command="freehold", args=["mcp", "--context", "home-bot"], env=self.one.environment, cwd=self.one.here
        )

        async def ask() -> None:
            with (self.one.home / "mcp.log").open("w") as told:
                async with Client(stdio_client(command, errlog=told)) as client:
                    names = {tool.name for tool in (await client.list_tools()).tools}
                    assert "approve" not in names
                    assert len(names) == 13
                    status = (await client.call_tool("status", {})).structured_content
                    assert status is not None
                    assert status["me"] == "bot"

        asyncio.run(ask())


def shows(said: str, *texts: str) -> None:
    unwrapped = " ".join(said.split())  # lines are wrapped at the terminal's width, so a long path moves the breaks
    missing = [text for text in texts if " ".join(text.split()) not in unwrapped]
    assert missing == [], f"{missing} is not in:\n{said}"


@pytest.mark.timeout(600)
def test_every_command_of_the_readme_does_what_the_readme_says(tmp_path: Path) -> None:
    wanted = commands_of((ROOT / "README.md").read_text())
    story = Story(tmp_path)
    steps = list(story.steps)
    assert wanted == [command for command, _ in steps], "the README and this test tell the same commands, in one order"
    try:
        for command, step in steps:
            began_s = time.monotonic()
            step()
            print(f"{time.monotonic() - began_s:6.1f} s  {command}")
    finally:
        story.leave()
