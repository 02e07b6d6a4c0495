"""Where the API listens: a Unix socket of mode 0600 always, and HTTPS on the address that the node was given.

Whoever reaches the HTTPS address may connect, so connections whose TLS handshake goes on are bounded, in all and per
address, and so are those on which no known key has signed anything yet: the oldest gives way, as half-open links do.
asyncio's own server begins every handshake it is asked for; so connections are accepted here and handed to it one by one.
Not here: what is answered (server.py, handlers.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from node.api.callers.access import authorize, has_grant
from node.api.callers.authority import Names
from node.api.callers.callers import Callers
from node.api.callers.scope import EVERYTHING
from node.api.callers.strangers import expect, listener_log, unknown
from node.api.handlers import OPERATIONS
from node.api.papers.audit_papers import audit_call
from node.api.reports.app_metrics import look
from node.api.reports.metrics import METRICS_TYPE, render
from node.api.reports.naming import PrincipalNames
from node.api.server import HEADER_MAX_BYTES, VERSION, ApiServer
from node.api.tls import ApiCertificate, Tls
from node.control import Control
from node.errors import BusyError, ConfigError
from node.keys import read_seed
from node.mesh.presence import outgoing_address
from node.transport.half_open import HalfOpen
from protocols.keys import Ed25519Signer, Ed25519Verifier

STRANGERS_MAX = 256
"""Connections over HTTPS without a known key, as many as half-open links of the mesh; each holds a descriptor."""

HANDSHAKES_MAX = 128
"""TLS handshakes that go on, in all. Each holds up to 300 KiB, most of it a buffer that is touched by data only."""

HANDSHAKES_PER_ADDRESS_MAX = 32
"""The same per IPv4 address or IPv6 /64: everybody of an office at once, who each need milliseconds."""

HANDSHAKE_TIMEOUT_S = 10.0
GOODBYE_TIMEOUT_S = 2.0
"""A connection that is closed has this long to say that it is; asyncio's own patience is half a minute."""

BACKLOG = 128
ACCEPT_AGAIN_S = 0.5
"""After an accept that failed: there are no descriptors left, most of all."""

IDLE_S = 75.0
"""A connection without a request for this long is closed; aiohttp's own patience is an hour."""

_log = logging.getLogger("freehold.api")

SHUTDOWN_TIMEOUT_S = 5.0
"""Calls under way when the node ends have so long; aiohttp's own patience is a minute."""

NAMES_LOOK_S = 60.0

WILDCARDS = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104  compared, not bound


@contextlib.asynccontextmanager
async def listening(control: Control, runtime: Path) -> AsyncIterator[None]:
    """Serve the API on api.sock in the `runtime` folder and on the settings' address, which is noted in `control`.

    Raises BusyError if the address cannot be had.
    """
    callers = Callers(
        Ed25519Verifier(), lambda: control.clock().wall_ms / 1000, control.core.trust.mesh, PrincipalNames(control).key_of,
        node_names=lambda: (control.core.node, control.api_pin), granted=functools.partial(has_grant, control),
        started_s=control.clock().wall_ms / 1000,
    )  # fmt: skip
    server = ApiServer(
        OPERATIONS, control, callers, lambda: reached_by(control), functools.partial(audit_call, control.audit),
        control.audit.settled,
        functools.partial(authorize, control), lambda: control.artifacts.closed or control.audit.full,
        control.audit.refusal,
        control.mesh.performed, control.mesh.loop_time,
    )  # fmt: skip
    runner = web.AppRunner(
        server.application(), handler_cancellation=True, access_log=None, max_field_size=HEADER_MAX_BYTES,
        logger=listener_log(), keepalive_timeout=IDLE_S, auto_decompress=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )  # fmt: skip
    await runner.setup()
    path = runtime / "api.sock"
    path.unlink(missing_ok=True)
    try:
        await web.UnixSite(runner, str(path)).start()
        path.chmod(0o600)
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            tasks = []
            if control.config.api:
                certificate = ApiCertificate(
                    control.folder, control.core.node, control.core.trust.mesh,
                    Ed25519Signer(read_seed(control.folder / "node.key")),
                )  # fmt: skip
                listener = _listen_on_https(runner, server, control, certificate)
                tasks = [group.create_task(listener.run()), group.create_task(_follow_names(control, certificate))]
            if control.config.metrics:
                await _serve_metrics(control, stack)
            yield
            for task in tasks:
                task.cancel()
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)


