"""Serves a project from its folder through the same workers a node uses, and serves the next version on save.

A version that cannot be built or imported is told and left out; the one before goes on serving. Workers finish what
they are answering before an old version goes. Not here: building (`candidate.py`), a mesh.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import aiohttp
import watchfiles

from cli.dev import logs
from cli.dev.candidate import Candidate, prepare
from cli.dev.compiled import compile_cache
from cli.dev.from_source import CHECK_HOST
from cli.errors import BuildError, CommandError
from cli.output import Output
from cli.project.build import STATE_FOLDER
from cli.project.find import Found, open_project
from cli.project.parse import FILE_NAME
from cli.project.source import LEFT_OUT
from runtime.control import LogBatch, Route
from runtime.supervisor import PoolError, PoolSettings, WorkerPool

WATCH_STEP_MS: Final = 30
WATCH_DEBOUNCE_MS: Final = 200
"""Editors write several files within tens of milliseconds; waiting longer only delays the reload."""

CHECK_TIMEOUT_S: Final = 60.0
DRAIN_GRACE_MS: Final = 5_000
"""On Ctrl-C: how long requests under way may take; a developer waits for this."""


@dataclass(frozen=True, slots=True)
class DevSettings:
    """Where and how to serve. `exact` runs components exactly as a release would hold them."""

    host: str
    port: int
    workers: int
    exact: bool


class DevServer:
    """One `freehold dev` run."""

    def __init__(self, found: Found, settings: DevSettings, output: Output) -> None:
        self._found = found
        self._settings = settings
        self._output = output
        self._cache = compile_cache()
        self._serving: Candidate | None = None
        self._last_failed = False
        self._stop = asyncio.Event()
        self._saved = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM, then drain. Raises `CommandError` if serving cannot begin."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        runtime_folder = Path(tempfile.mkdtemp(prefix="freehold-dev-"))
        self._pool = WorkerPool(
            PoolSettings(
                listen=(f"{self._settings.host}:{self._settings.port}",),
                runtime_folder=runtime_folder,
                data_folder=self._found.root / STATE_FOLDER / "dev" / "data",
                build=version("freehold"),
                workers=self._settings.workers,
                drain_grace_ms=DRAIN_GRACE_MS,
                orphan_limit_s=5.0,
            ),
            on_logs=self._show_logs,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pool.run())
                await self._pool.started()
                # The watch begins before the first build, or a save during it would be missed.
                helpers = [tasks.create_task(self._watch()), tasks.create_task(self._reload_on_save())]
                await self._stop.wait()
                self._output.note("stopping: requests under way are finished first")
                for helper in helpers:
                    helper.cancel()
                await self._pool.stop()
        except* PoolError as errors:
            step = "run: freehold dev --port 8081, or see the message above"
            raise CommandError(str(errors.exceptions[0]), next_step=step, kind="pool") from None
        finally:
            shutil.rmtree(runtime_folder, ignore_errors=True)
        self._output.event({"event": "stopped"})

    @property
    def address(self) -> str:
        """The address served on, as host:port."""
        return self._pool.addresses[0]

    def _show_logs(self, batch: LogBatch) -> None:
        for line in batch.lines:
            logs.show(self._output, line)
        if batch.dropped:
            self._output.warn(f"{batch.dropped} log lines were dropped")

    async def _watch(self) -> None:
        changes = watchfiles.awatch(
            self._found.root, watch_filter=_is_source, step=WATCH_STEP_MS, debounce=WATCH_DEBOUNCE_MS,
            stop_event=self._stop, recursive=True,
        )  # fmt: skip
        async for _ in changes:
            self._saved.set()

    async def _reload_on_save(self) -> None:
        """Serve version after version; a save while one is being built is served after it."""
        self._saved.set()
        while True:
            await self._saved.wait()
            self._saved.clear()
            await self._next_version(time.monotonic())

    async def _next_version(self, since_s: float) -> None:
        """Build what is on disk and serve it; a failure is told and changes nothing."""
        try:
            self._found = open_project(self._found.root)
            candidate = await prepare(self._found, self._cache, self._output, exact=self._settings.exact)
            unchanged = self._serving is not None and candidate.load.key == self._serving.load.key
            if unchanged and not self._last_failed:
                return
            if not unchanged:
                await self._swap(candidate)
        except PoolError as error:
            self._tell_failure(CommandError(str(error), next_step="correct the project and save", kind="load-failed"))
        except CommandError as error:
            self._tell_failure(error)
        else:
            self._last_failed = False
            self._tell_serving(candidate, time.monotonic() - since_s)

    async def _swap(self, candidate: Candidate) -> None:
        """Load a candidate, let it import its source, and move the routes to it; the old one drains away."""
        before = self._serving
        await self._pool.load(candidate.load)
        try:
            if candidate.from_source:
                await self._check(candidate, before)
            await self._pool.activate(candidate.routes)
        except BaseException:
            await self._pool.activate(before.routes if before else ())
            await self._pool.unload(candidate.load.key)
            raise
        self._serving = candidate
        if before is not None:
            await self._pool.unload(before.load.key)

    async def _check(self, candidate: Candidate, before: Candidate | None) -> None:
        """Ask each app that runs from source to import it; raises `BuildError` with the app's traceback."""
        checks = [Route(CHECK_HOST, f"/{name}", candidate.load.key, name) for name in candidate.from_source]
        await self._pool.activate((*(before.routes if before else ()), *checks))
        timeout = aiohttp.ClientTimeout(total=CHECK_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for name in candidate.from_source:
                headers = {"host": CHECK_HOST}
                async with session.get(f"http://{self.address}/{name}", headers=headers) as answer:
                    text = await answer.text()
                    if answer.status != 200:
                        raise BuildError(
                            name,
                            f"importing it failed:\n{_own_frames(text)}",
                            next_step="correct the app and save; the version before goes on serving",
                            kind="import-failed",
                        )

    def _tell_failure(self, error: CommandError) -> None:
        self._last_failed = True
        told = {"kind": error.kind, "message": str(error), "next_step": error.next_step}
        serving = self._serving.load.digest if self._serving else None
        self._output.event({"event": "failed", "error": told, "still_serving": serving})
        self._output.failure(error)
        if self._serving is not None:
            self._output.note(f"{serving} goes on serving")

    def _tell_serving(self, candidate: Candidate, elapsed_s: float) -> None:
        shown = {route.app: f"http://{route.host or self.address}{route.prefix}" for route in candidate.routes}
        self._output.event(
            {"event": "serving", "address": self.address, "release": candidate.load.digest, "apps": shown,
             "from_source": list(candidate.from_source), "elapsed_ms": int(elapsed_s * 1000)}
        )  # fmt: skip
        self._output.note(f"serving {candidate.load.digest} after {elapsed_s:.2f} s")
        for name, address in shown.items():
            source = " (from source; freehold build makes the release)" if name in candidate.from_source else ""
            self._output.note(f"  {name}  {address}{source}")
        for name, app in self._found.project.base.apps.items():
            if app.schedule:
                self._output.note(f"  {name}  scheduled {app.schedule}; dev builds it and does not run it")


def _own_frames(text: str) -> str:
    """Show the app's files by their names in the project, and leave out the frames of the interpreter."""
    lines: list[str] = []
    skip = False
    for line in text.strip().splitlines():
        if line.startswith("  File "):
            skip = '"/1/' not in line and '"/2/' not in line
        elif not line.startswith("    "):
            skip = False
        if not skip:
            lines.append(line.replace('"/1/', '"').replace('"/2/', '"packages/'))
    return "\n".join(lines[-40:])


def _is_source(_: watchfiles.Change, path: str) -> bool:
    """Whether a changed path can change what is served."""
    name = Path(path).name
    parts = Path(path).parts
    if name.endswith((".pyc", "~", ".swp")) or any(part in LEFT_OUT for part in parts):
        return False
    return name == FILE_NAME or not name.startswith(".")
