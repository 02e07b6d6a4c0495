"""Runs guests: an `LoadedApp` per loaded app, instances made ahead, one call at a time on each, every end a value.

`App.handle` and `App.run` block the thread they are called on; the worker gives them threads. Nothing a guest does
raises out of them. Not here: where requests come from (the worker) or what interfaces do (`runtime/wasi/`).
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import wasmtime
from wasmtime import component as wc

from runtime.call import CallCancelled, DeadlinePassed, GuestCall
from runtime.engine.bindings import WasmError
from runtime.engine.codecs import Ok
from runtime.engine.engine import engine, ticker
from runtime.engine.guest import ExitCalled, Guest, GuestServices, GuestTrap
from runtime.engine.instance import Instance
from runtime.engine.linking import Linked, LinkError, link
from runtime.engine.memory_use import linear_memories
from runtime.engine.public_api import PublicComponent
from runtime.exchange import Exchange
from runtime.outbound.client import Outbound
from runtime.outcome import (
    BodyAborted,
    Cancelled,
    Completed,
    DeadlineExceeded,
    ErrorResponse,
    Exited,
    HostFailed,
    MemoryRefused,
    NoResponse,
    Outcome,
    Trapped,
    instance_survives,
)
from runtime.providers import LogSink, Providers
from runtime.sandbox.compile_cache import TamperedError, check_artifact
from runtime.sandbox.preview1 import Preview1
from runtime.services.spans import CallSpans
from runtime.spec import AppSpec
from runtime.wasi import WITH_ADAPTER
from runtime.wasi.http_types import IncomingRequest, ResponseOutparam

ENTRIES: Final = {"http": ("wasi:http/incoming-handler", "handle"), "command": ("wasi:cli/run", "run")}

MEMORY_LOOK_USES: Final = 128
"""How many uses of a kept instance pass between two looks at its memory; each costs 0.3 ms."""
MEMORY_RETIRE_SHARE: Final = 0.75
"""A kept instance whose memory passed this share of the cap is replaced before it runs into the cap."""
MEMORY_FULL_SHARE: Final = 15 / 16
"""A trap with a memory this full is taken for a refused allocation."""
_MEMORY_SIGNS: Final = ("out of memory", "memoryerror", "memory allocation of", "alloc_error", "rust_oom", "__rust_oom")


class LoadError(Exception):
    """An app cannot be loaded; the text says why."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended and what it printed, each stream cut at `guest.CAPTURE_MAX_BYTES`."""

    outcome: Outcome
    stdout: bytes
    stderr: bytes


