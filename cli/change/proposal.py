"""A deploy put together on the client: from a release to a signed change, its artifacts, and a signed start.

Everything a mesh judges is made here as bytes with a digest: the release (manifest), the effective configuration of
one environment, the change that binds them, and the start that names the change. Signing needs the proposer's
everyday key. Not here: building (cli/project), approvals and evidence of others, and any judgement (the voters').
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from cli.access.client import NodeClient
from cli.errors import CommandError, UsageError
from cli.project.bundle import ARTIFACTS, BuildBundle
from cli.project.find import Found
from cli.project.kept_builds import kept_build
from cli.project.model import App, ProjectFile, RolloutSettings, Settings
from cli.project.parse import ProjectFileError, parse
from protocols.changes.change import (
    CHANGE_DOMAIN,
    EVERYWHERE,
    Analysis,
    Change,
    Component,
    Plan,
    Release,
    Route,
    SecretVersion,
    Stage,
    route_of,
)
from protocols.changes.demands import Demands
from protocols.changes.effective import Effective, SmokeCheck, effective_app
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.machine import Digest, PeerId
from protocols.state.commands import Command, SignedCommand, Start, sign_command
from protocols.state.gate import gate_of
from protocols.state.model import Environment, Lane, MeshState, Project
from protocols.state.placement import eligible, pinned_size, rendezvous

APPROVE = "approve"
Kind = Literal["http", "command", "module"]


@dataclass(frozen=True, slots=True)
class Offered:
    """A release on its way to an environment, with the project it was built from.

    `kinds` says how each app is entered. `files` maps digests to files; what the mesh holds already need not lie here.
    Evidence for it lies in the project's folder `root`, under its `build`, or under any where that is not known.
    """

    project: ProjectFile
    release: Release
    kinds: Mapping[str, Kind]
    files: Mapping[bytes, Path]
    root: Path | None = None
    build: str = ""

    def effective(self, environment: str) -> Effective:
        """Return what the release runs with in `environment`."""
        built = {component.app: component.digest for component in self.release.components}
        apps = sorted(self.project.settings(environment).apps.items())
        return Effective(
            project=self.project.name,
            environment=environment,
            apps=tuple(effective_app(app, built[name], self.kinds[name]) for name, app in apps),
            smoke=tuple(
                SmokeCheck(smoke.app, smoke.path, smoke.status, smoke.contains or "") for smoke in self.project.smoke
            ),
        )


@dataclass(frozen=True, slots=True)
class ChangeProposal:
    """A signed change and everything it names. `components` maps the digests of components and sources to files here."""

    change: Change
    signed: Signed
    release: Release
    release_bytes: bytes
    effective: Effective
    components: Mapping[bytes, Path]

    @property
    def id(self) -> Digest:
        """The change's id."""
        return digest(self.signed.payload)


def routes_of(app: App) -> tuple[Route, ...]:
    """The routes of one app as the mesh claims them: "host/path", "host" or "/path"."""
    return tuple(sorted(map(route_of, app.routes)))


def release_of(found: Found, bundle: BuildBundle, author: bytes) -> Release:
    """The manifest of a built project; the same project built again by the same author gives the same bytes."""
    built = bundle.manifest["apps"]
    components = tuple(
        Component(
            name,
            bytes.fromhex(app["component"]),
            int(app["size_bytes"]),
            " ".join(f"{tool} {version}" for tool, version in sorted(app["toolchain"].items())),
            bytes.fromhex(app["source"]) if "source" in app else msgspec.UNSET,
        )
        for name, app in sorted(built.items())
    )
    return Release(
        project=found.project.name,
        components=components,
        project_file=found.text.encode(),
        source_commit=bundle.manifest["source"]["commit"] or "",
        author=author,
        demands=demands_of(found.project),
    )


def built_here(found: Found, bundle: BuildBundle, author: bytes) -> Offered:
    """Return the release that a build is, once this author proposes it."""
    built = bundle.manifest["apps"]
    release = release_of(found, bundle, author)
    digests = [component.digest for component in release.components]
    digests += [component.source for component in release.components if isinstance(component.source, bytes)]
    files = {digest: bundle.folder / ARTIFACTS / digest.hex() for digest in digests}
    return Offered(
        found.project, release, {name: app["kind"] for name, app in built.items()}, files, found.root, bundle.id
    )


def kept_here(root: Path, named: str, author: bytes) -> Offered:
    """Return the release that a kept build is, with the project file that it was built with. Raises UsageError."""
    bundle = kept_build(root, named)
    text = str(bundle.manifest["project_file"])
    try:
        project = parse(text)
    except ProjectFileError as error:
        raise UsageError(
            f"build {bundle.id[:12]} was made by another version: {error}",
            next_step="freehold build",
            kind="other-version",
        ) from None
    return built_here(Found(root, project, text), bundle, author)


def effective_of(found: Found, bundle: BuildBundle, environment: str) -> Effective:
    """What a build runs with in `environment`, whoever proposes it."""
    return built_here(found, bundle, b"").effective(environment)


def release_id(found: Found, bundle: BuildBundle, author: bytes) -> str:
    """What a build is called in every mesh once this author proposes it, in hex."""
    return digest(encode(release_of(found, bundle, author))).hex()


def demands_of(project: ProjectFile) -> tuple[tuple[str, Demands], ...]:
    """What the project file demands beyond the mesh's policy: everywhere, and where an environment says otherwise."""
    base = project.base.demands
    everywhere = ((EVERYWHERE, base),) if base != Demands() else ()
    overlaid = (
        (name, environment.demands)
        for name, environment in sorted(project.environments.items())
        if environment.demands != base
    )
    return (*everywhere, *overlaid)


