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
from typing import Any, Final, cast

from wasmtime import component as wc

from runtime.call import CallEnded, GuestCall
from runtime.engine.bindings import MEM, VAL_BYTES, word
from runtime.engine.codecs import FunctionCodecs, Handles, signature_of
from runtime.engine.guest import Guest, GuestServices, GuestTrap, Resource
from runtime.engine.interface import HostFunction, Interface, split_import
from runtime.exchange import Exchange
from runtime.wasi import messaging, services, sql

_log = logging.getLogger("freehold.worker")

LENT: Final[tuple[Interface, ...]] = (
    *(one for one in services.INTERFACES if not one.name.startswith("wasi:config/")),
    *sql.INTERFACES,
    *messaging.INTERFACES,
)
"""Interfaces that Python serves: their functions take no handles but those of their own objects, and none within a value."""


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


def lent_function(import_name: str, item: str, ty: wc.FuncType) -> LentFunction | None:
    """Return the function that serves an import, or None where Python serves none for the native engine."""
    base, version = split_import(import_name)
    for interface in LENT:
        if interface.name == base and interface.serves(version) and (run := interface.find(item)) is not None:
            return LentFunction(run, signature_of(ty, handles=BY_NUMBER))
    return None


def _lift_own(at: int, holder: Any) -> Any:
    return holder.take(word(MEM, at + 8)[0])


def _lift_borrow(at: int, holder: Any) -> Any:
    return holder.borrow(word(MEM, at + 8)[0])


def _lower_own(value: Any, at: int, holder: Any) -> None:
    holder.lend(value, at)


BY_NUMBER: Final = Handles(_lift_own, _lift_borrow, _lower_own)
"""A handle among the arguments is the number of its object; in a result its place stays blank, and the answer names it."""


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


class _Away:
    """What of an exchange host functions use here: that a service was away."""

    __slots__ = ("retry_after_s",)

    def __init__(self) -> None:
        self.retry_after_s: int | None = None


class LentGuest(Guest):
    """The objects that one instance of the native engine holds here."""

    __slots__ = ("given",)

    def __init__(self, services: GuestServices) -> None:
        super().__init__(services)
        self.given: list[tuple[int, int, str]] = []

    def lend(self, resource: Resource, place: int) -> None:
        """Keep an object for the guest; its handle goes to `place`, an address in the result."""
        number, _ = self.give(resource)
        self.given.append((place, number, resource.wit))

    def serve(self, ask: Any, function: LentFunction) -> None:
        """Serve one call and answer it."""
        self._begin(ask)
        try:
            for_guest = [
                codec.lift(ask.arguments + VAL_BYTES * n, self) for n, codec in enumerate(function.signature.params)
            ]
            found = function.run(self, *for_guest)
            if function.signature.result is not None:
                function.signature.result.lower(found, ask.result, self)
        except (GuestTrap, CallEnded) as error:
            ask.refuse(str(error) or type(error).__name__)
        except Exception as error:  # a defect of ours ends this call, not the thread
            ask.fail(repr(error))
        else:
            ask.answer(self.given, cast(_Away, self.exchange).retry_after_s)

    def _begin(self, ask: Any) -> None:
        self.given = []
        if self.exchange is None:
            self.begin(LentCall(ask), cast(Exchange, _Away()))
        else:
            cast(LentCall, self.call).ask = ask

    def request_ended(self) -> None:
        """The request is over; the instance may serve another one."""
        self.end_call()
        self.exchange = None


class Lender:
    """The threads that serve one engine's guests. Those who call it are the worker's loop and its own threads."""

    def __init__(self, engine: Any, threads_max: int) -> None:
        """Serve `engine` with at most `threads_max` threads, each begun when all are busy."""
        self._engine = engine
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
        if what is False:
            _, guest = self._guests.pop(instance, (number, None))
            if guest is not None:
                guest.end()
            return
        app = self._apps.get(number)
        if app is None:  # it was unloaded before a thread came to a call that nobody waits for any more
            return
        held = self._guests.get(instance)
        if held is None:
            held = self._guests[instance] = number, LentGuest(app.services)
        guest = held[1]
        for one in dropped:
            guest.drop(one)
        if what is True:
            guest.request_ended()
        elif not what.abandoned:
            app.serving(*what.ids)
            guest.serve(what, app.functions[what.function])
