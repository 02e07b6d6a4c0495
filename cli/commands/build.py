"""`freehold build`: a project folder becomes a release bundle."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cli.errors import UsageError
from cli.frame import command
from cli.output import Output
from cli.project.build import build_app, build_project
from cli.project.find import find_project


@command("build", examples=("freehold build", "freehold build --app web", "freehold build --json"))
@click.option("--app", "only", metavar="NAME", help="Build this app alone, without writing a bundle.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def build(output: Output, only: str | None, folder: Path) -> None:
    """Build every app and write the release bundle.

    The bundle is a folder under .freehold/releases named by the release's id: the SHA-256 of its manifest, which
    names every component by digest. An app whose inputs have not changed comes from the cache.
    """
    found = find_project(folder)
    began_s = time.monotonic()
    if only is not None:
        app = found.project.base.apps.get(only)
        if app is None:
            names = ", ".join(sorted(found.project.base.apps))
            raise UsageError(f"there is no app {only} (apps: {names})", next_step="freehold build", kind="no-app")
        built = build_app(found.project, app, found.root, output)
        value = {"app": only, "component": built.digest, "size_bytes": built.size_bytes, "path": str(built.component)}
        output.result(value, f"{only}  {built.digest}  {_size(built.size_bytes)}\n{built.component}")
        return
    bundle = build_project(found.project, found.text, found.root, output)
    apps = bundle.manifest["apps"]
    source = bundle.manifest["source"]
    seconds = time.monotonic() - began_s
    lines = [f"{name}  {app['component'][:12]}  {_size(app['size_bytes'])}" for name, app in apps.items()]
    lines += [f"release {bundle.release[:12]} in {seconds:.1f} s", str(bundle.folder)]
    if source["commit"] is None:
        output.warn("this is not a git repository; the release names no commit")
    elif source["dirty"]:
        output.warn("the files differ from the last commit; the release says so")
    output.result({"release": bundle.release, "folder": str(bundle.folder), "apps": apps, "source": source,
                   "elapsed_ms": int(seconds * 1000)}, "\n".join(lines))  # fmt: skip
    output.hint("freehold test")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
