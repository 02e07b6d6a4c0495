"""A project's own files, built as a release and served by a worker that may reach this machine: for tests of guests.

What is built and served is what `freehold build` builds; only the worker's permission to call loopback differs, which no
product code can grant. Each app is served twice: as one instance that is used again, and as a fresh one for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from cli.dev.compiled import Compiled, app_load, compile_cache
from cli.project.build import build_app
from cli.project.bundle import BuiltApp
from cli.project.find import Found, open_project
from runtime.messages import AppLoad, ReleaseLoad, WorkerRoute
from tests.support.runtime.served import REAL, Served, running

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / ".cache" / "xdg"


class Silent:
    """Told what a build does; says nothing."""

    def step(self, app: str, text: str) -> None:
        """Say nothing."""


@contextlib.contextmanager
def own_cache() -> Iterator[None]:
    """Builds go to the tests' own cache."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(CACHE)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def built(folder: Path) -> tuple[Found, list[BuiltApp]]:
    """Build every app of the project in `folder`. Raises `CommandError`, `BuildError`."""
    project = open_project(folder)
    with own_cache():
        apps = [build_app(project.project, app, project.root, Silent()) for app in project.project.base.apps.values()]
    return project, apps


async def loads(
    found: Found, apps: list[BuiltApp], config: Mapping[str, str], allow_hosts: tuple[str, ...]
) -> list[AppLoad]:
    """Compile built apps; each is there as NAME, which is used again, and as NAME-fresh, which is not."""
    app_loads: list[AppLoad] = []
    with own_cache():
        cache = compile_cache()
        for app in apps:
            artifact = await cache.ensure(app.component, app.digest)
            load = app_load(
                found.project, found.project.base.apps[app.name], "r1", Compiled(artifact, app.digest, app.kind), config
            )
            hosts = allow_hosts or load.spec.allow_hosts
            spec = replace(load.spec, allow_loopback=True, allow_hosts=hosts, instances="reuse", instances_ready=1)
            app_loads.append(msgspec.structs.replace(load, spec=spec))
            fresh = replace(spec, app=f"{app.name}-fresh", instances="fresh")
            app_loads.append(msgspec.structs.replace(load, spec=fresh))
    return app_loads


@asynccontextmanager
async def serving_project(
    folder: Path, work: Path, *, config: Mapping[str, str] | None = None, allow_hosts: tuple[str, ...] = ()
) -> AsyncIterator[Served]:
    """Serve the project's apps at the hosts NAME and NAME-fresh of a worker until the block ends.

    `config` is what they are given besides their own; `allow_hosts` takes the place of theirs, so that a test may choose ports.
    """
    answer, apps = await asyncio.to_thread(built, folder)
    app_loads = await loads(answer, apps, config or {}, allow_hosts)
    async with running(work, command=REAL) as served:
        await served.pool.load(ReleaseLoad("r1", "r1", answer.project.name, tuple(app_loads)))
        routed = [load.spec.app for load in app_loads if load.spec.kind == "http"]
        await served.pool.activate([WorkerRoute(app, "/", "r1", app) for app in routed])
        yield served
