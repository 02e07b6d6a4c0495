"""`freehold node run|install|uninstall|status`: the daemon on this machine.

Not here: the daemon itself (node/), the unit's text and the steps (cli/host/systemd.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click

from cli.access.client import node_folder, talk
from cli.access.contexts import Context
from cli.access.prompts import confirm
from cli.commands.mesh.maintenance import drain, undrain
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.host import systemd
from cli.host.systemd import Step
from cli.text.foreign import escaped, harmless, one_line
from cli.text.output import Output, fold
from cli.text.times import time_of_day
from cli.text.units import checked_addresses, checked_api, checked_listen, checked_loopback
from protocols.api_models import NodeView

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 30.0
LOOK_EVERY_S = 0.5
OUR_PACKAGES = ("cli", "node", "protocols", "runtime")
_DATA = click.option("--data", type=click.Path(file_okay=False, path_type=Path),
                     help="The node's data folder; by default in your home, /var/lib/freehold/node for root.")  # fmt: skip
_YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking.")


@command("run", examples=("freehold node run", "freehold node run --data /srv/freehold --ingress 0.0.0.0:80"))
@_DATA
@click.option(
    "--listen", multiple=True, metavar="HOST:PORT", help="Where other nodes reach this one; none: only it dials."
)
@click.option("--advertise", multiple=True, metavar="HOST:PORT", help="What others are told to dial.")
@click.option("--ingress", multiple=True, metavar="HOST:PORT", help="Where the apps are served.")
@click.option(
    "--ingress-tls", multiple=True, metavar="HOST:PORT", help="Where they are served over HTTPS, such as 0.0.0.0:443."
)
@click.option("--ingress-name", "ingress_names", multiple=True, metavar="HOST",
              help="A name or address at which visitors reach this node, as freehold dns prints it; may repeat.")  # fmt: skip
@click.option("--certificates", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Its NAME.pem files, each a chain and its key; by default DATA/certificates.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes that serve apps.")
@click.option("--api", default=None, metavar="HOST:PORT", help="Where people log in over HTTPS, such as 0.0.0.0:4180.")
@click.option(
    "--metrics",
    default=None,
    metavar="HOST:PORT",
    help="Where a scraper on this machine reads metrics without a credential, such as 127.0.0.1:4190.",
)
@click.option("--peer", "peers", multiple=True, metavar="HOST:PORT",
              help="Where any member that is not reached is tried, too; may repeat.")  # fmt: skip
@click.option("--voter-after", type=click.IntRange(1, 86_400), metavar="SECONDS",
              help="How long a node must be connected before it is proposed as a voter (60).")  # fmt: skip
def run(output: Output, *, data: Path | None, listen: tuple[str, ...], advertise: tuple[str, ...],
        ingress: tuple[str, ...], ingress_tls: tuple[str, ...], certificates: Path | None, workers: int | None, api: str | None,
        metrics: str | None, peers: tuple[str, ...], voter_after: int | None,
        ingress_names: tuple[str, ...]) -> None:  # fmt: skip
    """Run the node in the foreground until Ctrl-C or SIGTERM.

    Options override node.toml in the data folder. Log lines are for people on a terminal, JSON elsewhere. Exit codes:
    64 the configuration cannot be used, 65 a store is damaged, 74 a durable write failed, 75 an address or the folder
    is in use.
    """
    from cli.host import local_node

    folder = node_folder(data)
    settings = local_node.NodeSettings(
        None, checked_listen(listen), checked_addresses(advertise) or None,
        checked_addresses(ingress) or None, workers, voter_after, checked_api(api),
        checked_addresses(ingress_tls) or None, str(certificates.absolute()) if certificates else None,
        metrics=checked_loopback(metrics), peers=checked_addresses(peers) or None,
        ingress_names=ingress_names or None,
    )  # fmt: skip
    handler = _HumanHandler() if sys.stdout.isatty() and not output.as_json else _write_line
    try:
        local_node.run(folder, settings, handler)
    except local_node.NodeFailedError as error:
        output.error(error)
        raise SystemExit(error.code) from None


def _write_line(line: bytes) -> None:
    sys.stdout.write(escaped(line.decode(errors="backslashreplace")) + "\n")
    sys.stdout.flush()


class _HumanHandler(logging.Handler):
    """Shows the daemon's log records as lines for people."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line: time, level if it matters, message, fields."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        names = ("peer", "rule", "change", "detail")
        pairs = [(name, value) for name in names if (value := getattr(record, name, None)) is not None]
        fields = " ".join(str(value) if name == "detail" else f"{name}={value}" for name, value in pairs)
        line = f"{time_of_day(record.created * 1000)} {level}{record.getMessage()}{'  ' + fields if fields else ''}"
        sys.stdout.write(fold(one_line(line), shutil.get_terminal_size().columns) + "\n")
        if record.exc_info:
            sys.stdout.write(harmless(logging.Formatter().formatException(record.exc_info)) + "\n")
        sys.stdout.flush()


