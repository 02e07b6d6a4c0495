"""The console in a real browser, in the small form that runs with every change: one node, let in, every view judged by axe."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import npm
from tests.support.browser import Browser, Page
from tests.support.mesh.nodes import Fleet, Machine, free_port
from tests.support.mesh.terminal import Terminal

AXE = Path(__file__).parents[2] / "fixtures" / "axe"
LINK = r"http://localhost:\d+/#[\w-]+"
VIEWS = {"what needs you": "/", "projects": "/projects", "nodes": "/nodes", "logs": "/logs", "history": "/history"}


@dataclass
class Look:
    """A page that was let in, and the node it looks at."""

    machine: Machine
    page: Page
    origin: str

    def show(self, view: str) -> None:
        self.page.js(f"location.hash = {json.dumps('#' + view)}")
        self.page.until(f"location.hash === {json.dumps('#' + view)} && !!document.querySelector('h1')")


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    browser = Browser()
    fleet = Fleet(tmp_path_factory.mktemp("c"))
    terminals: list[Terminal] = []
    try:
        machine = fleet.found("one")
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "greeter")
        port = free_port()
        command = shlex.join(
            [sys.executable, "-c", "from cli.main import main; main()", "console", "--port", str(port)]
        )
        terminals.append(Terminal(command, Path.cwd(), machine.environment))
        page = browser.page(width=1440, height=900)
        page.go(terminals[0].wait_for(LINK, 60.0)[0])
        page.has("What needs you")
        yield Look(machine, page, f"http://localhost:{port}")
    finally:
        for terminal in terminals:
            terminal.kill()
        fleet.close()
        browser.close()


def test_axe_finds_nothing_in_any_view_at_any_width_in_any_palette(look: Look) -> None:
    source = (npm.installed(AXE) / "node_modules" / "axe-core" / "axe.min.js").read_text()
    pairs = []
    for width, dark in ((1440, False), (1440, True), (360, False), (360, True)):
        look.page.resize(width=width, height=800, dark=dark)
        for name, view in VIEWS.items():
            look.show(view)
            look.page.call("Runtime.evaluate", expression=source)  # the page itself may load nothing from elsewhere
            said = look.page.js(
                "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v =>"
                " v.id + ': ' + v.nodes.map(n => n.html.slice(0, 120)).join(' | ')))"
            )
            pairs += [(width, dark, name, entry) for entry in said]
    look.page.resize(width=1440, height=900)
    assert not pairs, "\n".join(map(str, pairs))
