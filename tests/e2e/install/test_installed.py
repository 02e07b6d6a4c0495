"""`freehold node install` on a machine that a real systemd runs: what stands in the README and in `--help`, done.

A long haul: it boots a machine in namespaces of its own (booted.py). Not here: the unit's text (test_systemd_unit.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cli.host import systemd
from tests.support.mesh import booted
from tests.support.mesh.booted import Booted
from tests.support.mesh.nodes import PASSPHRASE, Machine, until

EXPOSURE_MAX = 1.5
ELSEWHERE = "/srv/a node"
"""A data folder with a blank in its name, which the unit must quote."""

PROBLEM = booted.problem()
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROBLEM != "", reason=PROBLEM),
]


def identity(machine: Booted, data: str = str(systemd.DATA_FOLDER)) -> str:
    """The id of the node that answers."""
    return str(json.loads(machine.freehold("node", "status", "--data", data, "--json"))["node"]["node"])


def answering(machine: Booted) -> bool:
    return machine.try_freehold("node", "status", "--data", str(systemd.DATA_FOLDER)).returncode == 0


def answers(machine: Booted) -> bool:
    """Whether the workers take visitors: nothing is deployed, which they say."""
    code = machine.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8080/").stdout
    return code == "404"


def main_pid(machine: Booted) -> int:
    return int(machine.unit(systemd.UNIT_NAME)["MainPID"])


def owner(machine: Booted, path: str) -> str:
    return machine.ok("stat", "-c", "%U", path)


def exists(machine: Booted, path: str) -> bool:
    return machine.run("test", "-e", path).returncode == 0


def make_node(machine: Booted, folder: Path) -> None:
    """Found a mesh here, where a passphrase can be typed, and take the node's folder there."""
    new_machine = Machine(folder)
    answer = new_machine.typed(
        "mesh", "create", "home", "--data", str(machine.shared / "node"), "--policy", "solo", "-y", "--json",
        typing=(PASSPHRASE, PASSPHRASE),
    )  # fmt: skip
    assert answer.code == 0, answer
    machine.ok("mkdir", "-p", str(systemd.STATE_FOLDER))
    machine.ok("cp", "-a", "/mnt/shared/node", str(systemd.DATA_FOLDER))


def test_a_node_is_installed_survives_its_end_is_updated_moved_and_removed(tmp_path: Path) -> None:
    mounts, name = Path("/proc/self/mounts").read_text(), systemd.UNIT_NAME
    with booted.booted() as machine:
        make_node(machine, tmp_path / "admin")
        machine.ok("mkdir", "-p", "/opt/freehold/mine", "/srv/mine")

        machine.freehold("node", "install", "-y")
        unit = machine.unit(name)
        assert (unit["ActiveState"], unit["SubState"], unit["UnitFileState"]) == ("active", "running", "enabled")
        node = identity(machine)
        until(lambda: answers(machine), 30, "visitors to be answered")
        assert owner(machine, str(systemd.DATA_FOLDER)) == systemd.USER
        assert set(machine.processes(systemd.USER)) >= {main_pid(machine)}
        said = machine.ok("systemd-analyze", "security", name, "--no-pager").splitlines()[-1]
        exposure = re.search(r"exposure level for \S+: ([0-9.]+)", said)
        assert exposure is not None, said
        print(said)
        assert float(exposure[1]) <= EXPOSURE_MAX, said

        systemd_starts_it_again_and_visitors_do_not_wait(machine, name, node)

        before, link = main_pid(machine), str(systemd.PREFIX / "current")
        version = machine.ok("readlink", link)
        machine.ok("touch", f"{version}/of-the-version-before")
        machine.freehold("node", "install", "-y")
        assert main_pid(machine) not in {0, before}, "the update did not restart it"
        assert machine.ok("readlink", link) == version
        assert not exists(machine, f"{version}/of-the-version-before")
        assert identity(machine) == node

        machine.freehold("node", "uninstall", "-y")
        assert machine.unit(name)["LoadState"] == "not-found"
        assert machine.processes(systemd.USER) == {}
        assert exists(machine, f"{systemd.DATA_FOLDER}/node.key"), "the data went with the service"
        assert machine.ok("ls", str(systemd.PREFIX)) == "mine"

        machine.ok("mv", str(systemd.DATA_FOLDER), ELSEWHERE)
        machine.freehold("node", "install", "--data", ELSEWHERE, "-y")
        assert identity(machine, ELSEWHERE) == node
        until(lambda: answers(machine), 30, "visitors to be answered from there")
        assert (owner(machine, ELSEWHERE), owner(machine, "/srv"), owner(machine, "/srv/mine")) == (
            systemd.USER,
            "root",
            "root",
        )

        machine.freehold("node", "uninstall", "--data", ELSEWHERE, "--purge", "-y")
        assert machine.ok("ls", "/srv") == "mine"
        assert machine.ok("ls", str(systemd.PREFIX)) == "mine"
        assert machine.run("getent", "passwd", systemd.USER).returncode == 2, "the user is still there"
        assert not exists(machine, str(systemd.UNIT_PATH))
        group, first = _cgroup_of(machine.pid), machine.pid
    assert not group.exists()
    assert not Path(f"/proc/{first}").exists()
    assert Path("/proc/self/mounts").read_text() == mounts, "something stayed mounted"


def systemd_starts_it_again_and_visitors_do_not_wait(machine: booted.Booted, name: str, node: str) -> None:
    """Kill the daemon, then stop and start it as an operator does."""
    killed = main_pid(machine)
    workers = set(machine.processes(systemd.USER)) - {killed}
    machine.ok("kill", "-9", str(killed))
    until(lambda: main_pid(machine) not in {0, killed}, 30, "systemd to start it again")
    until(lambda: machine.unit(name)["ActiveState"] == "active", 30, "the unit to be active")
    until(lambda: answering(machine), 60, "it to answer")
    assert (machine.unit(name)["NRestarts"], identity(machine)) == ("1", node)
    assert workers <= set(machine.processes(systemd.USER)), "its workers did not serve on"
    assert answers(machine)

    machine.ok("systemctl", "stop", name)
    assert machine.unit(name)["ActiveState"] == "inactive"
    until(lambda: machine.processes(systemd.USER) == {}, 30, "every process of it to be gone")
    machine.ok("systemctl", "start", name)
    until(lambda: answers(machine), 60, "visitors to be answered after the start")
    assert identity(machine) == node


def _cgroup_of(pid: int) -> Path:
    """Where a process's version 2 cgroup is, less what systemd made below the machine's own."""
    line = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    path = booted.cgroups()
    assert path is not None
    return path / line.removeprefix("0::/").split("/init.scope")[0]
