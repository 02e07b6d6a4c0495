"""`freehold build`: a project folder becomes a build on this disk, and is called by the release it makes in the mesh here."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cli.access import contexts
from cli.access.principals import everyday_key
from cli.change.proposal import release_id
from cli.errors import CommandError, UsageError
from cli.frame import command
from cli.project.build import build_app, build_project
from cli.project.find import find_project
from cli.text.output import Output


@command("build", examples=("freehold build", "freehold build --app web", "freehold build --json"))
@click.option("--app", "only", metavar="NAME", help="Build this app alone, without making a release.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def build(output: Output, only: str | None, folder: Path) -> None:
    """Build every app, and name the release that it makes.

    A build is a folder under .freehold/builds, named by the SHA-256 of its manifest, which names every component by digest.
    The release's id, as in `diff`, `status` and `rollback`, also covers its author: without a key of yours it has none yet.
    An app whose inputs have not changed comes from the cache.
    """
    project = find_project(folder)
    began_s = time.monotonic()
    if only is not None:
        app = project.project.base.apps.get(only)
        if app is None:
            names = ", ".join(sorted(project.project.base.apps))
            raise UsageError(f"there is no app {only} (apps: {names})", next_step="freehold build", kind="no-app")
        built = build_app(project.project, app, project.root, output)
        value = {"app": only, "component": built.digest, "size_bytes": built.size_bytes, "path": str(built.component)}
        output.result(value, f"{only}  {built.digest}  {_size(built.size_bytes)}\n{built.component}")
        return
    bundle = build_project(project.project, project.text, project.root, output)
    apps = bundle.manifest["apps"]
    source = bundle.manifest["source"]
    seconds = time.monotonic() - began_s
    lines = [f"{name}  {app['component'][:12]}  {_size(app['size_bytes'])}" for name, app in apps.items()]
    author = _author()
    release = None if author is None else release_id(project, bundle, author)
    name = f"build {bundle.id[:12]}" if release is None else f"release {release[:12]}, build {bundle.id[:12]},"
    lines += [f"{name} in {seconds:.1f} s", str(bundle.folder)]
    if source["commit"] is None:
        output.warn("this is not a git repository; it names no commit")
    elif source["dirty"]:
        output.warn("the files differ from the last commit; the build says so")
    output.result({"build": bundle.id, "release": release, "folder": str(bundle.folder), "apps": apps, "source": source,
                   "elapsed_ms": int(seconds * 1000)}, "\n".join(lines))  # fmt: skip
    output.hint("freehold test")


def _author() -> bytes | None:
    """The key that would propose this from here; building needs none."""
    try:
        context = contexts.known_context()
        return everyday_key(context).public_key if context is not None else None
    except CommandError:
        return None


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
