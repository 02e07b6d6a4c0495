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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli import cache
from cli.errors import BuildError, refuse_full_disk
from cli.guard import run_tool
from cli.project.foreign_builds import check_dependencies
from cli.project.node_packages import refuse_unusable
from cli.project.source import SourceTree

TOOLCHAIN: Final = Path(__file__).parent.parent / "toolchain"
FILES: Final = ("package.json", "package-lock.json", "build.mjs", "bundle.mjs", "regexps.mjs")
NODE_MAJOR_MIN: Final = 20
NPM_TIMEOUT_S: Final = 900
NPM_FLAGS: Final = (
    "--ignore-scripts", "--allow-git=none", "--git=false", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error",
)  # fmt: skip

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
    for name in FILES[1:]:
        whole.update((TOOLCHAIN / name).read_bytes())
    return whole.hexdigest()


def install_toolchain(app: str, on_install: Callable[[], None]) -> Path:
    """Return the folder with build.mjs beside its node_modules; `on_install` is called before a first installation."""
    find_node(app)

    def make(work: Path) -> None:
        on_install()
        for name in FILES:
            shutil.copy(TOOLCHAIN / name, work / name)
        npm(app, ["ci", *NPM_FLAGS], work)

    return cache.entry("javascript", toolchain_digest(), make, entries_max=2)


@dataclass(frozen=True, slots=True)
class Declared:
    """The packages an app asks for: the bytes of its package.json and, if there is one, of its lock file."""

    package_json: bytes
    lock: bytes | None

    def digest(self) -> str:
        """Return the digest that names the installed packages."""
        return hashlib.sha256(self.package_json + b"\0" + (self.lock or b"")).hexdigest()


def declared_packages(tree: SourceTree, root: Path) -> Declared | None:
    """Return what the package.json in the app's source, or else in the project's folder, asks for; None if nothing."""
    package_json, lock = tree.content("package.json"), tree.content("package-lock.json")
    if package_json is None and (root / "package.json").is_file():
        package_json = (root / "package.json").read_bytes()
        lock = (root / "package-lock.json").read_bytes() if (root / "package-lock.json").is_file() else None
    if package_json is None:
        return None
    try:
        wanted = json.loads(package_json).get("dependencies", {})
    except (ValueError, AttributeError):
        wanted = {"unreadable": "npm says what is wrong with it"}
    return Declared(package_json, lock) if wanted else None


def install_packages(app: str, declared: Declared) -> Path:
    """Return a node_modules folder with the app's own dependencies. Raises `BuildError`."""
    find_node(app)
    refuse_unusable(app, declared.package_json)
    check_dependencies(app, declared.package_json, declared.lock)

    def make(work: Path) -> None:
        (work / "package.json").write_bytes(declared.package_json)
        if declared.lock is not None:
            (work / "package-lock.json").write_bytes(declared.lock)
        npm(app, ["ci" if declared.lock is not None else "install", "--omit=dev", *NPM_FLAGS], work)

    return cache.entry("node-packages", declared.digest(), make) / "node_modules"


def npm(app: str, arguments: list[str], folder: Path) -> None:
    """Run npm in `folder`. Raises `BuildError` with npm's own last words."""
    environment = {**os.environ, "NO_UPDATE_NOTIFIER": "1", "npm_config_update_notifier": "false"}
    command = [shutil.which("npm") or "npm", *arguments]
    with cache.scratch() as work:
        environment["TMPDIR"] = str(work)
        done = run_tool(command, folder=folder, environment=environment, timeout_s=NPM_TIMEOUT_S)
    if done.returncode != 0:
        errors = done.stderr.decode("utf-8", "replace")
        refuse_full_disk(app, errors)
        said = [line for line in errors.splitlines() if line.startswith("npm error")][:6]
        raise BuildError(
            app,
            "npm could not install its packages:\n" + "\n".join(said or errors.splitlines()[-6:]),
            next_step="check the network and package.json, then run the command again",
            kind="packages-failed",
        )


def installed_versions(packages: Path) -> dict[str, str]:
    """Return name and version of each package in a node_modules folder."""
    table = {}
    for manifest in sorted([*packages.glob("*/package.json"), *packages.glob("@*/*/package.json")]):
        described = json.loads(manifest.read_text())
        table[str(described.get("name"))] = str(described.get("version"))
    return table
