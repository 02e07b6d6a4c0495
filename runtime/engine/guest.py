"""One instance's host side: its handles, its call, its log, and why it was stopped.

Every host function gets the `Guest` it runs for. Handles are plain integers the guest cannot forge across types, since
wasmtime checks the static type of each; the table maps them to host objects. Not here: interfaces, stores or threads.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final

from runtime.call import GuestCall
from runtime.exchange import Exchange
from runtime.providers import BlobProvider, Bucket, LogSink, ProviderError, Providers, SqlConnection, SqlError
from runtime.services.spans import SPANS_OF_CALL_MAX, CallSpans, TracePlace, place_of
from runtime.spec import AppSpec

HANDLES_MAX: Final = 10_000
"""Live host objects per instance; a guest that leaks more than this is broken or hostile."""

CAPTURE_MAX_BYTES: Final = 1024 * 1024
"""Standard output and error kept of one command; the rest goes to the log only."""


TAIL_MAX_CHARS: Final = 2_000
"""Of a call's last lines, kept to tell why a guest trapped."""

LAST_LINES_MAX_BYTES: Final = 8 * 1024
"""Of a call's output beyond its share of log, and of a command's that the log did not take: the end, logged anyway."""


class GuestTrap(Exception):  # noqa: N818 - the guest's end, not an error of ours
    """The guest broke a rule of an interface; its call ends with a trap that says which."""


