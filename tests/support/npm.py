"""Programs of npm that judge us, installed once as a lock file says; no test of its own."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "npm"


def installed(folder: Path) -> Path:
    """Return a folder with what the package-lock.json of `folder` names in node_modules. Skips the test without npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm: apt-get install nodejs npm")
    files = [folder / name for name in ("package.json", "package-lock.json")]
    named = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:24]
    new_path = CACHE / named
    new_path.mkdir(parents=True, exist_ok=True)
    with (new_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (new_path / "done").exists():
            for path in files:
                shutil.copyfile(path, new_path / path.name)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(command, cwd=new_path, check=True, capture_output=True, timeout=400)
            (new_path / "done").touch()
    return new_path
