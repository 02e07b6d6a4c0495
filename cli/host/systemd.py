"""The node as a systemd service: the unit's text, and the steps that install or remove it, as data.

A version has its own folder under /opt/freehold, and the link `current` names the one that runs; an update switches
the link, going back switches it again. The unit gives the node a static system user and takes away what a node never
needs. It does not set MemoryDenyWriteExecute: the sandbox compiles code. Not here: running the steps (cli/commands/
node.py), and any system but systemd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

USER = "freehold"
UNIT_NAME = "freehold.service"
UNIT_PATH = Path("/etc/systemd/system") / UNIT_NAME
PREFIX = Path("/opt/freehold")
STATE_FOLDER = Path("/var/lib/freehold")
DATA_FOLDER = STATE_FOLDER / "node"
FIRST_UNPRIVILEGED_PORT = 1024

_UNIT = """\
[Unit]
Description=Freehold node
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User={user}
Group={user}
ExecStart={prefix}/current/bin/freehold node run --data {data}
{state}RuntimeDirectory=freehold
RuntimeDirectoryMode=0700
# What lies there must outlive a restart of the service, and be forgotten at a reboot: it tells the two apart.
RuntimeDirectoryPreserve=yes
# Workers go on serving when the daemon ends; the next one adopts them. Without one they end within 30 s.
KillMode=process
TimeoutStopSec=90
Restart=on-failure
RestartSec=2
# 64: the configuration cannot be used; 65: a store is damaged. Starting again would not cure either.
RestartPreventExitStatus=64 65
OOMPolicy=continue
LimitNOFILE=65536
LimitCORE=0
UMask=0077

# Hardening. No MemoryDenyWriteExecute: the sandbox compiles code.
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
{private_users}DevicePolicy=closed
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
KeyringMode=private
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# The compiler gives way to what serves: it raises its own niceness.
SystemCallFilter=setpriority
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan: what a person reads, and the command that does it; no command means that Python does."""

    text: str
    command: tuple[str, ...] = ()


def unit_text(data: Path, ports: Sequence[int]) -> str:
    """Return the unit for a node with this data folder that listens on these ports."""
    low = any(0 < port < FIRST_UNPRIVILEGED_PORT for port in ports)
    own = data.is_relative_to(STATE_FOLDER)
    return _UNIT.format(
        user=USER,
        prefix=PREFIX,
        data=_quoted(data),
        state="StateDirectory=freehold\nStateDirectoryMode=0700\n" if own else f"ReadWritePaths={_quoted(data)}\n",
        capabilities="CAP_NET_BIND_SERVICE" if low else "",
        # A user namespace of its own would make the one capability that low ports need worthless.
        private_users="" if low else "PrivateUsers=yes\n",
    )


def _quoted(path: Path) -> str:
    """A path as a unit file takes it (systemd.syntax(7), systemd.unit(5)): percent signs doubled, and in quotes."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != str(path) or " " in escaped else escaped


def versions(prefix: Path = PREFIX) -> tuple[Path, ...]:
    """Return the folders of the versions that were installed: what else lies beside them is somebody else's."""
    return tuple(
        sorted(path.parent.parent for path in prefix.glob("*/bin/freehold") if not path.parent.parent.is_symlink())
    )


def hidden_home(prefix: str) -> str:
    """Return the folder that ProtectHome hides from the service and that `prefix` lies in, or nothing."""
    return next((text for text in ("/home", "/root", "/run/user") if Path(prefix).is_relative_to(text)), "")


def install_steps(version: str, data: Path, *, user_exists: bool) -> tuple[Step, ...]:
    """Return what installing does, in order."""
    steps = [Step(f"copy this freehold to {PREFIX / version} and point {PREFIX / 'current'} at it")]
    if not user_exists:
        add = ("useradd", "--system", "--user-group", "--home-dir", str(STATE_FOLDER), "--no-create-home",
               "--shell", "/usr/sbin/nologin", USER)  # fmt: skip
        steps.append(Step(f"make the system user {USER}", add))
    return (
        *steps,
        Step(f"give {data} to {USER}", ("chown", "-R", f"{USER}:{USER}", str(data))),
        Step(f"write {UNIT_PATH}"),
        Step("read the units again", ("systemctl", "daemon-reload")),
        Step("start the node at every boot", ("systemctl", "enable", UNIT_NAME)),
        Step("start it now, anew if it runs", ("systemctl", "restart", UNIT_NAME)),
    )


def uninstall_steps(data: Path, *, purge: bool, user_exists: bool) -> tuple[Step, ...]:
    """Return what uninstalling does, in order; `purge` takes the data, too."""
    steps = [
        Step("stop the node, and start it no more", ("systemctl", "disable", "--now", UNIT_NAME)),
        Step("end the workers that still serve for the next start"),
        Step(f"remove {UNIT_PATH}"),
        Step("read the units again", ("systemctl", "daemon-reload")),
        Step(f"remove {', '.join(map(str, (PREFIX / 'current', *versions())))}"),
    ]
    if purge:
        steps.append(Step(f"delete {data}, with the node's identity and its apps' data"))
        if user_exists:
            steps.append(Step(f"remove the system user {USER}", ("userdel", USER)))
    return tuple(steps)
