"""From a project folder to a build on disk: each app's component, built or found in the cache, and the manifest.

A build is named by the digest of everything that decides it (files, packages, guest modules, world, entry, tools), so
building again costs nothing and gives the same bytes. Not here: the languages (`python_build.py`,
`javascript_build.py`), the bundle's form (`bundle.py`).
"""

from __future__ import annotations

import getpass
import hashlib
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, assert_never

from cli import cache
from cli.errors import BuildError
from cli.project import bundle, javascript_build, native_hash, node, python_build, python_packages, python_source
from cli.project.bundle import BuildBundle, BuiltApp, CodeSource
from cli.project.instantiate import instantiate_once
from cli.project.model import App, ProjectFile
from cli.project.site import read_site
from cli.project.source import SourceTree, read_tree
from cli.project.world import granted_anywhere, world_of
from runtime.sandbox import component

STATE_FOLDER: Final = ".freehold"
"""What Freehold keeps beside a project; git-ignored by every template."""

BUILDS: Final = "builds"


class Progress(Protocol):
    """Told what a build is doing."""

    def step(self, app: str, text: str) -> None:
        """`app` now does what `text` says."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one app's component is made: what decides its bytes, and the step that makes it in an empty folder."""

    inputs: Mapping[str, str]
    source_digest: str
    toolchain: Mapping[str, str]
    make: Callable[[Path], tuple[Path, Mapping[str, str]]]


def build_project(project: ProjectFile, text: str, root: Path, progress: Progress) -> BuildBundle:
    """Build every app and write them below `root`/.freehold/builds. Raises `BuildError`."""
    apps = {name: build_app(project, app, root, progress) for name, app in project.base.apps.items()}
    manifest = bundle.manifest_of(project, text, apps, source_of(root))
    return bundle.write(root / STATE_FOLDER / BUILDS, manifest, apps)


def build_app(project: ProjectFile, app: App, root: Path, progress: Progress) -> BuiltApp:
    """Return the component of one app, from the cache if nothing that decides it has changed."""
    if app.language == "component":
        return _prebuilt(app, root / app.source, progress)
    recipe = recipe_of(project, app, root, progress)
    digest = hashlib.sha256(json.dumps(recipe.inputs, sort_keys=True).encode()).hexdigest()

    def make(folder: Path) -> None:
        with cache.scratch() as scratch:
            try:
                path, packages = recipe.make(scratch)
            except subprocess.TimeoutExpired as error:
                step = "check the network, then run the command again"
                raise BuildError(app.name, f"a tool took longer than {error.timeout:.0f} s", next_step=step) from None
            shutil.move(path, folder / "component.wasm")
        facts = {"digest": bundle.file_digest(folder / "component.wasm"), "packages": dict(packages)}
        (folder / "facts.json").write_text(json.dumps(facts))

    folder = cache.entry("builds", digest, make)
    facts = json.loads((folder / "facts.json").read_text())
    return replace(
        _inspected(app, folder / "component.wasm", facts["digest"]),
        source_digest=recipe.source_digest,
        toolchain=recipe.toolchain,
        packages=facts["packages"],
    )


def source_of_app(app: App, root: Path) -> SourceTree:
    """Return the files that make an app. Raises `BuildError`."""
    folder = root / app.source
    if app.language == "static":
        return read_site(app, folder)
    tree = read_tree(app.name, folder)
    if app.language in ("python", "wsgi", "asgi"):
        python_source.refuse_impossible(app.name, app.source, tree)
    return tree


def recipe_of(project: ProjectFile, app: App, root: Path, progress: Progress) -> Recipe:
    """Return how `app` is made, by its language."""
    tree = source_of_app(app, root)
    app = granted_anywhere(project, app)
    shared = {
        "language": app.language,
        "entry": app.entry,
        "kind": "command" if app.schedule else "http",
        "source": tree.digest(),
        "world": world_of(app),
    }
    match app.language:
        case "python" | "wsgi" | "asgi" | "static":
            return _python_recipe(project, app, tree, shared, progress)
        case "javascript" | "typescript":
            return _javascript_recipe(app, root, tree, shared, progress)
        case "component":
            raise AssertionError("a component is not built")
        case _:
            assert_never(app.language)


