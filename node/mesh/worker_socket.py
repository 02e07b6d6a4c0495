"""A Unix socket at which the daemon serves its own workers. Not here: what is said over it (request_relay, topic_relay)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path


async def serve_workers(
    path: Path, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None], *, limit_bytes: int
) -> None:
    """Hand each connection to `accept` until cancelled; the socket is its user's alone, and goes with the server.

    `limit_bytes` is what a connection's reader holds at most. Raises OSError if the socket cannot be made.
    """
    path.unlink(missing_ok=True)  # noqa: ASYNC240  one name in the runtime folder
    server = await asyncio.start_unix_server(accept, str(path), limit=limit_bytes)
    path.chmod(0o600)  # noqa: ASYNC240
    try:
        await asyncio.Event().wait()
    finally:
        server.close()
        path.unlink(missing_ok=True)  # noqa: ASYNC240
