"""What a user would pick instead of a node: Flask, FastAPI and Hono, each saying hello, each outside any sandbox.

Their packages are pinned by hash in `frameworks/` and installed once into `.cache/tools/`, apart from the project's own.
Each runs one process per core, as its own documentation says for production. Not here: what is measured (serving.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fixtures.build import CACHE, digest_of, locked
from tests.fixtures.build import run as run_step

HERE: Final = Path(__file__).with_name("frameworks")
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
THREADS: Final = "8"


@dataclass(frozen=True, slots=True)
class Alternative:
    """A running server: where it listens, and its processes."""

    port: int
    pids: tuple[int, ...]


def available() -> tuple[str, ...]:
    """Those that run here: Python's always, Node's where Node.js is."""
    return ("gunicorn + Flask", "uvicorn + FastAPI", *(("Node + Hono",) if shutil.which("npm") else ()))


@contextlib.contextmanager
def serve(name: str) -> Iterator[Alternative]:
    """Run one of them; raises `RuntimeError` with what it said where it does not come up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        _command(name, port), cwd=HERE, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        _await(name, process, port)
        yield Alternative(port, tuple(_family(process.pid)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _command(name: str, port: int) -> list[str]:
    cores, address = str(os.cpu_count() or 1), f"127.0.0.1:{port}"
    match name:
        case "gunicorn + Flask":
            return [
                str(python_commands() / "gunicorn"), "-w", cores, "-k", "gthread", "--threads", THREADS, "-b", address,
                "flask_app:app",
            ]  # fmt: skip
        case "uvicorn + FastAPI":
            return [
                str(python_commands() / "uvicorn"), "--workers", cores, "--no-access-log", "--log-level", "warning",
                "--host", "127.0.0.1", "--port", str(port), "fastapi_app:app",
            ]  # fmt: skip
        case "Node + Hono":
            return ["node", str(node_packages() / "hono.mjs"), str(port), cores]
    raise AssertionError(name)


def python_commands() -> Path:
    """The commands of an environment with the Python frameworks, made once."""
    locks = HERE / "requirements.txt"
    home = CACHE / "tools" / f"frameworks-{digest_of(locks.read_text())[:16]}"
    with locked(home.with_suffix(".lock")):
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            run_step(sys.executable, "-m", "venv", home)
            run_step(home / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", locks)
            (home / "complete").touch()
    return home / "bin"


def node_packages() -> Path:
    """A folder with the program and the packages of Node.js, made once."""
    files = [HERE / name for name in ("package.json", "package-lock.json", "hono.mjs")]
    home = CACHE / "tools" / f"hono-{digest_of(*(file.read_text() for file in files))[:16]}"
    with locked(home.with_suffix(".lock")):
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            for file in files:
                shutil.copy(file, home)
            run_step("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=home)
            (home / "complete").touch()
    return home


def _await(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if b"200" in connection.recv(64):
                return
        time.sleep(0.1)
    raise RuntimeError(f"{name} does not come up: exit status {process.poll()}")


def _family(pid: int) -> Iterator[int]:
    """A process and those it started, however deep."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))
