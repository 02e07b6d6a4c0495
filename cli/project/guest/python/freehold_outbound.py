"""One call out over wasi:http/outgoing-handler, driven step by step without waiting. Runs only inside the sandbox.

`freehold.fetch` and the sockets of unmodified HTTP clients stand on it. A handle is let go of after all that was made from
it, whatever the garbage collector does: handles live in a table of this module, which no object that it may find holds.
Not here: HTTP/1.1's syntax (`freehold_sockets.py`), the event loop.
"""

from __future__ import annotations

import errno
import sys

from componentize_py_types import Err, Ok
from wit_world.imports import monotonic_clock, poll, types
from wit_world.imports.streams import StreamError_Closed

READ_MAX_BYTES = 64 * 1024
RECEIVED_MAX_BYTES = 256 * 1024
NANOSECONDS = 1_000_000_000
METHODS = {
    "GET": types.Method_Get, "HEAD": types.Method_Head, "POST": types.Method_Post, "PUT": types.Method_Put,
    "DELETE": types.Method_Delete, "CONNECT": types.Method_Connect, "OPTIONS": types.Method_Options,
    "TRACE": types.Method_Trace, "PATCH": types.Method_Patch,
}  # fmt: skip
CHILDREN_FIRST = ("sink", "outgoing", "source", "incoming", "response", "future")

_held: dict[int, dict[str, object]] = {}
_number = 0


