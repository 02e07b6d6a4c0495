"""Preparing a release on this node: fetch its parts, check them against what was approved, compile, run smoke checks.

A change names its release (the manifest) and its effective configuration by digest; the manifest names the
components. All of it is fetched by digest, so what is loaded is what was signed. Smoke checks run in a worker of
their own, on data that is thrown away. Not here: when to prepare and what to run (protocols/rollout/agent.py orders it,
workloads.py obeys).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import msgspec

from node.mesh.artifact_fetcher import Fetcher
from node.serving.secrets import SealedAwayError, SecretError
from node.serving.smoke_bench import SmokeBenches
from node.store.artifacts import ArtifactError, ArtifactStore
from protocols.changes.change import (
    RELEASE_MAX_BYTES,
    SOURCE_KEY,
    SOURCE_MAX_BYTES,
    Release,
    SecretVersion,
    release_problem,
)
from protocols.changes.effective import EFFECTIVE_MAX_BYTES, Effective, EffectiveApp, decode_effective
from protocols.changes.networks import within
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.machine import Digest
from runtime.cron import schedule_problem
from runtime.messages import AppLoad, ReleaseLoad, WorkerRoute
from runtime.sandbox.compile_cache import CompileCache
from runtime.sandbox.component import CompilerEndedError, ComponentError
from runtime.spec import AppSpec
from runtime.workers.link import WorkerRefusedError
from runtime.workers.pool import PoolError, WorkerPool

SMOKE_TIMEOUT_S = 30.0
SMOKE_BODY_MAX_BYTES = 1 << 20
MIGRATION_TIMEOUT_MS = 600_000
"""A migration may take so long, or as long as its app's `timeout` if that is longer."""

IMPORT_HOST = "candidate.freehold.invalid"
"""A request to this host makes an app that runs from source import it, and answer with the traceback if that failed."""

_log = logging.getLogger("freehold.releases")

SecretValues = Callable[[Effective, EffectiveApp, Sequence[SecretVersion]], Awaitable[Mapping[str, str]]]
"""The values of an app's secrets, in these versions; raises SecretError."""


class PreparationError(Exception):
    """The release cannot be prepared here; the text says why, for a person."""


class LaterError(PreparationError):
    """What it takes is not to be had now: its bytes, room on the disk, a secret, a worker. It may be later."""


@dataclass(frozen=True, slots=True)
class PreparedRelease:
    """A release that can be loaded: `key` names release, configuration and secret versions together.

    `from_source` names the apps whose component is told at run time what source to run.
    """

    key: str
    release: Digest
    effective: Effective
    load: ReleaseLoad
    from_source: tuple[str, ...] = ()

    @property
    def migrating(self) -> tuple[EffectiveApp, ...]:
        """The apps that migrate their data before the release takes visitors."""
        return tuple(app for app in self.effective.apps if app.migrates)


def networks_problem_of(effective: Effective, allowed: Sequence[str]) -> str:
    """Why an environment that allows these private networks does not take a configuration; empty if it does."""
    for app in effective.apps:
        for network in app.networks:
            if not within(network, allowed):
                few = f"allows {', '.join(allowed)}" if allowed else "allows no private network"
                networks = " ".join(f"--allow {text}" for text in (*allowed, network))
                return (
                    f"app {app.name} asks for the private network {network}, and {effective.environment} {few}; "
                    f"an admin: freehold env networks {effective.environment} {networks}"
                )
    return ""


def with_networks(prepared: PreparedRelease, allowed: Sequence[str]) -> PreparedRelease:
    """Return a release as it runs where these private networks are allowed: others are taken out, under another key."""
    apps = tuple(msgspec.structs.replace(app, spec=_spec_with(app.spec, allowed)) for app in prepared.load.apps)
    if apps == prepared.load.apps:
        return prepared
    text = digest(encode(tuple(app.spec.private_networks for app in apps))).hex()
    key = f"{prepared.key[:-8]}{text[:8]}"
    load = msgspec.structs.replace(prepared.load, key=key, apps=apps)
    return replace(prepared, key=key, load=load)


def _spec_with(spec: AppSpec, allowed: Sequence[str]) -> AppSpec:
    return replace(
        spec, private_networks=tuple(network for network in spec.private_networks if within(network, allowed))
    )


def load_key(release: bytes, configuration: bytes, secrets: Sequence[SecretVersion] = ()) -> str:
    """The key under which workers hold a release with one configuration and these versions of its secrets."""
    return f"{release.hex()}.{digest(encode((configuration, tuple(secrets)))).hex()[:32]}"


def candidate_host(key: str, app: str) -> str:
    """The host name under which this node's own smoke checks reach one app of one loaded release."""
    return f"{app}.{digest(key.encode()).hex()[:32]}.freehold.internal"


