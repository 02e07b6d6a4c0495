"""wasi:io/streams: byte streams the guest reads and writes, and their pollables.

Reading gives what is here, never waits unless asked to; writing needs a permit from `check-write`; both as
wasi:io 0.2 says, with wasmtime's limits where the text leaves them open. Not here: where bytes come from or go
(`http_body.py`, `cli.py`).
"""

from __future__ import annotations

import re
from binascii import unhexlify
from typing import Any, Final

from runtime.engine.codecs import Err
from runtime.engine.guest import Guest, GuestTrap, Resource
from runtime.engine.interface import Interface
from runtime.wasi.poll import IoError, Pollable, wait_for

READ_MAX_BYTES: Final = 256 * 1024
"""Bytes given by one read; as a list they take 32 times that while they cross."""

BLOCKING_WRITE_MAX_BYTES: Final = 4096
"""What wasi:io allows in `blocking-write-and-flush` and `blocking-write-zeroes-and-flush`."""

CLOSED: Final = Err(("closed", None))


def failed(text: str, code: tuple[str, Any] | None = None) -> Err:
    """Return the stream error for a failure."""
    return Err(("last-operation-failed", IoError(text, code)))


class InputStream(Resource, wit="input-stream", aliases=("incoming-value-async-body",)):
    """Bytes for the guest."""

    __slots__ = ()

    def read(self, max_bytes: int) -> bytes | Err:
        """Return what is here, possibly nothing; `CLOSED` at the end."""
        raise NotImplementedError

    def readable(self) -> bool:
        """Whether `read` would give bytes, the end or a failure."""
        return True


class OutputStream(Resource, wit="output-stream"):
    """Bytes from the guest. `allowed` is what the last permit left."""

    __slots__ = ("allowed",)

    def __init__(self, parent: Resource | None = None) -> None:
        super().__init__(parent)
        self.allowed = 0

    def permit(self) -> int | Err:
        """Return how many bytes may be written now; 0 means wait."""
        raise NotImplementedError

    def put(self, data: bytes) -> Err | None:
        """Take bytes within the permit."""
        raise NotImplementedError

    def flush(self) -> Err | None:
        """Send what was written on its way."""
        return None


class EmptyInput(InputStream):
    """A stream that is at its end."""

    __slots__ = ()

    def read(self, max_bytes: int) -> bytes | Err:
        """Closed."""
        return CLOSED


class InputReady(Pollable):
    """An input stream has something to say."""

    __slots__ = ()
    parent: InputStream

    def ready(self) -> bool:
        """Whether a read would give something."""
        return self.parent.readable()


class OutputReady(Pollable):
    """An output stream has a permit, or a failure, to give."""

    __slots__ = ()
    parent: OutputStream

    def ready(self) -> bool:
        """Whether `check-write` would give more than zero."""
        return self.parent.permit() != 0


streams: Final = Interface("wasi:io/streams")


@streams.function("[method]input-stream.read")
def _read(guest: Guest, this: InputStream, length: int) -> bytes | Err:
    return this.read(min(length, READ_MAX_BYTES))


@streams.function("[method]input-stream.blocking-read")
def _blocking_read(guest: Guest, this: InputStream, length: int) -> bytes | Err:
    if length == 0:
        return this.read(0)
    while True:
        got = this.read(min(length, READ_MAX_BYTES))
        if isinstance(got, Err) or got:
            return got
        while not this.readable():
            guest.call.sleep()


@streams.function("[method]input-stream.skip")
def _skip(guest: Guest, this: InputStream, length: int) -> int | Err:
    got = this.read(min(length, READ_MAX_BYTES))
    return got if isinstance(got, Err) else len(got)


@streams.function("[method]input-stream.blocking-skip")
def _blocking_skip(guest: Guest, this: InputStream, length: int) -> int | Err:
    got = _blocking_read(guest, this, length)
    return got if isinstance(got, Err) else len(got)


@streams.function("[method]input-stream.subscribe")
def _subscribe_input(guest: Guest, this: InputStream) -> Pollable:
    return InputReady(this)


@streams.function("[method]output-stream.check-write")
def _check_write(guest: Guest, this: OutputStream) -> int | Err:
    permit = this.permit()
    if not isinstance(permit, Err):
        this.allowed = permit
    return permit


