"""Every command of several durable steps, killed before each of its file operations and run again: it is done.

Nothing of the first attempt is in the second's way: no key, no folder, no used invite. The command is the real one, in a
process that dies by SIGKILL; the mesh that is joined and logged in to is a real node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import cli.commands.mesh.node as node_command
from cli.frame import run
from cli.host import local_node
from cli.main import freehold
from node.membership.new_folder import MAKING
from tests.support.mesh.killed_at import NEVER, Ended, run_killed
from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, free_port, until

POINTS = 20
FEW = 6
"""Of a command that stretches a passphrase each time; `make test-long` takes POINTS."""
COUNTS = pytest.mark.parametrize("count", [FEW, pytest.param(POINTS, marks=pytest.mark.long)])


def attempt(machine: Machine, *arguments: str, before: int = NEVER) -> Ended:
    return run_killed(partial(run, freehold, [*arguments, "--json"]), machine.environment, PASSPHRASE, before)


def points(operations: int, count: int) -> list[int]:
    """The first and the last moment and those between them, `count` in all."""
    return sorted({round(index * (operations - 1) / (count - 1)) for index in range(count)})


def killed_and_again(
    machine: Callable[[str], Machine], command: Callable[[Machine], list[str]], count: int = POINTS
) -> list[Machine]:
    """Run the command on new machines, killed at another moment on each, and run it again there: it must be done."""
    whole = machine("whole")
    counted = attempt(whole, *command(whole))
    assert counted.code == 0, counted
    done = [whole]
    for before in points(counted.operations, count):
        chosen_machine = machine(f"m{before}")
        line = command(chosen_machine)
        killed = attempt(chosen_machine, *line, before=before)
        assert killed.code is None, (before, killed)
        again = attempt(chosen_machine, *line)
        if again.code != 0:  # the last step of the first attempt was its last operation but for its answer
            said = json.loads(again.stdout)["error"]
            assert (again.code, said["kind"]) == (2, "exists"), (before, again)
            assert before >= counted.operations - 2, (before, counted.operations, again)
        done.append(chosen_machine)
    return done


@pytest.fixture
def machines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Machine]:
    folder = tmp_path_factory.mktemp("k")
    return lambda name: Machine(folder / name)


def contexts(machine: Machine) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((machine.folder / "home" / "contexts.json").read_text())["contexts"]
    return known


def keys(machine: Machine) -> set[str]:
    return {path.name for path in (machine.folder / "home" / "keys").iterdir()}


@pytest.mark.timeout(200)
@COUNTS
def test_create_is_done_when_it_is_run_again(machines: Callable[[str], Machine], count: int) -> None:
    done = killed_and_again(machines, lambda one: ["mesh", "create", "home", "--data", str(one.data), "-y"], count)
    assert len(done) == count + 1
    for machine in done:
        (context,) = contexts(machine).values()
        assert keys(machine) == {"home-admin.json", "home-me.json"}
        assert local_node.mesh_id_of(machine.data).hex() == context["mesh"]
        assert not (machine.data / MAKING).exists()
    last = done[len(done) // 2]
    last.start("--listen", f"127.0.0.1:{free_port()}", "--ingress", f"127.0.0.1:{free_port()}")
    try:
        last.typed_ok("env", "create", "production", "-y")
        until(lambda: last.status()["speaking"], 20, "the node to vote")
    finally:
        last.stop()
        last.kill_workers()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    fleet = Fleet(tmp_path_factory.mktemp("m"))
    try:
        yield fleet.found("one", "--api", f"127.0.0.1:{free_port()}")
    finally:
        fleet.close()


def invited(mesh: Machine, *options: str) -> str:
    ended = attempt(mesh, "mesh", "invite", *options)
    assert ended.code == 0, ended
    line: str = json.loads(ended.stdout)["line"]
    return line


@pytest.mark.timeout(300)
def test_join_is_done_when_it_is_run_again_with_an_invite_for_one(
    mesh: Machine, machines: Callable[[str], Machine]
) -> None:
    lines: dict[str, str] = {}

    def command(one: Machine) -> list[str]:
        line = lines.setdefault(one.name, invited(mesh))
        return ["mesh", "join", line, "--data", str(one.data), "-y"]

    done = killed_and_again(machines, command)
    members = mesh.members()
    for machine in done:
        (context,) = contexts(machine).values()
        assert local_node.mesh_id_of(machine.data).hex() == context["mesh"]
        assert local_node.node_id_of(machine.data) in members
    assert len(members) == len(done) + 1, "each machine took one place, however often it asked"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ["deployer", "approver"])
@COUNTS
def test_login_is_done_when_it_is_run_again_with_an_invite_for_one(
    mesh: Machine, machines: Callable[[str], Machine], role: str, count: int
) -> None:
    lines: dict[str, str] = {}

    def command(one: Machine) -> list[str]:
        line = lines.setdefault(one.name, invited(mesh, "--kind", "principal", "--role", role, "--for", "ann"))
        return ["login", line, "--name", "work"]

    for machine in killed_and_again(machines, command, count):
        (context,) = contexts(machine).values()
        assert keys(machine) == {f"{name}.json" for name in (context["key"], context["admin"]) if name}
        assert attempt(machine, "status").code == 0, "its key is known"
        assert not list((machine.folder / "home").glob("login-*"))


@pytest.mark.timeout(200)
def test_restore_is_done_when_it_is_run_again(
    mesh: Machine, machines: Callable[[str], Machine], tmp_path: Path
) -> None:
    backup = tmp_path / "node.tgz"
    assert attempt(mesh, "mesh", "backup", str(backup), "--data", str(mesh.data)).code == 0
    for machine in killed_and_again(
        machines, lambda one: ["mesh", "restore", str(backup), "--data", str(one.data), "-y"]
    ):
        (context,) = contexts(machine).values()
        assert local_node.mesh_id_of(machine.data).hex() == context["mesh"]
        assert local_node.node_id_of(machine.data) == local_node.node_id_of(mesh.data)


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.getuid() != 0, reason="a file system is mounted, which takes root")
def test_a_mount_point_becomes_a_data_folder(mesh: Machine, machines: Callable[[str], Machine], tmp_path: Path) -> None:
    backup = tmp_path / "node.tgz"
    assert attempt(mesh, "mesh", "backup", str(backup), "--data", str(mesh.data)).code == 0
    commands = {
        "created": ["mesh", "create", "home"],
        "joined": ["mesh", "join", invited(mesh)],
        "restored": ["mesh", "restore", str(backup)],
    }
    for name, command in commands.items():
        machine = machines(name)
        machine.data.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(machine.data)], check=False
        ).returncode:
            pytest.skip("nothing can be mounted here")
        try:
            (machine.data / "lost+found").mkdir()
            done = attempt(machine, *command, "--data", str(machine.data), "-y")
            assert done.code == 0, (name, done)
            assert machine.data.is_mount()
            assert machine.data.stat().st_mode & 0o777 == 0o700
            assert local_node.is_made(machine.data)
        finally:
            subprocess.run(["umount", "--lazy", str(machine.data)], check=True)


def test_a_folder_with_files_of_others_is_left_alone(machines: Callable[[str], Machine]) -> None:
    machine = machines("other")
    machine.data.mkdir()
    (machine.data / "thesis.txt").write_text("ten years")
    refused = attempt(machine, "mesh", "create", "home", "--data", str(machine.data), "-y")
    assert refused.code == 2
    assert json.loads(refused.stdout)["error"]["kind"] == "exists"
    assert [path.name for path in machine.data.iterdir()] == ["thesis.txt"]
    assert not keys(machine) if (machine.folder / "home" / "keys").exists() else True


def test_what_install_puts_in_place_is_there_when_it_is_run_again(tmp_path: Path) -> None:
    """The steps of `node install` that are not systemd's own, whose commands may be repeated."""

    def install() -> int:
        new_path = tmp_path / "1.new"
        shutil.rmtree(new_path, ignore_errors=True)
        (new_path / "bin").mkdir(parents=True)
        (new_path / "bin" / "freehold").write_text("new")
        node_command.put_in_place(new_path, tmp_path / "1")
        node_command.switch_link(tmp_path / "current", tmp_path / "1")
        return 0

    environment = {"PATH": os.environ["PATH"]}
    assert run_killed(install, environment, "").code == 0
    whole = run_killed(install, environment, "")
    assert whole.operations >= 10
    for before in range(whole.operations):
        assert run_killed(install, environment, "", before).code is None
        assert (tmp_path / "current").is_symlink(), before
        again = run_killed(install, environment, "")
        assert again.code == 0, (before, again)
        assert (tmp_path / "current" / "bin" / "freehold").read_text() == "new"
        assert {path.name for path in tmp_path.iterdir()} == {"1", "current"}
