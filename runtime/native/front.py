"""A worker's native engine: started over its listeners, given apps and routes, its reports written where Python's go.

The engine takes what is plain: HTTP/1.1 requests whose whole body is small, for apps that it can serve. A connection with
anything else is handed over, with the bytes read from it, to the Python ingress, which judges it as if it had accepted it.
Not here: the engine (the crate beside this file), and which apps it serves (`plan.py`).
"""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from runtime.engine.engine import engine
from runtime.engine.guest import GuestLog
from runtime.engine.instance import INSTANCES_MAX, MEMORIES_MAX, TABLES_MAX
from runtime.ingress.dispatch import HostedApp
from runtime.ingress.response_head import (
    BODY_TOO_LARGE,
    BUSY,
    DEADLINE,
    FAILED,
    UNAVAILABLE,
    IngressProblem,
    problem_response,
)
from runtime.ingress.routing import Elsewhere, normal_host, normal_prefix
from runtime.ingress.settings import IngressSettings
from runtime.messages import AppStatus
from runtime.native.lender import Lender
from runtime.native.plan import NativePlan
from runtime.services.log_sink import AppLog

STUCK_AFTER_S: Final = 10.0
"""The engine's loop turns several times a second; one that stood still for this long is hung."""

PATIENCE_MAX_S: Final = 1.0
"""A request that is not whole by then is handed over to the Python ingress, whose time limits hold for it."""

LOOK_S: Final = 0.02

_ID: Final = "@request-id@"

Route = tuple[str | None, str, HostedApp | Elsewhere]
Adopt = Callable[[socket.socket, bytes, float], None]
"""Take over a connection: its socket, what was read from it, seconds its request has waited."""


class NativeApp:
    """One app in the engine: its number, and its counters there."""

    def __init__(self, number: int, hosted: Any) -> None:
        self.number = number
        self._hosted = hosted

    def add_to(self, status: AppStatus) -> AppStatus:
        """Return the counters of the Python path together with the engine's."""
        requests, in_flight, queued, outcomes, statuses, buckets, sum_us = self._hosted.counters()
        kinds = dict(status.outcomes)
        for kind, count in outcomes:
            kinds[kind] = kinds.get(kind, 0) + count
        hundreds = dict(status.statuses)
        for hundred, count in enumerate(statuses):
            if count:
                hundreds[f"{hundred}xx"] = hundreds.get(f"{hundred}xx", 0) + count
        return msgspec.structs.replace(
            status,
            engine="native",
            requests=status.requests + requests,
            in_flight=status.in_flight + in_flight,
            queued=status.queued + queued,
            outcomes=kinds,
            statuses=hundreds,
            latency_buckets=tuple(a + b for a, b in zip(status.latency_buckets, buckets, strict=True)),
            latency_sum_us=status.latency_sum_us + sum_us,
        )

    @property
    def gone(self) -> bool:
        """Whether the engine has freed every instance of it."""
        return bool(self._hosted.gone)


