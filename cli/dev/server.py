"""Serves a project from its folder through a mesh of one, and has it decide the next version on every save.

The node is the one of `freehold node run`, in this process; every version goes through the same gates as a deploy:
candidate, smoke checks, a start decided by the chain, a rollout of one node. A version that cannot be built, imported or
started is told and left out; the one before, the base of the chain, goes on serving. Not here: what a version is made of
(candidate.py), and the mesh's folder (mesh_of_one.py).
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import watchfiles

from cli.access.client import NodeClient
from cli.access.contexts import DEV_CONTEXT, DEV_ENVIRONMENT
from cli.access.secrets import versions_for
from cli.cache import cache_folder
from cli.change.proposal import ChangeProposal, built_here, lane_of, make_proposal, pinned_nodes, routes_of, start_of
from cli.change.propose import claim_missing_routes, upload
from cli.dev.candidate import from_source_of, put_together
from cli.dev.inputs import is_input
from cli.dev.mesh_of_one import NODE_NAME, MeshOfOne, furnish, open_mesh
from cli.dev.secrets import read_secrets, set_changed, with_secrets
from cli.errors import CommandError
from cli.host.local_node import HeldNode, NodeFailedError, NodeSettings, is_running
from cli.host.ports import owner_of
from cli.project import python_packages
from cli.project.build import STATE_FOLDER
from cli.project.bundle import BuildBundle
from cli.project.find import Found, open_project
from cli.project.model import App
from cli.text.output import Output
from cli.views import log_lines
from cli.views.watch import watch_change
from protocols.api_models import ChangeView
from protocols.changes.change import Plan, Stage
from protocols.envelope import encode
from protocols.state.model import Deployed

WATCH_STEP_MS: Final = 30
WATCH_DEBOUNCE_MS: Final = 200
"""Editors write several files within tens of milliseconds; waiting longer only delays the reload."""

DRAIN_S: Final = 5
"""On Ctrl-C: how long requests under way may take; a developer waits for this."""

ORPHAN_S: Final = 5
"""Workers of a dev that was killed serve on for the next one to adopt, and do not hold the port for long."""

LOOK_EVERY_S: Final = 0.02
CHANGES_ASKED: Final = 500
START_TIMEOUT_S: Final = 60.0
PREPARE_TIMEOUT_S: Final = 300.0
"""The first version of an app may have its interpreter compiled, on a machine that does other things."""

TELL_AFTER_S: Final = 2.0
"""A save that takes longer says what it waits for."""

ROLLOUT_TIMEOUT_S: Final = 120.0
PATIENCE_S: Final = 5.0
"""How long a save waits for people, where the mesh of one was given a policy that asks for them."""

PLAN: Final = Plan(
    (Stage("100%", min_healthy_ms=0),), healthy_deadline_ms=30_000, progress_deadline_ms=60_000, probe_only=True
)
"""One node, no first stage: smoke checks ran on throwaway data before it serves, and being ready is enough then."""

REQUEST: Final = "a save under freehold dev"


@dataclass(frozen=True, slots=True)
class DevSettings:
    """Where and how to serve. `exact` runs components exactly as a release would hold them."""

    host: str
    port: int
    workers: int
    exact: bool

    @property
    def node(self) -> NodeSettings:
        """What the node of the mesh is told: no mesh port at all, nobody is to join."""
        return NodeSettings(
            listen=(), ingress=(f"{self.host}:{self.port}",), workers=self.workers, drain_s=DRAIN_S, orphan_s=ORPHAN_S,
            smoke_ahead=True, local_only=True, compiled=str(cache_folder() / "compiled"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Version:
    """What is served now."""

    release: str
    change: str
    apps: Mapping[str, str]
    from_source: tuple[str, ...]


class DevServer:
    """One `freehold dev` run."""

    def __init__(self, found: Found, settings: DevSettings, output: Output) -> None:
        """Open the project's mesh of one, founding it the first time. Raises CommandError."""
        self._found = found
        self._settings = settings
        self._output = output
        self._mesh = _open(found.root, settings, output)
        self._node = HeldNode(self._mesh.node, NODE_NAME, settings.node)
        self._serving: Version | None = None
        self._given_up: set[str] = set()
        self._told_wait = False
        self._last_failed = False
        self._ending = asyncio.Event()
        self._saved = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM, then drain. Raises `CommandError` if serving cannot begin."""
        try:
            async with asyncio.TaskGroup() as tasks:
                node = tasks.create_task(self._node.run())
                if await self._is_up(node):
                    await self._serve(tasks, node)
        except* CommandError as errors:
            raise self._told(errors.exceptions[0]) from None
        self._output.event({"event": "stopped"})

    async def _is_up(self, node: asyncio.Task[None]) -> bool:
        """Wait until the node's API answers; False if it was told to stop before."""
        started = asyncio.ensure_future(self._node.started())
        try:
            await asyncio.wait({node, started}, return_when=asyncio.FIRST_COMPLETED)
            return started.done()
        finally:
            started.cancel()

    async def _serve(self, tasks: asyncio.TaskGroup, node: asyncio.Task[None]) -> None:
        async with NodeClient(self._mesh.context) as self._client:
            # The watch begins before the first build, or a save during it would be missed.
            helpers = [tasks.create_task(self._watch()), tasks.create_task(self._reload_on_save())]
            self._given_up = await self._proposed_releases()
            lines = tasks.create_task(self._show_logs())

            def end_helpers() -> None:
                self._ending.set()
                for helper in helpers:
                    helper.cancel()

            def stop() -> None:
                self._output.note("stopping: requests under way are finished first")
                end_helpers()
                self._node.stop()

            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop)
            await asyncio.wait({node})
            end_helpers()  # a Ctrl-C before this handler was the node's alone
            lines.cancel()

    async def _show_logs(self) -> None:
        async for line in self._node.lines(self._found.project.name):
            if not log_lines.is_of_rollout(line) and log_lines.read(line).get("release") not in self._given_up:
                log_lines.show(self._output, self._in_project(line))

    async def _proposed_releases(self) -> set[str]:
        """Return the releases of versions that never came to run: the node tries them anew, and the files are others now."""
        try:
            changes = await self._client.read(
                tuple[ChangeView, ...], "/v1/changes", project=self._found.project.name, environment=DEV_ENVIRONMENT,
                limit=CHANGES_ASKED,
            )  # fmt: skip
        except CommandError as error:
            if error.kind != "no-node":
                raise
            return set()  # it was told to stop already
        ran = {change.release for change in changes if change.state in {"base", "candidate", "retained"}}
        return {change.release for change in changes} - ran

    def _in_project(self, line: bytes) -> bytes:
        """Call the files in a traceback what they are called in the project."""
        entry = log_lines.read(line)
        app = self._found.project.base.apps.get(str(entry.get("app", "")))
        if app is None or entry.get("stream") != "guest":
            return line
        return json.dumps(entry | {"message": _own_names(str(entry.get("message", "")), app)}).encode()

    async def _watch(self) -> None:
        changes = watchfiles.awatch(
            self._found.root, watch_filter=self._is_input, step=WATCH_STEP_MS, debounce=WATCH_DEBOUNCE_MS,
            stop_event=self._ending, recursive=True,
        )  # fmt: skip
        async for _ in changes:
            self._saved.set()

    def _is_input(self, _: watchfiles.Change, path: str) -> bool:
        return is_input(self._found.root, self._found.project, path)

    async def _reload_on_save(self) -> None:
        """Serve version after version; a save while one is being rolled out is served after it."""
        await self._speak_again()
        self._output.note(f"commands reach this mesh of one with --context {DEV_CONTEXT}")
        self._saved.set()
        while True:
            await self._saved.wait()
            self._saved.clear()
            await self._next_version(time.monotonic())

    async def _speak_again(self) -> None:
        """Give the vote back to a store that lost its memory: here nobody else could tell it what it said."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        told = False
        while not self._node.speaks and (self._node.muted or time.monotonic() < deadline_s):
            if self._node.muted and not told:
                told = True
                where = self._found.root / STATE_FOLDER
                self._output.warn(
                    f"its node does not vote, so nothing starts: {self._node.muted}; free some space on {where}"
                )
            reason = self._node.lost_vote
            if reason and not told:
                told = True
                self._output.warn(f"this mesh of one lost its vote ({reason}) and is reset: decisions may be missing")
                self._node.reset(self._mesh.admin, f"freehold dev: {reason}")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _next_version(self, since_s: float) -> None:
        """Have what is on disk decided and served; a failure is told and changes nothing."""
        self._told_wait = False
        try:
            self._found = open_project(self._found.root)
            version = await self._deploy(self._found)
        except CommandError as error:
            if error.kind != "no-node":  # it was told to stop, or it failed and says so itself
                self._tell_failure(error)
            return
        if version != self._serving or self._last_failed:
            self._serving, self._last_failed = version, False
            self._tell_serving(version, time.monotonic() - since_s)

    async def _deploy(self, found: Found) -> Version:
        """Take the project as it is through the gates; return what serves when it is the base. Raises CommandError."""
        client, mesh = self._client, self._mesh
        values = read_secrets(found.root / STATE_FOLDER / "secrets")
        found = with_secrets(found, values, self._output)
        exact = self._settings.exact
        await furnish(mesh, client, found.project)
        await self._claim_first(found)
        bundle = await asyncio.to_thread(put_together, found, mesh.folder / "version", self._output, exact=exact)
        await set_changed(client, mesh.me, found, values, mesh.folder / "secrets-set")
        offered = built_here(found, bundle, mesh.me.public_key)
        versions = await versions_for(client, offered.effective(DEV_ENVIRONMENT))
        proposal = make_proposal(
            await client.state(), await client.mesh(), offered, environment=DEV_ENVIRONMENT, request=REQUEST,
            signer=mesh.me, versions=versions, plan=PLAN,
        )  # fmt: skip
        self._given_up.discard(proposal.change.release.hex())
        lane = lane_of(await client.state(), found.project.name, DEV_ENVIRONMENT)
        if lane.rollout is None and lane.base is not None and _is_same(lane.base, proposal):
            return await self._served(found, bundle, proposal, lane.base.change)
        await claim_missing_routes(client, lane, proposal.change.routes, mesh.me)
        await upload(client, proposal)
        await client.publish("change", found.project.name, encode(proposal.signed))
        await self._prepared(proposal.id.hex())
        state = await client.state()
        lane = lane_of(state, found.project.name, DEV_ENVIRONMENT)
        nodes = pinned_nodes(state, lane, proposal.change)
        start = start_of(await client.mesh(), lane, proposal.id, nodes, mesh.me, supersede=True)
        await client.start(start)
        watched = await watch_change(client, None, proposal.id.hex(), wait_s=ROLLOUT_TIMEOUT_S, patience_s=PATIENCE_S,
                                     look_every_s=LOOK_EVERY_S)  # fmt: skip
        if watched.outcome != "succeeded":
            step = f"freehold resume --context {DEV_CONTEXT}, or save again"
            raise CommandError(f"the rollout is {watched.outcome}", next_step=step, kind=watched.outcome)
        return await self._served(found, bundle, proposal, proposal.id)

    async def _claim_first(self, found: Found) -> None:
        """Claim the routes before the first version is built: a visitor who comes meanwhile is told to try again."""
        lane = lane_of(await self._client.state(), found.project.name, DEV_ENVIRONMENT)
        if lane.base is None:
            apps = found.project.settings(DEV_ENVIRONMENT).apps.values()
            wanted = [route for app in apps for route in routes_of(app)]
            await claim_missing_routes(self._client, lane, wanted, self._mesh.me)

    async def _prepared(self, change: str) -> None:
        """Wait until the node has prepared a change. Raises CommandError saying why it cannot; then nothing is started."""
        began_s = time.monotonic()
        deadline_s = began_s + PREPARE_TIMEOUT_S
        while not (view := await self._client.read(ChangeView, f"/v1/changes/{change}")).prepared:
            if (view.failure and not view.tries_again) or time.monotonic() > deadline_s:
                why = view.failure or f"it took over {PREPARE_TIMEOUT_S:.0f} s"
                raise _not_prepared(why, self._found.project.base.apps)
            self._tell_wait(time.monotonic() - began_s)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _served(self, found: Found, bundle: BuildBundle, proposal: ChangeProposal, change: bytes) -> Version:
        """Wait until the workers answer for the base, and for no route of the one before."""
        began_s = time.monotonic()
        deadline_s = began_s + START_TIMEOUT_S
        while not self._node.serves(found.project.name, DEV_ENVIRONMENT, change):
            if time.monotonic() > deadline_s:
                raise CommandError(
                    "the version was decided and does not start",
                    next_step=f"freehold logs --context {DEV_CONTEXT}",
                    kind="not-started",
                )
            self._tell_wait(time.monotonic() - began_s)
            await asyncio.sleep(LOOK_EVERY_S)
        apps = found.project.settings(DEV_ENVIRONMENT).apps.values()
        shown = {
            app.name: f"http://{route.host or self._node.address}{route.path}"
            for app in apps
            for route in routes_of(app)
        }
        return Version(proposal.change.release.hex(), change.hex(), shown, tuple(from_source_of(bundle)))

    def _tell_wait(self, waited_s: float) -> None:
        if not self._told_wait and waited_s > TELL_AFTER_S:
            self._told_wait = True
            self._output.step("", "compiling to machine code (once), and smoke checks")

    def _tell_failure(self, error: CommandError) -> None:
        self._last_failed = True
        serving = self._serving.release if self._serving else None
        told = {"kind": error.kind, "message": str(error), "next_step": error.next_step}
        self._output.event({"event": "failed", "error": told, "still_serving": serving})
        self._output.failure(error)
        if serving is not None:
            self._output.note(f"{serving[:12]} goes on serving")

    def _tell_serving(self, version: Version, elapsed_s: float) -> None:
        self._output.event(
            {"event": "serving", "address": self._node.address, "release": version.release, "change": version.change,
             "apps": version.apps, "from_source": list(version.from_source), "elapsed_ms": int(elapsed_s * 1000)}
        )  # fmt: skip
        self._output.note(f"serving {version.release[:12]} after {elapsed_s:.2f} s")
        for name, address in version.apps.items():
            source = " (from source; freehold build makes the release)" if name in version.from_source else ""
            self._output.note(f"  {name}  {address}{source}")
        for name, app in self._found.project.base.apps.items():
            if app.schedule:
                self._output.note(f"  {name}  runs by its schedule, {app.schedule}")
            if app.subscribe:
                self._output.note(f"  {name}  handles the messages of {', '.join(app.subscribe)}")

    def _told(self, error: Exception) -> Exception:
        """Name what a developer can change: another port, or a folder that is in the way."""
        if not isinstance(error, NodeFailedError):
            return error
        port = self._settings.port
        if error.kind != "node-busy" or not port:
            return _unusable(error)
        owner = owner_of(port) or "another process"
        step = f"stop it, or run: freehold dev --port {port + 1}"
        return CommandError(f"port {port} is in use by {owner}", next_step=step, kind="port-busy")


def _open(root: Path, settings: DevSettings, output: Output) -> MeshOfOne:
    try:
        mesh = open_mesh(root, settings.node, output)
    except NodeFailedError as error:
        raise _unusable(error) from None
    if is_running(mesh.node):
        raise CommandError(
            "freehold dev runs for this project already",
            next_step=f"stop it with Ctrl-C where it runs, or ask it: freehold status --context {DEV_CONTEXT}",
            kind="running",
        )
    return mesh


def _unusable(error: NodeFailedError) -> CommandError:
    step = f"remove {STATE_FOLDER}/{DEV_CONTEXT} (its apps' data goes with it), then: freehold dev"
    return CommandError(f"the mesh of one cannot be used: {error}", next_step=step, kind=error.kind)


def _is_same(base: Deployed, proposal: ChangeProposal) -> bool:
    """Whether the base is this very version: code, configuration and secrets."""
    change = proposal.change
    return (base.release, base.configuration, base.secrets) == (change.release, change.configuration, change.secrets)


def _not_prepared(why: str, apps: Mapping[str, App]) -> CommandError:
    """Say why a version cannot run, with the app's own frames alone; a missing package is named with what to do."""
    failed = re.match(r"app ([a-z0-9-]+) cannot be imported", why)
    app = apps.get(failed[1]) if failed else None
    step = "correct the app and save"
    if app is not None:
        why = _own_names(_own_frames(why), app)
        step = python_packages.step_for_missing(why, app.source) or step
    return CommandError(f"this version cannot run: {why}", next_step=step, kind="not-prepared")


def _own_names(text: str, app: App) -> str:
    return text.replace('File "/1/', f'File "{app.source.rstrip("/")}/').replace('File "/2/', 'File "packages/')


def _own_frames(text: str) -> str:
    """Leave out the frames of the interpreter."""
    lines: list[str] = []
    skip = False
    for line in text.strip().splitlines():
        if line.startswith("  File "):
            skip = '"/1/' not in line and '"/2/' not in line
        elif not line.startswith("    "):
            skip = False
        if not skip:
            lines.append(line)
    return "\n".join(lines[-40:])