class Releases:
    """Prepares releases in one node's folders."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        fetcher: Fetcher,
        cache: CompileCache,
        benches: SmokeBenches,
        secrets: SecretValues,
        networks: Callable[[str], Sequence[str]] = lambda _environment: (),
        providers: Mapping[str, str] | None = None,
    ) -> None:
        """Take the stores, the workers for smoke checks, what unseals an app's secrets, and what an environment allows.

        `providers` are the kinds of those that the node's operator declared, by their names.
        """
        self._artifacts = artifacts
        self._fetcher = fetcher
        self._cache = cache
        self._benches = benches
        self._secrets = secrets
        self._networks = networks
        self._providers = providers or {}

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

    def expecting_smoke(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Start what smoke checks need beside preparing a release."""
        return self._benches.expecting()

    def named_by(self, release: bytes) -> list[bytes]:
        """A manifest that is here and every component it names; the manifest alone if it is not here."""
        try:
            manifest: Release = decode(self._artifacts.read(release, RELEASE_MAX_BYTES), Release, RELEASE_MAX_BYTES)
        except (ArtifactError, FileNotFoundError, DecodeError):
            return [release]
        return [release, *(component.digest for component in manifest.components)]

    def collect(self, keep: Collection[bytes]) -> list[str]:
        """Remove the artifacts used least recently while there are too many bytes; blocks. Return their names."""
        return self._artifacts.collect(keep)

    async def prepare(
        self, release: bytes, configuration: bytes, secrets: Sequence[SecretVersion] = (), *, decided: bool = False
    ) -> PreparedRelease:
        """Fetch, check and compile everything, and unseal the secrets in these versions. Raises PreparationError.

        What is not `decided` has its project pay for what it costs to compile.
        """
        manifest = await self.manifest(release)
        try:
            effective = decode_effective(await self._small(configuration, EFFECTIVE_MAX_BYTES))
        except DecodeError as error:
            raise PreparationError(str(error)) from error
        if effective.project != manifest.project:
            raise PreparationError("the configuration is of another project than the release")
        if not decided and (problem := networks_problem_of(effective, self._networks(effective.environment))):
            raise PreparationError(problem)
        components = {component.app: bytes(component.digest) for component in manifest.components}
        sources = {
            component.app: component.source for component in manifest.components if isinstance(component.source, bytes)
        }
        loads = []
        key = load_key(release, configuration, secrets)
        for app in effective.apps:
            if components.get(app.name) != app.component:
                raise PreparationError(f"the configuration names a component for {app.name} that the release does not")
            problem = schedule_problem(app.schedule) if app.schedule else ""
            if problem:
                raise PreparationError(f"the schedule of {app.name}, {app.schedule!r}, cannot be run: {problem}")
            if problem := _provider_problem(app, self._providers):
                raise PreparationError(problem)
            try:
                values = await self._secrets(effective, app, secrets)
            except SealedAwayError as error:
                raise LaterError(str(error)) from None
            except SecretError as error:
                raise PreparationError(str(error)) from None
            spec = await self._spec(release, effective, app, values, "" if decided else effective.project)
            if app.name in sources:
                spec = await self._with_source(spec, sources[app.name])
            loads.append(AppLoad(spec))
        load = ReleaseLoad(key, release.hex(), effective.project, tuple(loads), effective.environment)
        return PreparedRelease(
            key, Digest(release), effective, load, tuple(app.name for app in effective.apps if app.name in sources)
        )

    async def restore(self, load: ReleaseLoad) -> None:
        """Have the compiled code of a prepared release again, which the cache may have lost; never raises."""
        for app in load.apps:
            component = bytes.fromhex(app.spec.artifact_digest)
            try:
                await self._fetch(component)
                await self._cache.ensure(self._artifacts.path(component), component.hex())
            except (PreparationError, ComponentError, OSError) as error:
                _log.error("not compiled again: %s", error, extra={"event": "restore.failed", "app": app.spec.app})

    async def smoke(self, prepared: PreparedRelease) -> bool:
        """Run the smoke checks on throwaway data; False if the release has none. Raises PreparationError naming one.

        Apps that run from source are asked to import it first: a build would have failed there. Those that migrate their data
        do so before they are checked, from nothing.
        """
        if not prepared.effective.smoke and not prepared.from_source and not prepared.migrating:
            return False
        try:
            async with self._benches.take(prepared.load) as bench:
                await bench.pool.activate([*smoke_routes(prepared), *_import_routes(prepared)])
                await _ask_imports(bench.ingress, prepared)
                if prepared.migrating:
                    asked = migration_load(prepared)
                    await bench.pool.load(asked)
                    await ask_migrations(bench.pool, asked)
                await run_smoke(bench.ingress, prepared)
        except (PoolError, TimeoutError) as error:
            refused = isinstance(
                error.__cause__, WorkerRefusedError
            )  # a worker looked at it; else there was no worker to look
            raise (PreparationError if refused else LaterError)(
                f"the release did not start: {str(error) or 'no answer in time'}"
            ) from None
        return bool(prepared.effective.smoke)

    async def _spec(
        self, release: bytes, effective: Effective, app: EffectiveApp, secrets: Mapping[str, str], payer: str
    ) -> AppSpec:
        await self._fetch(app.component)
        component = self._artifacts.path(app.component)
        try:
            artifact = await self._cache.ensure(component, app.component.hex(), payer)
        except CompilerEndedError as error:
            raise LaterError(f"app {app.name} is not compiled: {error}") from error
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
            private_networks=app.networks,
            keyvalue=app.keyvalue,
            sql=app.sql,
            blobs=app.blobs,
            publish=app.queues[0],
            providers=app.mapped,
            websocket=app.socket[0],
            websocket_origins=app.socket[1],
            stores=f"{effective.project}/{effective.environment}",
            config={**dict(app.config), **secrets},
            redacted=secrets,
        )

    async def _with_source(self, spec: AppSpec, source: bytes) -> AppSpec:
        """Tell an interpreter what to run: the source travels like any artifact, and the guest reads it as configuration."""
        data = await self._small(source, SOURCE_MAX_BYTES)
        try:
            return replace(spec, config={**spec.config, SOURCE_KEY: data.decode()})
        except UnicodeDecodeError:
            raise PreparationError(f"the source of app {spec.app} is not text") from None

    async def _small(self, digest: bytes, max_bytes: int) -> bytes:
        await self._fetch(digest)
        try:
            return self._artifacts.read(digest, max_bytes)
        except ArtifactError as error:
            raise PreparationError(str(error)) from error

    async def _fetch(self, digest: bytes) -> None:
        try:
            await self._fetcher.ensure(digest)
        except ArtifactError as error:  # nobody has it now, or there is no room for it: who lied was asked no further
            raise LaterError(str(error)) from error


