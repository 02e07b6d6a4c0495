"""What the console costs: its size, how soon it paints, and what a page that stays open on a busy mesh of 32 costs.

All is real: a Chromium, `freehold console`, and a mesh of 32 nodes of which one is a process of its own (the one looked at)
and the others share one (crowd.py). Ten projects run on every node; visitors call one of them all the time, whose next
release is open in the stage of all nodes. Beside that the others are released anew in two stages, one after the other: a
release a minute, which is a busy day, and then without a pause, which is the worst there is. Processor time is that of the
processes, from schedstat; the node's and the console's are beside what they cost with nobody looking at the same load. A
bare page of the same size is painted in the same run. Needs a Chromium.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks import crowd
from benchmarks.processes import threads_cpu_s
from benchmarks.rows import Row, at_most
from cli.console.serving import asset, asset_names, composed
from tests.fixtures.build import component
from tests.support.browser import Browser, Page
from tests.support.mesh.looking_on import console_of
from tests.support.mesh.nodes import Fleet, Machine, free_port, until
from tests.support.mesh.site import Site, visitors
from tests.support.mesh.terminal import Terminal

NODES: Final = 32
PROJECTS: Final = 10
PAINTS: Final = 9
WATCH_S: Final = 60.0
SETTLE_S: Final = 8.0
SIZE_AIM_BYTES: Final = 60_000
PAINT_AIM_MS: Final = 200.0
CPU_AIM_PERCENT: Final = 1.0
NEVER_S: Final = 1e9
PACES_S: Final = (NEVER_S, 60.0, 0.0)
"""From the begin of one release to that of the next; six times as fast in a short look."""

VIEWS: Final = (("/", "what needs you", "What needs you"), ("/lane/site-0/production", "a rollout", "The rollout"))
PAINTED: Final = """new Promise((done) => new PerformanceObserver((list) => {
  for (const one of list.getEntriesByName('first-contentful-paint')) done(one.startTime);
}).observe({ type: 'paint', buffered: true }))"""
BEFORE_PAINT: Final = (
    "1 + performance.getEntriesByType('resource').filter((one) => one.renderBlockingStatus === 'blocking').length"
)
"""How many requests the paint waits for: the page's own, and those that the browser says block it."""


def run(quick: bool) -> Iterator[Row]:
    size = sum(len(asset(name)) for name in asset_names())
    yield at_most("console: all files of both pages", size, "bytes", SIZE_AIM_BYTES)
    nodes, projects = (4, 2) if quick else (NODES, PROJECTS)
    folder = Path(tempfile.mkdtemp(prefix="fh"))
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        fleet, browser = Fleet(folder, folder / "c"), Browser()
        ends.callback(fleet.close)
        ends.callback(browser.close)
        first = fleet.found("n0", "--policy", "solo")
        page, port = browser.page(width=1440, height=900), free_port()
        console = ends.enter_context(console_of(first, page, port))
        yield from _paints(page, port)
        line = fleet.invite(first, "--uses", str(nodes - 1), "--role", "voter", "--role", "worker")
        ends.enter_context(crowd.joined(folder / "m", line, nodes - 1, folder / "c"))
        until(lambda: _confirmed(first) == nodes, 240, f"{nodes} confirmed nodes", every_s=0.5)
        others = ends.enter_context(_living(first, folder, projects))
        watch_s = WATCH_S / (6 if quick else 1)
        for pace_s in PACES_S:
            every_s = pace_s / (6 if quick else 1)
            with _released(first, others, every_s):
                what = f"{nodes} nodes x {projects} apps, {_in_words(every_s)}"
                yield from _watched(browser, page, port, first, console, watch_s, what)


def _in_words(every_s: float) -> str:
    if every_s == 0.0:
        return "releases without a pause"
    return "no other release" if every_s > NEVER_S / 10 else f"a release every {every_s:g} s"


def _confirmed(machine: Machine) -> int:
    return sum(member["confirmed"] and member["connected"] for member in machine.members().values())


# --- the first paint ----------------------------------------------------------------------------------------------------


def _paints(page: Page, port: int) -> Iterator[Row]:
    """Paint the console and a bare page of its size in turn."""
    body, _ = composed("console.html")
    ours, theirs, useful = list[float](), list[float](), list[float]()
    with _bare(b"<!doctype html><title>x</title><h1>x</h1><!--" + b"x" * (len(body) - 49) + b"-->") as other:
        for _ in range(PAINTS):
            theirs.append(_painted_ms(page, f"http://localhost:{other}/", "x"))
            ours.append(_painted_ms(page, f"http://localhost:{port}/", "What needs you"))
            useful.append(float(page.js("performance.getEntriesByName('useful')[0].startTime")))
            waits = int(page.js(BEFORE_PAINT))
    bare = median(theirs)
    note = f"median of {PAINTS}, {min(ours):.0f} to {max(ours):.0f} ms; {median(ours) / bare:.2f} x the bare page"
    yield at_most("console: first paint from loopback", round(median(ours), 1), "ms", PAINT_AIM_MS, note=note,
                  peer=f"a bare page of {len(body)} bytes: {bare:.1f}")  # fmt: skip
    yield at_most("console: requests before the first paint", waits, "requests", 1)
    yield Row("console: what needs you is shown", round(median(useful), 1), "ms",
              note="signed answers of the node, six of them, are on the page")  # fmt: skip


