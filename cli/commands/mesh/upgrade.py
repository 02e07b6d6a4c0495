"""`freehold mesh upgrade plan|start|pause|abort`: the daemons' own upgrade, one node after the other.

Not here: conducting it and going back (node/upgrade/), and the release that a service was installed with (node.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Literal

import click
import msgspec

from cli.access import contexts
from cli.access.client import NodeClient, RefusedError, talk
from cli.access.contexts import Context
from cli.access.cosigning import require_enough
from cli.access.principals import require_admin, talk_as, unlock_admin
from cli.access.prompts import confirm
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.going_on import goes_on, nothing_goes_on
from cli.text.output import Output
from cli.text.table import short, table
from cli.text.units import duration_ms
from protocols.api_upkeep import UpgradeBody, UpgradeNodeView, UpgradeView
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.state.model import MeshState
from protocols.trust.upgrades import (
    WHEELS_MAX,
    WINDOW_MAX_S,
    UpgradePaper,
    Wheel,
    following_problem,
    sign_upgrade,
    version_of,
)

OURS = "freehold"
WHEEL_MAX_BYTES = 256 << 20
METADATA_MAX_BYTES = 1 << 20
LOOK_EVERY_S = 1.0
UNREACHED_MAX_S = 300.0
"""The asked node is upgraded, too: for so long it may not answer."""

_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
_YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking; the passphrase is asked for all the same.")
_WHEELS = click.argument("wheels", nargs=-1, type=click.Path(dir_okay=False, path_type=Path))
PLAN = "freehold mesh upgrade plan"


@dataclass(frozen=True, slots=True)
class WheelSet:
    """The wheels of one upgrade: each with its bytes; `version` is the release that freehold's own is."""

    version: str
    wheels: tuple[tuple[Wheel, bytes], ...]


@command("plan", examples=("freehold mesh upgrade plan", "freehold mesh upgrade plan freehold-0.2.0-py3-none-any.whl"))
@_WHEELS
@_CONTEXT
def plan(output: Output, wheels: tuple[Path, ...], context_name: str | None) -> None:
    """Show what each node runs and how an upgrade goes; with the wheels, what `start` would do, and what stands in its way."""
    _, context = contexts.current_context(context_name)
    view = talk(context, _view)
    if not wheels:
        _show(output, view)
        return
    bundle = _bundle(wheels)
    state = talk(context, lambda client: client.state())
    problems = _problems(view, bundle, state)
    for line in _plan_lines(view, bundle):
        output.note(line)
    output.result(
        {
            "version": bundle.version,
            "problems": problems,
            "order": [upgrade_node.node for upgrade_node in _in_turn(view, bundle)],
        },
        "\n".join(f"in the way: {problem}" for problem in problems) or "nothing is in the way",
    )
    names = " ".join(map(str, wheels))
    output.hint(PLAN if problems else f"freehold mesh upgrade start {names}")


@command("start", examples=("freehold mesh upgrade start freehold-0.2.0-py3-none-any.whl",
                            "freehold mesh upgrade start *.whl --window 2m --detach",
                            "freehold mesh upgrade start"))  # fmt: skip
