"""Preparing a release on this node: fetch its parts, check them against what was approved, compile, run smoke checks.

A change names its release (the manifest) and its effective configuration by digest; the manifest names the
components. All of it is fetched by digest, so what is loaded is what was signed. Smoke checks run in a worker of
their own, on data that is thrown away. Not here: when to prepare and what to run (protocols/agent.py orders it,
workloads.py obeys).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from node.artifacts import ArtifactError, ArtifactStore
from node.fetching import Fetcher
from node.secrets import SecretError
from protocols.change import RELEASE_MAX_BYTES, Release, SecretVersion, release_problem
from protocols.effective import EFFECTIVE_MAX_BYTES, Effective, EffectiveApp, decode_effective
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.machine import Digest
from runtime.compile_cache import CompileCache
from runtime.component import ComponentError
from runtime.control import AppLoad, ReleaseLoad, Route
from runtime.cron import schedule_problem
from runtime.spec import AppSpec
from runtime.supervisor import PoolError, PoolSettings, WorkerPool

SMOKE_TIMEOUT_S = 30.0
SMOKE_BODY_MAX_BYTES = 1 << 20
SMOKE_BUILD = "smoke"

Secrets = Callable[[Effective, EffectiveApp, Sequence[SecretVersion]], Awaitable[Mapping[str, str]]]
"""The values of an app's secrets, in these versions; raises SecretError."""


class PreparationError(Exception):
    """The release cannot be prepared here; the text says why, for a person."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A release that can be loaded: `key` names release, configuration and secret versions together."""

    key: str
    release: Digest
    effective: Effective
    load: ReleaseLoad


def load_key(release: bytes, configuration: bytes, secrets: Sequence[SecretVersion] = ()) -> str:
    """The key under which workers hold a release with one configuration and these versions of its secrets."""
    return f"{release.hex()}.{digest(encode((configuration, tuple(secrets)))).hex()[:32]}"


def candidate_host(key: str, app: str) -> str:
    """The host name under which this node's own smoke checks reach one app of one loaded release."""
    return f"{app}.{digest(key.encode()).hex()[:32]}.freehold.internal"


