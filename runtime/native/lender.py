"""Host functions that Python serves for guests of the native engine: a call waits on its fiber while a thread here serves it.

The engine copies a call's arguments and suspends the guest; a thread takes the copy, runs the same function that guests of
the Python engine call, writes the result beside it and answers. Python's objects stay here: the engine knows their
numbers. Not here: the queue (`lending.rs`), and which apps this suffices for (`plan.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from wasmtime import component as wc

from runtime.call import CallEnded, GuestCall
from runtime.engine.bindings import MEM, VAL_BYTES, word, words2
from runtime.engine.codecs import ENTRIES, LIST, FunctionCodecs, Handles, signature_of, stream_signatures
from runtime.engine.guest import Guest, GuestServices, GuestTrap, Resource
from runtime.engine.interface import HostFunction, Interface, split_import
from runtime.engine.linking import find_interface
from runtime.exchange import Exchange, Headers
from runtime.wasi import WITH_ADAPTER, blobs, messaging, services, sql, streams
from runtime.wasi.http_fields import Fields
from runtime.wasi.poll import Pollable

_log = logging.getLogger("freehold.worker")

LENT: Final[tuple[Interface, ...]] = (
    *(interface for interface in services.INTERFACES if not interface.name.startswith("wasi:config/")),
    *sql.INTERFACES,
    *blobs.INTERFACES,
    *messaging.INTERFACES,
)
"""Interfaces that Python serves: they take no handles but of their own objects, and none within a value but an option."""

OUTWARD: Final = (
    "[constructor]outgoing-request",
    "[method]outgoing-request.",
    "[constructor]request-options",
    "[method]request-options.",
    "[method]future-incoming-response.",
    "[method]incoming-response.",
    "handle",
)
"""Functions of wasi:http that Python serves for an app that may connect to other hosts, by how their names begin."""

EITHER: Final = {
    "wasi:io/streams": ("",),
    "freehold:io/hex": ("",),
    "wasi:io/error": ("",),
    "wasi:io/poll": ("[method]pollable.ready",),
    "wasi:http/types": (
        "[method]outgoing-body.",
        "[static]outgoing-body.",
        "[method]incoming-body.",
        "[static]incoming-body.",
        "[method]future-trailers.",
        "http-error-code",
    ),
}
"""Functions that Python serves for objects which it holds, and the engine for its own: interface, how their names begin."""

SPLICES: Final = "[method]output-stream.splice", "[method]output-stream.blocking-splice"
"""Functions with two streams, of which one may be Python's and one the engine's: the engine serves them by
`splicing`."""

POLL_WAIT_MAX_S: Final = 0.25
"""How long a thread waits before it looks whether anybody still waits for its answer."""


@dataclass(frozen=True, slots=True)
class LentFunction:
    """One function of one app, with the types of its component."""

    run: HostFunction
    signature: FunctionCodecs


@dataclass(frozen=True, slots=True)
class LentApp:
    """What serving an app's guests needs: its functions by number, its services, and what says whose log a thread writes."""

    functions: tuple[LentFunction, ...]
    services: GuestServices
    serving: Callable[[str, str], None]


def host_function(import_name: str, item: str, ty: wc.FuncType) -> LentFunction:
    """Return what serves a function of an import; the component was linked, so there is one."""
    run = find_interface(WITH_ADAPTER, import_name).find(item)
    assert run is not None, "linking has found it"
    return LentFunction(run, signature_of(ty, handles=BY_NUMBER))


def splicing() -> tuple[LentFunction, LentFunction, LentFunction]:
    """Return what reads, waits and reads, and writes a stream that Python holds, for one that is joined to another."""
    read, write = stream_signatures(BY_NUMBER)
    names = "input-stream.read", "input-stream.blocking-read", "output-stream.blocking-write-and-flush"
    entries = [streams.streams.find(f"[method]{name}") for name in names]
    lent_function, other, last = (
        LentFunction(run, of) for run, of in zip(entries, (read, read, write), strict=True) if run
    )
    return lent_function, other, last


