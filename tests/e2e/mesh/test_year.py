"""The first quarter of a year of five real daemons, visited all the time under a clock that jumps between events.

Certificates live for 90 days and are renewed from the 30th on. After each jump the mesh has some seconds: so a jump is
shorter than what a certificate has left when the next one is 30 days old. The mesh runs the previous commit's files. With
FREEHOLD_RECORD=1 the table is written down. Not here: the rest of the year.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.mesh.test_recovery_key import paper
from tests.support.mesh.jumping import JumpingFleet
from tests.support.mesh.nodes import free_port, until
from tests.support.mesh.site import Site
from tests.support.mesh.year import Year, flat

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[3]
REPORT = ROOT / "docs" / "reports" / "year.md"
ABOUT = """# A quarter of a year in minutes

Written by `FREEHOLD_RECORD=1 pytest -m long tests/e2e/mesh/test_year.py`: five real daemons on one machine of two cores, whose
clock jumps from event to event. Visitors call two projects through every node, all year. After each event a release is
deployed, and `doctor` says "no fault" before the next. Memory is of all daemons and workers together, shared pages divided;
disk is all five folders. The mesh begins with the previous commit's files.

"""
DEPLOYS = 5
NATIVE = Path("runtime/native/_engine.abi3.so")


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The files of the commit before this one, with this one's native engine where their sources are equal."""
    folder = tmp_path / "previous"
    folder.mkdir()
    archived = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD~1"], capture_output=True, check=False)
    if archived.returncode != 0:
        pytest.skip("the history of this repository does not reach the previous commit")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archived.stdout, check=True)
    if (ROOT / NATIVE).exists():
        shutil.copyfile(ROOT / NATIVE, folder / NATIVE)
    return folder


@pytest.fixture
def year(tmp_path: Path, previous: Path, component: Callable[[str], Path]) -> Iterator[Year]:
    fleet = JumpingFleet(tmp_path / "m", tmp_path / "compiled", previous)
    with ExitStack() as stack:
        stack.callback(fleet.close)
        first = fleet.found("one")
        first.typed_ok("env", "create", "production", "-y")
        first.typed_ok("project", "create", "site")
        first.typed_ok("project", "create", "counter")
        site, counter = (Site(tmp_path, component("services"), name) for name in ("site", "counter"))
        year = Year(fleet, site, counter, stack.enter_context(ExitStack()))
        counter.configure("counter", '["100%"]', app='keyvalue = ["visits"]')
        answer = counter.deploy(first)
        assert answer.code == 0, answer
        year.deploy()
        yield year


def join(year: Year, *names: str) -> None:
    line = year.fleet.invite(year.first, "--uses", str(len(names)))
    for name in names:
        year.fleet.join(line, name)
    count = len(year.fleet.machines)
    until(lambda: sum(member["confirmed"] for member in year.first.members().values()) == count, 90, f"{count} members")
    if count == 5:
        year.first.typed_ok("policy", "set", "--voters", "5", "-y")
    until(lambda: sum(member["voter"] for member in year.first.members().values()) == count, 120, f"{count} voters")
    year.deploy()
    for name in names:
        year.visit(year.named(name))


def found(year: Year) -> None:
    """Three voters, a key on paper, a second copy of the data."""
    year.visit(year.first)
    join(year, "two", "three")
    _, key = paper(year.first)
    year.first.typed_ok("mesh", "admins", "add", key, "--recovery", "-y")
    year.first.typed_ok("data", "standby", "counter", "--on", "two", "-y")


def drained(year: Year) -> None:
    year.first.typed_ok("node", "drain", "three", "-y")
    until(lambda: year.named("three").status()["running"] == [], 60, "its apps to stop")
    year.deploy()
    year.first.typed_ok("node", "undrain", "three", "-y")
    until(lambda: "site/production" in year.named("three").status()["running"], 60, "its apps to run again")
    year.first.ok("token", "create", "bot", "--role", "deployer", "--role", "proposer", "--expires", "40d")


def renumbered(year: Year) -> None:
    moved = year.named("three")
    moved.stop()
    moved.start("--listen", f"127.0.0.1:{free_port()}")
    count = len(year.fleet.machines)
    until(lambda: all(machine.connected() == count for machine in year.fleet.machines), 60, "it to be found again")


def grant_ended(year: Year) -> None:
    """The agent's grant of forty days is over: what it signs is refused, and its maker makes another."""
    year.site.configure("by the agent", '["1", "100%"]')
    refused = year.site.deploy(year.first, "--context", "home-bot")
    assert refused.code != 0, refused
    assert "freehold" in refused.json["error"]["next_step"], refused
    year.first.ok("token", "create", "bot2", "--role", "deployer", "--role", "proposer", "--expires", "40d")
    accepted = year.site.deploy(year.first, "--context", "home-bot2")
    assert accepted.code == 0, accepted


def deploys(year: Year) -> None:
    for _ in range(DEPLOYS):
        year.deploy()


def test_nobody_notices_a_quarter_of_a_year(year: Year) -> None:
    year.on(0, "founded: three voters, recovery key, standby", found)
    year.on(15, "two more nodes join", lambda one: join(one, "four", "five"))
    year.on(35, "a node drained, an agent's grant for 40 days", drained)
    year.on(60, "a node renumbered", renumbered)
    before_mib = (year.memory_mib(), year.disk_mib())
    year.on(78, "the agent's grant ended, another made", grant_ended)
    year.on(92, f"{DEPLOYS} deploys", deploys)
    if os.environ.get("FREEHOLD_RECORD"):
        REPORT.write_text(ABOUT + year.table())
    assert year.failed() == [], year.failed()[:5]
    for machine, told in year.counted().items():
        assert told == sorted(set(told)), f"data was lost, as seen at {machine}"
    assert flat(year.deploys_s, 2.5), year.deploys_s
    assert year.memory_mib() < 1.3 * before_mib[0], (year.memory_mib(), before_mib)
    assert year.disk_mib() < 1.5 * before_mib[1], (year.disk_mib(), before_mib)
    verified = json.loads(year.first.run("audit", "--verify", "--json").stdout)
    assert verified["ok"], verified