@command("status", examples=("freehold node status", "freehold node status --data /srv/freehold --json"))
@_DATA
def status(output: Output, data: Path | None) -> None:
    """Show the node on this machine: who it is, what it sees, what worries it. Exit code 1 if it does not run."""
    from cli.host import local_node

    folder = node_folder(data)
    mesh = local_node.mesh_id_of(folder)
    if not local_node.is_running(folder):
        raise CommandError(
            f"the node in {folder} does not run", next_step=f"freehold node run --data {folder}", kind="no-node"
        )
    view = talk(Context(mesh.hex(), local_node.socket_of(folder), ""), lambda client: client.read(NodeView, "/v1/node"))
    output.result({"node": view, "data": str(folder)}, "\n".join(_described(view)))
    for warning in view.warnings:
        output.warn(warning)
    output.hint("freehold doctor" if view.warnings else "freehold mesh members")


def _described(view: NodeView) -> list[str]:
    votes = "votes" if view.voter else "does not vote"
    return [
        f"node       {view.name}  {view.node}",
        f"mesh       {view.mesh_name}  {view.mesh[:16]}",
        f"standing   {view.standing}, {votes}{'' if view.speaking or not view.voter else ', silent for now'}",
        f"decisions  {view.slot}",
        f"peers      {len(view.peers)} connected",
        f"addresses  mesh {', '.join(view.mesh_addresses) or 'none'}; apps {', '.join(view.ingress)}",
        f"runs       {', '.join(view.running) or 'nothing'}",
        f"version    {view.version} (wasmtime {view.wasmtime})",
    ]


@command("install", examples=("freehold node install", "freehold node install --print", "freehold node install -y"))
@_DATA
@click.option("--print", "only_print", is_flag=True, help="Print the unit and change nothing.")
@_YES
def install(output: Output, data: Path | None, only_print: bool, yes: bool) -> None:
    """Install this version as a systemd service that starts at boot. Needs root; shows its plan first."""
    folder = (data or systemd.DATA_FOLDER).absolute()
    unit = systemd.unit_text(folder, _ports(folder))
    if only_print:
        output.result({"unit": unit, "path": str(systemd.UNIT_PATH)}, unit.rstrip())
        return
    _require_systemd("freehold node install --print")
    if not (folder / "node.toml").exists():
        raise UsageError(
            f"{folder} holds no node",
            next_step=f"freehold mesh create NAME --data {folder}, or freehold mesh join LINE --data {folder}",
            kind="no-node",
        )
    if home := systemd.hidden_home(sys.base_prefix):
        raise CommandError(
            f"this Python is in {home}, where the service may not look",
            next_step="install freehold with the system's Python, then: freehold node install",
            kind="python-in-home",
        )
    if home := systemd.hidden_home(str(folder)):
        raise UsageError(
            f"{folder} is in {home}, where the service may not look",
            next_step=f"move it, then: freehold node install --data {systemd.DATA_FOLDER}",
            kind="data-in-home",
        )
    build = version("freehold")
    steps = systemd.install_steps(build, folder, user_exists=_user_exists())
    _show(output, "This installs the node as a service:", steps)
    confirm(output, "Install it?", yes)
    copy_installation(systemd.PREFIX / build)
    switch_link(systemd.PREFIX / "current", systemd.PREFIX / build)
    systemd.UNIT_PATH.with_suffix(".new").write_text(unit)
    systemd.UNIT_PATH.with_suffix(".new").replace(systemd.UNIT_PATH)
    _execute(output, steps)
    _await_node(folder)
    output.result({"version": build, "unit": str(systemd.UNIT_PATH), "data": str(folder)}, f"freehold {build} runs")
    output.hint(f"freehold node status --data {folder}")


@command("uninstall", examples=("freehold node uninstall", "freehold node uninstall --purge"))
@_DATA
@click.option("--purge", is_flag=True, help="Delete the node's data and its user as well.")
@_YES
def uninstall(output: Output, data: Path | None, purge: bool, yes: bool) -> None:
    """Remove the service and its versions. The node stays a member: run `freehold mesh leave` before, to end that."""
    folder = (data or systemd.DATA_FOLDER).absolute()
    _require_systemd("systemctl status freehold")
    if not systemd.UNIT_PATH.exists():
        raise UsageError(f"{systemd.UNIT_PATH} does not exist", next_step="freehold node install", kind="not-installed")
    steps = systemd.uninstall_steps(folder, purge=purge, user_exists=_user_exists())
    _show(output, "This removes the service:", steps)
    confirm(output, "Remove it?", yes)
    _execute(output, steps[:1])
    _end_processes(systemd.USER)
    systemd.UNIT_PATH.unlink()
    (systemd.PREFIX / "current").unlink(missing_ok=True)
    for installed in systemd.versions():
        shutil.rmtree(installed, ignore_errors=True)
    if purge:
        shutil.rmtree(folder, ignore_errors=True)
    for emptied in (systemd.PREFIX, *((folder.parent,) if folder == systemd.DATA_FOLDER and purge else ())):
        with contextlib.suppress(OSError):
            emptied.rmdir()
    _execute(output, steps[1:])
    output.result({"removed": True, "purged": purge}, "the service is removed")