def is_lent(import_name: str, item: str, *, outward: bool) -> bool:
    """Whether Python serves a function alone; `outward` for an app that may connect to other hosts."""
    base, version = split_import(import_name)
    if outward and base in {"wasi:http/types", "wasi:http/outgoing-handler"}:
        return item.startswith(OUTWARD)
    return any(interface.name == base and interface.serves(version) for interface in LENT)


def is_either(import_name: str, item: str) -> bool:
    """Whether Python serves a function for the objects that it holds."""
    return item not in SPLICES and item.startswith(EITHER.get(split_import(import_name)[0], ()))


def _lift_own(at: int, holder: Any) -> Any:
    return _fields(at, holder) if MEM[at] == LIST else holder.take(word(MEM, at + 8)[0])


def _lift_borrow(at: int, holder: Any) -> Any:
    return _fields(at, holder) if MEM[at] == LIST else holder.borrow(word(MEM, at + 8)[0])


def _fields(at: int, holder: Any) -> Fields:
    return Fields(ENTRIES.lift(at, holder))


def _lower_own(value: Any, at: int, holder: Any) -> None:
    holder.lend(value, at)


BY_NUMBER: Final = Handles(_lift_own, _lift_borrow, _lower_own)
"""A handle among the arguments is the number of its object, or of fields the entries; in a result its place stays blank,
and the answer names it."""


class LentCall(GuestCall):
    """A call whose end the engine knows of; `ask` is what it waits for now."""

    __slots__ = ("ask",)

    def __init__(self, ask: Any) -> None:
        super().__init__(time.monotonic() + ask.rest_s)
        self.ask = ask

    def check(self) -> None:
        """Raise `CallEnded` if nobody waits for the answer any more."""
        if self.ask.abandoned:
            self.cancelled = True
        super().check()

    def sleep(self, until_s: float | None = None) -> None:
        """Sleep until woken, until `until_s`, or for a moment: whoever waits looks again."""
        look_s = time.monotonic() + POLL_WAIT_MAX_S
        super().sleep(look_s if until_s is None else min(until_s, look_s))


class _LentExchange:
    """What of an exchange host functions use here: the request's place in a trace, and that a service was away."""

    __slots__ = ("retry_after_s", "traceparent")

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent.encode()
        self.retry_after_s: int | None = None


Answer = list[tuple[int, int, str, int, Headers | None]]
"""Objects in a result: place, number, type, number of what it is a part of or 0; of fields, which go by value, the entries."""


class LentGuest(Guest):
    """The objects that one instance of the native engine holds here."""

    __slots__ = ("_given", "_nudge", "_numbers", "_polling")

    def __init__(self, services: GuestServices, nudge: Callable[[], None]) -> None:
        """Serve with `services`; `nudge` has a thread look at what the guest waits for."""
        super().__init__(services)
        self._nudge = nudge
        self._given: Answer = []
        self._numbers: dict[int, int] = {}
        self._polling: tuple[Any, list[Pollable]] | None = None

    def lend(self, resource: Resource, place: int) -> None:
        """Keep an object for the guest; its handle goes to `place`, an address in the result."""
        if isinstance(resource, Fields):
            self._given.append((place, 0, resource.wit, 0, resource.frozen()))
            return
        number, _ = self.give(resource)
        self._numbers[id(resource)] = number
        parent = self._numbers.get(id(resource.parent), 0) if resource.parent is not None else 0
        self._given.append((place, number, resource.wit, parent, None))

    def take(self, rep: int) -> Resource:
        """Remove and return an object that the guest gave away."""
        resource = super().take(rep)
        self._numbers.pop(id(resource), None)
        return resource

    def wake(self) -> None:
        """Wake the thread that waits for this guest, if one does, and have what the guest polls looked at (any thread)."""
        super().wake()
        self._nudge()

    def serve(self, ask: Any, function: LentFunction) -> None:
        """Serve one call and answer it."""
        self._begin(ask)
        try:
            for_guest = [
                codec.lift(ask.arguments + VAL_BYTES * n, self) for n, codec in enumerate(function.signature.params)
            ]
            entry = function.run(self, *for_guest)
            if function.signature.result is not None:
                function.signature.result.lower(entry, ask.result, self)
        except (GuestTrap, CallEnded) as error:
            ask.refuse(str(error) or type(error).__name__)
        except Exception as error:  # a defect of ours ends this call, not the thread
            ask.fail(repr(error))
        else:
            ask.answer(self._given, cast(_LentExchange, self.exchange).retry_after_s)

    def poll(self, ask: Any) -> None:
        """Answer once one of some pollables is ready: now, or when the guest is woken."""
        self._begin(ask)
        size, data = words2(MEM, ask.arguments + 8)
        numbers = [word(MEM, data + VAL_BYTES * n + 8)[0] for n in range(size)]
        self._polling = ask, [cast(Pollable, self.borrow(number)) for number in numbers]
        self.look()

    def look(self) -> None:
        """Answer the poll under way if it can be answered."""
        if self._polling is None:
            return
        ask, pollables = self._polling
        if ask.abandoned:
            self._polling = None
            return
        ready = [n for n, pollable in enumerate(pollables) if pollable.ready()]
        if ready:
            self._polling = None
            ask.answer([(0, n, "", 0, None) for n in ready])

    def _begin(self, ask: Any) -> None:
        self._given = []
        if self.exchange is None:
            self.begin(LentCall(ask), cast(Exchange, _LentExchange(ask.ids[1])))
        else:
            cast(LentCall, self.call).ask = ask

    def request_ended(self) -> None:
        """The request is over; the instance may serve another one."""
        self._polling = None
        self.end_call()
        self.exchange = None


