"""A command in a process of its own that kills itself before its N-th file operation, as a power cut would end it.

Counted is what changes a disk: opening to write, making, renaming and removing, changing modes, and each sync. The process
is a fork of the test's, so that a command costs no start. Not here: what must be so afterwards.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGING = frozenset(
    {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}
)
NEVER = 1 << 30


@dataclass(frozen=True)
class Ended:
    """How it ended: `code` is None if it was killed before operation number `operations`, counted from 0."""

    code: int | None
    operations: int
    stdout: str
    stderr: str


def run_killed(
    command: Callable[[], int], environment: Mapping[str, str], passphrase: str, before: int = NEVER
) -> Ended:
    """Run a command that answers each passphrase prompt alike, and that dies before operation number `before`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err, count = (Path(folder) / name for name in ("out", "err", "count"))
        count.touch()
        pid = os.fork()
        if pid == 0:
            try:
                _be_the_command(command, environment, passphrase, before, (out, err, count))
            finally:
                os._exit(99)
        _, status = os.waitpid(pid, 0)
        code = None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        return Ended(code, count.stat().st_size, out.read_text(), err.read_text())


def _be_the_command(
    command: Callable[[], int],
    environment: Mapping[str, str],
    passphrase: str,
    before: int,
    files: tuple[Path, Path, Path],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for handle, path in zip((1, 2), files, strict=False):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    from cli.access import prompts

    asking = prompts.ask_passphrase
    for module in list(sys.modules.values()):  # some have it by its name
        if getattr(module, "ask_passphrase", None) is asking:
            module.ask_passphrase = lambda _prompt: passphrase  # type: ignore[attr-defined]
    _count(before, os.open(files[2], os.O_WRONLY | os.O_APPEND))
    try:
        code = command()
    except BaseException:
        traceback.print_exc()
        code = 98
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _count(before: int, counter: int) -> None:
    done = 0

    def one_more() -> None:
        nonlocal done
        if done == before:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        os.write(counter, b".")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(path, str | bytes) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path, changes = arguments[0] if arguments else "", event in CHANGING
        if changes and "__pycache__" not in str(path) and not str(path).startswith(("/dev/", "/proc/")):
            one_more()

    sync = os.fsync

    def fsync(handle: int) -> None:
        one_more()
        sync(handle)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(watch)


__all__ = ["NEVER", "Ended", "run_killed"]