class ExitCalled(Exception):  # noqa: N818 - an orderly end
    """The guest called `exit`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit({code})")
        self.code = code


RESOURCES: Final[dict[str, type[Resource]]] = {}
"""WIT name -> class, for every resource of every interface; the names are unique across the interfaces served."""


class Resource:
    """A host object a guest holds a handle to.

    The class of each WIT resource gives its `wit` name, and `aliases` under which other interfaces use it: one host
    type id for all of them, or handles would not fit between interfaces. Further subclasses inherit the id.
    """

    __slots__ = ("children", "parent")
    type_id: ClassVar[int] = 0
    wit: ClassVar[str] = ""

    def __init_subclass__(cls, wit: str | None = None, aliases: tuple[str, ...] = (), **options: Any) -> None:
        super().__init_subclass__(**options)
        if wit is not None:
            cls.type_id = len(RESOURCES) + 1
            cls.wit = wit
            for name in (wit, *aliases):
                assert name not in RESOURCES, f"two resources called {name}"
                RESOURCES[name] = cls

    def __init__(self, parent: Resource | None = None) -> None:
        self.parent = parent
        self.children = 0
        if parent is not None:
            parent.children += 1

    def dropped(self, guest: Guest) -> None:
        """The guest let go of its last handle; called once, also when the instance ends."""

    def call_ended(self) -> None:
        """The call is over and the guest still holds it: what others wait for must not be kept until the next call."""


class GuestLog:
    """One of the guest's output streams as log lines: bounded per line and per call, kept whole for a command.

    A call that says more than its share loses the middle: the last lines say how it ended, and are kept. So are those
    of a command which the sink did not take, because the app had said too much in too short a time.
    """

    __slots__ = (
        "_context", "_dropped", "_kept", "_level", "_line", "_line_max_bytes", "_refused", "_refused_bytes", "_room",
        "_sink", "captured", "tail",
    )  # fmt: skip

    def __init__(self, sink: LogSink, level: str, context: str, line_max_bytes: int, call_max_bytes: int) -> None:
        self._sink = sink
        self._level = level
        self._context = context
        self._line_max_bytes = line_max_bytes
        self._room = call_max_bytes
        self._line = bytearray()
        self._kept = bytearray()
        self._dropped = 0
        self._refused: deque[tuple[str, str, str]] = deque()
        self._refused_bytes = 0
        self.captured: bytearray | None = None
        self.tail = ""

    def begin_call(self, call_max_bytes: int) -> None:
        """Give a new call its share of log."""
        self._room = call_max_bytes
        self._kept.clear()
        self._dropped = 0
        self._forget_refused()
        self.tail = ""

    def write(self, data: bytes) -> None:
        """Add output; whole lines go to the sink, up to the call's share; of what follows the end is kept."""
        if self.captured is not None and len(self.captured) < CAPTURE_MAX_BYTES:
            self.captured += data[: CAPTURE_MAX_BYTES - len(self.captured)]
        within, beyond = data[: max(self._room, 0)], data[max(self._room, 0) :]
        self._room -= len(within)
        self._lines(within)
        if beyond:
            self._keep(beyond)

    def _lines(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._line += line
            self._emit()
        self._line += rest
        if len(self._line) >= self._line_max_bytes:
            self._emit()

    def _keep(self, data: bytes) -> None:
        self._kept += data[-LAST_LINES_MAX_BYTES:]
        surplus = len(self._kept) - LAST_LINES_MAX_BYTES
        self._dropped += len(data[:-LAST_LINES_MAX_BYTES]) + max(surplus, 0)
        if surplus > 0:
            del self._kept[:surplus]

    def write_beyond(self, last: bytes, dropped: int) -> None:
        """Add the end of what lay beyond the call's share, of which `dropped` bytes before it are gone already."""
        self._keep(last)
        self._dropped += dropped

    def entry(self, level: str, context: str, message: str) -> None:
        """Emit one structured entry, cut to the line limit, within the call's share."""
        entry = level, context[: self._line_max_bytes], message[: self._line_max_bytes]
        if self._room > 0:
            self._room -= len(message) + len(context)
            self._say(*entry)
        else:
            self._refuse(*entry)

    def flush(self) -> None:
        """Emit what stands in the line so far, and what was kept of output beyond the call's share."""
        held = list(self._refused)
        self._forget_refused()
        if self._dropped:
            self._emit()
            cut, end = self._kept.find(b"\n") + 1, self._dropped
            del self._kept[:cut]  # the line the cut fell into
            text = f"{end + cut} bytes of this call's output are dropped: it said more than its log limit"
            self._sink.emit("warn", self._context, text)
            self._dropped = 0
        content = bytes(self._kept)
        self._kept.clear()
        self._lines(content)
        self._emit()
        if last := [*held, *self._refused]:
            self._sink.keep(last)
        self._forget_refused()

    def _say(self, level: str, context: str, message: str) -> None:
        if self._sink.emit(level, context, message):
            self._forget_refused()  # they were not the last
        else:
            self._refuse(level, context, message)

    def _refuse(self, level: str, context: str, message: str) -> None:
        """Hold a command's entry that found no room until it is known whether it was one of the last."""
        if self.captured is None:
            return
        self._refused.append((level, context, message))
        self._refused_bytes += len(message)
        while self._refused_bytes > LAST_LINES_MAX_BYTES:
            self._refused_bytes -= len(self._refused.popleft()[2])

    def _forget_refused(self) -> None:
        self._refused.clear()
        self._refused_bytes = 0

    def _emit(self) -> None:
        if self._line:
            text = bytes(self._line[: self._line_max_bytes]).decode("utf-8", "replace")
            self._line.clear()
            self.tail = f"{self.tail}\n{text}"[-TAIL_MAX_CHARS:]
            self._say(self._level, self._context, text.rstrip("\r"))


class GuestServices:
    """What an app's guests may reach: made once per app."""

    __slots__ = ("log", "outbound", "providers", "spans", "spec")

    def __init__(
        self, spec: AppSpec, log: LogSink, providers: Providers, outbound: Any, spans: CallSpans | None = None
    ) -> None:
        """Take what the app may do, and where its spans go, None where nobody takes any."""
        self.spec = spec
        self.spans = spans
        self.log = log
        self.providers = providers
        self.outbound = outbound

    def open_bucket(self, store: str) -> Bucket:
        """Open a store the app was granted; raises `ProviderError`."""
        if self.providers.keyvalue is None:
            raise ProviderError("no-such-store", store)
        if store not in self.spec.keyvalue:
            raise ProviderError("access-denied", store)
        declared = self.spec.providers.get(store)
        if declared is None or self.providers.declared is None:
            return self.providers.keyvalue.open(store)
        return self.providers.declared(declared).open(store)

    def open_database(self, name: str) -> SqlConnection:
        """Open a database the app was granted; raises `SqlError`."""
        if self.providers.sql is None or name not in self.spec.sql:
            raise SqlError(
                "SQLITE_AUTH", f"this app may not open the database {name[:60]!r}; grant it in freehold.toml: sql"
            )
        declared = self.spec.providers.get(name)
        if declared is None or self.providers.declared_sql is None:
            return self.providers.sql.open(name)
        return self.providers.declared_sql(declared).open(name)

    def open_container(self, name: str) -> BlobProvider:
        """Return where a container the app was granted lies; raises `ProviderError`."""
        if self.providers.blobs is None or name not in self.spec.blobs:
            raise ProviderError("access-denied", f"this app may not open the container {name[:60]!r}; grant it: blobs")
        return self.providers.blobs

    def publish(self, subject: str, body: bytes) -> None:
        """Put a message into a queue that the app may publish to; raises `ProviderError`."""
        if self.providers.queue is None or subject not in self.spec.publish:
            raise ProviderError("access-denied", f"this app may not publish to {subject[:60]!r}; grant it: publish")
        self.providers.queue.publish(subject, body, time.time_ns() // 1_000_000)


class Guest:
    """The host side of one instance. Used by one thread at a time."""

    __slots__ = (
        "_next_rep", "_place", "_placed", "arguments", "call", "context", "exchange", "failure", "finish_answer",
        "services", "stderr", "stdout", "table",
    )  # fmt: skip

    def __init__(self, services: GuestServices) -> None:
        spec = services.spec
        self.services = services
        self.context = 0
        self.table: dict[int, Resource] = {}
        self._next_rep = 1
        self.call: GuestCall = _NO_CALL
        self.exchange: Exchange | None = None
        self.failure: BaseException | None = None
        self.finish_answer: Callable[[], bool] | None = None
        self._place: TracePlace | None = None
        self._placed = -1
        """Spans of the call so far; -1 before it is known whether its trace is recorded."""
        self.arguments: tuple[str, ...] = ()
        self.stdout = GuestLog(services.log, "info", "stdout", spec.log_line_max_bytes, spec.log_call_max_bytes)
        self.stderr = GuestLog(services.log, "warn", "stderr", spec.log_line_max_bytes, spec.log_call_max_bytes)

    def begin(self, call: GuestCall, exchange: Exchange | None) -> None:
        """Start a call on this instance."""
        self.call = call
        self.exchange = exchange
        self._place, self._placed = None, -1
        self.failure = None
        self.finish_answer = None
        self.stdout.begin_call(self.services.spec.log_call_max_bytes)
        self.stderr.begin_call(self.services.spec.log_call_max_bytes)

    def place(self) -> TracePlace | None:
        """Return where the next span of this call hangs; None for none: it is not recorded, or has had its share."""
        if self._placed < 0:
            self._placed = 0
            self._place = place_of(self.exchange.traceparent) if self.exchange is not None else None
        self._placed += 1
        return self._place if self._placed <= SPANS_OF_CALL_MAX else None

    def end_call(self) -> None:
        """The call is over; the instance may serve another one."""
        for resource in self.table.values():
            resource.call_ended()

    def wake(self) -> None:
        """Wake whatever call runs on this instance now (any thread)."""
        self.call.waker.wake()

    def log_entry(self, level: str, context: str, message: str) -> None:
        """Log one entry of wasi:logging; it counts against the call's share of standard output."""
        self.stdout.entry(level, context, message)

    def give(self, resource: Resource) -> tuple[int, int]:
        """Keep `resource` for the guest; return its rep and its host type id."""
        if len(self.table) >= HANDLES_MAX:
            raise GuestTrap(f"more than {HANDLES_MAX} live handles")
        rep = self._next_rep
        self._next_rep = rep + 1 if rep < 0xFFFF_FFFE else 1
        self.table[rep] = resource
        return rep, resource.type_id

    def borrow(self, rep: int) -> Resource:
        """Return the object of a borrowed handle."""
        return self.table[rep]

    def take(self, rep: int) -> Resource:
        """Remove and return the object of an owned handle; traps while children of it live."""
        resource = self.table.pop(rep)
        if resource.children:
            self.table[rep] = resource
            raise GuestTrap(f"{type(resource).__name__} was given up while a resource made from it is still held")
        if resource.parent is not None:
            resource.parent.children -= 1
        return resource

    def drop(self, rep: int) -> None:
        """The guest dropped an owned handle."""
        self.take(rep).dropped(self)

    def end(self) -> None:
        """Let go of everything the guest still holds, newest first."""
        while self.table:
            _, resource = self.table.popitem()
            resource.dropped(self)
        self.flush_output()

    def flush_output(self) -> None:
        """Log what stands in an unfinished line."""
        self.stdout.flush()
        self.stderr.flush()


_NO_CALL: Final = GuestCall(0.0)
