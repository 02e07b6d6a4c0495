"""The daemon's own upgrade on a real node that is visited: back by itself when it is bad, and nobody notices either way.

Not here: a mesh of several nodes.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh.in_process import PROJECT
from tests.support.mesh.long_requests import long_requests
from tests.support.mesh.nodes import Fleet, Machine, free_port, until
from tests.support.mesh.site import ask
from tests.support.mesh.wheels import changed_text, make_wheel

VISITORS = 8
VISITS_PER_S = 200
NEWER_SCHEMA = changed_text("node/store/storage.py", "SCHEMA_VERSION = 2\n", "SCHEMA_VERSION = 3\n")[
    "node/store/storage.py"
].replace("_MIGRATIONS = {1:", '_MIGRATIONS = {2: "CREATE TABLE IF NOT EXISTS later (x)", 1:')
OPENED = "        vote, state, fence = await storage.open()\n"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("u")
    fleet = Fleet(folder)
    try:
        machine = fleet.found("one", "--ingress", f"127.0.0.1:{free_port()}", "--listen", f"127.0.0.1:{free_port()}")
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "site")
        project = folder / "site"
        project.mkdir()
        shutil.copyfile(component("probe"), project / "web.wasm")
        (project / "freehold.toml").write_text(PROJECT.format(app='timeout = "1m"', smoke="/", healthy="0s"))
        machine.ok("deploy", "--folder", str(project), "-m", "to be visited")
        until(lambda: ask(machine.ingress, "site", "/") == (200, "probe\n"), 30, "the app to answer")
        yield machine
    finally:
        fleet.close()


@contextmanager
def visited(address: str) -> Iterator[Counter[int]]:
    """Visit the app VISITS_PER_S times a second, each on a connection of its own."""
    seen: Counter[int] = Counter()
    stop = threading.Event()

    def visit() -> None:
        while not stop.wait(VISITORS / VISITS_PER_S):
            seen[ask(address, "site", "/")[0]] += 1

    visitors = [threading.Thread(target=visit) for _ in range(VISITORS)]
    for visitor in visitors:
        visitor.start()
    try:
        yield seen
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()


def upgrade(machine: Machine) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(machine.get("/v1/upgrade"))
    return document


def started(machine: Machine, wheel: Path, phase: str, timeout_s: float = 120) -> dict[str, Any]:
    """Start an upgrade and wait for its end; the node that is asked starts anew meanwhile."""
    machine.typed_ok("mesh", "upgrade", "start", str(wheel), "--window", "2s", "--detach", "-y")
    document: dict[str, Any] = {}

    def over() -> bool:
        try:
            document.update(upgrade(machine))
        except (OSError, StopIteration, AssertionError):
            return False
        assert document["phase"] in {"running", phase}, document
        return bool(document["phase"] == phase)

    until(over, timeout_s, f"the upgrade to be {phase}")
    return document


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_bad_release_goes_back_with_its_stores_and_nobody_notices(node: Machine, tmp_path: Path) -> None:
    crash = changed_text("node/daemon.py", OPENED, f'{OPENED}        raise RuntimeError("bad")\n')
    bad = make_wheel(tmp_path, "0.2.0", {**crash, "node/store/storage.py": NEWER_SCHEMA})
    slot = node.status()["slot"]
    with visited(node.ingress) as seen:
        document = started(node, bad, "failed")
    assert "it ended 3 times before it was found healthy" in document["why"]
    assert [(entry["version"], entry["state"]) for entry in document["nodes"]] == [("0.1.0", "went back")]
    assert set(seen) == {200}, seen
    assert seen[200] > VISITS_PER_S
    until(lambda: node.status()["speaking"], 20, "it to vote again")
    assert node.status()["slot"] == slot
    assert node.status()["quarantined"] == ""
    said = node.run("doctor")
    assert "went back" in said.stdout + said.stderr, "doctor says it, too"


@pytest.mark.timeout(300)
def test_a_good_release_runs_from_then_on_and_nobody_notices(node: Machine, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "0.2.0", {"node/store/storage.py": NEWER_SCHEMA})
    assert node.ok("mesh", "upgrade", "plan", str(wheel))["problems"] == []
    assert node.process is not None
    pid = node.process.pid
    with visited(node.ingress) as seen, long_requests(node.ingress, "site.test", lasts_s=12) as streams:
        document = started(node, wheel, "done")
        time.sleep(2)
    assert [(entry["version"], entry["state"]) for entry in document["nodes"]] == [("0.2.0", "done")]
    assert set(seen) == {200}, seen
    assert seen[200] > VISITS_PER_S
    assert streams.ends == ["", ""], "what was under way came to its end"
    assert node.process.pid == pid, "a service manager goes on watching it"
    node.typed_ok("env", "create", "staging", "-y")
    assert not list(node.data.glob("before-schema-*")), "a copy from before its votes is no way back"

    older = make_wheel(tmp_path, "0.1.9")
    refused = node.typed("mesh", "upgrade", "start", str(older), "-y", "--json")
    assert refused.code == 3, refused
    assert "0.1.9 is older than 0.2.0" in refused.stdout + refused.stderr

    node.stop()
    node.start()
    assert node.status()["version"] == "0.2.0", "it is the one that starts"
    until(lambda: ask(node.ingress, "site", "/") == (200, "probe\n"), 30, "the app to answer")
