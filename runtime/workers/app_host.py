"""The worker's view of the sandbox: apps loaded from their artifacts, with this node's services behind them.

Not here: how guests run (`sandbox.py`), who runs when (`dispatch.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from runtime.engine.guest import CAPTURE_MAX_BYTES
from runtime.exchange import Exchange
from runtime.ingress.dispatch import HostingError, outcome_kind
from runtime.messages import AppLoad, JobDone, RunJob
from runtime.native.plan import NativePlan, NotNative, native_plan
from runtime.outbound.client import Outbound
from runtime.outcome import Exited, HostFailed, MemoryRefused, Outcome, Trapped
from runtime.providers import ProviderError, Providers, SqlError
from runtime.sandbox import sandbox
from runtime.services import freeze
from runtime.services.declared_providers import DeclaredProvider, ProviderUnusableError, read_providers
from runtime.services.file_blobs import FileBlobs
from runtime.services.log_sink import AppLog
from runtime.services.postgres_sql import DATABASE_MAX_BYTES, PostgresSql
from runtime.services.redis_keyvalue import RedisKeyValue
from runtime.services.spans import CallSpans
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from runtime.services.sqlite_queue import SqliteQueue
from runtime.services.sqlite_sql import SqlCaps, SqliteSql
from runtime.workers.settings import WorkerSettings

_log = logging.getLogger("freehold.worker")
"""Nobody configures it in a worker: what is a warning goes to standard error."""


class ThreadLog:
    """A `LogSink` for one app that adds the ids of the request its thread is serving."""

    def __init__(self, log: AppLog) -> None:
        self._log = log
        self._ids = threading.local()

    def serving(self, request_id: str, trace_id: str) -> None:
        """From now on this thread logs for that request."""
        self._ids.fields = {"request_id": request_id, "trace_id": trace_id}

    def emit(self, level: str, context: str, message: str) -> bool:
        """Keep one entry of the guest, or return that there is no room for it; never blocks, never raises."""
        return self._log.write(level, "guest", "guest", self._fields(context, message))

    def keep(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Keep the last entries of a command that there was no room for."""
        self._log.write_last("guest", "guest", [(level, self._fields(*rest)) for level, *rest in entries])

    def _fields(self, context: str, message: str) -> dict[str, object]:
        return {"context": context[:256], "message": message, **getattr(self._ids, "fields", {})}


class SandboxApp:
    """A `Runner` over one loaded app; `let_go` gives its lane's stores back."""

    def __init__(
        self, app: sandbox.LoadedApp, log: ThreadLog, let_go: Callable[[], None], plan: NativePlan | NotNative
    ) -> None:
        self._app = app
        self.plan = plan
        self._log = log
        self._let_go = let_go

    def handle(self, exchange: Exchange, request_id: str, trace_id: str) -> Outcome:
        """Serve one request on this thread."""
        self._log.serving(request_id, trace_id)
        return self._app.handle(exchange)

    def run_job(self, job: RunJob) -> JobDone:
        """Run a command to its end on this thread."""
        self._log.serving(job.request_id, "")
        began_s = time.monotonic()
        result = self._app.run(job.arguments)
        outcome = result.outcome
        return JobDone(
            number=job.number,
            outcome=outcome_kind(outcome),
            exit_code=outcome.code if isinstance(outcome, Exited) else None,
            reason=outcome.reason if isinstance(outcome, Trapped | MemoryRefused | HostFailed) else "",
            stdout=result.stdout,
            stderr=result.stderr,
            stdout_truncated=len(result.stdout) >= CAPTURE_MAX_BYTES,
            stderr_truncated=len(result.stderr) >= CAPTURE_MAX_BYTES,
            duration_ms=int((time.monotonic() - began_s) * 1000),
        )

    def close(self) -> None:
        """Free the waiting instances, then whatever of the node's services nobody else uses; once."""
        self._app.close()
        self._let_go()


