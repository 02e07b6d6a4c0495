"""A machine of its own for a test that installs something: systemd as process 1 in new namespaces, over a copy of /.

    test -> sh (joins a new cgroup) -> unshare -> sh (mounts, pivot_root) -> systemd

The root is an overlay: its lower layer is the machine the test runs on, what is written goes to a tmpfs that ends with
the namespace. Network, processes, host name and cgroups are its own. What is the kernel's stays as it is: /proc/sys and
/sys cannot be written, no module be loaded, the clock not be set. Nothing is left behind: process 1 is killed by its
process id, which ends all others, the mounts with them, and the cgroups are removed. Not here: any test.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from tests.support.mesh.nodes import until

SYSTEMD = Path("/lib/systemd/systemd")
SYSTEMD_MIN = 250
PYTHON = Path("/usr/bin/python3")
"""The service may not look into homes, where a test's own interpreter may be."""

FREEHOLD = (str(PYTHON), "-c", "from cli.main import main; main()")
BOOT_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 120.0
REPOSITORY = Path(__file__).parents[3]
PACKAGES = Path(click.__file__).parent.parent

_BEGIN = """
set -e
echo $$ > "$1/cgroup.procs"
shift
exec unshare --pid --mount --net --uts --ipc --cgroup --fork --kill-child sh -c "$@"
"""

_BOOT = """
set -e
top=$1 shared=$2 repository=$3 packages=$4
mount --make-rprivate /
mount -t tmpfs -o size=3G,mode=700 tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" overlay "$top/root"
cd "$top/root"
mkdir -p mnt/shared mnt/repository mnt/packages
mount --bind "$shared" mnt/shared
mount --bind "$repository" mnt/repository
mount --bind "$packages" mnt/packages
for name in mnt/repository mnt/packages; do mount -o remount,ro,bind "$name"; done
rm -rf opt/freehold var/lib/freehold etc/systemd/system/freehold.service*
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mkdir mnt/old
pivot_root . mnt/old
cd /
umount -l mnt/old
exec setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-syslog \
  env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin "$5" --unit=basic.target --log-target=null --show-status=0
"""


def problem() -> str:
    """Why no machine can be booted here, or ""."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "namespaces of its own need root on Linux"
    missing = [
        name
        for name in ("unshare", "nsenter", "pivot_root", "setpriv", "systemctl", "ps", "curl")
        if shutil.which(name) is None
    ]
    if missing or not SYSTEMD.exists():
        return f"not installed here: {', '.join(missing) or SYSTEMD}"
    if systemd_version() < SYSTEMD_MIN:
        return f"needs systemd {SYSTEMD_MIN} or newer"
    if cgroups() is None:
        return "no version 2 cgroups are mounted"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlay file system"
    if subprocess.run(
        ("unshare", "--pid", "--mount", "--cgroup", "--fork", "true"), capture_output=True, check=False
    ).returncode:
        return "no namespaces may be made here"
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not PYTHON.exists() or _answer(str(PYTHON), "-c", "import sys; print('%d.%d' % sys.version_info[:2])") != mine:
        return f"{PYTHON} is not the Python {mine} that the packages here are for"
    return ""


def systemd_version() -> int:
    """The version of systemd here, 0 if it is missing."""
    return int(_answer("systemctl", "--version").split()[1]) if shutil.which("systemctl") else 0


@dataclass(frozen=True)
class Booted:
    """The running machine; `shared` is a folder of the test that it sees as /mnt/shared."""

    pid: int
    shared: Path

    def run(self, *command: str, timeout_s: float = RUN_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root."""
        pair = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "NO_COLOR=1", "LANG=C.UTF-8",
                 "PYTHONPATH=/mnt/repository:/mnt/packages", "PYTHONDONTWRITEBYTECODE=1")  # fmt: skip
        enter = ("nsenter", "--target", str(self.pid), "--all", "--root", "--wd", "env", "-i", *pair)
        return subprocess.run(
            (*enter, *command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def ok(self, *command: str) -> str:
        """Run a command in it that must succeed; return what it wrote."""
        done = self.run(*command)
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout.strip()

    def try_freehold(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command of this checkout in it."""
        return self.run(*FREEHOLD, *arguments)

    def freehold(self, *arguments: str) -> str:
        """Run a command of this checkout in it that must succeed; return what it wrote."""
        return self.ok(*FREEHOLD, *arguments)

    def unit(self, name: str) -> Mapping[str, str]:
        """What systemd says of a unit."""
        lines = self.ok("systemctl", "show", name).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def processes(self, of_user: str) -> dict[int, str]:
        """A user's processes in it, by the process ids they have there."""
        lines = self.run("ps", "-o", "pid=,args=", "-u", of_user).stdout.splitlines()
        return {int(pid): rest.strip() for pid, _, rest in (line.strip().partition(" ") for line in lines)}


@contextlib.contextmanager
def booted() -> Iterator[Booted]:
    """Boot the machine; it is gone at the end."""
    path = cgroups()
    assert path is not None
    group = path / f"freehold-test-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="fh-") as folder, tempfile.TemporaryDirectory(prefix="fh-") as shared:
        group.mkdir()
        arguments = (folder, shared, str(REPOSITORY), str(PACKAGES), str(SYSTEMD))
        starting = subprocess.Popen(
            ("sh", "-c", _BEGIN, "sh", str(group), _BOOT, "sh", *arguments),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            until(lambda: starting.poll() is not None or _first(starting.pid) != 0, BOOT_TIMEOUT_S, "systemd to start")
            assert starting.poll() is None, ((starting.stderr and starting.stderr.read()) or b"").decode()
            machine = Booted(_first(starting.pid), Path(shared))
            until(lambda: _is_up(machine), BOOT_TIMEOUT_S, "the machine to be up")
            yield machine
        finally:
            _end(starting)
            until(lambda: _removed(group), 20, "its cgroups to be empty")


def _is_up(machine: Booted) -> bool:
    return machine.run("systemctl", "is-system-running", timeout_s=20).stdout.strip() in {"running", "degraded"}


def _first(unshare: int) -> int:
    """The process id, here, of process 1 there once it is systemd; 0 before."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        child = int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])
        if Path(f"/proc/{child}/exe").resolve() == SYSTEMD.resolve():
            return child
    return 0


def _end(starting: subprocess.Popen[bytes]) -> None:
    """Kill process 1 there, whatever it has become, and take the exit code of what waited for it."""
    if starting.poll() is None:
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{starting.pid}/task/{starting.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        try:
            starting.wait(20)
        except subprocess.TimeoutExpired:
            starting.kill()
            starting.wait(20)
    if starting.stderr is not None:
        starting.stderr.close()


def _removed(group: Path) -> bool:
    """Remove a cgroup and those below it, as far as they are empty."""
    for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def cgroups() -> Path | None:
    """Where version 2 cgroups are mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def _answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
