"""A command that does not outlive who started it: its whole process group ends with the process that waits for it.

A guard, a Python process of its own that leads the group, holds one end of a pipe whose other end the starter holds. When
the starter ends, however it ends, the guard reads the end of the pipe and kills the group, itself included; so it does with
what is left once the command has ended. Not here: what is run, and for how long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

GUARD = """
import os, signal, subprocess, sys, threading
end = int(sys.argv[1])
command = subprocess.Popen(["/bin/sh", "-c", sys.argv[2]])
def watch():
    os.read(end, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = command.wait()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
os._exit(code if code >= 0 else 128 - code)
"""


@contextlib.asynccontextmanager
async def guarded(
    command: str, folder: Path, environment: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a shell command; its output and errors are the process's `stdout`. At the end of the block nothing of it lives."""
    end, held = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", GUARD, str(end), command, cwd=folder, env=environment, pass_fds=(end,),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(end)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(held)
        await asyncio.shield(process.wait())
