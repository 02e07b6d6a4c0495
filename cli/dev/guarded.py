"""A shell command that does not outlive who started it (cli/guard.py), with its output as it comes.

Not here: what is run, and for how long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from cli.guard import guarding


@contextlib.asynccontextmanager
async def guarded(
    command: str, folder: Path, environment: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a shell command; its output and errors are the process's `stdout`. At the end of the block nothing of it lives."""
    end, held = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *guarding(["/bin/sh", "-c", command], end), cwd=folder, env=environment, pass_fds=(end,),
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
