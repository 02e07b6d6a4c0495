"""The power goes: what a block device holds at that moment is all there is. What was acknowledged is on it.

kill -9 keeps the system's page cache, so it shows nothing of a missing sync. Here a node's data lies on a file system of
its own on a loop device; all its processes stand still, the device's blocks are copied, and the node starts from the
copy alone, in which nothing is that was not synced. A process whose syncs do nothing is the proof that the rig can tell.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mesh.nodes import LOOPBACK, PASSPHRASE, Fleet, Machine, until

IMAGE_BYTES = 512 << 20
LYING = """
int fsync(int handle) { return 0; }
int fdatasync(int handle) { return 0; }
int sync_file_range(int handle, long at, long size, unsigned flags) { return 0; }
int msync(void *at, unsigned long size, int flags) { return 0; }
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


class Disk:
    """A file system on a loop device whose power can be cut."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.image, self.mount = folder, folder / "image-0", folder / "mount"
        self.mount.mkdir()
        self._cuts = 0
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        completed = run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self.image))
        assert completed.returncode == 0, completed.stderr
        self._attach()

    def _attach(self) -> None:
        # Nothing is written back by itself within a test: the journal's own interval is the longest there is.
        done = run("mount", "-o", "loop,noatime,commit=3000", str(self.image), str(self.mount))
        assert done.returncode == 0, done.stderr

    def copy(self) -> Path:
        """What the device holds now."""
        self._cuts += 1
        target = self.folder / f"image-{self._cuts}"
        done = run("cp", "--sparse=always", str(self.image), str(target))
        assert done.returncode == 0, done.stderr
        return target

    def come_back(self, image: Path) -> None:
        """Take the old device away and put the copy in its place; the file system replays its journal."""
        self.detach()
        self.image.unlink()
        self.image = image
        self._attach()

    def detach(self) -> None:
        for _ in range(50):
            if run("umount", str(self.mount)).returncode == 0:
                return
            time.sleep(0.1)
        run("umount", "-l", str(self.mount))


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    if os.getuid() != 0 or shutil.which("mkfs.ext4") is None or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, loop devices and mkfs.ext4")
    new_disk = Disk(tmp_path_factory.mktemp("disk"))
    yield new_disk
    new_disk.detach()


def a_node(fleet: Fleet, disk: Disk) -> Machine:
    machine = fleet.machine("one")
    machine.disk = disk.mount
    answer = machine.typed(
        "mesh", "create", "home", "--data", str(machine.data), "-y", "--json", *LOOPBACK, "--node-name", "one",
        typing=(PASSPHRASE, PASSPHRASE),
    )  # fmt: skip
    assert answer.code == 0, answer
    machine.start()
    return machine


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(number for child in children for number in family(int(child)))]


def cut(node: Machine, disk: Disk) -> None:
    """Let every process of a node stand still, keep what the device holds, and end them; the data is the copy's."""
    assert node.process is not None
    processes = family(node.process.pid)
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    image = disk.copy()
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    node.process.wait(30)
    node.process = None
    until(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in processes), 30, "all of it to end")
    disk.come_back(image)


def acknowledged(node: Machine, number: int) -> None:
    """Have something decided and something recorded; both were answered as done."""
    answer = node.typed("project", "create", f"p{number}")
    assert answer.code == 0, answer
    answer = node.run("secret", "set", f"KEY_{number}", "--project", f"p{number}", stdin=f"value {number}")
    assert answer.code == 0, answer


def held(node: Machine) -> tuple[set[str], set[str]]:
    projects = {entry["name"] for entry in node.ok("project", "list")["projects"]}
    secrets = {entry["name"] for name in projects for entry in node.ok("secret", "list", "--project", name)["secrets"]}
    return projects, secrets


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_was_acknowledged_is_there_after_each_of_three_power_cuts(
    disk: Disk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("power"))
    try:
        node = a_node(fleet, disk)
        assert node.typed("env", "create", "production", "-y").code == 0
        for number in range(6):
            acknowledged(node, number)
            if number % 2:
                cut(node, disk)
                node.start()
                expected = {f"p{index}" for index in range(number + 1)}, {f"KEY_{index}" for index in range(number + 1)}
                until(lambda expected=expected: held(node) == expected, 60, "what was acknowledged")  # type: ignore[misc]
                assert node.run("audit", "--verify").code == 0, "and the log of who wrote it is whole"
    finally:
        fleet.close()


WRITE = """
import os, sys
handle = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
os.write(handle, b"x" * 100_000)
os.fsync(handle)
folder = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
os.fsync(folder)
"""


@pytest.mark.long
@pytest.mark.timeout(120)
def test_what_is_written_by_syncs_that_do_nothing_is_not_on_the_device_so_the_rig_can_tell(
    disk: Disk, tmp_path: Path
) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "lying.c").write_text(LYING)
    library = tmp_path / "lying.so"
    built = run("cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "lying.c"))
    assert built.returncode == 0, built.stderr
    for name, more in (("honest", {}), ("lying", {"LD_PRELOAD": str(library)})):
        command = [sys.executable, "-c", WRITE, str(disk.mount / name)]
        subprocess.run(command, check=True, env={**os.environ, **more}, timeout=60)
    disk.come_back(disk.copy())
    assert (disk.mount / "honest").read_bytes() == b"x" * 100_000
    lying = disk.mount / "lying"
    assert not lying.exists() or lying.read_bytes() != b"x" * 100_000, "this rig proves nothing"
