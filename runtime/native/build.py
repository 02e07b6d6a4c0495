"""Builds the native engine with cargo: `python -m runtime.native.build`, as `make native` does; exits 1 if it cannot.

`crates.lock` pins every crate by version and SHA-256 and names no registry. Cargo's own lock file must name one: it is made
here of that file and of what the local cargo calls its registry. Not here: whether the engine fits (choice.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
PINNED: Final = FOLDER / "crates.lock"
LOCK: Final = FOLDER / "Cargo.lock"
BUILT: Final = FOLDER / "target" / "release" / "lib_engine.so"
MODULE: Final = FOLDER / "_engine.abi3.so"
CARGO_OLDEST: Final = (1, 83)
BUILD_TIMEOUT_S: Final = 1800

_PROBE: Final = (
    '[package]\nname = "probe"\nversion = "0.1.0"\n\n[lib]\npath = "lib.rs"\n\n[dependencies]\nhttparse = "1"\n'
)
_SOURCE: Final = re.compile(r"^source = .*\n", re.MULTILINE)


class EngineBuildError(Exception):
    """The engine cannot be built here; the text says why, and what to do."""


def without_registry(lock: str) -> str:
    """Return cargo's lock file without the lines that name a registry."""
    return _SOURCE.sub("", lock)


def with_registry(pinned: str, source: str) -> str:
    """Return cargo's lock file; `source` is the line that names the registry. Whatever has a checksum is from there."""
    return re.sub(r"^checksum = ", lambda found: f"{source}{found[0]}", pinned, flags=re.MULTILINE)


def main() -> int:
    """Build, and put the module beside this file; return the exit status."""
    try:
        _check_cargo()
        _lock()
        _cargo(FOLDER, "build", "--locked", "--release", "--features", "extension-module")
    except EngineBuildError as error:
        print(f"the native engine is not built: {error}\nPython serves as before.")
        return 1
    shutil.copyfile(BUILT, MODULE.with_suffix(".new"))
    MODULE.with_suffix(".new").replace(MODULE)  # a node may have the one before open
    return 0


def _check_cargo() -> None:
    if shutil.which("cargo") is None:
        raise EngineBuildError("there is no cargo; on Debian or Ubuntu: apt-get install cargo (1.83 or newer)")
    said = _cargo(FOLDER.parent, "--version")
    answer = re.match(r"cargo (\d+)\.(\d+)", said)
    if answer is None or (int(answer[1]), int(answer[2])) < CARGO_OLDEST:
        raise EngineBuildError(f"{said.strip() or 'this cargo'} is too old; it takes 1.83 or newer")


def _lock() -> None:
    """Write cargo's lock file, unless it is there and says what is pinned."""
    pinned = PINNED.read_text()
    if LOCK.exists() and without_registry(LOCK.read_text()) == pinned:
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "Cargo.toml").write_text(_PROBE)
        (folder / "lib.rs").touch()
        _cargo(folder, "generate-lockfile", "--quiet")
        source = _SOURCE.search((folder / "Cargo.lock").read_text())
    if source is None:
        raise EngineBuildError("this cargo writes a lock file without a registry")
    LOCK.write_text(with_registry(pinned, source[0]))


def _cargo(folder: Path, *arguments: str) -> str:
    cargo = shutil.which("cargo") or "cargo"
    try:
        done = subprocess.run(  # noqa: S603 - arguments of this file alone
            [cargo, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineBuildError(str(error)) from error
    if done.returncode:
        raise EngineBuildError(f"cargo {arguments[0]} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