class Call:
    """A request being sent and its response being received.

    `step` does what can be done now; `subscribe` gives what to wait for before the next one. `status` and `fields` are set
    once the head is here, `ended` once the body is whole. `release` ends it at any moment.
    """

    def __init__(self) -> None:
        global _number
        _number += 1
        self._key = _number
        _held[self._key] = {}
        self.status = None
        self.fields = []
        self.ended = False
        self._unsent = []
        self._whole = False
        self._received = []
        self._received_bytes = 0
        self._authority = ""

    def start(self, method, tls, authority, target, fields, timeout_s) -> None:
        """Begin; raises OSError where the call is refused outright."""
        try:
            from wit_world.imports import outgoing_handler
        except ImportError:
            raise PermissionError(
                errno.EACCES, f"{authority}: this app may call no host; add allow_hosts to its table in freehold.toml"
            ) from None
        self._authority = authority
        try:
            request = types.OutgoingRequest(types.Fields.from_list(fields))
            request.set_method(METHODS[method]() if method in METHODS else types.Method_Other(method))
            request.set_scheme(types.Scheme_Https() if tls else types.Scheme_Http())
            request.set_authority(authority)
            request.set_path_with_query(target)
        except Err:
            raise OSError(errno.EINVAL, f"{authority}: the request is not one that HTTP allows") from None
        options = types.RequestOptions()
        if timeout_s is not None:
            for limit in (options.set_connect_timeout, options.set_first_byte_timeout, options.set_between_bytes_timeout):
                limit(max(1, int(timeout_s * NANOSECONDS)))
        held = _held[self._key]
        held["outgoing"] = request.body()
        held["sink"] = held["outgoing"].write()
        try:
            held["future"] = outgoing_handler.handle(request, options)
        except Err as error:
            self.release()
            raise self._failure(error.value) from None

    def send(self, piece) -> None:
        """Queue bytes of the request's body."""
        if piece:
            self._unsent.append(memoryview(bytes(piece)))

    def finish(self, piece=b"") -> None:
        """Queue the last bytes: the body is whole with them."""
        self.send(piece)
        self._whole = True

    @property
    def unsent_bytes(self) -> int:
        """How many queued bytes wait for the other side."""
        return sum(map(len, self._unsent))

    @property
    def received(self) -> bool:
        """Whether bytes of the response's body are here to be taken."""
        return bool(self._received)

    def take(self) -> bytes:
        """Return the bytes of the body that are here."""
        pieces, self._received, self._received_bytes = self._received, [], 0
        return b"".join(pieces)

    def step(self) -> None:
        """Send and receive what can be now. Raises OSError when the call has failed."""
        held = _held[self._key]
        if "sink" in held:
            self._write(held)
        if self.status is None and "future" in held:
            self._head(held)
        if "source" in held:
            self._read(held)

    def subscribe(self) -> list[object]:
        """Return pollables, any of which means that a step may do something; the caller lets them go before `release`."""
        held = _held[self._key]
        waits = []
        if "sink" in held and self._unsent:
            waits.append(held["sink"].subscribe())
        if self.status is None and "future" in held:
            waits.append(held["future"].subscribe())
        if "source" in held and self._received_bytes < RECEIVED_MAX_BYTES:
            waits.append(held["source"].subscribe())
        return waits

    def release(self) -> None:
        """Let go of everything; what was received can still be taken."""
        held = _held.pop(self._key, {})
        _held[self._key] = {}
        self._unsent = []
        _let_go(held, CHILDREN_FIRST)

    def __del__(self) -> None:
        self.release()
        del _held[self._key]

    def _write(self, held) -> None:
        sink = held["sink"]
        try:
            while self._unsent:
                room = sink.check_write()
                if room == 0:
                    break
                piece = self._unsent.pop(0)
                sink.write(bytes(piece[:room]))
                if len(piece) > room:
                    self._unsent.insert(0, piece[room:])
            if self._unsent:
                return
            sink.flush()
            if self._whole:
                _let_go(held, ("sink",))
                types.OutgoingBody.finish(held.pop("outgoing"), None)
        except Err:  # nobody takes the rest: the answer, or why there is none, is in the future
            self._unsent = []
            _let_go(held, ("sink", "outgoing"))

    def _head(self, held) -> None:
        answer = held["future"].get()
        if answer is None:
            return
        if not isinstance(answer.value, Ok):
            error = self._failure(answer.value.value)
            self.release()
            raise error
        response = held["response"] = answer.value.value
        with response.headers() as fields:
            self.fields = [(name.lower(), bytes(value)) for name, value in fields.entries()]
        self.status = response.status()
        held["incoming"] = response.consume()
        held["source"] = held["incoming"].stream()

    def _read(self, held) -> None:
        while self._received_bytes < RECEIVED_MAX_BYTES:
            try:
                piece = held["source"].read(READ_MAX_BYTES)
            except Err as error:
                closed = isinstance(error.value, StreamError_Closed)
                del error
                self.release()
                self.ended = closed
                if not closed:
                    raise ConnectionResetError(errno.ECONNRESET, f"{self._authority}: the response broke off") from None
                return
            if not piece:
                return
            self._received.append(piece)
            self._received_bytes += len(piece)

    def _failure(self, value) -> OSError:
        kind = type(value).__name__.removeprefix("ErrorCode_")
        detail = getattr(value, "value", None)
        detail = getattr(detail, "rcode", detail)
        said = f"{self._authority}: {kind}{f' ({detail})' if detail is not None else ''}"
        if kind == "HttpRequestDenied":
            return PermissionError(errno.EACCES, f"{said}; name the host in allow_hosts in freehold.toml")
        if kind == "DestinationIpProhibited":
            return PermissionError(errno.EACCES, f"{said}; the address is not a public one")
        if kind == "TlsCertificateError" and "_ssl" in sys.modules:
            return sys.modules["_ssl"].SSLCertVerificationError(1, said)
        if "Timeout" in kind:
            return TimeoutError(errno.ETIMEDOUT, said)
        if kind == "ConnectionTerminated":
            return ConnectionResetError(errno.ECONNRESET, said)
        return ConnectionRefusedError(errno.ECONNREFUSED, said)


def _let_go(held, names) -> None:
    for name in names:
        if name in held:
            held.pop(name).__exit__(None, None, None)


def wait_for(call, happened, timeout_s) -> None:
    """Drive `call` until `happened()`; raises TimeoutError after `timeout_s` seconds, None meaning never."""
    timer = None
    try:
        while True:
            call.step()
            if happened():
                return
            pollables = call.subscribe()
            if not pollables:
                raise TimeoutError(errno.ETIMEDOUT, "timed out: nothing that was asked for can come")
            if timer is None and timeout_s is not None:
                timer = monotonic_clock.subscribe_duration(max(1, int(timeout_s * NANOSECONDS)))
            try:
                ready = poll.poll([*pollables, timer] if timer is not None else pollables)
            finally:
                for pollable in pollables:
                    pollable.__exit__(None, None, None)
            if list(ready) == [len(pollables)]:
                raise TimeoutError(errno.ETIMEDOUT, f"timed out after {timeout_s} s")
    finally:
        if timer is not None:
            timer.__exit__(None, None, None)