class LoadedApp:
    """One loaded app. `handle` and `run` may be called from several threads at once."""

    def __init__(self, spec: AppSpec, linked: Linked | PublicComponent | None, services: GuestServices) -> None:
        self.spec = spec
        self._linked = linked
        self._services = services
        self._ready: deque[Instance] = deque()
        self._closed = False
        self._lock = threading.Lock()

    @property
    def linked(self) -> Linked | PublicComponent | None:
        """What its instances are made of; None for a core module."""
        return self._linked

    @property
    def services(self) -> GuestServices:
        """What its guests may reach."""
        return self._services

    def prepare(self) -> Outcome:
        """Make the instances that wait for requests; `Completed`, or why none can be made."""
        while len(self._ready) < self.spec.instances_ready and not self._closed:
            call = GuestCall(time.monotonic() + self.spec.timeout_ms / 1000)
            try:
                self._ready.append(self._instantiate(call))
            except _StartFailed as failed:
                return failed.outcome
        if self._closed:
            self.close()  # it was closed while an instance was made
        return Completed()

    def handle(self, exchange: Exchange) -> Outcome:
        """Serve one request on this thread. Closes the exchange with the outcome before it cleans up."""
        try:
            exchange.call.check()  # it may have waited in a queue until it was over
            instance = self._take(exchange.call)
        except DeadlinePassed:
            return _closed(exchange, DeadlineExceeded(self.spec.timeout_ms))
        except CallCancelled:
            return _closed(exchange, Cancelled())
        except _StartFailed as failed:
            return _closed(exchange, failed.outcome)
        try:
            outcome = self._serve(instance, exchange)
        except Exception as error:
            outcome = _host_failed(error)
        instance.guest.flush_output()  # while it is still this request's
        exchange.close(outcome)
        self._give_back(instance, outcome)
        return outcome

    def run(self, arguments: tuple[str, ...] = (), call: GuestCall | None = None) -> CommandResult:
        """Run a command to its end on this thread, in a fresh instance; its stdin is empty."""
        call = call or GuestCall(time.monotonic() + self.spec.timeout_ms / 1000)
        try:
            instance = self._instantiate(call)
        except _StartFailed as failed:
            return CommandResult(failed.outcome, b"", b"")
        capture(instance.guest, (self.spec.app, *arguments))
        outcome = self._execute(instance)
        instance.close()
        return captured(instance.guest, outcome)

    def close(self) -> None:
        """Free the waiting instances; instances in use are freed as their calls end."""
        self._closed = True
        while True:
            try:
                self._ready.pop().close()
            except IndexError:
                return

    def _take(self, call: GuestCall) -> Instance:
        try:
            return self._ready.popleft()
        except IndexError:
            return self._instantiate(call)

    def _instantiate(self, call: GuestCall) -> Instance:
        assert self._linked is not None
        guest = Guest(self._services)
        guest.begin(call, None)
        ticker().enter()
        try:
            return Instance(self._linked, guest)
        except WasmError as error:
            guest.end()
            raise _StartFailed(self._failure(error, guest)) from None
        finally:
            ticker().leave()

    def _serve(self, instance: Instance, exchange: Exchange) -> Outcome:
        guest = instance.guest
        guest.begin(exchange.call, exchange)
        ticker().enter()
        try:
            instance.handle(IncomingRequest(exchange), ResponseOutparam(exchange))
        except WasmError as error:
            return self._failure(error, guest)
        finally:
            ticker().leave()
        response = exchange.response
        if response.refusal is not None:
            return ErrorResponse(response.refusal[0])
        if not response.started:
            return NoResponse()
        if not response.complete and not (guest.finish_answer is not None and guest.finish_answer()):
            return BodyAborted("the handler gave the response body up before its end")
        return Completed()

    def _execute(self, instance: Instance) -> Outcome:
        ticker().enter()
        try:
            return Exited(0 if isinstance(instance.run(), Ok) else 1)
        except WasmError as error:
            return self._failure(error, instance.guest)
        finally:
            ticker().leave()

    def _give_back(self, instance: Instance, outcome: Outcome) -> None:
        instance.guest.end_call()
        keep = self.spec.instances == "reuse" and instance_survives(outcome) and not self._closed
        if keep and instance.uses < self.spec.instance_uses_max and not self._outgrown(instance):
            self._ready.append(instance)
            return
        instance.close()
        self.prepare()

    def _outgrown(self, instance: Instance) -> bool:
        if instance.uses % MEMORY_LOOK_USES:
            return False
        return instance.memory_bytes() > self.spec.memory_max_bytes * MEMORY_RETIRE_SHARE

    def _failure(self, error: WasmError, guest: Guest) -> Outcome:
        failure = guest.failure
        match failure:
            case DeadlinePassed():
                return DeadlineExceeded(self.spec.timeout_ms)
            case CallCancelled():
                return Cancelled()
            case ExitCalled(code=code):
                return Exited(code)
            case GuestTrap():
                return Trapped(str(failure), error.message)
            case None:
                return _trap(error, guest, self.spec)
        return _host_failed(failure)


class ModuleApp(LoadedApp):
    """A preview 1 command: a core module, run in a fresh store each time."""

    def __init__(self, spec: AppSpec, module: wasmtime.Module, services: GuestServices) -> None:
        super().__init__(spec, None, services)
        self._module = module

    def prepare(self) -> Outcome:
        """Make one instance and throw it away: `Completed`, or why none can be made. Nothing is kept ready."""
        guest = Guest(self._services)
        guest.begin(GuestCall(time.monotonic() + self.spec.timeout_ms / 1000), None)
        ticker().enter()
        try:
            Preview1(self._module, self._services, guest).close()
        except Exception as error:
            return self._failure(WasmError(str(error)), guest)
        finally:
            ticker().leave()
            guest.end()
        return Completed()

    def run(self, arguments: tuple[str, ...] = (), call: GuestCall | None = None) -> CommandResult:
        """Run `_start` to its end on this thread; its stdin is empty."""
        call = call or GuestCall(time.monotonic() + self.spec.timeout_ms / 1000)
        guest = Guest(self._services)
        guest.begin(call, None)
        capture(guest, (self.spec.app, *arguments))
        outcome = self._start(guest)
        guest.end()
        return captured(guest, outcome)

    def _start(self, guest: Guest) -> Outcome:
        ticker().enter()
        command: Preview1 | None = None
        try:
            command = Preview1(self._module, self._services, guest)
            command.run()
        except Exception as error:
            return self._failure(WasmError(str(error)), guest)
        finally:
            ticker().leave()
            if command is not None:
                command.close()
        return Exited(0)


