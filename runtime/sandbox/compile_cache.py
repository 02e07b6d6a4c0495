"""Compiled artifacts on disk: made once per component, wasmtime release and engine configuration, checked before use.

An artifact is native code; loading a changed one would run it. So each has a record beside it with its SHA-256, size
and what it was made from, and `ensure` and `load_checked` compare before anyone deserializes. A mismatch removes the
entry and compiles again, with a warning. The folder must belong to the node alone. Deleting it is always safe.
Not here: compiling (`compiler.py`, a process of its own) or deserializing (`sandbox.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import secrets
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

from runtime.durable import sync_folder
from runtime.engine.engine import CONFIGURATION
from runtime.sandbox import adapter
from runtime.sandbox.code_size import limits_for
from runtime.sandbox.compile_turns import CompileTurns, Turn
from runtime.sandbox.component import CompilerEndedError, ComponentError

COMPILE_TIMEOUT_S: Final = 600.0
"""Wall clock of one compilation; the compiler's own limit is processor time."""
CACHE_MAX_BYTES: Final = 4 * 1024**3
"""Artifacts kept, about a hundred Python components; the least recently used go first."""
OUTPUT_MAX_BYTES: Final = 64 * 1024
CUT_SHORT: Final = (1, -signal.SIGKILL, -signal.SIGTERM)
"""How a compiler ends that is not the component's doing: an error of the disk, no memory left on the machine, a person."""

SMALLER: Final = "build it with optimization for size, or split its largest functions"
"""What the developer of a component that costs too much can do."""

_CHUNK_BYTES: Final = 1024 * 1024
_log = logging.getLogger("freehold.compiled")
"""Below the name whose records a daemon keeps: that native code was changed on disk must not go unread."""


class TamperedError(Exception):
    """An artifact is not what its record says; it must not be loaded."""


def artifact_name(digest: str) -> str:
    """Return the file name for a component's hex digest under this release, configuration and machine."""
    identity = f"{version('wasmtime')};{CONFIGURATION};adapter={adapter.VERSION};{platform.machine()}"
    return f"{digest}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.cwasm"