class Releases:
    """Prepares releases in one node's folders."""

    def __init__(
        self, artifacts: ArtifactStore, fetcher: Fetcher, cache: CompileCache, folder: Path, secrets: Secrets, *,
        sockets: Path,
    ) -> None:  # fmt: skip
        """Take the stores, a folder for throwaway data, what unseals an app's secrets, and a short path for sockets."""
        self._artifacts = artifacts
        self._fetcher = fetcher
        self._cache = cache
        self._folder = folder
        self._secrets = secrets
        self._sockets = sockets

    async def manifest(self, release: bytes) -> Release:
        """Fetch and read a manifest. Raises PreparationError."""
        data = await self._small(release, RELEASE_MAX_BYTES)
        try:
            manifest: Release = decode(data, Release, RELEASE_MAX_BYTES)
        except DecodeError as error:
            raise PreparationError(f"the manifest is malformed: {error}") from error
        problem = release_problem(manifest)
        if problem:
            raise PreparationError(f"the manifest is malformed: {problem}")
        return manifest

    async def prepare(self, release: bytes, configuration: bytes, secrets: Sequence[SecretVersion] = ()) -> Prepared:
        """Fetch, check and compile everything, and unseal the secrets in these versions. Raises PreparationError."""
        manifest = await self.manifest(release)
        try:
            effective = decode_effective(await self._small(configuration, EFFECTIVE_MAX_BYTES))
        except DecodeError as error:
            raise PreparationError(str(error)) from error
        if effective.project != manifest.project:
            raise PreparationError("the configuration is of another project than the release")
        components = {one.app: bytes(one.digest) for one in manifest.components}
        loads = []
        key = load_key(release, configuration, secrets)
        for app in effective.apps:
            if components.get(app.name) != app.component:
                raise PreparationError(f"the configuration names a component for {app.name} that the release does not")
            problem = schedule_problem(app.schedule) if app.schedule else ""
            if problem:
                raise PreparationError(f"the schedule of {app.name}, {app.schedule!r}, cannot be run: {problem}")
            try:
                values = await self._secrets(effective, app, secrets)
            except SecretError as error:
                raise PreparationError(str(error)) from None
            loads.append(AppLoad(await self._spec(release, effective, app, values)))
        return Prepared(
            key, Digest(release), effective, ReleaseLoad(key, release.hex(), effective.project, tuple(loads))
        )

    async def smoke(self, prepared: Prepared) -> bool:
        """Run the smoke checks on throwaway data; False if the release has none. Raises PreparationError naming one."""
        if not prepared.effective.smoke:
            return False
        folder = Path(tempfile.mkdtemp(prefix="smoke-", dir=self._folder))
        sockets = Path(tempfile.mkdtemp(prefix="smoke-", dir=self._sockets))
        ingress = sockets / "ingress.sock"
        pool = WorkerPool(
            PoolSettings(
                listen=(f"unix:{ingress}",),
                runtime_folder=sockets / "run",
                data_folder=folder / "data",
                build=SMOKE_BUILD,
                workers=1,
                drain_grace_ms=1_000,
            ),
            on_logs=lambda batch: None,
        )
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(pool.run())
                try:
                    await asyncio.wait_for(pool.started(), SMOKE_TIMEOUT_S)
                    await pool.load(prepared.load)
                    await pool.activate(smoke_routes(prepared))
                    await run_smoke(ingress, prepared)
                finally:
                    await pool.stop()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(asyncio.shield(task), SMOKE_TIMEOUT_S)
                    task.cancel()
        except* (PoolError, TimeoutError) as group_error:
            raise PreparationError(f"the release did not start: {group_error.exceptions[0]}") from None
        except* PreparationError as group_error:
            raise group_error.exceptions[0] from None
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
            await asyncio.to_thread(shutil.rmtree, sockets, True)
        return True

    async def _spec(
        self, release: bytes, effective: Effective, app: EffectiveApp, secrets: Mapping[str, str]
    ) -> AppSpec:
        await self._fetch(app.component)
        component = self._artifacts.path(app.component)
        try:
            artifact = await self._cache.ensure(component, app.component.hex())
        except ComponentError as error:
            raise PreparationError(f"app {app.name} does not compile: {error}") from error
        return AppSpec(
            project=effective.project,
            app=app.name,
            release=release.hex(),
            artifact=artifact,
            artifact_digest=app.component.hex(),
            kind=app.kind,
            timeout_ms=app.timeout_ms,
            memory_max_bytes=app.memory_max_bytes,
            instances=app.instances,
            allow_hosts=app.allow_hosts,
            keyvalue=app.keyvalue,
            stores=f"{effective.project}/{effective.environment}",
            config={**dict(app.config), **secrets},
            redacted=secrets,
        )

    async def _small(self, digest: bytes, max_bytes: int) -> bytes:
        await self._fetch(digest)
        try:
            return self._artifacts.read(digest, max_bytes)
        except (ArtifactError, FileNotFoundError) as error:
            raise PreparationError(str(error)) from error

    async def _fetch(self, digest: bytes) -> None:
        try:
            await self._fetcher.ensure(digest)
        except ArtifactError as error:
            raise PreparationError(str(error)) from error


def smoke_routes(prepared: Prepared) -> list[Route]:
    """The routes that lead this node's own checks to each app, mounted where its public routes mount it."""
    routes = []
    for app in prepared.effective.apps:
        if app.kind == "http":
            paths = sorted({route.path for route in app.routes} or {"/"})
            routes += [Route(candidate_host(prepared.key, app.name), path, prepared.key, app.name) for path in paths]
    return routes


async def run_smoke(ingress: Path, prepared: Prepared) -> None:
    """Send every smoke check through a Unix socket; raises PreparationError at the first that is not as said."""
    timeout = aiohttp.ClientTimeout(total=SMOKE_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(ingress)), timeout=timeout) as session:
        for check in prepared.effective.smoke:
            url = f"http://{candidate_host(prepared.key, check.app)}{check.path}"
            try:
                async with session.get(url, allow_redirects=False) as answer:
                    body = await answer.content.read(SMOKE_BODY_MAX_BYTES)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise PreparationError(f"smoke check {check.path} of {check.app} got no answer: {error}") from error
            if answer.status != check.status:
                raise PreparationError(
                    f"smoke check {check.path} of {check.app} answered {answer.status}, not {check.status}"
                )
            if check.contains and check.contains.encode() not in body:
                raise PreparationError(f"smoke check {check.path} of {check.app} lacks {check.contains!r}")
