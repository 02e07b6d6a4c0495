"""A worker process: accepts app traffic, runs guests, obeys the daemon's control connection.

Started by `runtime.workers.pool` as `python -m runtime.workers.worker SETTINGS` with its listening sockets inherited; it
goes on serving while no daemon is connected, so that the daemon can be restarted, and ends by itself only if none comes
back for too long. Not here: the HTTP side (`front.py`), guests (`sandbox.py`), what to run (the daemon says).
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import secrets
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Final, assert_never

import msgspec

from runtime.core_dumps import forbid_dumps
from runtime.ingress.certificates import Certificates
from runtime.ingress.delivery import deliver, migrate
from runtime.ingress.dispatch import Dispatcher, HostedApp, HostingError
from runtime.ingress.front import Ingress
from runtime.ingress.listeners import TLS_PREFIX, is_plain
from runtime.ingress.load_table import LoadTable
from runtime.ingress.proofs import FrontFolder
from runtime.ingress.request_head import Identifiers
from runtime.ingress.routing import Elsewhere, RouteError, RouteTable
from runtime.messages import (
    KEY_MAX_CHARS,
    PROTOCOL_VERSION,
    RELEASES_MAX,
    Activate,
    AppLoad,
    AskStatus,
    AwaitDaemon,
    ControlError,
    Deliver,
    Done,
    Drain,
    FromWorker,
    Greeting,
    JobDone,
    Load,
    LogBatch,
    Migrate,
    Ping,
    Pong,
    ReleaseLoad,
    Request,
    RequestRefused,
    RunJob,
    Status,
    Unload,
    frame,
    read_request,
    send_greeting,
)
from runtime.native.front import NativeFront
from runtime.native.plan import NativePlan, NotNative
from runtime.services.log_sink import AppLog, LogBuffer, LogOrigin
from runtime.workers.settings import LOAD_TABLE, AppHost, WorkerSettings, control_path

LOG_FLUSH_S: Final = 0.1
"""How long a log line may wait to travel with others."""

LOG_BATCH_MAX_BYTES: Final = 256 * 1024
"""Lines per message; small enough that an answer never waits long behind them."""

JOBS_MAX: Final = 4
"""Commands run at once per worker, apart from the threads that answer requests."""

DESCRIPTORS: Final = 8192
"""Open files a worker asks for: its connections, outbound ones, and a few per project's store."""

COLLECTOR_THRESHOLDS: Final = (20_000, 20, 50)
"""Objects between looks at the youngest, and looks between looks at the older ones; about a megabyte of garbage."""

CONTROL_BACKLOG: Final = 4
"""Daemons that may be waiting to connect; there is one, or two for a moment during a restart."""