def plan_of(settings: Settings) -> Plan:
    """How the rollout moves, from the project file.

    Where no app answers requests there is neither traffic nor a smoke check to wait for: readiness has to do.
    """
    rollout: RolloutSettings = settings.rollout
    stages = tuple(
        Stage(
            nodes=stage.nodes,
            min_healthy_ms=stage.min_healthy_time_ms,
            pause_ms=0 if stage.pause == APPROVE else int(stage.pause),
            approve=stage.pause == APPROVE,
        )
        for stage in rollout.stages
    )
    limits = rollout.analysis
    return Plan(
        stages=stages,
        healthy_deadline_ms=max(stage.healthy_deadline_ms for stage in rollout.stages),
        progress_deadline_ms=rollout.progress_deadline_ms,
        candidate_ttl_ms=rollout.candidate_ttl_ms,
        max_parallel=rollout.max_parallel,
        auto_promote=rollout.auto_promote,
        auto_revert=rollout.auto_revert,
        analysis=Analysis(
            max_error_ppm=limits.max_error_rate_ppm or 0,
            max_latency_p99_ms=limits.max_latency_p99_ms or 0,
            failure_limit=limits.failure_limit,
        ),
        probe_only=not any(app.routes for app in settings.apps.values()),
    )


def make_proposal(
    state: MeshState,
    mesh: Digest,
    offered: Offered,
    *,
    environment: str,
    request: str,
    signer: Ed25519Signer,
    versions: tuple[SecretVersion, ...] = (),
    plan: Plan | None = None,
) -> ChangeProposal:
    """Return a signed change of a release for an environment, computed against `state`.

    `versions` are those of its secrets (sealing.versions_for), `plan` is the project file's unless another is given.

    Raises CommandError naming who must do what first, if the project or the environment is not there.
    """
    project, release = offered.project, offered.release
    lane = lane_of(state, project.name, environment)
    effective = offered.effective(environment)
    release_bytes = encode(release)
    change = Change(
        project=project.name,
        environment=environment,
        request=request,
        release=digest(release_bytes),
        base=lane.base.release if lane.base is not None else b"",
        configuration=digest(encode(effective)),
        policy=gate_of(state, environment, release).digest,
        author=signer.public_key,
        created_ms=int(time.time() * 1000),
        plan=plan or plan_of(project.settings(environment)),
        routes=effective.routes,
        schedules=tuple(app.name for app in effective.apps if app.schedule),
        secrets=versions,
        replicas=project.settings(environment).rollout.replicas if not effective.keeps_data else 0,
        data=effective.keeps_data,
    )
    signed = sign(signer, CHANGE_DOMAIN, mesh, change)
    return ChangeProposal(change, signed, release, release_bytes, effective, offered.files)


def lane_of(state: MeshState, project: str, environment: str) -> Lane:
    """Return the project's lane in an environment. Raises UsageError naming what an admin must create first."""
    _require_named("environment", environment, state.environments, f"freehold env create {environment}")
    _require_named("project", project, state.projects, f"freehold project create {project}")
    lane = state.lane(project, environment)
    assert lane is not None, "every project has a lane in every environment"
    return lane


async def require_known(client: NodeClient, project: str, environment: str) -> None:
    """Raise UsageError for a project or an environment that the mesh does not have; "" stands for all of them.

    An empty list would look like an answer to who has misspelt a name.
    """
    state = await client.state()
    if environment:
        _require_named("environment", environment, state.environments, "freehold env list")
    if project:
        _require_named("project", project, state.projects, "freehold project list")


def visited_at(ingress: Sequence[str], routes: Sequence[str], host: str = "") -> list[str]:
    """Return where visitors reach these routes through a node that serves at `ingress`; `host` is how it is reached.

    A node that serves at every address of its machine does not know which of them others use.
    """
    texts = []
    for address in ingress:
        bound, _, port = address.rpartition(":")
        if bound in {"0.0.0.0", "[::]", ""}:  # noqa: S104 - read here, not bound
            bound = host or "127.0.0.1"
        shown = "" if port == "80" else f":{port}"
        for route in routes:
            name, slash, path = route.partition("/")
            texts.append(f"http://{name or bound}{shown}{slash}{path}")
    return texts


def _require_named(what: str, name: str, known: Sequence[Environment | Project], step: str) -> None:
    names = [entry.name for entry in known]
    if name not in names:
        raise UsageError(
            f"the mesh has no {what} {name!r} (there are: {', '.join(names) or 'none'})",
            next_step=step,
            kind=f"no-{what}",
        )


def pinned_nodes(state: MeshState, lane: Lane, change: Change, down: Sequence[str] = ()) -> tuple[PeerId, ...]:
    """Return the nodes a start should pin: where the data is, the chosen replicas, or everywhere that is up."""
    able = [node for node in eligible(state, change.environment) if node not in down]
    if not able:
        raise CommandError(
            f"no node that is up serves {change.environment}", next_step="freehold mesh members", kind="no-nodes"
        )
    count = pinned_size(change.replicas, change.data, able)
    if change.data and lane.data_node:
        return (lane.data_node,)
    if count is not None:
        return tuple(sorted(rendezvous(f"{lane.project}/{lane.environment}", able)[:count]))
    return tuple(sorted(able))


def start_of(
    mesh: Digest,
    lane: Lane,
    change: Digest,
    nodes: tuple[PeerId, ...],
    signer: Ed25519Signer,
    *,
    supersede: bool = False,
    break_glass: str = "",
) -> SignedCommand:
    """Sign a start; its exhibits are added by the node that submits it. `break_glass` is an admin's recorded reason."""
    action = Start(bytes(change), nodes, supersede, break_glass)
    command = Command(secrets.token_bytes(16), action, lane.project, lane.environment, lane.sequence)
    return sign_command([signer], mesh, command)
