"""The systemd unit that `node install` writes: what systemd says of it, and a node that compiles and serves under it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest

from cli.host import systemd
from tests.support.mesh import confined
from tests.support.mesh.in_process import PROJECT
from tests.support.mesh.nodes import Fleet, Machine, until

EXPOSURE_MAX = 2.5
SYSTEMD_MIN = 250
"""The first that judges a unit file without installing it."""


def systemd_version() -> int:
    """The version of systemd-analyze, 0 if it is missing."""
    if shutil.which("systemd-analyze") is None:
        return 0
    said = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[1])


needs_systemd = pytest.mark.skipif(
    systemd_version() < SYSTEMD_MIN, reason=f"needs systemd-analyze {SYSTEMD_MIN} or newer: apt-get install systemd"
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False)


def written(folder: Path, port: int) -> Path:
    path = folder / systemd.UNIT_NAME
    path.write_text(systemd.unit_text(systemd.DATA_FOLDER, [port]))
    return path


@needs_systemd
@pytest.mark.parametrize("port", [8080, 80])
def test_systemd_finds_no_mistake_in_the_unit_and_little_exposure(tmp_path: Path, port: int) -> None:
    unit = written(tmp_path, port)
    said = analyze("security", "--offline=true", str(unit)).stdout
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert level is not None, said
    assert float(level[1]) <= EXPOSURE_MAX, said
    # What it starts is not installed here; the rest must be without a remark.
    unit.write_text(unit.read_text().replace(f"{systemd.PREFIX}/current/bin/freehold", sys.executable))
    verified = analyze("verify", str(unit))
    assert (verified.returncode, verified.stderr) == (0, ""), verified


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    fleet = Fleet(tmp_path)
    try:
        yield fleet.found("one")
    finally:
        fleet.close()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@needs_systemd
@pytest.mark.skipif(os.getuid() != 0, reason="a mount namespace of its own needs root")
@pytest.mark.skipif(find_library("seccomp") is None, reason="libseccomp is missing: apt-get install libseccomp2")
def test_a_node_under_the_units_restrictions_compiles_deploys_and_serves(
    machine: Machine, component: Callable[[str], Path], tmp_path: Path
) -> None:
    machine.stop()
    writable = str(machine.folder), str(machine.runtime)
    machine.start(under=(sys.executable, confined.__file__, str(written(tmp_path, 8080)), *writable))
    assert machine.process is not None
    children = Path(f"/proc/{machine.process.pid}/task/{machine.process.pid}/children").read_text().split()
    for pid in (machine.process.pid, *map(int, children)):
        status = status_of(pid)
        assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapBnd"], 16)) == ("2", "1", 0)
    project = tmp_path / "project"
    project.mkdir()
    shutil.copyfile(component("probe"), project / "web.wasm")
    (project / "freehold.toml").write_text(PROJECT.format(app="", smoke="/", healthy="0s"))
    machine.typed_ok("env", "create", "production", "-y")
    machine.typed_ok("project", "create", "site")
    machine.ok("deploy", "--folder", str(project), "-m", "under the unit")
    address = next(entry for entry in machine.status()["ingress"] if not entry.startswith("unix:"))

    def served() -> bool:
        asked = urllib.request.Request(f"http://{address}/", headers={"Host": "site.test"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return bool(answer.read() == b"probe\n")

    until(served, 20, "the app to answer")
    assert list(machine.data.glob("compiled/*")), "nothing was compiled under the restrictions"
