"""The console in a real browser, in the small form that runs with every change: one node, let in, every view judged by axe."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.console.serving import composed
from tests.support import npm
from tests.support.browser import Browser, Page
from tests.support.mesh.looking_on import console_of, show
from tests.support.mesh.nodes import Fleet, Machine, free_port

REACH = """(async (console) => {
  const waited = (made, place) => new Promise((done) => {
    made.onload = () => done('loaded');
    made.onerror = () => done('refused');
    place.append(made);
  });
  const script = Object.assign(document.createElement('script'), { type: 'module', src: `${console}/assets/sign.js` });
  const ask = (path, options) => fetch(console + path, options).then((answer) => answer.type, () => 'refused');
  const body = new URLSearchParams({ key: 'ab'.repeat(32) });
  const other = window.open(`${console}/`);
  await new Promise((done) => { setTimeout(done, 1000); });
  return {
    script: await waited(script, document.head), read: await ask('/console/where'),
    sent: await ask('/console/where', { mode: 'no-cors' }),
    form: await ask('/console/enrol', { method: 'POST', body, mode: 'no-cors' }), severed: !other || other.closed,
  };
})"""
"""What a page of elsewhere tries with the console's origin."""

AXE = Path(__file__).parents[2] / "fixtures" / "axe"
VIEWS = {"what needs you": "/", "projects": "/projects", "nodes": "/nodes", "logs": "/logs", "history": "/history"}


class Elsewhere(BaseHTTPRequestHandler):
    """A site of somebody else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title><body>elsewhere")

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Look:
    """A page that was let in, and the node it looks at."""

    machine: Machine
    browser: Browser
    page: Page
    origin: str


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    with ExitStack() as ends:
        browser = Browser()
        ends.callback(browser.close)
        fleet = Fleet(tmp_path_factory.mktemp("c"))
        ends.callback(fleet.close)
        machine = fleet.found("one")
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "greeter")
        page, port = browser.page(width=1440, height=900), free_port()
        ends.enter_context(console_of(machine, page, port))
        yield Look(machine, browser, page, f"http://localhost:{port}")


def test_axe_finds_nothing_in_any_view_at_any_width_in_any_palette(look: Look) -> None:
    source = (npm.installed(AXE) / "node_modules" / "axe-core" / "axe.min.js").read_text()
    findings = []
    for width, dark in ((1440, False), (1440, True), (360, False), (360, True)):
        look.page.resize(width=width, height=800, dark=dark)
        for name, view in VIEWS.items():
            show(look.page, view)
            look.page.call("Runtime.evaluate", expression=source)  # the page itself may load nothing from elsewhere
            said = look.page.js(
                "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v =>"
                " v.id + ': ' + v.nodes.map(n => n.html.slice(0, 120)).join(' | ')))"
            )
            findings += [(width, dark, name, finding) for finding in said]
    look.page.resize(width=1440, height=900)
    assert not findings, "\n".join(map(str, findings))


def test_the_place_of_data_is_shown_as_far_as_the_asked_node_knows_it(look: Look) -> None:
    lane = {"project": "greeter", "environment": "production", "data_node": "n1", "frozen": "", "rollout": None, "base": None,
           "routes": [], "retained": [], "last_abort": ""}  # fmt: skip
    standby = {"node": "n2", "at_ms": 1_800_000_000_000, "problem": "the disk of n2 is full"}
    holder = {"here": "n1", "node": "n1", "files": [{"name": "a", "size_bytes": 3000}], "standby": standby, "copy_ms": 0,
              "backup_ms": 0, "backup_problem": ""}  # fmt: skip

    def told(data: object) -> str:
        drawn = (
            f"made.lane({json.dumps(lane)}, [], null, {json.dumps(data)}).flat(9).filter((one) => one instanceof Node)"
        )
        text = look.page.js(
            f"import('/assets/views.js').then((made) => {drawn}.map((one) => one.textContent).join(' '))"
        )
        return str(text).partition("Data ")[2]

    assert "3 KiB" in told(holder)
    assert "the disk of n2 is full" in told(holder)
    assert "newest backupnone" in told(holder)
    assert "standbynone" in told({**holder, "standby": None})
    elsewhere = told({**holder, "here": "n2", "copy_ms": 1_800_000_000_000})
    assert "second copy on this node" in elsewhere
    assert "standby" not in elsewhere, "only the holder knows"
    assert told(None) == "lies onn1"
    assert "<202E>" in told({**holder, "backup_problem": "\u202e"})


def test_names_for_visitors_are_beside_the_nodes(look: Look) -> None:
    show(look.page, "/nodes")
    look.page.has("Names for visitors")
    look.page.has("no route has a name")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["other-site", "other-port"])
def test_a_page_of_elsewhere_reaches_nothing_of_the_console(look: Look, host: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        foreign = look.browser.page(f"http://{host}:{server.server_port}/")
        reached = foreign.js(f"{REACH}({json.dumps(look.origin)})")
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert reached == {"script": "refused", "read": "refused", "sent": "refused", "form": "refused", "severed": True}
    ours = look.page.js("fetch('/console/where').then((answer) => answer.type)")
    assert ours == "basic", "the console's own page asks the same, and is answered"
    policy = look.page.js("fetch('/').then((answer) => answer.headers.get('Content-Security-Policy'))")
    for said in (policy, composed("passkey.html")[1]):
        assert "frame-ancestors 'none'" in said, "no page around one of ours moves a button under a finger"
