"""`freehold doctor`: looks for everything that is or will soon be wrong, and says what to do about each.

Not here: the judgements (cli/views/checks.py). It changes nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import click

from cli.access import contexts
from cli.access.client import NodeClient, default_data_folder, talk
from cli.access.contexts import Context
from cli.access.members import Member, members_of
from cli.access.voters import stores_of
from cli.errors import CommandError, UsageError
from cli.frame import command
from cli.text.output import Output
from cli.text.units import counted
from cli.views import checks
from cli.views.endings import ending
from cli.views.finding import Finding
from cli.views.lane_status import engine_words
from node.config import CONFIG_NAME, read_config
from node.errors import ConfigError
from protocols.api_models import NodeView
from runtime.native.choice import load_module


@command("doctor", examples=("freehold doctor", "freehold doctor --data /srv/freehold --json"))
@click.option(
    "--data", type=click.Path(file_okay=False, path_type=Path), help="The data folder of this machine's node."
)
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
def doctor(output: Output, data: Path | None, context_name: str | None) -> None:
    """Look for faults here, on the asked node and on its peers. Exit code 1 if there is any."""
    checked: list[str] = []
    findings = checks.sandbox(version("wasmtime"))
    checked.append("this installation")
    folder = (data or default_data_folder()).absolute()
    if data is not None or (folder / "node.key").exists():
        findings += _look_at_folder(folder)
        checked.append(f"the data folder {folder}")
    findings += _look_at_keys()
    try:
        _, context = contexts.current_context(context_name)
    except UsageError as error:
        findings.append(Finding(data is None, str(error), error.next_step))
    else:
        findings += _look_at_mesh(context, checked)
    findings.sort(key=lambda one: not one.fault)
    faults = sum(finding.fault for finding in findings)
    value = {
        "faults": faults, "checked": checked,
        "findings": [{"fault": finding.fault, "what": finding.what, "advice": finding.advice} for finding in findings],
    }  # fmt: skip
    lines = [
        f"{'FAULT' if finding.fault else 'warn '}  {finding.what}\n       {finding.advice}" for finding in findings
    ]
    lines.append(f"checked {', '.join(checked)}: " + (counted(faults, "fault") if faults else "no fault"))
    output.result(value, "\n".join(lines))
    if faults:
        raise SystemExit(1)


def _look_at_folder(folder: Path) -> list[Finding]:
    if not (folder / "node.key").exists():
        return [Finding(True, f"{folder} holds no node", "freehold mesh create NAME, or freehold mesh join LINE")]
    modes = {
        str(folder / name): (folder / name).stat().st_mode for name in checks.PRIVATE_FILES if (folder / name).exists()
    }
    findings = checks.permissions(folder.stat().st_mode, modes)
    findings += checks.disk(shutil.disk_usage(folder).free, str(folder))
    findings += _look_at_engine(folder)
    damaged = sorted(path.name for path in folder.glob("*.damaged-*") if not path.name.endswith(("-wal", "-shm")))
    if damaged:
        findings.append(
            Finding(
                False, f"a damaged database was set aside: {', '.join(damaged)}", "check the disk; then delete them"
            )
        )
    return findings


def _look_at_engine(folder: Path) -> list[Finding]:
    try:
        wanted = read_config(folder).engine
    except ConfigError as error:
        return [Finding(True, str(error), f"edit {folder / CONFIG_NAME}")]
    return checks.engine(wanted, load_module()[1])


def _look_at_keys() -> list[Finding]:
    keys = sorted((contexts.home_folder() / "keys").glob("*.json"))
    return [
        Finding(True, f"{path} can be read by other users", f"chmod 600 {path}")
        for path in keys
        if path.stat().st_mode & 0o077
    ]


def _look_at_mesh(context: Context, checked: list[str]) -> list[Finding]:
    if context.socket and Path(context.socket).exists() and not os.access(context.socket, os.W_OK):
        return [Finding(True, f"{context.socket} belongs to another user", "run this as the node's user, or as root")]
    try:
        findings, names = talk(context, _examine)
        if own := talk(context, lambda client: ending(client, context)):
            findings.append(Finding("has ended" in own, *own.split("; ", 1)))
    except CommandError as error:
        return [Finding(True, str(error), error.next_step)]
    checked += names
    return findings


async def _examine(client: NodeClient) -> tuple[list[Finding], list[str]]:
    mine = await client.read(NodeView, "/v1/node")
    wall_ms = mine.wall_ms
    findings = checks.node(mine, wall_ms)
    everyone = await members_of(client)
    findings += checks.boot_read(mine, everyone)
    findings += checks.members(everyone, wall_ms) + checks.quorum(everyone)
    findings += checks.unserved(await client.state(), everyone)
    findings += checks.stores(await stores_of(client))
    names, views = [_served(f"the node {mine.name}", mine)], {mine.node: mine}
    for member in everyone:
        if member.connected and member.confirmed and member.belief != "self":
            findings += await _examine_peer(client, member, everyone, views)
            names.append(_served(f"the node {member.title}", views.get(member.node)))
    findings += checks.unready(await client.state(), everyone, views)
    return findings, names


def _served(name: str, view: NodeView | None) -> str:
    engine = "" if view is None else view.engine
    return f"{name} (serves in {engine_words(engine)})" if engine else name


async def _examine_peer(
    client: NodeClient, one: Member, everyone: tuple[Member, ...], views: dict[str, NodeView]
) -> list[Finding]:
    """Ask a peer for its own description, kept in `views`, and compare its clock with the asked node's."""
    try:
        before = (await client.read(NodeView, "/v1/node")).wall_ms, time.monotonic()
        view = await client.read(NodeView, f"/v1/nodes/{one.node}")
        took_ms = (time.monotonic() - before[1]) * 1000
    except CommandError as error:
        return [Finding(False, f"{one.title} does not describe itself: {error}", "look at its log: freehold logs")]
    views[one.node] = view
    skew_ms = int(view.wall_ms - before[0] - took_ms / 2)
    findings = checks.node(view, view.wall_ms) + checks.boot_read(view, everyone)
    return findings + checks.clock(one.title, skew_ms)