def _painted_ms(page: Page, url: str, words: str) -> float:
    """Load a page, and return when something first stood on it."""
    page.go(url)
    page.has(words)
    page.js("performance.getEntriesByName('useful').length || performance.mark('useful')")
    return float(page.js(PAINTED))


@contextlib.contextmanager
def _bare(body: bytes) -> Iterator[int]:
    """Serve bytes as a page, by Python's own server; yield its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- a page that stays open -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _living(first: Machine, folder: Path, projects: int) -> Iterator[list[Site]]:
    """Run projects on all nodes: visitors of the first, whose next release stays open; yield the others."""
    first.typed_ok("env", "create", "production", "-y")
    sites = [Site(folder, component("services"), f"site-{number}") for number in range(projects)]
    for site in sites:
        first.typed_ok("project", "create", site.name)
        _release(first, site, "hello")
    with visitors([first], sites[0].name):
        path = sites[0].folder / "freehold.toml"
        path.write_text(path.read_text().replace('= "1s"', '= "1s"\npause = "approve"').replace('"hello"', '"again"'))
        answer = sites[0].deploy(first, "--detach")
        assert answer.code == 0, answer
        yield sites[1:]


@contextlib.contextmanager
def _released(first: Machine, sites: Sequence[Site], every_s: float) -> Iterator[None]:
    """Release one of these anew so often, in turn, for the duration of the block."""
    over = threading.Event()
    releasing = threading.Thread(target=_release_on, args=(first, sites, every_s, over))
    releasing.start()
    try:
        yield
    finally:
        over.set()
        releasing.join()


def _release_on(first: Machine, sites: Sequence[Site], every_s: float, over: threading.Event) -> None:
    number, wait_s = 0, every_s / 2
    while not over.wait(wait_s):
        number += 1
        began_s = time.monotonic()
        _release(first, sites[number % len(sites)], f"hello {number} of {every_s:g}")
        wait_s = max(0.0, began_s + every_s - time.monotonic())


def _release(first: Machine, site: Site, greeting: str) -> None:
    site.configure(greeting, '["1", "100%"]')
    answer = site.deploy(first)
    assert answer.code == 0, answer


def _cost(browser: Browser, page: Page, pids: dict[str, int], for_s: float) -> dict[str, float]:
    """The share of a core, in percent, of the browser's pages and of these processes."""

    def now() -> dict[str, float]:
        metrics = {metric["name"]: metric["value"] for metric in page.call("Performance.getMetrics")["metrics"]}
        return {
            "page": sum(_renderers(browser).values()), "tasks": metrics["TaskDuration"],
            **{name: threads_cpu_s(pid) for name, pid in pids.items()},
        }  # fmt: skip

    before, began_s = now(), time.monotonic()
    time.sleep(for_s)
    after, took_s = now(), time.monotonic() - began_s
    return {name: 100 * (after[name] - before[name]) / took_s for name in after}


def _renderers(browser: Browser) -> dict[int, float]:
    """Processor time of each page process of a browser."""
    shares = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (folder / "cmdline").read_bytes()
            if b"--type=renderer" in words and os.getpgid(int(folder.name)) == browser.pid:
                shares[int(folder.name)] = threads_cpu_s(int(folder.name))
    return shares


def _watched(
    browser: Browser, page: Page, port: int, node: Machine, console: Terminal, watch_s: float, what: str
) -> Iterator[Row]:
    assert node.process is not None
    pids = {"node": node.process.pid, "console": console.process.pid}
    page.call("Performance.enable")
    page.call("Network.disable")  # each request would be told to whoever measures
    page.go("about:blank")
    time.sleep(SETTLE_S)
    unseen = _cost(browser, page, pids, watch_s)
    page.go(f"http://localhost:{port}/")
    page.has("What needs you")
    for view, name, words in VIEWS:
        page.js(f"location.hash = '#{view}'")
        page.has(words)
        time.sleep(SETTLE_S)
        seen = _cost(browser, page, pids, watch_s)
        note = f"over {watch_s:.0f} s; tasks of the page's thread {seen['tasks']:.2f} %"
        yield at_most(f"console open on {what}, {name}: CPU of the page", round(seen["page"], 2), "% of a core",
                      CPU_AIM_PERCENT, note=note)  # fmt: skip
        for process in ("node", "console"):
            more = seen[process] - unseen[process]
            note = f"{seen[process]:.2f} % with it, {unseen[process]:.2f} % without"
            yield at_most(f"console open on {what}, {name}: CPU more of the {process}", round(max(more, 0.0), 2),
                          "% of a core", CPU_AIM_PERCENT, note=note)  # fmt: skip
