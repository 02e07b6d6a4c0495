"""One version of a project put together: every app's component, built or an interpreter with the app's source.

The parts lie in one folder as those of a release do, each named by its digest, so that what deploys a release deploys
this. Its manifest says which apps run from source, and no mesh but a mesh of one takes such a release. Not here:
deploying it (server.py), and compiling, which is the node's.
"""

from __future__ import annotations

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cli.dev.from_source import FromSource, from_source
from cli.project.build import Progress, build_app
from cli.project.bundle import ARTIFACTS, BuildBundle, BuiltApp, CodeSource, manifest_of
from cli.project.find import Found
from cli.project.model import App

TOOL: Final = "freehold-dev"
"""What a manifest names as the toolchain of an app that runs from source."""


def put_together(found: Found, folder: Path, progress: Progress, *, exact: bool) -> BuildBundle:
    """Make the parts of a version in `folder`, in place of the last; apps run from source where they can unless `exact`.

    The same project gives the same manifest. Raises `CommandError`.
    """
    artifacts = folder / ARTIFACTS
    shutil.rmtree(folder, ignore_errors=True)
    artifacts.mkdir(parents=True)
    apps = {name: _app(found, app, artifacts, progress, exact=exact) for name, app in found.project.base.apps.items()}
    for app in apps.values():
        (artifacts / app.digest).unlink(missing_ok=True)
        (artifacts / app.digest).symlink_to(app.component)
    # Neither commit nor author: git would be asked at every save, and what runs from source is never released.
    return BuildBundle("", folder, manifest_of(found.project, found.text, apps, CodeSource(None, True, "")))


def from_source_of(bundle: BuildBundle) -> list[str]:
    """The apps of a version that run from source."""
    return [name for name, app in bundle.manifest["apps"].items() if "source" in app]


def _app(found: Found, app: App, artifacts: Path, progress: Progress, *, exact: bool) -> BuiltApp:
    running = None if exact else from_source(found, app, progress)
    if running is None:
        return build_app(found.project, app, found.root, progress)
    return _interpreted(app, running, artifacts)


def _interpreted(app: App, running: FromSource, artifacts: Path) -> BuiltApp:
    source = running.source.encode()
    named = hashlib.sha256(source).hexdigest()
    (artifacts / named).write_bytes(source)
    return BuiltApp(
        name=app.name,
        component=running.component,
        digest=running.digest,
        size_bytes=running.component.stat().st_size,
        kind="http",
        capabilities=(),
        source_digest=named,
        toolchain={TOOL: version("freehold")},
        packages={},
        source=named,
    )