def file_digest(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_artifact(artifact: Path) -> None:
    """Compare an artifact with its record; raises `TamperedError`. Call before every deserialization."""
    try:
        record = json.loads(_record_path(artifact).read_bytes())
        expected, size = record["sha256"], record["size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TamperedError(f"{artifact.name} has no readable record: {error}") from None
    try:
        if artifact.stat().st_size != size or file_digest(artifact) != expected:
            raise TamperedError(f"{artifact.name} does not match its recorded digest")
    except OSError as error:
        raise TamperedError(f"{artifact.name} cannot be read: {error}") from None


def _record_path(artifact: Path) -> Path:
    return artifact.with_suffix(".json")


class CompileCache:
    """A folder of artifacts. Several tasks and processes may use one folder."""

    def __init__(self, folder: Path, max_bytes: int = CACHE_MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}
        self._turns = CompileTurns()
        self.compilations = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._clear()

    def has(self, digest: str) -> bool:
        """Return whether the component was compiled before; `ensure` still checks the artifact."""
        return (self._folder / artifact_name(digest)).exists()

    async def ensure(self, component: Path, digest: str, payer: str = "") -> Path:
        """Return the checked artifact of `component`, whose hex SHA-256 is `digest`; compile it if need be.

        Concurrent calls for one digest wait for one compilation, which `payer`, a project, waits its turn for. Raises
        `ComponentError` with a sentence for the developer.
        """
        artifact = self._folder / artifact_name(digest)
        lock = self._locks.setdefault(digest, asyncio.Lock())
        self._waiting[digest] = self._waiting.get(digest, 0) + 1
        try:
            async with lock:
                if await asyncio.to_thread(self._usable, artifact):
                    return artifact
                async with self._turns.take(payer) as turn:
                    await self._compile(component, digest, artifact, turn)
                await asyncio.to_thread(self._evict, artifact)
                return artifact
        finally:
            self._waiting[digest] -= 1
            if not self._waiting[digest]:
                del self._waiting[digest], self._locks[digest]

    def _usable(self, artifact: Path) -> bool:
        if not artifact.exists():
            return False
        try:
            check_artifact(artifact)
        except TamperedError as error:
            _log.warning("compiled artifact removed: %s", error)
            artifact.unlink(missing_ok=True)
            _record_path(artifact).unlink(missing_ok=True)
            return False
        os.utime(artifact)
        return True

    async def _compile(self, component: Path, digest: str, artifact: Path, turn: Turn) -> None:
        if await asyncio.to_thread(file_digest, component) != digest:
            raise ComponentError(f"The file {component.name} does not have the digest {digest[:12]}... it should have.")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # deleting it is always safe
        temporary = artifact.with_name(f".{artifact.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            await self._run_compiler(component, temporary, turn)
            await asyncio.to_thread(self._publish, temporary, artifact, digest)
        finally:
            temporary.unlink(missing_ok=True)
        self.compilations += 1

    async def _run_compiler(self, component: Path, target: Path, turn: Turn) -> None:
        process = await asyncio.create_subprocess_exec(
            *_command(component, target),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2], limit=OUTPUT_MAX_BYTES,
        )  # fmt: skip
        try:
            async with asyncio.timeout(COMPILE_TIMEOUT_S):
                output, errors = await process.communicate()
        except TimeoutError:
            raise CompilerEndedError(f"Compiling took longer than {COMPILE_TIMEOUT_S:.0f} s.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            answer = json.loads(output)
            turn.cpu_s = float(answer["cpu_s"])
        except (ValueError, TypeError, KeyError):
            cpu_s, memory_bytes = await asyncio.to_thread(_limits_of, component)
            turn.cpu_s = float(cpu_s)
            if process.returncode == -signal.SIGXCPU:
                raise ComponentError(f"Compiling it takes more than {cpu_s} s of processor time; {SMALLER}.") from None
            if b"memory allocation" in errors:
                raise ComponentError(
                    f"Compiling it takes more than {memory_bytes >> 20} MiB of memory; {SMALLER}."
                ) from None
            tail = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
            reason = tail[0] if tail else "no output"
            cut_short = process.returncode in CUT_SHORT
            raise (CompilerEndedError if cut_short else ComponentError)(
                f"The compiler ended without an answer (exit {process.returncode}): {reason}."
            ) from None
        if "error" in answer:
            raise ComponentError(answer["error"])

    def _publish(self, temporary: Path, artifact: Path, digest: str) -> None:
        record = {
            "sha256": file_digest(temporary),
            "size": temporary.stat().st_size,
            "component": digest,
            "wasmtime": version("wasmtime"),
            "configuration": CONFIGURATION,
            "adapter": adapter.VERSION,
        }
        with self._locked():
            record_temporary = temporary.with_suffix(".record")
            with record_temporary.open("w") as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            record_temporary.replace(_record_path(artifact))
            temporary.replace(artifact)
            sync_folder(self._folder)

    def _clear(self) -> None:
        """Remove what processes that have ended left half-made; the name of a temporary file says whose it is."""
        for pattern in (".*.tmp", ".*.record"):
            for path in self._folder.glob(pattern):
                owner = path.stem.rpartition(".")[2].partition("-")[0]
                if not owner.isdigit() or not _runs(int(owner)):
                    path.unlink(missing_ok=True)

    def _evict(self, keep: Path) -> None:
        with self._locked():
            entries = sorted((path.stat().st_mtime_ns, path) for path in self._folder.glob("*.cwasm"))
            total = sum(path.stat().st_size for _, path in entries)
            for _, path in entries:
                if total <= self._max_bytes:
                    return
                if path != keep:
                    total -= path.stat().st_size
                    path.unlink(missing_ok=True)
                    _record_path(path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _limits_of(component: Path) -> tuple[int, int]:
    return limits_for(component.stat().st_size)


def _command(component: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "runtime.sandbox.compiler", str(component.absolute()), str(target.absolute())]
