"""The stage of whatever looks at the console: commands that print a link, a person who approves with a passkey, a project.

A mesh of some nodes under the policy `team`, somebody who proposes, and Ann on a laptop of her own, whose browser has a
passkey and is let into the console. Not here: what is seen there.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.browser import Browser, Page
from tests.support.mesh.nodes import PASSPHRASE, Answer, Fleet, Machine, free_port
from tests.support.mesh.terminal import Terminal

ROOT: Final = Path(__file__).resolve().parents[3]
LINK: Final = r"http://localhost:\d+/#[\w-]+"
SAYS_S: Final = 120.0
BUILT_S: Final = 300.0
"""A Python project is built before it is proposed."""


def freehold(machine: Machine, *arguments: str) -> Terminal:
    """Type a command into a terminal of its own."""
    command = shlex.join([sys.executable, "-c", "from cli.main import main; main()", *arguments])
    return Terminal(command, ROOT, machine.environment)


@contextmanager
def console_of(machine: Machine, page: Page, port: int) -> Iterator[Terminal]:
    """Run `freehold console` for the duration of the block, and let a page in by the link that it prints."""
    console = freehold(machine, "console", "--port", str(port))
    try:
        page.go(console.wait_for(LINK, SAYS_S)[0])
        page.has("What needs you")
        yield console
    finally:
        console.kill()


def show(page: Page, view: str) -> None:
    """Open a view of the console, and wait until it is drawn."""
    page.js(f"location.hash = {json.dumps('#' + view)}")
    there = f"location.hash === {json.dumps('#' + view)}"
    page.until(f"{there} && (document.querySelector('h1') || {{innerText: 'One moment'}}).innerText !== 'One moment'")


@dataclass(frozen=True)
class Team:
    """Who is there: the mesh, the one who proposes, Ann who approves, her page, and the console behind it."""

    fleet: Fleet
    dev: Machine
    ann: Machine
    page: Page
    port: int
    console: Terminal

    @property
    def origin(self) -> str:
        """Of the console's page."""
        return f"http://localhost:{self.port}"

    def show(self, view: str = "/") -> None:
        """Open a view of the console."""
        show(self.page, view)

    def approve(self, change: str) -> None:
        """Approve on the page by keyboard: from its top to the button and the touch."""
        self.show(f"/change/{change}")
        self.page.until(f"document.querySelector('main').innerText.includes({json.dumps(change)})")
        self.page.has("Approve with passkey")
        self.page.js("document.activeElement.blur(); document.body.focus()")
        self.page.tab_to("Approve with passkey")
        self.page.key("Enter")
        self.page.has("Approved.", SAYS_S)

    def proposed(self, answer: Answer) -> str:
        """The change of a deploy that waits for an approval."""
        assert answer.code == 5, answer
        return str(answer.json["change"])


def press_by_mouse(page: Page, words: str) -> None:
    """Press the button that says so."""
    page.js(
        f"[...document.querySelectorAll('button')].find((one) => one.innerText.includes({json.dumps(words)})).click()"
    )


@contextmanager
def a_team(
    folder: Path, project: str, *, nodes: int = 2, grown: tuple[str, ...] = (), owned: tuple[str, ...] = (),
    compiled: Path | None = None, width: int = 1440, press: Callable[[Page, str], object] = press_by_mouse,
) -> Iterator[Team]:  # fmt: skip
    """Yield a team before the console; its mesh has this project in production. `press` presses the page's buttons."""
    with ExitStack() as ends:
        browser = Browser()
        ends.callback(browser.close)
        fleet = Fleet(folder / "m", compiled or folder / "compiled")
        ends.callback(fleet.close)
        dev = fleet.found("one", "--policy", "team", "--api", "127.0.0.1:0")
        fleet.grow(nodes, *grown)
        dev.typed_ok("env", "create", "production", "-y")
        dev.typed_ok("project", "create", project, *owned)
        ann = Machine(folder / "ann")
        line = fleet.invite(dev, "--kind", "principal", "--role", "approver", "--role", "deployer", "--for", "ann")
        assert ann.typed("login", line, "--name", "work", typing=(PASSPHRASE, PASSPHRASE)).code == 0
        port, page = free_port(), browser.page(width=width, height=900)
        page.authenticator()
        adding = freehold(ann, "passkey", "add", "--port", str(port))
        ends.callback(adding.kill)
        page.go(adding.wait_for(LINK, SAYS_S)[0])
        page.has("Make the passkey")
        press(page, "Make the passkey")
        assert adding.end(SAYS_S, [("Passphrase of .*: ", PASSPHRASE)])[0] == 0
        console = ends.enter_context(console_of(ann, page, port))
        yield Team(fleet, dev, ann, page, port, console)


class Greeter:
    """A copy of the example `greeter`, whose releases differ by their greeting; one that greets nobody fails."""

    def __init__(self, folder: Path) -> None:
        ignored = shutil.ignore_patterns(".freehold")
        self.folder = Path(shutil.copytree(ROOT / "examples" / "greeter", folder / "greeter", ignore=ignored))

    def configure(
        self, greeting: str, *, healthy: str = "1s", hosts: str = "", stages: str = '["1", "2", "100%"]'
    ) -> None:
        """Write its freehold.toml; `hosts` is what the app may reach, as a line of it."""
        text = (ROOT / "examples" / "greeter" / "freehold.toml").read_text()
        for old, new in (
            ('GREETING = "hello"', f'GREETING = "{greeting}"'),
            ('["1", "2", "100%"]', stages),
            ('min_healthy_time = "2s"', f'min_healthy_time = "{healthy}"'),
            ("[app.web]\n", f"[app.web]\n{hosts}\n" if hosts else "[app.web]\n"),
        ):
            assert old in text, old
            text = text.replace(old, new)
        (self.folder / "freehold.toml").write_text(text)

    def deploy(self, machine: Machine, request: str) -> Answer:
        """Propose what it is now, without waiting."""
        options = ("--folder", str(self.folder), "-m", request, "--detach", "--json")
        return machine.run("deploy", *options, timeout_s=BUILT_S)

    def lane(self, machine: Machine) -> dict[str, Any]:
        """What runs of it in production."""
        lane: dict[str, Any] = json.loads(machine.get("/v1/lanes/greeter/production"))
        return lane

    def runs(self, machine: Machine, change: str) -> bool:
        """Whether this change is what runs."""
        return bool((self.lane(machine)["base"] or {}).get("change") == change)
