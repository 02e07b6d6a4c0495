"""Builds `javascript` and `typescript` apps: esbuild bundles, componentize-js embeds the bundle in its engine.

The app is web-standard: a default export with `fetch(request)`, or a listener for the fetch event. TypeScript is
stripped, not checked. Not here: installing the tools (`node.py`), the guest's side (`guest/javascript`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cli import cache
from cli.errors import BuildError, refuse_full_disk
from cli.guard import run_tool
from cli.project import node
from cli.project.model import App
from cli.project.source import SourceTree
from cli.project.world import BLOBS, CONFIG, KEYVALUE, LOGGING, MESSAGING, SQL, WASI, WORLD, world_of, write_world

GUEST: Final = Path(__file__).parent / "guest" / "javascript"
BUILD_TIMEOUT_S: Final = 600
OUTER: Final = ("package.json", "tsconfig*.json", "jsconfig.json")
"""What esbuild looks for above the files it reads."""


def guest_files() -> list[Path]:
    """Return the guest modules that go into every JavaScript component."""
    return sorted(path for path in GUEST.rglob("*") if path.suffix in {".js", ".cjs", ".mjs"})


def declared_names(app: App) -> list[str]:
    """Return the names of what the app is configured with; their values differ from environment to environment."""
    return sorted({*app.config, *app.secrets})


def bindings_module(app: App, declared: list[str] | None) -> str:
    """Return the module that passes on the interfaces the app was granted, and null for the others.

    `declared` are the names that the app's environment will have, None where they are known only as it runs.
    """
    interfaces = {
        "keyvalue": KEYVALUE[0] if app.keyvalue else None,
        "atomics": KEYVALUE[1] if app.keyvalue else None,
        "databases": SQL if app.sql else None,
        "blobValues": BLOBS[0] if app.blobs else None,
        "blobstore": BLOBS[2] if app.blobs else None,
        "consumer": MESSAGING[1] if app.publish else None,
        "configuration": CONFIG if app.config or app.secrets else None,
        "logging": LOGGING,
        "clock": f"wasi:clocks/monotonic-clock@{WASI}",
        "http": f"wasi:http/types@{WASI}",
        "outgoing": f"wasi:http/outgoing-handler@{WASI}" if app.allow_hosts else None,
        "exit": f"wasi:cli/exit@{WASI}" if app.schedule else None,
    }
    lines = [f'import {{ poll }} from "wasi:io/poll@{WASI}";']
    for name, interface in interfaces.items():
        lines.append(f"import * as {name} from {json.dumps(interface)};" if interface else f"const {name} = null;")
    lines.append(f"const declared = {json.dumps(declared)};")
    return "\n".join([*lines, f"export {{ declared, poll, {', '.join(interfaces)} }};"]) + "\n"


def outer_files(app: App, root: Path) -> list[tuple[str, bytes]]:
    """Return the project's files that hold for an app though they lie outside its source, by path below `root`."""
    pairs = []
    folder = root
    for part in Path(app.source).parts:
        listed = sorted(path for pattern in OUTER for path in folder.glob(pattern) if path.is_file())
        pairs += [(path.relative_to(root).as_posix(), path.read_bytes()) for path in listed]
        folder /= part
    return pairs


def staged(app: App, tree: SourceTree, outer: list[tuple[str, bytes]], work: Path) -> Path:
    """Return the app's source as written below `work`, where nothing of this machine lies around it: all that is bundled."""
    project = work / "project"
    project.mkdir()
    (project / "tsconfig.json").write_text("{}")  # without one the tool would take the nearest above, someone else's
    for name, content in outer:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(content)
    tree.write(project / app.source)
    return project / app.source


def build(
    app: App, tree: SourceTree, outer: list[tuple[str, bytes]], toolchain: Path, packages: Path | None, work: Path
) -> Path:
    """Return the component of `app`, made in the empty folder `work`. Raises `BuildError`."""
    check_entry(app, tree)
    kind = "command" if app.schedule else "http"
    return componentize(app, kind, staged(app, tree, outer, work), toolchain, packages, work)


def check_entry(app: App, tree: SourceTree) -> None:
    """Raise a `BuildError` that names the scripts there are if the app's entry is not one of them."""
    if tree.content(app.entry) is None:
        names = ", ".join(name for name, _ in tree.files if name.endswith((".js", ".mjs", ".ts", ".tsx")))
        raise BuildError(
            app.name,
            f"{app.source}/{app.entry} does not exist (found: {names or 'no script'})",
            next_step=f"set entry of [app.{app.name}] in freehold.toml",
        )


def componentize(app: App, kind: str, source: Path, toolchain: Path, packages: Path | None, work: Path) -> Path:
    """Return a component of the app in `source`; of kind "dev" it is the engine that runs any app from source."""
    guest, output = work / "guest", work / "component.wasm"
    guest.mkdir()
    for path in guest_files():
        target = guest / path.relative_to(GUEST)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (guest / "bindings.js").write_text(bindings_module(app, None if kind == "dev" else declared_names(app)))
    write_world(world_of(app), work / "wit")
    request = {
        "source": str(source),
        "entry": app.entry,
        "guest": str(guest),
        "modules": str(packages) if packages else None,
        "wit": str(work / "wit"),
        "world": WORLD,
        "kind": kind,
        "fetches": bool(app.allow_hosts),
        "work": str(work),
        "output": str(output),
    }
    _run(app, toolchain, request)
    return output


def bundle_source(app: App, folder: Path, toolchain: Path, packages: Path | None, output: Path) -> None:
    """Write the app in `folder` to `output` as one script for the development engine. Raises `BuildError`."""
    request = {
        "source": str(folder),
        "entry": app.entry,
        "guest": str(GUEST),
        "modules": str(packages) if packages else None,
        "kind": "bundle",
        "output": str(output),
    }
    _run(app, toolchain, request)


def _run(app: App, toolchain: Path, request: Mapping[str, object]) -> None:
    command = [node.find_node(app.name), str(toolchain / "build.mjs")]
    try:
        with cache.scratch() as work:
            done = run_tool(
                command,
                folder=toolchain,
                environment={**os.environ, "TMPDIR": str(work)},
                said_to_it=json.dumps(request).encode(),
                timeout_s=BUILD_TIMEOUT_S,
            )
    except subprocess.TimeoutExpired:
        step = "move work out of the module's top level; it runs at build time"
        raise BuildError(app.name, f"building took longer than {BUILD_TIMEOUT_S} s", next_step=step) from None
    if done.returncode == 0:
        return
    said = done.stderr.decode("utf-8", "replace").strip()
    refuse_full_disk(app.name, said)
    try:
        message = str(json.loads(said.splitlines()[-1])["message"])
    except (ValueError, IndexError, KeyError, TypeError):
        message = said[-2000:]
    raise BuildError(
        app.name,
        "building it failed:\n" + message,
        next_step=f"correct the app, then run: freehold build --app {app.name}",
        kind="bundle-failed",
    )
