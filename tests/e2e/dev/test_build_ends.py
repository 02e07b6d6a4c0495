"""A build that is stopped leaves nothing: no builder runs on, no folder stays; and a full disk is called a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mesh.nodes import until

FOREVER = """
while True:
    pass
"""
PROJECT = """
[project]
name = "hello"
owners = ["me"]

[app.web]
language = "python"
source = "app"
entry = "app"
routes = ["/"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "hello"
    (folder / "app").mkdir(parents=True)
    (folder / "freehold.toml").write_text(PROJECT)
    (folder / "app" / "app.py").write_text(FOREVER)
    return folder


def environment(cache: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(cache.parent), "XDG_CACHE_HOME": str(cache), "NO_COLOR": "1"}


def building(project: Path, cache: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from cli.main import main; main()", "build", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=project, env=environment(cache), stdout=pipe, stderr=pipe, start_new_session=True
    )


def builders(cache: Path) -> Iterator[int]:
    """The processes that have a path below the cache on their command lines."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str(cache).encode() in (path / "cmdline").read_bytes():
                yield int(path.name)
        except OSError:
            continue


def scratches(cache: Path) -> list[Path]:
    return list(cache.glob("freehold/*/making-*"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_a_build_that_is_stopped_takes_its_builder_and_its_folders_along(
    project: Path, tmp_path: Path, number: signal.Signals
) -> None:
    cache = tmp_path / "cache"
    process = building(project, cache, "--json")
    until(lambda: len(list(builders(cache))) >= 2, 60, "the guard and the builder to run")
    assert scratches(cache)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    told = json.loads(output)
    assert told["error"]["kind"] == "interrupted"
    assert "nothing was set going" in told["error"]["message"]
    until(lambda: not list(builders(cache)), 5, "the builder to end")
    assert not scratches(cache)


@pytest.mark.timeout(120)
def test_what_a_killed_build_leaves_goes_with_the_next(project: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = building(project, cache)
    until(lambda: len(list(builders(cache))) >= 2, 60, "the guard and the builder to run")
    process.kill()
    process.communicate(timeout=20)
    until(lambda: not list(builders(cache)), 5, "the builder to end without its starter")
    left = scratches(cache)
    assert left
    again = building(project, cache)
    until(lambda: len(list(builders(cache))) >= 2, 60, "the next build to be under way")
    assert not set(left) & set(scratches(cache))
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=20)


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.getuid() != 0, reason="a small disk is mounted, which takes root")
def test_a_full_disk_is_no_fault_of_the_app(project: Path, tmp_path: Path) -> None:
    (project / "app" / "app.py").write_text("def handle(request):\n    return 'hello'\n")
    cache = tmp_path / "cache"
    cache.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(cache)], check=False)
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        process = building(project, cache, "--json")
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 1, errors
        told = json.loads(output)["error"]
        assert told["kind"] in {"disk-full", "os"}, told
        assert "space" in told["message"] or "full" in told["message"], told
        assert "correct the app" not in told["next_step"]
    finally:
        deadline_s = time.monotonic() + 10
        while subprocess.run(["umount", str(cache)], check=False).returncode and time.monotonic() < deadline_s:
            time.sleep(0.5)