class Lender:
    """The threads that serve one engine's guests. Those who call it are the worker's loop and its own threads."""

    def __init__(self, engine: Any, poll: int, threads_max: int) -> None:
        """Serve `engine` with at most `threads_max` threads, each begun when all are busy; `poll` is its number for polls."""
        self._engine = engine
        self._poll = poll
        self._threads_max = threads_max
        self._apps: dict[int, LentApp] = {}
        self._guests: dict[int, tuple[int, LentGuest]] = {}
        self._lock = threading.Lock()
        self._threads = 0

    def add(self, number: int, app: LentApp) -> None:
        """Serve the guests of an app."""
        if app.functions:
            self._apps[number] = app
            with self._lock:
                if not self._threads:
                    self._hire()

    def holds(self, number: int) -> bool:
        """Whether objects of an app's guests are still here."""
        return any(owner == number for owner, _ in list(self._guests.values()))

    def remove(self, number: int) -> None:
        """Forget an app whose guests are gone."""
        self._apps.pop(number, None)

    def _hire(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name="native-lender", daemon=True).start()

    def _work(self) -> None:
        while (errand := self._engine.next_errand()) is not None:
            number, instance, dropped, what, all_busy = errand
            if all_busy:
                with self._lock:
                    if self._threads < self._threads_max:
                        self._hire()
            try:
                self._do(number, instance, dropped, what)
            except Exception:
                _log.exception("a guest of the native engine was not served")
            finally:
                self._engine.errand_done(instance)

    def _do(self, number: int, instance: int, dropped: list[int], what: Any) -> None:
        if what == "gone":
            _, gone = self._guests.pop(instance, (number, None))
            if gone is not None:
                gone.end()
            return
        app = self._apps.get(number)
        held = self._guests.get(instance)
        if app is None or (held is None and what == "woken"):
            return  # nobody waits any more: it was unloaded, or the instance is gone
        if held is None:
            nudge = partial(self._engine.nudge, number, instance)
            held = self._guests[instance] = number, LentGuest(app.services, nudge)
        guest = held[1]
        for entry in dropped:
            guest.drop(entry)
        if what == "ended":
            guest.request_ended()
        elif what == "woken":
            guest.look()
        elif not what.abandoned:
            request_id, traceparent = what.ids
            app.serving(request_id, traceparent.split("-")[1] if traceparent else "")
            if what.function == self._poll:
                guest.poll(what)
            else:
                guest.serve(what, app.functions[what.function])
