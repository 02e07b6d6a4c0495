"""A trial of a built release: served in the sandbox exactly as built, on data that is thrown away, then tested.

First the project's own test command on this machine, with FREEHOLD_URL pointing at the app; then the smoke checks, as
nodes run them. Not here: building, and signing what came out (cli/change/evidence.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

from cli.change.evidence import Ran
from cli.dev.compiled import Compiled, app_load, compile_cache
from cli.dev.guarded import guarded
from cli.dev.secrets import read_secrets
from cli.errors import BuildError, CommandError
from cli.project import python_packages
from cli.project.build import STATE_FOLDER
from cli.project.bundle import ARTIFACTS, BuildBundle
from cli.project.find import Found
from cli.text.output import Output
from node.serving.releases import (
    PreparationError,
    PreparedRelease,
    ask_migrations,
    migration_load,
    run_smoke,
    smoke_routes,
)
from protocols.changes.effective import Effective
from protocols.machine import Digest
from runtime.messages import ReleaseLoad, WorkerRoute
from runtime.sandbox.component import ComponentError
from runtime.services.log_sink import Blotter
from runtime.workers.pool import PoolError, WorkerPool
from runtime.workers.pool_settings import PoolSettings

TEMPORARY_MAX_CHARACTERS = 40
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
LINES_MAX = 200
OUTPUT_MAX_BYTES = 1 << 20
"""Of the test command's output; the end is kept, where failures are."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A release that serves: where people reach it, and the Unix socket for smoke checks."""

    addresses: Mapping[str, str]
    socket: Path
    prepared: PreparedRelease
    lines: deque[bytes] = field(default_factory=lambda: deque(maxlen=LINES_MAX))
    """The newest log lines of its apps; complete when it has ended."""


async def load_of(found: Found, bundle: BuildBundle, effective: Effective, output: Output) -> PreparedRelease:
    """Compile every app of a release; return it with the configuration of one environment. Raises CommandError."""
    secrets = read_secrets(found.root / STATE_FOLDER / "secrets")
    settings = found.project.settings(effective.environment)
    cache, loads = compile_cache(), []
    for app in effective.apps:
        for missing in [name for name in app.secrets if name not in secrets]:
            output.warn(f"{app.name}: secret {missing} has no value; put {missing}=... into {STATE_FOLDER}/secrets")
        component = bundle.folder / ARTIFACTS / app.component.hex()
        if not cache.has(app.component.hex()):
            output.step(app.name, "compiling to machine code (once per component)")
        try:
            artifact = await cache.ensure(component, app.component.hex())
        except ComponentError as error:
            step = f"correct the app, then run: freehold build --app {app.name}"
            raise BuildError(app.name, str(error), next_step=step, kind="component-refused") from None
        given_secrets = {name: secrets[name] for name in app.secrets if name in secrets}
        code = Compiled(artifact, app.component.hex(), app.kind)
        loads.append(app_load(found.project, settings.apps[app.name], bundle.id, code, given_secrets))
    key = bundle.id
    load = ReleaseLoad(key, key, effective.project, tuple(loads), effective.environment)
    return PreparedRelease(key, Digest(bytes.fromhex(key)), effective, load)


def _short_folder() -> Path:
    """Make a new folder whose path leaves room for sockets in it, wherever TMPDIR leads."""
    crowded = len(tempfile.gettempdir()) > TEMPORARY_MAX_CHARACTERS
    return Path(tempfile.mkdtemp(prefix="freehold-test-", dir="/tmp" if crowded else None))  # noqa: S108  mode 0700, new


@contextlib.asynccontextmanager
async def serving(prepared: PreparedRelease) -> AsyncIterator[Serving]:
    """Serve a release on a free loopback port until the block ends. Raises CommandError if it does not start."""
    folder = _short_folder()
    served = Serving({}, folder / "ingress.sock", prepared)
    pool = WorkerPool(
        PoolSettings(
            listen=("127.0.0.1:0", f"unix:{folder / 'ingress.sock'}"),
            runtime_folder=folder / "run",
            data_folder=folder / "data",
            build=version("freehold"),
            workers=1,
            drain_grace_ms=1_000,
            orphan_limit_s=5.0,
        ),
        on_logs=lambda batch: served.lines.extend(batch.lines),
    )
    running = asyncio.ensure_future(pool.run())
    held = [prepared, *_as_one_and_as_fresh(prepared)]
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await pool.started()
            for prepared_release in held:
                await pool.load(prepared_release.load)
            if prepared.migrating:
                asked = migration_load(prepared)
                await pool.load(asked)
                await ask_migrations(pool, asked)
            paths = _paths(prepared.effective)
            public = [WorkerRoute(None, path, prepared.key, app) for path, app in paths.items()]
            await pool.activate([*public, *(route for entry in held for route in smoke_routes(entry))])
        base = f"http://{pool.addresses[0]}"
        where = {app: f"{base}{path.rstrip('/')}" for path, app in reversed(paths.items())}
        yield replace(served, addresses=where)
    except PreparationError as error:
        raise CommandError(str(error), next_step="correct the app, then run: freehold test", kind="migrate") from None
    except (PoolError, TimeoutError) as error:
        raise CommandError(
            f"the release did not start: {error or 'no answer in time'}", next_step="freehold dev --exact", kind="pool"
        ) from None
    finally:
        await pool.stop()
        with contextlib.suppress(TimeoutError, PoolError):
            await asyncio.wait_for(running, STOP_TIMEOUT_S)
        await asyncio.to_thread(shutil.rmtree, folder, True)