class LaneProviders:
    """The operator's providers that the stores of one lane lie in, each opened when it is first needed."""

    def __init__(
        self, providers_file: Path | None, owner: str, caps: SqlCaps | None = None, *, thrown_away: bool = False
    ) -> None:
        """Take the file that says where they are, None where none is used, and whose stores they are.

        What is `thrown_away` are the databases, for a smoke check: `close` removes them.
        """
        self._providers_file = providers_file
        self._owner = owner
        self._caps = caps
        self._thrown_away = thrown_away
        self._lock = threading.Lock()
        self._open: dict[str, RedisKeyValue | PostgresSql] = {}
        self._closed = False

    def open(self, name: str) -> RedisKeyValue:
        """Return what reaches a provider of key-value stores; raises `ProviderError`."""
        opened = self._opened(name)
        if not isinstance(opened, RedisKeyValue):
            raise ProviderError("other", f"the provider {name} has databases and no key-value stores")
        return opened

    def open_sql(self, name: str) -> PostgresSql:
        """Return what reaches a provider of databases; raises `SqlError`."""
        try:
            opened = self._opened(name)
        except ProviderError as error:
            raise SqlError("SQLITE_CANTOPEN", error.text, retry_after_s=error.retry_after_s) from error
        if not isinstance(opened, PostgresSql):
            raise SqlError("SQLITE_CANTOPEN", f"the provider {name} has key-value stores and no databases")
        return opened

    def _opened(self, name: str) -> RedisKeyValue | PostgresSql:
        with self._lock:
            if self._closed:
                raise ProviderError("other", "the store is closed", retry_after_s=freeze.RETRY_AFTER_S)
            opened = self._open.get(name)
            if opened is None:
                opened = self._open[name] = self._made(self._access(name))
            return opened

    def _access(self, name: str) -> DeclaredProvider:
        try:
            access = read_providers(self._providers_file).get(name) if self._providers_file is not None else None
        except ProviderUnusableError as error:
            raise ProviderError("other", str(error)) from error
        if access is None:
            raise ProviderError("other", f"this node has no provider {name}; its operator declares it in node.toml")
        return access

    def _made(self, access: DeclaredProvider) -> RedisKeyValue | PostgresSql:
        if access.kind == "redis":
            return RedisKeyValue(access, self._owner, _say_restored)
        caps = SqlCaps(database_max_bytes=DATABASE_MAX_BYTES)
        if self._caps is not None:
            caps = replace(caps, statement_max_s=self._caps.statement_max_s)
        return PostgresSql(access, self._owner, _say_restored, caps, thrown_away=self._thrown_away)

    def close(self) -> None:
        """Close every connection, for good."""
        with self._lock:
            self._closed = True
            held, self._open = self._open, {}
        for key_value in held.values():
            key_value.close()


def _say_restored(text: str) -> None:
    """Say on the worker's standard error, which is the node's, that a provider lost what it had acknowledged."""
    _log.warning("%s", text)


@dataclass(slots=True)
class LaneServices:
    """What the apps of one project and environment share in this process, and how many of them hold it."""

    keyvalue: SqliteKeyValue
    sql: SqliteSql
    blobs: FileBlobs
    queue: SqliteQueue
    declared: LaneProviders
    sandbox: sandbox.Sandbox
    holders: int = 0

    def close(self) -> None:
        """Close every store."""
        self.keyvalue.close()
        self.sql.close()
        self.blobs.close()
        self.queue.close()
        self.declared.close()


class SandboxHost:
    """An `AppHost` over the sandbox."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._data_folder = Path(settings.data_folder)
        self._providers_file = Path(settings.providers_file) if settings.providers_file else None
        self._thrown_away = settings.thrown_away
        self._sql_caps = SqlCaps(statement_max_s=settings.statement_max_s)
        self._native = settings.choice().module
        self._spans = settings.spans
        self._outbound = Outbound()
        self._lanes: dict[str, LaneServices] = {}
        """Only of lanes that are loaded: a store that stayed open outlives the decision that put it on this node."""
        self._lock = threading.Lock()

    def prepare(self, load: AppLoad, log: AppLog) -> SandboxApp:
        """Load one app and make its first instances; blocking. Raises `HostingError`."""
        thread_log = ThreadLog(log)
        stores = load.spec.stores or load.spec.project
        services = self._hold(stores)
        try:
            app = services.sandbox.load(load.spec, thread_log, CallSpans(log) if self._spans else None)
        except sandbox.LoadError as error:
            self._let_go(stores)
            raise HostingError(f"{load.spec.app}: {error}") from error
        except BaseException:
            self._let_go(stores)
            raise
        plan: NativePlan | NotNative = NotNative("Python serves in this worker")
        if self._native is not None:
            plan = native_plan(app, self._native, thread_log.serving)
        if load.spec.kind == "http" and isinstance(plan, NotNative):
            app.prepare()  # a failure shows again, with its outcome, in the first request
        return SandboxApp(app, thread_log, partial(self._let_go, stores), plan)

    def _hold(self, stores: str) -> LaneServices:
        with self._lock:
            lane_services = self._lanes.get(stores)
            if lane_services is None:
                folder = self._data_folder
                keyvalue, sql = SqliteKeyValue(folder, stores), SqliteSql(folder, stores, self._sql_caps)
                blobs, queue = FileBlobs(folder, stores), SqliteQueue(folder, stores)
                declared = LaneProviders(self._providers_file, stores, self._sql_caps, thrown_away=self._thrown_away)
                is_used = self._providers_file is not None
                providers = Providers(
                    keyvalue, sql, blobs, queue, declared.open if is_used and not self._thrown_away else None,
                    declared.open_sql if is_used else None,
                )  # fmt: skip
                box = sandbox.Sandbox(providers, self._outbound)
                lane_services = self._lanes[stores] = LaneServices(keyvalue, sql, blobs, queue, declared, box)
                with suppress(ProviderError):  # another time, if it cannot be now
                    blobs.clean()
            lane_services.holders += 1
            return lane_services

    def _let_go(self, stores: str) -> None:
        with self._lock:
            held = self._lanes[stores]
            held.holders -= 1
            if held.holders:
                return
            del self._lanes[stores]
        held.close()
