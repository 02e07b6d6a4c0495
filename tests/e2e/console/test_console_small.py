"""The console in a real browser, in the small form that runs with every change: one node, let in, every view judged by axe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import npm
from tests.support.browser import Browser, Page
from tests.support.mesh.looking_on import console_of, show
from tests.support.mesh.nodes import Fleet, Machine, free_port

AXE = Path(__file__).parents[2] / "fixtures" / "axe"
VIEWS = {"what needs you": "/", "projects": "/projects", "nodes": "/nodes", "logs": "/logs", "history": "/history"}


@dataclass
class Look:
    """A page that was let in, and the node it looks at."""

    machine: Machine
    page: Page
    origin: str


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    with ExitStack() as ends:
        browser = Browser()
        ends.callback(browser.close)
        fleet = Fleet(tmp_path_factory.mktemp("c"))
        ends.callback(fleet.close)
        one = fleet.found("one")
        one.typed_ok("env", "create", "production", "-y")
        one.typed_ok("project", "create", "greeter")
        page, port = browser.page(width=1440, height=900), free_port()
        ends.enter_context(console_of(one, page, port))
        yield Look(one, page, f"http://localhost:{port}")


def test_axe_finds_nothing_in_any_view_at_any_width_in_any_palette(look: Look) -> None:
    source = (npm.installed(AXE) / "node_modules" / "axe-core" / "axe.min.js").read_text()
    found = []
    for width, dark in ((1440, False), (1440, True), (360, False), (360, True)):
        look.page.resize(width=width, height=800, dark=dark)
        for name, view in VIEWS.items():
            show(look.page, view)
            look.page.call("Runtime.evaluate", expression=source)  # the page itself may load nothing from elsewhere
            said = look.page.js(
                "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v =>"
                " v.id + ': ' + v.nodes.map(n => n.html.slice(0, 120)).join(' | ')))"
            )
            found += [(width, dark, name, one) for one in said]
    look.page.resize(width=1440, height=900)
    assert not found, "\n".join(map(str, found))
