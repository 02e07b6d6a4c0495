"""A build on disk: a folder with `manifest` and `artifacts/`, each artifact named by its SHA-256.

The manifest is canonical JSON (sorted keys, no spaces, UTF-8, integers and strings only); the build's id is the
SHA-256 of exactly those bytes, so anyone can check it without this code. Not here: making components (`build.py`), and
the release, which a mesh knows by another id: it names these components and its author (cli/change/proposal.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, NotRequired, TypedDict, cast

from cli.project.model import ProjectFile, Settings

FORMAT: Final = 1
"""Raised when a reader of the old form could misread the new one."""

MANIFEST: Final = "manifest"
ARTIFACTS: Final = "artifacts"
WORK: Final = "writing-"


@dataclass(frozen=True, slots=True)
class BuiltApp:
    """One app's component. `capabilities` are the interfaces it imports; `source_digest` covers its source folder.

    `source` is the digest of the source that the component, an interpreter, is told to run: `freehold dev` alone does so.
    """

    name: str
    component: Path
    digest: str
    size_bytes: int
    kind: str
    capabilities: tuple[str, ...]
    source_digest: str
    toolchain: Mapping[str, str]
    packages: Mapping[str, str]
    source: str = ""


@dataclass(frozen=True, slots=True)
class CodeSource:
    """Where the code came from. `commit` is None outside a repository; `dirty` if files differ from the commit."""

    commit: str | None
    dirty: bool
    author: str


class BuiltAppEntry(TypedDict):
    """What a manifest says of one app. `component` and `source` are digests in hex."""

    component: str
    size_bytes: int
    kind: Literal["http", "command", "module"]
    capabilities: list[str]
    source_digest: str
    toolchain: dict[str, str]
    packages: dict[str, str]
    source: NotRequired[str]


class SettingsEntry(TypedDict):
    """What a manifest says of one environment: the project file's own values."""

    apps: dict[str, dict[str, object]]
    rollout: dict[str, object]


class ProjectEntry(TypedDict):
    """What a manifest says of its project."""

    name: str
    description: str
    owners: list[str]


class SourceEntry(TypedDict):
    """Where the code came from, as in CodeSource."""

    commit: str | None
    dirty: bool
    author: str


class BuildManifest(TypedDict):
    """A build's manifest; its digest is the build's id."""

    format: int
    project: ProjectEntry
    project_file: str
    apps: dict[str, BuiltAppEntry]
    settings: SettingsEntry
    environments: dict[str, SettingsEntry]
    test: dict[str, object]
    source: SourceEntry


@dataclass(frozen=True, slots=True)
class BuildBundle:
    """A written build. `folder` holds `manifest` and `artifacts/`, and is called by the id."""

    id: str
    folder: Path
    manifest: BuildManifest


def canonical(value: object) -> bytes:
    """Return the one encoding of a manifest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def manifest_of(project: ProjectFile, text: str, apps: Mapping[str, BuiltApp], source: CodeSource) -> BuildManifest:
    """Return the manifest as a value: everything that makes this build what it is, nothing about who runs it."""
    return {
        "format": FORMAT,
        "project": {"name": project.name, "description": project.description, "owners": list(project.owners)},
        "project_file": text,
        "apps": {name: _app_entry(app) for name, app in sorted(apps.items())},
        "settings": _settings_entry(project.base),
        "environments": {name: _settings_entry(settings) for name, settings in sorted(project.environments.items())},
        "test": {"command": project.test_command, "smoke": [asdict(smoke) for smoke in project.smoke]},
        "source": {"commit": source.commit, "dirty": source.dirty, "author": source.author},
    }


def _app_entry(app: BuiltApp) -> BuiltAppEntry:
    entry: BuiltAppEntry = {
        "component": app.digest,
        "size_bytes": app.size_bytes,
        "kind": cast("Literal['http', 'command', 'module']", app.kind),
        "capabilities": list(app.capabilities),
        "source_digest": app.source_digest,
        "toolchain": dict(app.toolchain),
        "packages": dict(app.packages),
    }
    if app.source:
        entry["source"] = app.source
    return entry


def _settings_entry(settings: Settings) -> SettingsEntry:
    return {
        "apps": {name: asdict(app) for name, app in sorted(settings.apps.items())},
        "rollout": asdict(settings.rollout),
    }


def write(folder: Path, manifest: BuildManifest, apps: Mapping[str, BuiltApp]) -> BuildBundle:
    """Write the build below `folder`, in a folder named by its id; one that is there already is left alone."""
    content = canonical(manifest)
    named = hashlib.sha256(content).hexdigest()
    target = folder / named
    if not target.is_dir():
        with work_folder(folder) as work:
            (work / ARTIFACTS).mkdir()
            for app in apps.values():
                _place(app.component, work / ARTIFACTS / app.digest)
            (work / MANIFEST).write_bytes(content)
            work.rename(target)
    return BuildBundle(named, target, manifest)


@contextmanager
def work_folder(builds: Path) -> Iterator[Path]:
    """Make a folder in which a build is put together until it is renamed; those of killed processes go with it."""
    builds.mkdir(parents=True, exist_ok=True)
    for left in builds.glob(f"{WORK}*"):
        if not _runs(left.name.removeprefix(WORK).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=builds, prefix=f"{WORK}{os.getpid()}-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _runs(pid: str) -> bool:
    """Whether a process has this number; it may be another one by now."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def _place(component: Path, artifact: Path) -> None:
    """Link rather than copy where the file system can: a component is 13 to 35 MB and never changes."""
    if artifact.exists():
        return
    try:
        os.link(component, artifact)
    except OSError:
        shutil.copyfile(component, artifact)


class BundleError(Exception):
    """A bundle is not what its name says."""


def read(folder: Path) -> BuildBundle:
    """Read a build and check every digest in it. Raises `BundleError`."""
    content = (folder / MANIFEST).read_bytes()
    named = hashlib.sha256(content).hexdigest()
    if named != folder.name:
        raise BundleError(f"the manifest in {folder} is not that of build {folder.name[:12]}")
    manifest: BuildManifest = json.loads(content)
    for name, app in manifest["apps"].items():
        path = folder / ARTIFACTS / app["component"]
        if not path.is_file() or file_digest(path) != app["component"]:
            raise BundleError(f"the component of app {name} is missing or damaged")
    return BuildBundle(named, folder, manifest)


def file_digest(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
