"""Programs of the Go module proxy that judge us, built once at a fixed version; no test of its own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "go"


def built(package: str, version: str) -> Path:
    """Return the program of a package at a version. Skips the test by name where Go or the module cannot be had."""
    name = package.rpartition("/")[2]
    program = CACHE / f"{name}-{version}" / name
    return _made(program, ["go", "install", f"{package}@{version}"], Path.cwd(), GOFLAGS="-mod=mod")


def built_of(source: Path) -> Path:
    """Return the program of a module of ours, whose go.sum fixes what it is made of. Skips as `built` does."""
    files = [source / name for name in ("go.mod", "go.sum", "main.go")]
    named = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:24]
    return _made(CACHE / f"{source.name}-{named}" / source.name, ["go", "install", "-mod=readonly", "."], source)


def _made(program: Path, command: list[str], folder: Path, **more: str) -> Path:
    if program.exists():
        return program
    if shutil.which("go") is None:
        pytest.skip(f"{program.name} is not here: there is no Go to build it with")
    program.parent.mkdir(parents=True, exist_ok=True)
    with (program.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            completed = subprocess.run(
                command, cwd=folder, env={**os.environ, "GOBIN": str(program.parent), **more}, capture_output=True,
                text=True, timeout=600, check=False,
            )  # fmt: skip
            if completed.returncode != 0:
                pytest.skip(f"{program.name} cannot be built here: {completed.stderr.strip()[-200:]}")
    return program
