"""The JavaScript engine that `freehold dev` runs apps in, from source: a save needs only a bundle, not a component.

One component for all apps, built once and kept in the cache, with every interface in its world; what an app may use is
still decided by its grants, which the host enforces. It is no release: `freehold build` makes those.
Not here: the guest's side (`guest/javascript/dev.js`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from cli import cache
from cli.dev.interpreter import fully_granted
from cli.project import bundle, javascript_build, node
from cli.project.build import Progress, install_javascript
from cli.project.model import App
from cli.project.source import SourceTree
from cli.project.world import world_of


def engine(app: App, progress: Progress) -> tuple[Path, str]:
    """Return the engine's component and its digest. Raises `BuildError`."""
    granted = fully_granted(app)
    inputs = {
        "world": world_of(granted),
        "guest": [bundle.file_digest(path) for path in javascript_build.guest_files()],
        "tools": node.toolchain_digest(),
    }
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def make(folder: Path) -> None:
        toolchain = install_javascript(app, progress)
        progress.step(app.name, "building the development engine (once)")
        with cache.scratch() as scratch:
            (scratch / "app").mkdir()
            new_path = javascript_build.componentize(granted, "dev", scratch / "app", toolchain, None, scratch)
            shutil.move(new_path, folder / "component.wasm")
        (folder / "digest").write_text(bundle.file_digest(folder / "component.wasm"))

    found_path = cache.entry("interpreters", digest, make, entries_max=5)
    return found_path / "component.wasm", (found_path / "digest").read_text()


def bundled_source(app: App, tree: SourceTree, root: Path, progress: Progress) -> str:
    """Return the app as the one script the engine evaluates. Raises `BuildError`."""
    toolchain = install_javascript(app, progress)
    declared = node.declared_packages(tree, root)
    packages = node.install_packages(app.name, declared) if declared else None
    javascript_build.check_entry(app, tree)
    with cache.scratch() as scratch:
        output = scratch / "bundle.js"
        source = javascript_build.staged(app, tree, javascript_build.outer_files(app, root), scratch)
        javascript_build.bundle_source(app, source, toolchain, packages, output)
        return output.read_text()
