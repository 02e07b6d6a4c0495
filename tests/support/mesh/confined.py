"""`confined.py UNIT FOLDER RUNTIME COMMAND...`: runs a command under a unit's restrictions, without systemd. Not a test.

What a process can take on by itself: the unit's system calls and address families (through libseccomp, from systemd's
own groups of calls), no capabilities, no new privileges, its umask, and a file system that is read-only but for two folders,
as a unit has its state and its runtime directory. As root, in a mount namespace of its own. Not here: what needs systemd
(users, private devices, cgroups).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

ALLOW, ERRNO, EQUAL = 0x7FFF0000, 0x00050000, 4
CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAPABILITIES = 41


def calls_of(group: str) -> set[str]:
    """The system calls of a group, through the groups in it."""
    if not group.startswith("@"):
        return {group}
    shown = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", group], capture_output=True, check=True)
    lines = [line.strip() for line in shown.stdout.decode().splitlines()[1:]]
    return set().union(*(calls_of(line) for line in lines if line and not line.startswith("#")))


def allowed_calls(unit: str) -> set[str]:
    """What the SystemCallFilter lines of a unit leave, in their order."""
    allowed: set[str] = set()
    for line in unit.splitlines():
        name, _, value = line.partition("=")
        if name == "SystemCallFilter":
            groups = value.removeprefix("~").split()
            named = set().union(*(calls_of(group) for group in groups))
            allowed = allowed - named if value.startswith("~") else allowed | named
    return allowed


def families(unit: str) -> list[int]:
    """The address families that a unit's sockets may have."""
    line = next(line for line in unit.splitlines() if line.startswith("RestrictAddressFamilies="))
    return [int(getattr(socket, name)) for name in line.partition("=")[2].split()]


class Compared(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("arg", ctypes.c_uint), ("op", ctypes.c_int), ("datum_a", ctypes.c_uint64), ("datum_b", ctypes.c_uint64),
    )  # fmt: skip


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def confine(unit: str, *folders: Path) -> None:
    """Take everything away from this process, for good."""
    allowed = allowed_calls(unit)
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_rule_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint)
    seccomp.seccomp_load.argtypes = (ctypes.c_void_p,)
    _checked(libc.unshare(CLONE_NEWNS), "unshare")
    _checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "private mounts")
    for place in (str(folder).encode() for folder in folders):
        _checked(libc.mount(place, place, None, MS_BIND, None), "bind")
    _checked(libc.mount(b"none", b"/", None, MS_REMOUNT | MS_BIND | MS_RDONLY, None), "read-only")
    for number in range(CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    _checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    rules = seccomp.seccomp_init(ERRNO | errno.EPERM)
    seccomp.seccomp_rule_add_array.argtypes = (*seccomp.seccomp_rule_add.argtypes, ctypes.POINTER(Compared))
    call = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in families(unit):
        compared = ctypes.byref(Compared(0, EQUAL, family, 0))
        _checked(seccomp.seccomp_rule_add_array(rules, ALLOW, call, 1, compared), "socket")
    for name in sorted(allowed - {"socket"}):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            _checked(seccomp.seccomp_rule_add(rules, ALLOW, number, 0), name)
    _checked(seccomp.seccomp_load(rules), "filter")
    os.umask(0o077)


if __name__ == "__main__":
    confine(Path(sys.argv[1]).read_text(), Path(sys.argv[2]), Path(sys.argv[3]))
    os.execvp(sys.argv[4], sys.argv[4:])