async def _serve_metrics(control: Control, stack: contextlib.AsyncExitStack) -> None:
    """Serve the metrics, and nothing else, to scrapers on this machine. Raises BusyError if the address is taken."""

    async def metrics(request: web.Request) -> web.Response:
        if not request.host.startswith(("127.0.0.1", "localhost", "[::1]")) or "Origin" in request.headers:
            return web.Response(status=403, text="this address is for scrapers on this machine\n")
        await look(control)
        return web.Response(body=render(control, VERSION, EVERYTHING), headers={"Content-Type": METRICS_TYPE})

    application = web.Application()
    application.router.add_get("/metrics", metrics, expect_handler=expect)
    application.router.add_route("*", "/{path:.*}", unknown, expect_handler=expect)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, logger=listener_log())
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    host, _, port = control.config.metrics.rpartition(":")
    try:
        await web.TCPSite(runner, host.strip("[]"), int(port)).start()
    except OSError as error:
        raise BusyError(
            f"metrics cannot be served at {control.config.metrics}: {error}", "--metrics 127.0.0.1:0"
        ) from None


def reached_by(control: Control) -> tuple[str, ...]:
    """Every name and address under which this node's API may be asked for."""
    config = control.config
    host = _host(config.api)
    texts = [config.name, socket.gethostname(), host, *(_host(text) for text in config.advertise)]
    local = host in {*WILDCARDS, "localhost"} or host.startswith("127.") or host == "::1" or not host
    texts += ["localhost", "127.0.0.1", "::1"] if local else []
    if host in WILDCARDS:
        texts.append(outgoing_address())
    return tuple(texts)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _certificate_now(control: Control, certificate: ApiCertificate) -> Tls:
    return certificate.refresh(Names.of(reached_by(control)), datetime.datetime.now(datetime.UTC))


async def _follow_names(control: Control, certificate: ApiCertificate) -> None:
    """Serve under the names of the moment, and tell the others where they have changed."""
    place = control.api_place
    while True:
        await asyncio.sleep(NAMES_LOOK_S)
        before = place.address, place.authority
        host, _, port = place.address.rpartition(":")
        if _host(control.config.api) in WILDCARDS:
            host = outgoing_address()
        try:
            tls = _certificate_now(control, certificate)
        except (ConfigError, OSError) as error:
            _log.warning("the certificate is not made anew: %s", error, extra={"event": "api.certificate"})
            continue
        place.take(f"{host}:{port}", tls.pin, tls.authority)
        if (place.address, place.authority) != before:
            place.announce()


def _listen_on_https(
    runner: web.AppRunner, server: ApiServer, control: Control, certificate: ApiCertificate
) -> HttpsListener:
    tls = _certificate_now(control, certificate)
    host, _, port = control.config.api.rpartition(":")
    host = host.strip("[]")
    assert runner.server is not None, "the runner is set up"
    try:
        listener = socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),  # what is shown for it may be an IPv4 address
        )  # fmt: skip
    except OSError as error:
        raise BusyError(f"the API cannot listen on {control.config.api}: {error}", "freehold node run --api") from None
    shown = outgoing_address() if host in WILDCARDS else host
    shown = f"[{shown}]" if ":" in shown else shown
    control.api_place.take(f"{shown}:{listener.getsockname()[1]}", tls.pin, tls.authority)
    return HttpsListener(listener, tls.context, runner.server, server.strangers)


@dataclass(frozen=True, slots=True)
class _Connection:
    """An accepted connection, whoever drives it by now."""

    number: int
    host: str
    end: socket.socket
    places: HalfOpen

    def close(self, _reason: str = "") -> None:
        """End it, in its handshake or later: what drives it finds that the other side has gone."""
        self.places.remove(self)
        with contextlib.suppress(OSError):  # it has ended
            self.end.shutdown(socket.SHUT_RDWR)


class HttpsListener:
    """Accepts connections on one socket for as long as `run` runs."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[], RequestHandler],
        strangers: dict[RequestHandler, Callable[[], None]],
    ) -> None:
        """Take a bound socket, the certificate, what makes aiohttp's handlers, and where those of strangers are kept."""
        listener.setblocking(False)
        self._listener, self._context, self._make, self._strangers = listener, context, make, strangers
        self._places = HalfOpen(HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX)
        self._number = 0

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await asyncio.sleep(0)  # accepting does not wait while connections are queued; the others must not
                    try:
                        end, address = await loop.sock_accept(self._listener)
                    except ConnectionError:
                        continue
                    except OSError as error:
                        _log.error("a connection was not accepted: %s", error, extra={"event": "api.not-accepted"})
                        await asyncio.sleep(ACCEPT_AGAIN_S)
                        continue
                    self._number += 1
                    connection = _Connection(self._number, str(address[0]), end, self._places)
                    self._places.add(connection)
                    group.create_task(self._shake_hands(connection))
        finally:
            self._listener.close()

    async def _shake_hands(self, connection: _Connection) -> None:
        while len(self._strangers) >= STRANGERS_MAX:
            self._strangers.pop(next(iter(self._strangers)))()
        handler = self._make()
        self._strangers[handler] = connection.close
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: handler, connection.end, ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S, ssl_shutdown_timeout=GOODBYE_TIMEOUT_S,
            )  # fmt: skip
        except OSError:  # it said something else, nothing in time, or gave way
            self._strangers.pop(handler, None)
        finally:
            self._places.remove(connection)
