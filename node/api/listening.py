"""Where the API listens: a Unix socket of mode 0600 always, and HTTPS on the address that the node was given.

Not here: what is answered (server.py, handlers.py).
"""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from node.api.access import authorize
from node.api.callers import Callers
from node.api.handlers import OPERATIONS
from node.api.server import HEADER_MAX_BYTES, ApiServer
from node.control import Control
from node.errors import BusyError
from node.presence import outgoing_address
from node.tls import load_or_create_tls
from protocols.keys import Ed25519Verifier

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
        server.application(), handler_cancellation=True, access_log=None, max_field_size=HEADER_MAX_BYTES
    )
    await runner.setup()
    path = runtime / "api.sock"
    path.unlink(missing_ok=True)
    try:
        await web.UnixSite(runner, str(path)).start()
        path.chmod(0o600)
        if control.config.api:
            await _listen_on_https(runner, control)
        yield
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)


async def _listen_on_https(runner: web.AppRunner, control: Control) -> None:
    tls = load_or_create_tls(control.folder, control.core.node, datetime.datetime.now(datetime.UTC))
    host, _, port = control.config.api.rpartition(":")
    site = web.TCPSite(runner, host.strip("[]"), int(port), ssl_context=tls.context)
    try:
        await site.start()
    except OSError as error:
        raise BusyError(f"the API cannot listen on {control.config.api}: {error}", "freehold node run --api") from None
    bound = next(address for address in runner.addresses if isinstance(address, tuple))
    shown = outgoing_address() if host in WILDCARDS else host
    control.api, control.api_pin = f"{shown}:{bound[1]}", tls.pin