def capture(guest: Guest, arguments: tuple[str, ...]) -> None:
    """Make `guest` a command's: arguments, output kept."""
    guest.arguments = arguments
    guest.stdout.captured = bytearray()
    guest.stderr.captured = bytearray()


def captured(guest: Guest, outcome: Outcome) -> CommandResult:
    """Return what a command printed and how it ended."""
    return CommandResult(outcome, bytes(guest.stdout.captured or b""), bytes(guest.stderr.captured or b""))


class _StartFailed(Exception):  # noqa: N818 - carries an outcome, is no error of ours
    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


def _closed(exchange: Exchange, outcome: Outcome) -> Outcome:
    exchange.close(outcome)
    return outcome


def _host_failed(error: BaseException) -> HostFailed:
    return HostFailed(repr(error), "".join(traceback.format_exception(error)))


def _trap(error: WasmError, guest: Guest, spec: AppSpec) -> Outcome:
    if error.exit_status is not None:
        return Exited(error.exit_status)
    if "wasm trap: interrupt" in error.message:  # how an epoch ends a guest where there is no callback
        return DeadlineExceeded(spec.timeout_ms)
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "wasm trap:" in line), lines[-1] if lines else "trap")
    reason = reason.removeprefix("1: ").removeprefix("wasm trap: ")
    if _memory_refused(error.message, guest, spec):
        return MemoryRefused(spec.memory_max_bytes, reason, error.message)
    return Trapped(reason, error.message)


def _memory_refused(message: str, guest: Guest, spec: AppSpec) -> bool:
    """Guess whether want of memory made the guest trap: it says so, or a memory of this process is at the cap.

    wasmtime tells nobody that it refused to grow a memory; the guest's allocator turns that into any trap it likes.
    Another instance at its cap at the same moment makes the guess wrong; only the wording of the outcome depends on it.
    """
    said = (message + guest.stderr.tail).lower()
    if any(sign in said for sign in _MEMORY_SIGNS):
        return True
    if "exceeds memory limits" in said or "exceeds table limits" in said or "resource limit exceeded" in said:
        return True  # instantiation: the store's limiter says so itself
    full = spec.memory_max_bytes * MEMORY_FULL_SHARE
    return any(full <= size <= spec.memory_max_bytes for size in linear_memories().values())


class Sandbox:
    """Loads apps into this process."""

    def __init__(self, providers: Providers | None = None, outbound: Outbound | None = None) -> None:
        self._providers = providers or Providers()
        self._outbound = outbound
        self._linked: WeakValueDictionary[tuple[Path, str], Linked | PublicComponent] = WeakValueDictionary()
        """What apps here are made of, as long as one is: the next version often is the same interpreter."""

    def load(self, spec: AppSpec, log: LogSink, spans: CallSpans | None = None) -> LoadedApp:
        """Load an app from its artifact, checked first, and resolve its types; raises `LoadError`.

        `spans` takes those of its calls.
        """
        try:
            linked = self._linked.get((spec.artifact, spec.kind))
            if linked is not None:
                return LoadedApp(spec, linked, self._services(spec, log, spans))
            check_artifact(spec.artifact)
            if spec.kind == "module":
                module = wasmtime.Module.deserialize_file(engine(), str(spec.artifact))
                return ModuleApp(spec, module, self._services(spec, log, spans))
            component = wc.Component.deserialize_file(engine(), str(spec.artifact))
            linked = link(engine(), component, WITH_ADAPTER, ENTRIES[spec.kind])
            self._linked[spec.artifact, spec.kind] = linked
            return LoadedApp(spec, linked, self._services(spec, log, spans))
        except (LinkError, TamperedError, wasmtime.WasmtimeError) as error:
            raise LoadError(str(error)) from error

    def load_component(self, spec: AppSpec, log: LogSink, component: wc.Component) -> LoadedApp:
        """Link a component of this process's engine; raises `LinkError`."""
        linked = link(engine(), component, WITH_ADAPTER, ENTRIES[spec.kind])
        return LoadedApp(spec, linked, self._services(spec, log))

    def _services(self, spec: AppSpec, log: LogSink, spans: CallSpans | None = None) -> GuestServices:
        return GuestServices(spec, log, self._providers, self._outbound, spans)
