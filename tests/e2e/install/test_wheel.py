"""What `pip install` brings: every file of the packages is in the wheel, and a fresh environment builds an app with it.

The wheel is built from this checkout, without the network; the long test installs it as a user would, with every dependency
from the registry. Not here: the README's commands (test_readme.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.test_tidy import PACKAGES

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what git tracks, as a clean checkout would hold it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(target)]
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(target.glob("freehold-*.whl"))


def tracked() -> list[str]:
    """What belongs to the distribution: the packages and what describes them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    top = {*PACKAGES, "pyproject.toml", "README.md", "LICENSE"}
    return [name for name in listed.split("\0") if name.partition("/")[0] in top and (ROOT / name).is_file()]


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    missing = [name for name in tracked() if name.partition("/")[0] in PACKAGES and name not in held]
    # The native engine is built in a checkout, by `make native`.
    assert [
        name
        for name in missing
        if not name.startswith(("runtime/native/src/", "runtime/native/Cargo.", "runtime/native/crates.lock"))
    ] == []


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_fresh_environment_installs_it_and_builds_tests_and_releases_an_app(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    table = {name: os.environ[name] for name in os.environ if name.startswith("PIP_")}
    environment = {
        **table,
        "HOME": str(tmp_path),
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }

    def run(*arguments: str, folder: Path) -> dict[str, object]:
        done = subprocess.run(
            ["freehold", *arguments, "--json"], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    run("new", "hello", "--template", "python", folder=tmp_path)
    built = run("build", folder=tmp_path / "hello")
    tested = run("test", folder=tmp_path / "hello")
    assert built["build"] == tested["build"]
    assert built["release"] is tested["release"] is None, "nobody here has a key yet, so no release has an author"
    results = tested["results"]
    assert isinstance(results, list)
    assert [result["passed"] for result in results] == [True, True]