@_WHEELS
@click.option(
    "--window", default="30s", show_default=True, help="How long each node must be well before the next begins."
)
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@_CONTEXT
@_YES
def start(
    output: Output, *, wheels: tuple[Path, ...], window: str, detach: bool, context_name: str | None, yes: bool
) -> None:
    """Upgrade the daemons of the mesh, one node after the other; without wheels, go on with a paused upgrade.

    Needs the admin key. The wheels go to the asked node, and from there by their digests to the others. Each node prepares the
    release beside the one it runs, hands its visitors over, and tries it: if it is not well in time it goes back by itself, and
    the upgrade ends there. No node begins while another voter is not reached or a rollout is under way.
    """
    _, context = contexts.current_context(context_name)
    if not wheels:
        _say(output, context, "resume", yes=yes)
        if not detach:
            _follow(output, context)
        return
    require_admin(context, "upgrade the mesh")
    window_s = duration_ms(window) // 1000
    if not 1 <= window_s <= WINDOW_MAX_S:
        raise UsageError(f"the window is 1 s to {WINDOW_MAX_S // 60} min", next_step="--window 30s")
    bundle = _bundle(wheels)
    view, state = talk(context, _view), talk(context, lambda client: client.state())
    if problems := _problems(view, bundle, state):
        raise RefusedError("upgrade.refused", "; ".join(problems), PLAN)
    for line in _plan_lines(view, bundle):
        output.note(line)
    confirm(output, f"Upgrade to {bundle.version}?", yes)
    admin = unlock_admin(context, f"upgrade the mesh to {bundle.version}")

    async def begin(client: NodeClient) -> UpgradeView:
        for wheel, data in bundle.wheels:
            output.live(f"uploading {wheel.name}")
            await client.put_artifact(data, wheel.digest)
        found_wheels = tuple(wheel for wheel, _ in bundle.wheels)
        paper = UpgradePaper("start", time.time_ns() // 1_000_000, bundle.version, found_wheels, window_s)
        return await _hand(client, admin, paper)

    begun = talk_as(context, admin, begin)
    if detach:
        nothing_goes_on()
        _show(output, begun)
        return
    _follow(output, context)


@command("pause", examples=("freehold mesh upgrade pause",))
@_CONTEXT
@_YES
def pause(output: Output, context_name: str | None, yes: bool) -> None:
    """Have no further node begin; `start` without wheels goes on. Needs the admin key.

    A node that is at work goes on to its end.
    """
    _, context = contexts.current_context(context_name)
    _say(output, context, "pause", yes=yes)
    _show(output, talk(context, _view))


@command("abort", examples=("freehold mesh upgrade abort",))
@_CONTEXT
@_YES
def abort(output: Output, context_name: str | None, yes: bool) -> None:
    """End the upgrade: a node whose new release is on trial goes back, one that was found well stays. Needs the admin key.

    A mesh of two releases next to each other works; `start` with the same wheels takes the upgrade up again.
    """
    _, context = contexts.current_context(context_name)
    _say(output, context, "abort", yes=yes)
    _show(output, talk(context, _view))


async def _view(client: NodeClient) -> UpgradeView:
    return await client.read(UpgradeView, "/v1/upgrade")


async def _hand(client: NodeClient, admin: Ed25519Signer, paper: UpgradePaper) -> UpgradeView:
    """Hand a paper over. Raises CommandError where other admins must sign it first."""
    signed = sign_upgrade(admin, await client.mesh(), paper)
    require_enough(await client.state(), signed, paper)
    if paper.action == "start":
        goes_on("the upgrade goes on by itself", "freehold mesh upgrade pause", {"version": paper.version})
    return await client.send(UpgradeView, "/v1/upgrade", UpgradeBody(encode(signed)))


def _say(output: Output, context: Context, action: Literal["pause", "resume", "abort"], *, yes: bool) -> None:
    """Have the upgrade that is under way pause, go on, or end."""
    require_admin(context, f"{action} the upgrade")
    view = talk(context, _view)
    wanted = {"pause": ("running",), "resume": ("paused",), "abort": ("running", "paused")}[action]
    if view.phase not in wanted:
        word = "there is no upgrade" if view.phase == "none" else f"the upgrade to {view.version} is {view.phase}"
        raise UsageError(f"{word}: nothing to {action}", next_step=PLAN, kind="no-upgrade")
    output.note(f"This has the upgrade to {view.version} {action}.")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"{action} the upgrade")
    paper = UpgradePaper(action, time.time_ns() // 1_000_000, order=bytes.fromhex(view.order))
    talk_as(context, admin, lambda client: _hand(client, admin, paper))


def _follow(output: Output, context: Context) -> None:
    """Show how it goes until it ends. Raises CommandError if it failed."""

    async def watch() -> UpgradeView:
        seen, last_s = "", time.monotonic()
        while True:
            try:
                async with NodeClient(context) as client:
                    view = await _view(client)
                last_s = time.monotonic()
            except CommandError as error:
                if error.kind not in {"no-node", "starting"} and not error.kind.startswith("http-"):
                    raise
                if time.monotonic() - last_s > UNREACHED_MAX_S:
                    raise
                output.live("the asked node starts anew")
                await asyncio.sleep(LOOK_EVERY_S)
                continue
            text = "; ".join(f"{node.name or short(node.node)} {node.state}" for node in view.nodes)
            text += f": {view.waits_for}" if view.waits_for else ""
            if text != seen:
                output.happened(text)
            seen = text
            if view.phase != "running" and not any(node.state == "on trial" for node in view.nodes):
                return view
            await asyncio.sleep(LOOK_EVERY_S)

    ended = asyncio.run(watch())
    nothing_goes_on()
    if ended.phase == "failed":
        raise CommandError(
            f"the upgrade to {ended.version} failed: {ended.why}",
            next_step=f"{PLAN}, then a mended wheel", kind="upgrade-failed",
        )  # fmt: skip
    _show(output, ended)


def _show(output: Output, view: UpgradeView) -> None:
    rows = [(short(node.node), node.name or "-", node.version or "-", "yes" if node.voter else "no",
             f"{node.state}: {node.why}" if node.why else node.state) for node in view.nodes]  # fmt: skip
    words = {
        "none": "no upgrade is known", "running": "is under way", "paused": "is paused", "failed": "failed",
        "aborted": "was ended", "done": "is done",
    }[view.phase]  # fmt: skip
    head = words if view.phase == "none" else f"the upgrade to {view.version} {words}"
    tail = "".join(
        f"\n{text}" for text in (view.why and f"why: {view.why}", view.waits_for and f"waits: {view.waits_for}") if text
    )
    output.result(
        msgspec.to_builtins(view), f"{head}{tail}\n" + table(("NODE", "NAME", "VERSION", "VOTES", "STATE"), rows)
    )
    steps = {"running": "freehold mesh upgrade pause", "paused": "freehold mesh upgrade start"}
    output.hint(steps.get(view.phase, "freehold mesh members"))


def _plan_lines(view: UpgradeView, bundle: WheelSet) -> list[str]:
    voters = sum(node.voter for node in view.nodes)
    lines = [f"This upgrades the mesh to {bundle.version}, in this order:"]
    for upgrade_node in _in_turn(view, bundle):
        pauses = upgrade_node.voter and voters < 3
        lines.append(
            f"  {upgrade_node.name or short(upgrade_node.node)}  {upgrade_node.version} -> {bundle.version}"
            + ("; nothing is decided while it starts anew" if pauses else "")
        )
    lines.append("  the node that conducts begins last; each goes back by itself if it is not well in time")
    return lines


def _in_turn(view: UpgradeView, bundle: WheelSet) -> list[UpgradeNodeView]:
    due = [node for node in view.nodes if node.version != bundle.version]
    return sorted(due, key=lambda one: (one.voter, one.node))


def _problems(view: UpgradeView, bundle: WheelSet, state: MeshState) -> list[str]:
    """What stands in the way of beginning now."""
    texts = []
    if view.phase in {"running", "paused"}:
        texts.append(f"the upgrade to {view.version} is {view.phase}")
    for node in view.nodes:
        name = node.name or short(node.node)
        if node.state == "unknown":
            texts.append(f"{name} is not reached, or runs a release that knows no `mesh upgrade`")
        elif node.version != bundle.version and (why := following_problem(node.version, bundle.version)):
            texts.append(f"{name}: {why}")
    if view.nodes and all(node.version == bundle.version for node in view.nodes):
        texts.append(f"every node runs {bundle.version} already")
    texts += [
        f"a rollout of {lane.project} in {lane.environment} is under way"
        for lane in state.lanes
        if lane.rollout is not None
    ]
    return texts


def _bundle(paths: tuple[Path, ...]) -> WheelSet:
    """Read the wheels. Raises UsageError unless exactly one release of freehold is among them."""
    if len(paths) > WHEELS_MAX:
        raise UsageError(f"an upgrade has at most {WHEELS_MAX} wheels", next_step=PLAN)
    wheels, versions = [], set()
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} is no file", next_step=PLAN, kind="wheel")
        if path.stat().st_size > WHEEL_MAX_BYTES:
            raise UsageError(f"{path.name} has over {WHEEL_MAX_BYTES >> 20} MiB", next_step=PLAN, kind="wheel")
        data = path.read_bytes()
        name, version = _identity(path)
        if name.lower() == OURS:
            versions.add(version)
        wheels.append((Wheel(path.name, hashlib.sha256(data).digest()), data))
    if len(versions) != 1 or version_of(next(iter(versions))) is None:
        raise UsageError(
            "among the wheels must be those of one release of freehold, such as freehold-1.4.0-py3-none-any.whl",
            next_step="make release builds it into dist/", kind="wheel",
        )  # fmt: skip
    return WheelSet(versions.pop(), tuple(wheels))


def _identity(path: Path) -> tuple[str, str]:
    """The name and the version of the distribution that a wheel holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = next(
                zip_info for zip_info in archive.infolist() if zip_info.filename.endswith(".dist-info/METADATA")
            )
            with archive.open(inside) as file:
                headers = HeaderParser().parsestr(file.read(METADATA_MAX_BYTES).decode("utf-8", "replace"))
    except (zipfile.BadZipFile, StopIteration, OSError) as error:
        raise UsageError(
            f"{path.name} is no wheel: {error or 'it says not what it is'}", next_step=PLAN, kind="wheel"
        ) from None
    return headers.get("Name", ""), headers.get("Version", "")


@click.group("upgrade", cls=Group)
def upgrade() -> None:
    """Upgrade the daemons of the mesh, one node after the other."""


for _one in (plan, start, pause, abort):
    upgrade.add_command(_one)
