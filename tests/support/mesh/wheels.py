"""Wheels of this checkout under another version, whole or with files changed: what `mesh upgrade` is given in tests.

Not here: a wheel as the build system makes it (tests/e2e/install/test_wheel.py).
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("cli", "node", "protocols", "runtime")


def make_wheel(folder: Path, version: str, changed: Mapping[str, str] | None = None, code: Path = ROOT) -> Path:
    """Write freehold's wheel of a version; `changed` gives the text of files that differ from those in `code`."""
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES],
        capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    names = [name for name in tracked.split("\0") if name and (code / name).is_file()]
    files = {name: (code / name).read_bytes() for name in names}
    files |= {name: text.encode() for name, text in (changed or {}).items()}
    info = f"freehold-{version}.dist-info"
    project = tomllib.loads((code / "pyproject.toml").read_text())["project"]
    needs = "".join(f"Requires-Dist: {entry}\n" for entry in project["dependencies"])
    head = f"Metadata-Version: 2.1\nName: freehold\nVersion: {version}\nRequires-Python: {project['requires-python']}\n"
    files[f"{info}/METADATA"] = (head + needs).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"freehold-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def changed_text(name: str, old: str, new: str, code: Path = ROOT) -> dict[str, str]:
    """One file's text with one place in it changed."""
    text = (code / name).read_text()
    assert text.count(old) == 1, (name, old)
    return {name: text.replace(old, new)}


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