def _python_recipe(
    project: ProjectFile, app: App, tree: SourceTree, shared: Mapping[str, str], progress: Progress
) -> Recipe:
    requirements = python_build.requirements_of(app, tree)
    if servers := python_packages.servers_named(requirements or b""):
        progress.step(
            app.name, f"requirements.txt names {', '.join(servers)}: the node is the server, so it is not used"
        )
    prefixes = python_build.mount_prefixes(project, app)
    inputs = {
        **shared,
        "prefixes": "\n".join(prefixes),
        "declared": "\n".join(python_build.declared_names(app)),
        "guest": _files_digest(python_build.guest_files(app)),
        "compiled": hashlib.sha256(native_hash.module()).hexdigest(),
        "packages": python_packages.packages_digest(requirements) if requirements else "",
        **python_build.toolchain(),
    }

    def make(work: Path) -> tuple[Path, Mapping[str, str]]:
        packages = None
        if requirements:
            progress.step(app.name, "installing its packages")
            packages = python_packages.vendor(app.name, requirements)
        progress.step(app.name, "building the component")
        try:
            path = python_build.build(app, prefixes, tree, packages, work / "whole")
        except python_build.ReadsConfiguration as told:
            names = ", ".join(told.names)
            progress.step(app.name, f"building it again: its import reads {names}, so each instance imports it")
            path = python_build.build(app, prefixes, tree, packages, work / "late", late=True)
        return path, python_packages.versions(packages) if packages else {}

    return Recipe(inputs, tree.digest(), python_build.toolchain(), make)


def _javascript_recipe(app: App, root: Path, tree: SourceTree, shared: Mapping[str, str], progress: Progress) -> Recipe:
    declared = node.declared_packages(tree, root)
    outer = javascript_build.outer_files(app, root)
    inputs = {
        **shared,
        "guest": _files_digest(javascript_build.guest_files()),
        "packages": declared.digest() if declared else "",
        "features": "fetch" if app.allow_hosts else "",
        "declared": "\n".join(javascript_build.declared_names(app)),
        "tools": node.toolchain_digest(),
        "outer": hashlib.sha256(repr(outer).encode()).hexdigest(),
    }

    def make(work: Path) -> tuple[Path, Mapping[str, str]]:
        toolchain = install_javascript(app, progress)
        packages = None
        if declared:
            progress.step(app.name, "installing its packages")
            packages = node.install_packages(app.name, declared)
        progress.step(app.name, "building the component")
        path = javascript_build.build(app, tree, outer, toolchain, packages, work)
        return path, node.installed_versions(packages) if packages else {}

    return Recipe(inputs, tree.digest(), node.toolchain_versions(), make)


def install_javascript(app: App, progress: Progress) -> Path:
    """Return the JavaScript toolchain's folder, telling the developer if it has to be installed."""
    text = "installing the JavaScript toolchain (once, about 200 MB)"
    return node.install_toolchain(app.name, lambda: progress.step(app.name, text))


def _prebuilt(app: App, path: Path, progress: Progress) -> BuiltApp:
    progress.step(app.name, "checking the component")
    if not path.is_file():
        step = f"build it with your toolchain, or correct source of [app.{app.name}] in freehold.toml"
        raise BuildError(app.name, f"there is no file {app.source}", next_step=step)
    digest = bundle.file_digest(path)
    return _inspected(app, path, digest, tried=True)


def _inspected(app: App, path: Path, digest: str, *, tried: bool = False) -> BuiltApp:
    """Check that the node can run the component, and read what it asks for; `tried`: make an instance of it, too."""
    try:
        info = component.check(path, "command" if app.schedule else "http")
        if tried:
            instantiate_once(app, path, digest, info.kind)
    except component.ComponentError as error:
        raise BuildError(
            app.name,
            str(error),
            next_step=f"build the component without that, then run: freehold build --app {app.name}",
            kind="component-refused",
        ) from None
    return BuiltApp(
        name=app.name,
        component=path,
        digest=digest,
        size_bytes=path.stat().st_size,
        kind=info.kind,
        capabilities=tuple(sorted(set(info.imports))),
        source_digest=digest,
        toolchain={},
        packages={},
    )


def _files_digest(paths: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def source_of(root: Path) -> CodeSource:
    """Return the commit the project stands at, whether its files differ from it, and who is building."""
    commit = _git(root, "rev-parse", "HEAD")
    dirty = bool(_git(root, "status", "--porcelain", "--", ".")) if commit else True
    name, email = _git(root, "config", "user.name"), _git(root, "config", "user.email")
    author = f"{name} <{email}>" if name and email else f"{getpass.getuser()}@{socket.gethostname()}"
    return CodeSource(commit or None, dirty, author)


def _git(root: Path, *arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, "-C", str(root), *arguments], capture_output=True, text=True, check=False, timeout=30)  # noqa: S603
    return done.stdout.strip() if done.returncode == 0 else ""