@streams.function("[method]output-stream.write")
def _write(guest: Guest, this: OutputStream, data: bytes) -> Err | None:
    if len(data) > this.allowed:
        raise GuestTrap("output-stream.write of more bytes than check-write permitted")
    this.allowed -= len(data)
    return this.put(data)


@streams.function("[method]output-stream.blocking-write-and-flush")
def _blocking_write(guest: Guest, this: OutputStream, data: bytes) -> Err | None:
    if len(data) > BLOCKING_WRITE_MAX_BYTES:
        raise GuestTrap(f"output-stream.blocking-write-and-flush of more than {BLOCKING_WRITE_MAX_BYTES} bytes")
    while data:
        permit = _await_permit(guest, this)
        if isinstance(permit, Err):
            return permit
        refused = this.put(data[:permit])
        if refused is not None:
            return refused
        data = data[permit:]
    return this.flush()


@streams.function("[method]output-stream.flush")
@streams.function("[method]output-stream.blocking-flush")
def _flush(guest: Guest, this: OutputStream) -> Err | None:
    return this.flush()


@streams.function("[method]output-stream.subscribe")
def _subscribe_output(guest: Guest, this: OutputStream) -> Pollable:
    return OutputReady(this)


@streams.function("[method]output-stream.write-zeroes")
def _write_zeroes(guest: Guest, this: OutputStream, length: int) -> Err | None:
    if length > this.allowed:
        raise GuestTrap("output-stream.write-zeroes of more bytes than check-write permitted")
    return _write(guest, this, bytes(length))


@streams.function("[method]output-stream.blocking-write-zeroes-and-flush")
def _blocking_write_zeroes(guest: Guest, this: OutputStream, length: int) -> Err | None:
    if length > BLOCKING_WRITE_MAX_BYTES:
        raise GuestTrap(f"blocking-write-zeroes-and-flush of more than {BLOCKING_WRITE_MAX_BYTES} bytes")
    return _blocking_write(guest, this, bytes(length))


@streams.function("[method]output-stream.splice")
def _splice(guest: Guest, this: OutputStream, source: InputStream, length: int) -> int | Err:
    permit = this.permit()
    if isinstance(permit, Err):
        return permit
    if permit == 0 or length == 0:
        return 0
    got = source.read(min(length, permit, READ_MAX_BYTES))
    if isinstance(got, Err):
        return got
    refused = this.put(got)
    return refused if refused is not None else len(got)


@streams.function("[method]output-stream.blocking-splice")
def _blocking_splice(guest: Guest, this: OutputStream, source: InputStream, length: int) -> int | Err:
    permit = _await_permit(guest, this)
    if isinstance(permit, Err):
        return permit
    while not source.readable():
        guest.call.sleep()
    return _splice(guest, this, source, length)


def _await_permit(guest: Guest, stream: OutputStream) -> int | Err:
    while True:
        permit = stream.permit()
        if isinstance(permit, Err) or permit > 0:
            return permit
        guest.call.sleep()


hex_streams: Final = Interface("freehold:io/hex", re.compile(""))
"""Those that move bytes, with two hexadecimal digits for each: the adapter's (`adapter.py`), no guest may import it."""


@hex_streams.function("input-stream-read")
def _read_hex(guest: Guest, this: InputStream, length: int) -> str | Err:
    got = _read(guest, this, length)
    return got if isinstance(got, Err) else got.hex()


@hex_streams.function("input-stream-blocking-read")
def _blocking_read_hex(guest: Guest, this: InputStream, length: int) -> str | Err:
    got = _blocking_read(guest, this, length)
    return got if isinstance(got, Err) else got.hex()


@hex_streams.function("output-stream-write")
def _write_hex(guest: Guest, this: OutputStream, digits: str) -> Err | None:
    return _write(guest, this, unhexlify(digits))


@hex_streams.function("output-stream-blocking-write-and-flush")
def _blocking_write_hex(guest: Guest, this: OutputStream, digits: str) -> Err | None:
    return _blocking_write(guest, this, unhexlify(digits))


__all__ = [
    "CLOSED",
    "EmptyInput",
    "InputStream",
    "OutputStream",
    "failed",
    "hex_streams",
    "streams",
    "wait_for",
]
