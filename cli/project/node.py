"""Node.js and the JavaScript toolchain: found, or installed on first use from the committed lock file.

Only npm's ordinary client is used, with install scripts off: the packages carry their binaries. Not here: building an
app (`javascript_build.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cli import cache
from cli.errors import BuildError

TOOLCHAIN: Final = Path(__file__).parent.parent / "toolchain"
NODE_MAJOR_MIN: Final = 20
NPM_TIMEOUT_S: Final = 900
NPM_FLAGS: Final = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error")

INSTALL_NODE: Final = "install Node.js 20 or newer: apt-get install nodejs npm (Debian, Ubuntu), or brew install node"


def find_node(app: str) -> str:
    """Return the path of a usable `node`. Raises `BuildError` naming the command that installs it."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise BuildError(app, "Node.js and npm are not on this machine", next_step=INSTALL_NODE, kind="tool-missing")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout  # noqa: S603
    match = re.match(r"v(\d+)\.", said)
    if match is None or int(match[1]) < NODE_MAJOR_MIN:
        raise BuildError(
            app, f"Node.js here is {said.strip() or 'broken'}", next_step=INSTALL_NODE, kind="tool-missing"
        )
    return node


def toolchain_versions() -> dict[str, str]:
    """Return the pinned tools that decide a JavaScript component's bytes."""
    pinned: dict[str, str] = json.loads((TOOLCHAIN / "package.json").read_text())["dependencies"]
    return {name.removeprefix("@bytecodealliance/"): version for name, version in sorted(pinned.items())}


def toolchain_digest() -> str:
    """Return the digest of the lock file and of the script that drives the tools."""
    whole = hashlib.sha256()
    for name in ("package-lock.json", "build.mjs"):
        whole.update((TOOLCHAIN / name).read_bytes())
    return whole.hexdigest()


def install_toolchain(app: str, on_install: Callable[[], None]) -> Path:
    """Return the folder with build.mjs beside its node_modules; `on_install` is called before a first installation."""
    find_node(app)

    def make(work: Path) -> None:
        on_install()
        for name in ("package.json", "package-lock.json", "build.mjs"):
            shutil.copy(TOOLCHAIN / name, work / name)
        npm(app, ["ci", *NPM_FLAGS], work)

    return cache.entry("javascript", toolchain_digest(), make, entries_max=2)


def install_packages(app: str, package_json: bytes, lock: bytes | None) -> Path | None:
    """Return a node_modules folder with the app's own dependencies, or None if it has none. Raises `BuildError`."""
    try:
        declared = json.loads(package_json).get("dependencies", {})
    except (ValueError, AttributeError) as error:
        raise BuildError(app, f"package.json is not usable: {error}", next_step="correct package.json") from None
    if not declared:
        return None
    find_node(app)

    def make(work: Path) -> None:
        (work / "package.json").write_bytes(package_json)
        if lock is not None:
            (work / "package-lock.json").write_bytes(lock)
        npm(app, ["ci" if lock is not None else "install", "--omit=dev", *NPM_FLAGS], work)

    digest = hashlib.sha256(package_json + b"\0" + (lock or b"")).hexdigest()
    return cache.entry("node-packages", digest, make) / "node_modules"


def npm(app: str, arguments: list[str], folder: Path) -> None:
    """Run npm in `folder`. Raises `BuildError` with npm's own last words."""
    environment = {**os.environ, "NO_UPDATE_NOTIFIER": "1", "npm_config_update_notifier": "false"}
    done = subprocess.run(  # noqa: S603
        [shutil.which("npm") or "npm", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=NPM_TIMEOUT_S,
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("npm error")][:6]
        raise BuildError(
            app,
            "npm could not install its packages:\n" + "\n".join(said or done.stderr.splitlines()[-6:]),
            next_step="check the network and package.json, then run the command again",
            kind="packages-failed",
        )


def installed_versions(packages: Path) -> dict[str, str]:
    """Return name and version of each package in a node_modules folder."""
    found = {}
    for manifest in sorted([*packages.glob("*/package.json"), *packages.glob("@*/*/package.json")]):
        described = json.loads(manifest.read_text())
        found[str(described.get("name"))] = str(described.get("version"))
    return found