def _ports(folder: Path) -> list[int]:
    from cli.host import local_node

    return local_node.ports_of(folder) if (folder / "node.toml").exists() else []


def _require_systemd(instead: str) -> None:
    if not Path("/run/systemd/system").is_dir():
        raise CommandError(
            "this machine is not run by systemd, and other service managers are not supported",
            next_step=f"run `freehold node run` under the one you have, or see: {instead}",
            kind="no-systemd",
        )
    if os.getuid() != 0:
        raise CommandError("this changes the system and needs root", next_step="sudo freehold node …", kind="no-root")


def _user_exists() -> bool:
    import pwd

    try:
        pwd.getpwnam(systemd.USER)
    except KeyError:
        return False
    return True


def _show(output: Output, title: str, steps: Sequence[Step]) -> None:
    output.note(title)
    for number, step in enumerate(steps, 1):
        output.note(f"  {number}. {step.text}")


def _execute(output: Output, steps: Sequence[Step]) -> None:
    for step in steps:
        if not step.command:
            continue
        output.step("", step.text)
        done = subprocess.run(step.command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise CommandError(
                f"{' '.join(step.command)} failed: {done.stderr.strip()}",
                next_step="mend it and run the command again; finished steps are harmless to repeat",
                kind="step-failed",
            )


def _end_processes(user: str) -> None:
    """End what still runs as the service's own user: workers that wait for the next daemon, which will not come."""
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return
    deadline_s = time.monotonic() + END_TIMEOUT_S
    number = signal.SIGTERM
    while numbers := [int(path.name) for path in Path("/proc").glob("[0-9]*") if _owned_by(path, uid)]:
        for pid in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(LOOK_EVERY_S)
        number = signal.SIGKILL if time.monotonic() > deadline_s else number


def _owned_by(process: Path, uid: int) -> bool:
    with contextlib.suppress(OSError):
        return process.stat().st_uid == uid
    return False


def _await_node(folder: Path) -> None:
    """Wait until the service's node answers. Raises CommandError with its last words if it does not."""
    ask = (str(systemd.PREFIX / "current/bin/freehold"), "node", "status", "--data", str(folder))
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while subprocess.run(ask, capture_output=True, check=False).returncode:  # noqa: S603
        state = _answer("systemctl", "show", "--property=ActiveState,SubState", "--value", systemd.UNIT_NAME).split()
        if state[:1] == ["failed"] or "auto-restart" in state or time.monotonic() > deadline_s:
            words = _answer(
                "journalctl", "--unit", systemd.UNIT_NAME, "--lines=3", "--output=cat", "--no-pager"
            ).strip()
            status = _answer("systemctl", "show", "--property=Result,ExecMainStatus", systemd.UNIT_NAME)
            raise CommandError(
                f"the service does not run ({', '.join(status.split())}){': ' if words else ''}{words}",
                next_step=f"journalctl -u {systemd.UNIT_NAME}, then the command again",
                kind="service-failed",
            )
        time.sleep(LOOK_EVERY_S)


def _answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603


def copy_installation(target: Path) -> None:
    """Copy this environment's packages to a new one that needs nothing of the old."""
    temporary = target.with_name(target.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    venv.create(temporary, symlinks=True)
    packages = next((temporary / "lib").glob("python3.*")) / "site-packages"
    source = Path(click.__file__).parent.parent
    left_out = shutil.ignore_patterns("__editable__*", "__pycache__", "pip", "pip-*")
    shutil.copytree(source, packages, ignore=left_out, dirs_exist_ok=True)
    ours = Path(__file__).parents[3]
    for name in OUR_PACKAGES:
        if not (packages / name).exists():
            shutil.copytree(ours / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = temporary / "bin" / "freehold"
    script.write_text(f"#!{target}/bin/python -I\nfrom cli.main import main\n\nmain()\n")
    script.chmod(0o755)
    put_in_place(temporary, target)


def put_in_place(temporary: Path, target: Path) -> None:
    """Have a folder take another's place, if there is one; the old one goes when the new one is there."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def switch_link(link: Path, target: Path) -> None:
    """Have a link lead elsewhere at once: it leads nowhere at no moment."""
    temporary = link.with_name(link.name + ".new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


@click.group("node", cls=Group)
def node() -> None:
    """Run the node of this machine, in the foreground or as a service; hold work off any node."""


for _one in (run, status, install, uninstall, drain, undrain):
    node.add_command(_one)
