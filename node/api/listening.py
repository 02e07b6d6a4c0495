"""Where the API listens: a Unix socket of mode 0600 always, and HTTPS on the address that the node was given.

Whoever reaches the HTTPS address may connect, so connections on which no known key has signed anything yet are bounded:
the oldest gives way, as half-open links do. Not here: what is answered (server.py, handlers.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from node.api.access import authorize
from node.api.callers import Callers
from node.api.handlers import OPERATIONS
from node.api.server import HEADER_MAX_BYTES, ApiServer
from node.control import Control
from node.errors import BusyError
from node.presence import outgoing_address
from node.tls import load_or_create_tls
from protocols.keys import Ed25519Verifier

STRANGERS_MAX = 256
"""Connections over HTTPS without a known key, as many as half-open links of the mesh; each holds a descriptor."""

HANDSHAKE_TIMEOUT_S = 10.0
IDLE_S = 75.0
"""A connection without a request for this long is closed; aiohttp's own patience is an hour."""

WILDCARDS = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104  compared, not bound


@contextlib.asynccontextmanager
async def listening(control: Control, runtime: Path) -> AsyncIterator[None]:
    """Serve the API on api.sock in the `runtime` folder and on the settings' address, which `control` is then told.

    Raises BusyError if the address cannot be had.
    """
    callers = Callers(Ed25519Verifier(), lambda: control.clock().wall_ms / 1000)
    names = ("localhost", control.config.name, control.config.api.rpartition(":")[0].strip("[]"))
    server = ApiServer(
        OPERATIONS, control, callers, lambda: names, control.audit_call, functools.partial(authorize, control),
        lambda: control.core.chain.muted,
    )  # fmt: skip
    runner = web.AppRunner(
        server.application(), handler_cancellation=True, access_log=None, max_field_size=HEADER_MAX_BYTES,
        keepalive_timeout=IDLE_S, auto_decompress=False,
    )  # fmt: skip
    await runner.setup()
    path = runtime / "api.sock"
    path.unlink(missing_ok=True)
    secure: asyncio.Server | None = None
    try:
        await web.UnixSite(runner, str(path)).start()
        path.chmod(0o600)
        if control.config.api:
            secure = await _listen_on_https(runner, server, control)
        yield
    finally:
        if secure is not None:
            secure.close()
        await runner.cleanup()
        path.unlink(missing_ok=True)


async def _listen_on_https(runner: web.AppRunner, server: ApiServer, control: Control) -> asyncio.Server:
    tls = load_or_create_tls(control.folder, control.core.node, datetime.datetime.now(datetime.UTC))
    host, _, port = control.config.api.rpartition(":")
    host = host.strip("[]")
    make, strangers = runner.server, server.strangers
    assert make is not None, "the runner is set up"

    def connection() -> RequestHandler:
        while len(strangers) >= STRANGERS_MAX:
            oldest = next(iter(strangers))
            del strangers[oldest]
            oldest.force_close()
        made = make()
        strangers[made] = None
        return made

    try:
        listener = await asyncio.get_running_loop().create_server(
            connection, host, int(port), ssl=tls.context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
        )
    except OSError as error:
        raise BusyError(f"the API cannot listen on {control.config.api}: {error}", "freehold node run --api") from None
    shown = outgoing_address() if host in WILDCARDS else host
    control.api, control.api_pin = f"{shown}:{listener.sockets[0].getsockname()[1]}", tls.pin
    return listener