class Worker:
    """See the module. `run` returns when the worker has drained."""

    def __init__(self, settings: WorkerSettings, make_host: Callable[[WorkerSettings], AppHost]) -> None:
        self._settings = settings
        self._host = make_host(settings)
        self._dispatcher = Dispatcher(settings.guest_threads_max)
        self._listeners = [_listening_socket(fd) for fd in settings.listener_fds]
        self._logs = LogBuffer()
        self._choice = settings.choice()
        self._native: NativeFront | None = None
        self._releases: dict[str, dict[str, HostedApp]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._connected = 0
        self._jobs: dict[str, set[asyncio.Future[JobDone]]] = {}
        """By the key of their release, which is not let go of while one runs: it may be writing."""
        self._routed: frozenset[str] = frozenset()
        self._service: dict[asyncio.Task[None], None] = {}
        self._started_s = time.monotonic()
        self._stop = asyncio.Event()
        self._grace_s = settings.drain_grace_s
        self._orphan_limit_s = settings.orphan_limit_s
        self._orphaned_s = time.monotonic()

    async def run(self) -> None:
        """Serve until told to drain, or orphaned for too long; then finish what is under way."""
        settings = self._settings
        path = control_path(Path(settings.runtime_folder), settings.slot, os.getpid())
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind(str(path))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        control.listen(CONTROL_BACKLOG)
        control.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._native = self._native_front()
                ours = [
                    (listener, address)
                    for listener, address in zip(self._listeners, settings.listeners, strict=True)
                    if self._native is None or not is_plain(address)
                ]
                self._ingress = Ingress(
                    settings=settings.ingress,
                    dispatcher=self._dispatcher,
                    listeners=[listener for listener, _ in ours],
                    secure=tuple(address.startswith(TLS_PREFIX) for _, address in ours),
                    certificates=_certificates(settings),
                    proxies=tuple(ip_network(proxy) for proxy in settings.proxies),
                    identifiers=Identifiers(secrets.randbits(128), settings.ingress.traced),
                    logs=self._logs,
                    node=settings.node,
                    peer=settings.peer,
                    tasks=tasks,
                    load_table=LoadTable(Path(settings.runtime_folder) / LOAD_TABLE),
                    runtime_folder=Path(settings.runtime_folder),
                    slot=settings.slot,
                    beside=self._native,
                )
                self._start_native(loop)
                engine: dict[str, object] = {"engine": self._choice.engine, "reason": self._choice.reason}
                self._ingress.access_log.write("info", "worker.engine", "host", engine)
                self._tasks = tasks
                inherited = socket.socket(fileno=settings.control_fd)
                for service in (
                    self._ingress.sweep(),
                    self._ingress.topics.run(),
                    self._flush_logs(),
                    self._watch_daemon(),
                    self._accept_daemons(control),
                    self._converse(inherited),
                ):
                    self._serve(service)
                await self._stop.wait()
                path.unlink(missing_ok=True)
                await self._drain()
                await self._send_logs()
                for task in tuple(self._service):
                    task.cancel()
        finally:
            path.unlink(missing_ok=True)
            control.close()
            self._dispatcher.stop()

    # --- the native engine --------------------------------------------------------------------------------------------

    def _native_front(self) -> NativeFront | None:
        if self._choice.module is None:
            return None
        settings = self._settings
        return NativeFront(
            self._choice.module,
            settings.ingress,
            guests_max=settings.guest_threads_max,
            proxies=settings.proxies,
            load_table=str(Path(settings.runtime_folder) / LOAD_TABLE),
            slot=settings.slot,
            access_log=lambda: self._ingress.access_log,
            adopt=self._adopt,
        )

    def _adopt(self, accepted: socket.socket, early: bytes, waited_s: float) -> None:
        self._ingress.adopt(accepted, early, waited_s)

    def _start_native(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._native is not None:
            plain = [
                listener
                for listener, address in zip(self._listeners, self._settings.listeners, strict=True)
                if is_plain(address)
            ]
            self._native.start(plain, loop)

    async def _drain(self) -> None:
        """Accept nothing more, and let what is under way end, for as long as the grace allows."""
        end_s = time.monotonic() + self._grace_s
        if self._native is not None:
            self._ingress.draining = True  # what is handed over meanwhile ends with its answer
            await self._native.drain(self._grace_s)
            self._native.stop(asyncio.get_running_loop())
        await self._ingress.drain(max(end_s - time.monotonic(), 0.0))

    # --- the daemon's side --------------------------------------------------------------------------------------------

    async def _accept_daemons(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(control)
            self._serve(self._converse(connection))

    def _serve(self, service: Coroutine[None, None, None]) -> None:
        """Run something that ends with the worker, not before."""
        task = self._tasks.create_task(service)
        self._service[task] = None
        task.add_done_callback(self._service.pop)

    async def _converse(self, connection: socket.socket) -> None:
        """Greet one daemon and serve its requests until it leaves; the newest daemon gets the logs."""
        connection.setblocking(False)
        settings = self._settings
        greeting = Greeting(
            version=PROTOCOL_VERSION,
            build=settings.build,
            slot=settings.slot,
            pid=os.getpid(),
            listeners=settings.listeners,
            keys=tuple(self._releases),
            draining=self._stop.is_set(),
        )
        try:
            send_greeting(connection, greeting, self._listeners)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except (OSError, ControlError):
            connection.close()
            return
        self._writer = writer
        self._connected += 1
        self._orphan_limit_s, self._grace_s = settings.orphan_limit_s, settings.drain_grace_s
        try:
            while True:
                request = await read_request(reader)
                if isinstance(request, Ping):
                    self._write(writer, Pong(request.number, self._stuck()))
                else:
                    self._tasks.create_task(self._obey(request, writer))
        except ControlError:
            return  # the daemon left or is damaged; the worker serves on
        finally:
            self._connected -= 1
            self._orphaned_s = time.monotonic()
            if self._writer is writer:
                self._writer = None
            writer.close()

    def _stuck(self) -> int:
        now_s = time.monotonic()
        return self._dispatcher.stuck(now_s) + (self._native.stuck(now_s) if self._native is not None else 0)

    def _write(self, writer: asyncio.StreamWriter, message: FromWorker) -> None:
        if not writer.is_closing():
            writer.write(frame(message))

    async def _obey(self, request: Request, writer: asyncio.StreamWriter) -> None:
        answer: FromWorker
        try:
            match request:
                case Load():
                    await self._load(request.release)
                    answer = Done(request.number)
                case Activate():
                    self._activate(request)
                    answer = Done(request.number)
                case Unload():
                    await self._unload(request.key)
                    _set_aside_lasting_objects()  # what the release held goes with it
                    _set_aside_lasting_objects()
                    answer = Done(request.number)
                case AskStatus():
                    answer = self._status(request.number)
                case RunJob():
                    answer = await self._run_job(request)
                case Deliver():
                    answer = await deliver(self._ingress, self._handler(request), request)
                case Migrate():
                    answer = await migrate(self._ingress, self._handler(request), request)
                case Drain():
                    self._grace_s = request.grace_ms / 1000
                    self._stop.set()
                    answer = Done(request.number)
                case AwaitDaemon():
                    self._orphan_limit_s, self._grace_s = request.limit_ms / 1000, request.grace_ms / 1000
                    answer = Done(request.number)
                case Ping():
                    answer = Pong(request.number, 0)
                case _:
                    assert_never(request)
        except (HostingError, RouteError) as error:
            answer = RequestRefused(request.number, str(error))
        self._write(writer, answer)

    async def _load(self, release: ReleaseLoad) -> None:
        if release.key in self._releases:
            return
        if len(self._releases) >= RELEASES_MAX or len(release.key) > KEY_MAX_CHARS:
            raise HostingError(f"more than {RELEASES_MAX} releases, or a key of more than {KEY_MAX_CHARS} characters")
        apps: dict[str, HostedApp] = {}
        try:
            for load in release.apps:
                apps[load.spec.app] = await self._prepare(release, load)
        except HostingError:
            await _close(apps)
            raise
        if release.key in self._releases:  # two daemons may ask for the same at once, while one takes over
            await _close(apps)
            return
        for app in apps.values():
            self._give_to_native(app)
        self._releases[release.key] = apps
        for name, app in apps.items():
            self._ingress.apps[release.key, name] = app
        _set_aside_lasting_objects()

    def _give_to_native(self, app: HostedApp) -> None:
        plan = app.plan
        if self._native is None:
            return
        if isinstance(plan, NotNative):
            app.engine_reason = plan.reason if app.spec.kind == "http" else ""
        if not isinstance(plan, NativePlan):
            return
        try:
            self._native.load(app, plan)
        except RuntimeError as error:
            self._ingress.log_defect("native")  # the Python path serves it all the same
            app.engine_reason = f"the native engine refuses it: {error}"

    async def _prepare(self, release: ReleaseLoad, load: AppLoad) -> HostedApp:
        spec = load.spec
        origin = LogOrigin(self._settings.node, release.project, spec.app, release.digest, release.environment)
        log = AppLog(self._logs, origin, redacted=spec.redacted)
        try:
            runner = await asyncio.to_thread(self._host.prepare, load, log)
        except HostingError:
            raise
        except Exception as error:  # a defect of the host must not end a worker that serves other releases
            self._ingress.log_defect("load")
            raise HostingError(f"{spec.app}: {error!r}") from error
        return HostedApp(release.key, release.digest, load, log, runner, runner.plan)

    def _activate(self, request: Activate) -> None:
        routes: list[tuple[str | None, str, HostedApp | Elsewhere]] = []
        for route in request.routes:
            if route.forward:
                routes.append((route.host, route.prefix, Elsewhere(route.forward)))
                continue
            app = self._ingress.apps.get((route.key, route.app))
            if app is None or app.spec.kind != "http":
                raise HostingError(f"{route.app} of {route.key} is not loaded, or does not answer requests")
            routes.append((route.host, route.prefix, app))
        table = RouteTable(routes)
        self._ingress.activate(table)
        if self._native is not None:
            self._native.activate(routes)
        self._routed = frozenset(route.key for route in request.routes if route.key)

    async def _unload(self, key: str) -> None:
        hosted = self._releases.get(key)
        if hosted is None:
            return
        if key in self._routed:
            raise HostingError(f"routes still name {key}")
        del self._releases[key]
        for app in hosted.values():
            if self._native is not None:
                await self._native.unload(app)
            await self._dispatcher.idle(app)
        if jobs := self._jobs.get(key):
            await asyncio.wait(jobs)  # no new ones begin: the release is not loaded any more
        for name, app in hosted.items():
            if self._ingress.apps.get((key, name)) is app:  # a new daemon may have loaded the same key meanwhile
                del self._ingress.apps[key, name]
        await _close(hosted)

    def _handler(self, request: Deliver | Migrate) -> HostedApp:
        app = self._ingress.apps.get((request.key, request.app))
        if app is None or app.spec.kind != "http" or request.key not in self._releases:
            raise HostingError(f"{request.app} of {request.key} is not loaded, or answers no requests")
        return app

    async def _run_job(self, request: RunJob) -> FromWorker:
        hosted = self._releases.get(request.key)
        app = hosted.get(request.app) if hosted is not None else None
        if app is None or app.spec.kind == "http":
            raise HostingError(f"{request.app} of {request.key} is not loaded as a command")
        if sum(map(len, self._jobs.values())) >= JOBS_MAX:
            raise HostingError(f"{JOBS_MAX} jobs are running in this worker")
        job = asyncio.ensure_future(asyncio.to_thread(app.runner.run_job, request))
        self._jobs.setdefault(request.key, set()).add(job)
        job.add_done_callback(partial(self._job_ended, request.key))
        return await job

    def _job_ended(self, key: str, job: asyncio.Future[JobDone]) -> None:
        self._jobs[key].discard(job)
        if not self._jobs[key]:
            del self._jobs[key]

    def _status(self, number: int) -> Status:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Status(
            number=number,
            pid=os.getpid(),
            slot=self._settings.slot,
            resident_bytes=_resident_bytes(usage),
            cpu_ms=int((usage.ru_utime + usage.ru_stime) * 1000),
            uptime_ms=int((time.monotonic() - self._started_s) * 1000),
            connections=self._ingress.connections + (self._native.connections if self._native is not None else 0),
            logs_dropped=self._logs.dropped_total,
            refused=dict(self._ingress.refused),
            apps=self._ingress.dispatcher.look(self._ingress.apps.values()),
            engine=self._choice.engine,
            engine_reason=self._choice.reason,
        )

    # --- what goes on by itself ---------------------------------------------------------------------------------------

    async def _flush_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_FLUSH_S)
            if self._native is not None:
                self._native.report()
            await self._send_logs()

    async def _send_logs(self) -> None:
        """Send what is buffered while a daemon takes it; without one the buffer keeps it, up to its limit."""
        while (writer := self._writer) is not None and not writer.is_closing():
            lines, dropped = self._logs.take(LOG_BATCH_MAX_BYTES)
            if not lines and not dropped:
                return
            self._write(writer, LogBatch(lines, dropped))
            try:
                await writer.drain()
            except OSError:
                return

    async def _watch_daemon(self) -> None:
        """End the worker when no daemon has been connected for too long: nobody would ever stop it."""
        while True:
            await asyncio.sleep(min(1.0, self._orphan_limit_s / 4))
            if not self._connected and time.monotonic() - self._orphaned_s > self._orphan_limit_s:
                self._stop.set()


def _certificates(settings: WorkerSettings) -> Certificates | None:
    if not settings.certificates:
        return None
    shared = FrontFolder(Path(settings.runtime_folder)).certificates if settings.shares_certificates else None
    return Certificates(Path(settings.certificates), shared)


def _listening_socket(fd: int) -> socket.socket:
    listener = socket.socket(fileno=fd)
    listener.setblocking(False)
    return listener


def _resident_bytes(usage: resource.struct_rusage) -> int:
    """Return the resident set now; where /proc is missing, its maximum so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _close(apps: Mapping[str, HostedApp]) -> None:
    """Give back what a release holds of this process."""
    for app in apps.values():
        await asyncio.to_thread(app.runner.close)


def _set_aside_lasting_objects() -> None:
    """Take what lives as long as a release (modules, codecs) out of the collector's sight, and let it look less often.

    With the defaults, collections took 15 % of a fresh compiled guest's processor time and half of an event loop's that
    serves fresh Python guests; cycles are rare here, since instances and exchanges are closed by hand. What a release
    that is gone left behind is collected first, or its mapped code would stay until the worker's end.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def _allow_descriptors() -> None:
    """Raise the soft limit on open files to what the connections and stores of one worker may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(make_host: Callable[[WorkerSettings], AppHost]) -> None:
    """Run one worker with the settings on the command line."""
    import uvloop

    settings = msgspec.json.decode(sys.argv[1], type=WorkerSettings)
    forbid_dumps()
    _allow_descriptors()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the daemon's to handle

    async def run() -> None:
        await Worker(settings, make_host).run()

    uvloop.run(run())


if __name__ == "__main__":
    from runtime.workers.app_host import SandboxHost

    main(SandboxHost)
