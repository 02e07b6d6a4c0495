"""Programs of the Go module proxy that judge us, built once at a fixed version; no test of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "go"


def built(package: str, version: str) -> Path:
    """Return the program of a package at a version. Skips the test by name where Go or the module cannot be had."""
    name = package.rpartition("/")[2]
    folder = CACHE / f"{name}-{version}"
    program = folder / name
    if program.exists():
        return program
    if shutil.which("go") is None:
        pytest.skip(f"{name} is not here: there is no Go to build it with")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            made = subprocess.run(
                ["go", "install", f"{package}@{version}"], env={**os.environ, "GOBIN": str(folder), "GOFLAGS": "-mod=mod"},
                capture_output=True, text=True, timeout=280, check=False,
            )  # fmt: skip
            if made.returncode != 0:
                pytest.skip(f"{name} {version} cannot be built here: {made.stderr.strip()[-200:]}")
    return program
