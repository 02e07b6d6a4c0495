"""A process that does not outlive who started it: what it started itself ends with it.

The guard, a Python process of its own that leads a process group, holds one end of a pipe whose other end the starter
holds. When the starter ends, however it ends, the guard reads the end of the pipe and kills the group, itself included;
so it does with what is left once its command has ended. Not here: what is run, and what its answer means.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

GUARD = """
import os, signal, subprocess, sys, threading
end = int(sys.argv[1])
command = subprocess.Popen(sys.argv[2:])
def watch():
    os.read(end, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = command.wait()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
os._exit(code if code >= 0 else 128 - code)
"""


def guarding(command: Sequence[str], end: int) -> list[str]:
    """Return the command line of a guard that runs `command`, and reads the end of its starter from `end`."""
    return [sys.executable, "-I", "-S", "-c", GUARD, str(end), *command]


def run_tool(
    command: Sequence[str],
    *,
    timeout_s: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    said_to_it: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Run a tool to its end; nothing of it lives on, whether it ended, took too long, or this process was stopped.

    Raises subprocess.TimeoutExpired after `timeout_s` seconds.
    """
    end, held = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603
            guarding(command, end),
            cwd=folder,
            env=environment,
            pass_fds=(end,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    finally:
        os.close(end)
    try:
        output, errors = process.communicate(said_to_it, timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(held)
        process.wait()
    return subprocess.CompletedProcess(list(command), process.returncode, output, errors)