class _CallLog:
    """A `LogSink` for one call of a guest."""

    def __init__(self, log: AppLog, ids: dict[str, object]) -> None:
        self._log = log
        self._ids = ids

    def emit(self, level: str, context: str, message: str) -> bool:
        """Keep one line of the guest, or return that there is no room for it."""
        return self._log.write(level, "guest", "guest", {"context": context, "message": message, **self._ids})

    def keep(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """No command runs here, so nothing is kept beyond its room."""


class NativeFront:
    """See the module. Every method belongs to the worker's loop; the engine has a thread of its own."""

    def __init__(
        self,
        module: Any,
        settings: IngressSettings,
        *,
        guests_max: int,
        proxies: Sequence[str],
        load_table: str,
        slot: int,
        access_log: Callable[[], AppLog],
        adopt: Adopt,
    ) -> None:
        """Prepare the engine; `access_log` is the log of requests, `adopt` takes the connections it hands over."""
        self._adopt = adopt
        self._access_log = access_log
        self._apps: dict[int, HostedApp] = {}
        self._natives: dict[HostedApp, NativeApp] = {}
        self._calls: dict[int, tuple[GuestLog, GuestLog]] = {}
        self._number = 0
        self._turns = -1
        self._turned_s = time.monotonic()
        self._engine = module.Engine(
            {
                "fields_max": settings.fields_max,
                "fields_max_bytes": settings.fields_max_bytes,
                "target_max_bytes": settings.target_max_bytes,
                "connections_max": settings.connections_max,
                "keep_alive_s": settings.keep_alive_s,
                "patience_s": min(PATIENCE_MAX_S, settings.head_timeout_s / 4, settings.body_idle_timeout_s / 4),
                "write_idle_timeout_s": settings.write_idle_timeout_s,
                "linger_s": settings.linger_s,
                "half_closed_s": settings.half_closed_s,
                "guests_max": guests_max,
                "proxies": [_network(proxy) for proxy in proxies],
                "load_table": load_table,
                "slot": slot,
                "traced": settings.traced,
                "failed": _problem(FAILED),
                "busy": _problem(BUSY),
                "deadline": _problem(DEADLINE),
                "body_too_large": _problem(BODY_TOO_LARGE),
                "away": _problem(UNAVAILABLE),
            }
        )
        self._lender = Lender(self._engine, module.POLL, guests_max)

    @property
    def connections(self) -> int:
        """Open connections that the engine holds."""
        return int(self._engine.connections)

    def set_others(self, count: int) -> None:
        """Say how many connections the Python path holds; both have one limit together."""
        self._engine.set_others(count)

    def start(self, listeners: Sequence[socket.socket], loop: asyncio.AbstractEventLoop) -> None:
        """Begin to serve; connections are accepted from the first routes on."""
        self._engine.start([os.dup(listener.fileno()) for listener in listeners])
        loop.add_reader(self._engine.told, self._take_handed)

    def load(self, app: HostedApp, plan: NativePlan) -> None:
        """Give the engine an app; raises `RuntimeError` where it cannot link it."""
        spec, limits = app.spec, app.limits
        self._number += 1
        component = plan.component
        described = {
            "number": self._number,
            "engine": _address(engine()),
            "component": _address(component),
            "imports": list(plan.imports),
            "export": plan.export,
            "function": plan.function,
            "release": app.digest,
            "timeout_ms": spec.timeout_ms,
            "memory_max_bytes": spec.memory_max_bytes,
            "table_elements_max": spec.table_elements_max,
            "instances_max": INSTANCES_MAX,
            "tables_max": TABLES_MAX,
            "memories_max": MEMORIES_MAX,
            "reuse": spec.instances == "reuse",
            "uses_max": spec.instance_uses_max,
            "ready_max": spec.instances_ready,
            "concurrency": limits.concurrency,
            "queue_max": limits.queue_max,
            "body_max_bytes": limits.request_body_max_bytes,
            "config": list(spec.config.items()),
            "environment": list(spec.environment.items()),
            "response_fields_max": spec.response_fields_max,
            "response_fields_max_bytes": spec.response_fields_max_bytes,
            "log_call_max_bytes": spec.log_call_max_bytes,
            "splice": plan.splice,
        }
        self._lender.add(self._number, plan.lent)
        hosted = self._engine.load(described, (engine(), component))
        native = NativeApp(self._number, hosted)
        self._apps[native.number] = app
        self._natives[app] = native
        app.native = native

    def activate(self, routes: Sequence[Route]) -> None:
        """Swap the routing table, of routes that a `RouteTable` took."""
        table = []
        for host, prefix, target in routes:
            native = self._natives.get(target) if isinstance(target, HostedApp) else None
            number = native.number if native is not None else None
            table.append((normal_host(host) if host is not None else None, normal_prefix(prefix), number))
        self._engine.activate(table)

    async def unload(self, app: HostedApp) -> None:
        """Let an app go once its last request has ended."""
        native = self._natives.get(app)
        if native is None:
            return
        self._engine.unload(native.number)
        while not native.gone or self._lender.holds(native.number):  # noqa: ASYNC110 - other threads let go of it
            await asyncio.sleep(LOOK_S)
        self._lender.remove(native.number)
        self.report()
        del self._natives[app], self._apps[native.number]

    async def drain(self, grace_s: float) -> None:
        """Accept nothing more and wait for what is under way, for at most `grace_s`."""
        self._engine.drain()
        end_s = time.monotonic() + grace_s
        while self.connections and time.monotonic() < end_s:  # noqa: ASYNC110 - the engine's thread counts them
            await asyncio.sleep(LOOK_S)

    def stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the engine's thread; what is under way is broken off."""
        loop.remove_reader(self._engine.told)
        self._engine.stop()
        self._take_handed()
        self.report()

    def stuck(self, now_s: float) -> int:
        """1 if the engine's loop stands still, which only a new process mends; else 0."""
        turns = self._engine.turns
        if turns != self._turns:
            self._turns, self._turned_s = turns, now_s
        return int(now_s - self._turned_s > STUCK_AFTER_S)

    # --- what the engine says -----------------------------------------------------------------------------------------

    def _take_handed(self) -> None:
        for descriptor, data, waited_s in self._engine.take_handed():
            self._adopt(socket.socket(fileno=descriptor), data, waited_s)

    def report(self) -> None:
        """Write what the engine has to say into the logs: access lines, guests' output, why guests failed."""
        report = self._engine.take_report()
        for number, count in report["said_left_out"]:
            self._apps[number].log.leave_out(count)
        for said in report["said"]:
            self._say(*said)
        for number, kind, reason, backtrace, request_id, trace_id in report["failures"]:
            fields: dict[str, object] = {
                "reason": reason, "request_id": request_id, "trace_id": trace_id, "backtrace": backtrace,
            }  # fmt: skip
            self._apps[number].log.write("error", f"app.{kind}", "host", fields)
        log = self._access_log()
        for number, fields in report["access"]:
            if log.admits():
                app = self._apps[number]
                fields |= {"project": app.spec.project, "app": app.spec.app, "release": app.digest}
                log.write_admitted("info", "request", "host", fields)
        log.leave_out(report["access_left_out"])

    def _say(
        self,
        call: int,
        number: int,
        request_id: str,
        trace_id: str,
        stdout: tuple[bytes, bytes, int],
        stderr: tuple[bytes, bytes, int],
        ended: bool,
    ) -> None:
        logs = self._calls.get(call)
        if logs is None:
            app = self._apps[number]
            sink = _CallLog(app.log, {"request_id": request_id, "trace_id": trace_id})
            line, whole = app.spec.log_line_max_bytes, app.spec.log_call_max_bytes
            logs = GuestLog(sink, "info", "stdout", line, whole), GuestLog(sink, "warn", "stderr", line, whole)
            self._calls[call] = logs
        for log, (head, last, dropped) in zip(logs, (stdout, stderr), strict=True):
            log.write(head)
            if last:
                log.write_beyond(last, dropped)
            if ended:
                log.flush()
        if ended:
            del self._calls[call]


def _address(managed: Any) -> int:
    address = ctypes.cast(managed.ptr(), ctypes.c_void_p).value
    assert address, "a live wasmtime object has an address"
    return address


def _network(text: str) -> tuple[Any, int]:
    network = ipaddress.ip_network(text)
    return network.network_address, network.prefixlen


def _problem(problem: IngressProblem) -> dict[str, Any]:
    """A problem's answer, cut where the id of a request stands in it."""
    head, body = problem_response(problem, _ID)
    before, _, after = body.partition(_ID.encode())
    return {"status": head.status, "fields": list(head.headers), "before_id": before, "after_id": after}