def migration_load(prepared: PreparedRelease) -> ReleaseLoad:
    """The apps of a release that migrate their data, with as much time as that may take, under a key of their own."""
    names = {app.name for app in prepared.migrating}
    apps = tuple(
        msgspec.structs.replace(
            app, spec=replace(app.spec, timeout_ms=max(app.spec.timeout_ms, MIGRATION_TIMEOUT_MS), instances_ready=1)
        )
        for app in prepared.load.apps
        if app.spec.app in names
    )
    return msgspec.structs.replace(prepared.load, key=f"{prepared.key}.migrate", apps=apps)


async def ask_migrations(pool: WorkerPool, asked: ReleaseLoad) -> None:
    """Have each app of a `migration_load` that the pool has loaded migrate its data, in the order of their names.

    Raises PreparationError with what the app said, PoolError.
    """
    for load in asked.apps:
        app = load.spec.app
        answer = await pool.migrate(asked.key, app, timeout_ms=load.spec.timeout_ms)
        if not 200 <= answer.status < 300:
            said = f":\n{answer.said.strip()}" if answer.said.strip() else ""
            raise PreparationError(f"app {app} did not migrate its data, it answered {answer.status}{said}")


def smoke_routes(prepared: PreparedRelease) -> list[WorkerRoute]:
    """The routes that lead this node's own checks to each app, mounted where its public routes mount it."""
    routes = []
    for app in prepared.effective.apps:
        if app.kind == "http":
            paths = sorted({route.path for route in app.routes} or {"/"})
            routes += [
                WorkerRoute(candidate_host(prepared.key, app.name), path, prepared.key, app.name) for path in paths
            ]
    return routes


def _import_routes(prepared: PreparedRelease) -> list[WorkerRoute]:
    return [WorkerRoute(IMPORT_HOST, f"/{app}", prepared.key, app) for app in prepared.from_source]


async def _ask_imports(ingress: Path, prepared: PreparedRelease) -> None:
    """Have each app that runs from source import it; raises PreparationError with the app's traceback."""
    timeout = aiohttp.ClientTimeout(total=SMOKE_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(ingress)), timeout=timeout) as session:
        for app in prepared.from_source:
            try:
                async with session.get(f"http://{IMPORT_HOST}/{app}", allow_redirects=False) as answer:
                    text = (await answer.content.read(SMOKE_BODY_MAX_BYTES)).decode(errors="replace")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise PreparationError(f"app {app} gave no answer when it was to be imported: {error}") from error
            if answer.status != 200:
                raise PreparationError(f"app {app} cannot be imported:\n{text}")


async def run_smoke(ingress: Path, prepared: PreparedRelease) -> None:
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


def _provider_problem(app: EffectiveApp, kinds: Mapping[str, str]) -> str:
    """Return why an app's stores cannot lie in the node's providers, "" if they can."""
    for store, provider in sorted(app.mapped.items()):
        if provider not in kinds:
            return (
                f"app {app.name} keeps a store in the provider {provider}, which this node does not have;"
                f" its operator declares [provider.{provider}] in node.toml"
            )
        wanted = "postgres" if store in app.sql else "redis"
        if kinds[provider] != wanted:
            return (
                f"app {app.name} keeps {store} in the provider {provider}, which is of kind {kinds[provider]};"
                f" it needs one of kind {wanted}"
            )
    return ""
