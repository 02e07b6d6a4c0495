"""A worker's front door: takes connections from the shared listening sockets and keeps all of them within limits.

Each worker accepts one connection at a time from the queue it shares with the others, so load spreads by who is free,
and a connection that no worker has taken yet outlives any of them. Not here: one connection's HTTP (`connection.py`),
forwarding to other nodes (`forwarding.py`), which certificate a client gets (`certificates.py`),
and what an authority gets (`proofs.py`).
"""

from __future__ import annotations

import asyncio
import socket
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Final, Protocol

from runtime.ingress.certificates import CertificateError, Certificates
from runtime.ingress.connection import ClientConnection, Phase
from runtime.ingress.dispatch import Dispatcher, HostedApp, outcome_kind
from runtime.ingress.incoming import Incoming
from runtime.ingress.load_table import CLOSED, LoadTable
from runtime.ingress.proofs import FrontFolder, offers_proof
from runtime.ingress.request_head import GuestRequest, Identifiers, Network
from runtime.ingress.response_head import DateField, IngressProblem
from runtime.ingress.routing import Elsewhere, RouteTable
from runtime.ingress.settings import IngressSettings
from runtime.ingress.topics import Topics
from runtime.outcome import DeadlineExceeded, HostFailed, MemoryRefused, Outcome, Trapped
from runtime.services.log_sink import Allowance, AppLog, LogBuffer, LogOrigin

SWEEP_S: Final = 0.25
"""How often time limits are looked at; they are seconds, and one look at a thousand connections takes 0.3 ms."""

CERTIFICATES_LOOKS: Final = 4
"""Sweeps between two looks at the certificates' folders: a second, of a few microseconds each."""

HANDSHAKE_TIMEOUT_S: Final = 10.0

STEP_BACK_S: Final = 0.003
"""How long a worker leaves a new connection to one that holds fewer; if nobody took it by then, it does."""

ACCEPT_RETRY_S: Final = 0.5
"""Pause after the operating system refused a connection for want of descriptors."""

ACCESS_LINES_PER_S: Final = 500.0
ACCESS_BYTES_PER_S: Final = 512 * 1024.0
"""Access lines per worker; the counters stay exact beyond it, and what was left out is counted."""

PATH_LOGGED_MAX_CHARS: Final = 256


class Beside(Protocol):
    """Another engine that accepts connections in this worker, and tells the load of both."""

    @property
    def connections(self) -> int:
        """Open connections that it holds."""
        ...

    def set_others(self, count: int) -> None:
        """Hear how many are held here."""
        ...