def command_environment(found: Found, addresses: Mapping[str, str]) -> dict[str, str]:
    """Return what the test command is given: where the apps are, and a `python` that finds what they import.

    That is the project's own .venv where there is one. Otherwise it is the interpreter that runs this command, with the
    packages of each app's requirements.txt as they were fetched for the build, so that tests need no installation.
    """
    environment = {
        **os.environ,
        "FREEHOLD_URL": next(iter(addresses.values()), ""),
        **{f"FREEHOLD_URL_{app.upper().replace('-', '_')}": address for app, address in addresses.items()},
    }
    own = found.root / ".venv" / "bin"
    if own.is_dir():
        first = own
    else:
        first = Path(sys.executable).parent
        listed = [found.root / app.source / "requirements.txt" for app in found.project.base.apps.values()]
        packages = [str(python_packages.vendor("tests", path.read_bytes())) for path in listed if path.is_file()]
        inherited = [path for path in (environment.get("PYTHONPATH"),) if path]
        environment["PYTHONPATH"] = os.pathsep.join([*packages, *inherited])
    environment["PATH"] = f"{first}{os.pathsep}{environment.get('PATH', '')}"
    return environment


async def run_command(command: str, found: Found, serving: Serving, timeout_s: float, output: Output) -> Ran:
    """Run the project's test command in its folder; its output is shown and kept, without the values of secrets.

    What is kept becomes evidence, which the whole mesh reads.
    """
    blot = Blotter(read_secrets(found.root / STATE_FOLDER / "secrets"))
    environment = await asyncio.to_thread(command_environment, found, serving.addresses)
    answer = bytearray()
    unfinished, code = b"", None
    async with guarded(command, found.root, environment) as process:
        assert process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while data := await process.stdout.read(65536):
                    *lines, unfinished = (unfinished + data).split(b"\n")
                    unfinished = unfinished[-OUTPUT_MAX_BYTES:]
                    for line in lines:
                        output.note(blot(line.decode(errors="replace")))
                    answer += data
                    del answer[:-OUTPUT_MAX_BYTES]
                code = await process.wait()
    if unfinished:
        output.note(blot(unfinished.decode(errors="replace")))
    log = blot(answer.decode(errors="replace"))
    if code is None:
        log += f"\nstopped after {timeout_s:.0f} s"
    passed = code == 0
    names = ((command,), ()) if passed else ((), (command,))
    return Ran("test", "host", passed, names, log, {"python": sys.version.split()[0]})


def _as_one_and_as_fresh(prepared: PreparedRelease) -> tuple[PreparedRelease, PreparedRelease]:
    """Return the release as one instance that answers every request, and as a fresh one for each."""

    def held(name: str, instances: Literal["fresh", "reuse"], ready: int) -> PreparedRelease:
        key = f"{prepared.key}.{name}"
        apps = [
            msgspec.structs.replace(load, spec=replace(load.spec, instances=instances, instances_ready=ready))
            for load in prepared.load.apps
            if load.spec.kind == "http" and load.spec.instances == "reuse"
        ]
        names = {load.spec.app for load in apps}
        asked = tuple(app for app in prepared.effective.apps if app.name in names)
        effective = msgspec.structs.replace(prepared.effective, apps=asked)
        load = msgspec.structs.replace(prepared.load, key=key, apps=tuple(apps))
        return PreparedRelease(key, prepared.release, effective, load)

    return held("one", "reuse", 1), held("fresh", "fresh", 0)


async def run_checks(serving: Serving) -> Ran | None:
    """Run the smoke checks one by one, each to its end; None if there are none.

    An app whose instances answer again is asked twice on one instance, and once on a fresh one.
    """
    checks = serving.prepared.effective.smoke
    prepared_release, fresh = _as_one_and_as_fresh(serving.prepared)
    again = {app.name for app in prepared_release.effective.apps}
    passed: list[str] = []
    failed: list[str] = []
    log: list[str] = []
    for check in checks:
        name = f"{check.app} GET {check.path} {check.status}"
        ways = [(prepared_release, ""), (prepared_release, ", the same instance again"), (fresh, ", a fresh instance")]
        failures = 0
        for prepared, way in ways if check.app in again else [(serving.prepared, "")]:
            alone = replace(prepared, effective=msgspec.structs.replace(prepared.effective, smoke=(check,)))
            began_s = time.monotonic()
            try:
                await run_smoke(serving.socket, alone)
            except PreparationError as error:
                failures += 1
                log.append(f"FAILED {name}{way}: {error}")
            else:
                log.append(f"PASSED {name}{way} in {(time.monotonic() - began_s) * 1000:.0f} ms")
        (failed if failures else passed).append(name)
    if not checks:
        return None
    return Ran("smoke", "sandbox", not failed, (tuple(passed), tuple(failed)), "\n".join(log), {})


def _paths(effective: Effective) -> dict[str, str]:
    """Every path that leads to an app, whatever the host; the first app in order of name has it."""
    table: dict[str, str] = {}
    for app in effective.apps:
        if app.kind == "http":
            for path in [route.path for route in app.routes] or ["/"]:
                table.setdefault(path, app.name)
    return table
