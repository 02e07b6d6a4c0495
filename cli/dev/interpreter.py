"""The Python interpreter that `freehold dev` runs apps in, from source: a save is served in a fraction of a second.

One component per set of packages, built once and kept in the cache, with every interface in its world; what an app may
use is still decided by its grants, which the host enforces. It is no release: `freehold build` makes those.
Not here: the guest's side (`freehold_dev.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from cli import cache
from cli.project import bundle, native_hash, python_build, python_packages
from cli.project.build import Progress
from cli.project.model import App, ProjectFile
from cli.project.source import SourceTree
from cli.project.world import world_of, write_world

MAIN: Final = "\n".join(
    [
        "import freehold_files",
        'freehold_files.serve("/1", ["/2"])',
        *python_build.STAND_INS,
        "import freehold_loop, freehold_environ, freehold_dev",
        'freehold_dev.warm(["/2"])',
        "freehold_environ.built()",
        "IncomingHandler = freehold_dev.IncomingHandler",
        "",
    ]
)


def fully_granted(app: App) -> App:
    """Return the app as if granted every interface, for a component that serves whatever app it is given."""
    return replace(
        app, keyvalue=("any",), sql=("any",), blobs=("any",), publish=("any",), allow_hosts=("any:1",), secrets=("ANY",),
        schedule=None,
    )  # fmt: skip


def interpreter(app: App, tree: SourceTree, progress: Progress) -> tuple[Path, str]:
    """Return the interpreter's component for this app's packages, and its digest. Raises `BuildError`."""
    requirements = python_build.requirements_of(app, tree)
    granted = fully_granted(app)
    inputs = {
        "main": MAIN,
        "world": world_of(granted),
        "packages": python_packages.packages_digest(requirements) if requirements else "",
        "guest": [bundle.file_digest(path) for path in python_build.guest_files(app)],
        "compiled": hashlib.sha256(native_hash.module()).hexdigest(),
        **python_build.toolchain(),
    }
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def make(folder: Path) -> None:
        packages = None
        if requirements:
            progress.step(app.name, "installing its packages")
            packages = python_packages.vendor(app.name, requirements)
        progress.step(app.name, "building the development interpreter (once for these packages)")
        with cache.scratch() as work:
            stage, nothing = work / "stage", work / "app"
            for path in (stage, nothing, work / "packages", work / "env" / "lib" / "site-packages"):
                path.mkdir(parents=True)
            python_build.write_guest(app, stage)
            (stage / "freehold_main.py").write_text(MAIN)
            write_world(world_of(granted), work / "wit")
            new_path = python_build.componentize(granted, [stage, nothing, packages or work / "packages"], work)
            shutil.move(new_path, folder / "component.wasm")
        (folder / "digest").write_text(bundle.file_digest(folder / "component.wasm"))

    found_path = cache.entry("interpreters", digest, make, entries_max=5)
    return found_path / "component.wasm", (found_path / "digest").read_text()


def packed_source(project: ProjectFile, app: App, tree: SourceTree) -> str:
    """Return what the interpreter is told: the app's files, entry and mount points."""
    files = {name: base64.b64encode(content).decode() for name, content in tree.files}
    packed = base64.b64encode(zlib.compress(json.dumps(files).encode(), 1)).decode()
    prefixes = python_build.mount_prefixes(project, app)
    return json.dumps({"language": app.language, "entry": app.entry, "prefixes": prefixes, "files": packed})