class Ingress:
    """See the module. All methods but `__init__` belong to the loop."""

    def __init__(
        self,
        *,
        settings: IngressSettings,
        dispatcher: Dispatcher,
        listeners: list[socket.socket],
        proxies: tuple[Network, ...],
        identifiers: Identifiers,
        logs: LogBuffer,
        node: str,
        peer: str = "",
        tasks: asyncio.TaskGroup,
        secure: tuple[bool, ...] = (),
        certificates: Certificates | None = None,
        load_table: LoadTable | None = None,
        beside: Beside | None = None,
        slot: int = 0,
        runtime_folder: Path = Path(),
    ) -> None:
        self.settings = settings
        self.dispatcher = dispatcher
        self.proxies = proxies
        self.identifiers = identifiers
        self.tasks = tasks
        self.loop = asyncio.get_running_loop()
        self.routes: RouteTable[HostedApp | Elsewhere] = RouteTable()
        self.runtime_folder = runtime_folder
        self.proofs = FrontFolder(runtime_folder)
        self.topics = Topics(runtime_folder, peer)
        self.sockets = 0
        self.apps: dict[tuple[str, str], HostedApp] = {}
        self.draining = False
        self.refused: Counter[str] = Counter()
        self._listeners = listeners
        self._secure = frozenset(listener.fileno() for listener, tls in zip(listeners, secure, strict=False) if tls)
        self._certificates = certificates
        self._accepting = False
        self._connections: dict[ClientConnection, None] = {}
        self._opening = 0
        self._load_table = load_table
        self._beside = beside
        self._slot = slot
        self._stepped_back_s = 0.0
        self._date = DateField()
        allowance = Allowance(ACCESS_LINES_PER_S, ACCESS_LINES_PER_S, ACCESS_BYTES_PER_S, ACCESS_BYTES_PER_S)
        self._log = AppLog(logs, LogOrigin(node, "", "", ""), allowance)

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections) + self._opening

    def activate(self, routes: RouteTable[HostedApp | Elsewhere]) -> None:
        """Swap the routing table and begin to accept if not yet; requests under way finish with their app."""
        self.routes = routes
        self._resume_accepting()

    @property
    def access_log(self) -> AppLog:
        """The log of requests."""
        return self._log

    async def drain(self, grace_s: float) -> bool:
        """Accept nothing more and wait for what is under way; whether all of it ended within `grace_s`."""
        self.draining = True
        self._tell_load()
        self._pause_accepting()
        end_s = time.monotonic() + grace_s
        while self._connections or self._opening:
            for connection in tuple(self._connections):
                connection.close_idle()
            if time.monotonic() >= end_s:
                break
            await asyncio.sleep(0.02)
        whole = not self._connections
        for connection in tuple(self._connections):
            connection.transport.abort()
        return whole

    async def sweep(self) -> None:
        """Hold every connection and queue against its time limits, for ever."""
        settings = self.settings
        limits = {
            Phase.IDLE: settings.keep_alive_s,
            Phase.HEAD: settings.head_timeout_s,
            Phase.BODY: settings.body_idle_timeout_s,
            Phase.LINGER: settings.linger_s,
        }
        looks = 0
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = time.monotonic()
            looks += 1
            if looks % CERTIFICATES_LOOKS == 0:
                self._refresh_certificates()
            for app in self.apps.values():
                for ticket in self.dispatcher.expired(app, now_s):
                    ticket.exchange.close(DeadlineExceeded(app.spec.timeout_ms))
                app.log.flush_dropped()
            self._log.flush_dropped()
            for connection in tuple(self._connections):
                limit_s = limits.get(connection.phase)
                if limit_s is not None and now_s - connection.phase_since_s > limit_s:
                    if connection.phase is not Phase.BODY or connection.reading:
                        connection.expire()
                elif (
                    connection.drained is not None
                    and now_s - connection.blocked_since_s > settings.write_idle_timeout_s
                ):
                    connection.transport.abort()
                connection.check_overdue(now_s)

    # --- accepting ----------------------------------------------------------------------------------------------------

    def _resume_accepting(self) -> None:
        if not self._accepting and not self.draining and self.connections < self.settings.connections_max:
            self._accepting = True
            self._tell_load()
            for listener in self._listeners:
                self.loop.add_reader(listener.fileno(), self._accept, listener)

    def _tell_load(self) -> None:
        if self._beside is not None:
            self._beside.set_others(self.connections)
        elif self._load_table is not None:
            full = self.draining or self.connections >= self.settings.connections_max
            self._load_table.set(self._slot, CLOSED if full else self.connections)

    def _step_back(self) -> bool:
        """Whether another worker ought to take the next connection; this one then tries again a moment later."""
        held = self.connections + (self._beside.connections if self._beside is not None else 0)
        if self._load_table is None or self._load_table.least() >= held:
            return False
        now_s = self.loop.time()
        if now_s - self._stepped_back_s < 4 * STEP_BACK_S:
            self._stepped_back_s = 0.0  # it was left to the others long enough; the next one is not
            return False
        self._stepped_back_s = now_s
        self._pause_accepting()
        self.loop.call_later(STEP_BACK_S, self._resume_accepting)
        return True

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self.loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        if self._step_back():
            return
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client has left
        except OSError:
            self._pause_accepting()
            self.loop.call_later(ACCEPT_RETRY_S, self._resume_accepting)
            return
        accepted.setblocking(False)
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._opening += 1
        self._tell_load()
        if self.connections >= self.settings.connections_max:
            self._pause_accepting()
        self.tasks.create_task(self._serve(accepted, secure=listener.fileno() in self._secure))

    def adopt(self, accepted: socket.socket, early: bytes, waited_s: float) -> None:
        """Go on with a connection that another engine accepted: what it read, and how long that request has been coming."""
        self._opening += 1
        self._tell_load()
        self.tasks.create_task(self._serve(accepted, secure=False, early=early, waited_s=waited_s))

    async def _serve(self, accepted: socket.socket, *, secure: bool, early: bytes = b"", waited_s: float = 0.0) -> None:
        connection = ClientConnection(self, early, waited_s)
        context = self._certificates.front if secure and self._certificates is not None else None
        if secure and self.proofs.proof_open() and await offers_proof(accepted):
            context = self.proofs.proof_context() or context
        try:
            await self.loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if context is not None else None,
            )
        except OSError:  # the client left, or could not agree on TLS
            accepted.close()
            self._opening -= 1
            self._tell_load()
            self._resume_accepting()
            return
        if connection.proves:
            connection.transport.close()  # the handshake was all that the authority came for
        self._opening -= 1
        self._connections[connection] = None
        try:
            await connection.serve()
        finally:
            del self._connections[connection]
            self._tell_load()
            self._resume_accepting()

    def _refresh_certificates(self) -> None:
        if self._certificates is None:
            return
        try:
            if self._certificates.refresh():
                self._log.write("info", "certificates.read", "host", {})
        except CertificateError as error:
            self._log.write("error", "certificates.refused", "host", {"detail": str(error)})

    # --- what connections ask -----------------------------------------------------------------------------------------

    def own_fields(self, request_id: str, release: str | None) -> bytes:
        """Return the fields this node adds to every response, with their line ends."""
        fields = b"%bx-request-id: %b\r\n" % (self._date.field(time.time()), request_id.encode("latin-1"))
        if release is not None:
            fields += b"freehold-release: %b\r\n" % release.encode()
        return fields

    def count_refused(self, problem: IngressProblem) -> None:
        """Count a request that was refused before it could be understood."""
        self.refused[problem.slug] += 1

    def access(
        self,
        incoming: Incoming,
        request: GuestRequest,
        app: HostedApp | None,
        path: str,
        *,
        status: int,
        bytes_out: int,
        outcome: Outcome | None,
        closed_s: float | None = None,
        forwarded: str = "",
    ) -> None:
        """Count and log one answered request: never its query, fields or bodies, which may hold secrets."""
        if app is None and not forwarded:
            self.refused["no-route" if status == 404 else "other"] += 1
        elif app is not None:
            app.answered(status, closed_s - incoming.since_s if closed_s is not None else None)
            if isinstance(outcome, Trapped | MemoryRefused | HostFailed):
                _log_failure(app, outcome, request)
        if not self._log.admits():
            return
        fields: dict[str, object] = {
            "request_id": request.request_id,
            "trace_id": request.trace_id,
            "span_id": request.span_id,
            "client": request.client,
            "method": incoming.method,
            "path": path.partition("?")[0][:PATH_LOGGED_MAX_CHARS],
            "status": status,
            "bytes_in": incoming.bytes_in,
            "bytes_out": bytes_out,
            "duration_ms": round((time.monotonic() - incoming.since_s) * 1000, 3),
        }
        if request.parent_id:
            fields["parent_id"] = request.parent_id
        if not request.recorded:
            fields["recorded"] = False
        if forwarded:
            fields["forwarded"] = forwarded
        if outcome is not None:
            fields["outcome"] = outcome_kind(outcome)
        if app is not None:
            fields |= {"project": app.spec.project, "app": app.spec.app, "release": app.digest}
        self._log.write_admitted("info", "request", "host", fields)

    def log_defect(self, where: str) -> None:
        """Log the exception being handled: ours, not the guest's or the client's."""
        self.refused["defect"] += 1
        self._log.write("error", "defect", "host", {"where": where, "traceback": traceback.format_exc()})


def _log_failure(app: HostedApp, outcome: Trapped | MemoryRefused | HostFailed, request: GuestRequest) -> None:
    """Say in the app's log why a guest failed, with its backtrace; the client is never told."""
    fields: dict[str, object] = {
        "reason": outcome.reason,
        "request_id": request.request_id,
        "trace_id": request.trace_id,
        "backtrace": outcome.traceback if isinstance(outcome, HostFailed) else outcome.backtrace,
    }
    app.log.write("error", "app." + outcome_kind(outcome), "host", fields)
