"""Core WebAssembly commands of WASI preview 1: `_start`, standard output, clocks, randomness, and nothing else.

The functions are ours rather than wasmtime's, so that waiting ends at the deadline, output is captured within limits,
and there is no file system to reach. Anything not here answers `nosys` or `badf`. Source: WASI preview 1 witx.
Not here: components (`sandbox.py`).
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable
from typing import Any, Final

import wasmtime

from runtime.engine import bindings
from runtime.engine.engine import TICK_S, engine
from runtime.engine.guest import ExitCalled, Guest, GuestServices
from runtime.engine.linking import GUESTS, ON_EPOCH

BADF: Final = 8
FAULT: Final = 21
INVAL: Final = 28
NOSYS: Final = 52
NOTDIR: Final = 54
NOTSOCK: Final = 57
SPIPE: Final = 70

IO_VECTORS_MAX: Final = 1_024
SUBSCRIPTIONS_MAX: Final = 1_024
RANDOM_MAX_BYTES: Final = 1024 * 1024

_UNKNOWN: Final = 0
"""The file type of the standard streams: a character device would be a terminal to every C library."""
_NS_PER_S: Final = 1_000_000_000
_MODULE: Final = "wasi_snapshot_preview1"

Function = Callable[..., int]


class BadAddressError(Exception):
    """The guest gave an address outside its memory."""


class Memory:
    """The calling module's memory, bounds checked."""

    __slots__ = ("_caller", "_memory")

    def __init__(self, caller: wasmtime.Caller) -> None:
        memory = caller.get("memory")
        if not isinstance(memory, wasmtime.Memory):
            raise BadAddressError
        self._caller = caller
        self._memory = memory

    def read(self, at: int, size: int) -> bytes:
        """Return bytes; raises `BadAddressError`."""
        at &= 0xFFFF_FFFF
        if size < 0 or at + size > self._memory.data_len(self._caller):
            raise BadAddressError
        return bytes(self._memory.read(self._caller, at, at + size))

    def write(self, at: int, data: bytes) -> None:
        """Write bytes; raises `BadAddressError`."""
        at &= 0xFFFF_FFFF
        if at + len(data) > self._memory.data_len(self._caller):
            raise BadAddressError
        self._memory.write(self._caller, data, at)


class Preview1:
    """One module in its own store."""

    def __init__(self, module: wasmtime.Module, services: GuestServices, guest: Guest) -> None:
        spec = services.spec
        self._guest = guest
        self._arguments = [text.encode() + b"\0" for text in guest.arguments]
        self._environment = [f"{name}={value}".encode() + b"\0" for name, value in spec.environment.items()]
        self._store = wasmtime.Store(engine())
        self._store.set_limits(spec.memory_max_bytes, spec.table_elements_max, 4, 10, 4)
        if bindings.supported():
            guest.context = bindings.watch_store(self._store, ON_EPOCH)
            GUESTS[guest.context] = guest
        else:
            self._store.set_epoch_deadline(spec.timeout_ms // int(TICK_S * 1000) + 1)
        try:
            self._instance = self._linker(module).instantiate(self._store, module)
        except BaseException:
            self.close()
            raise

    def _linker(self, module: wasmtime.Module) -> wasmtime.Linker:
        """Define what the module imports; toolchains import one function several times, and the last definition holds."""
        linker = wasmtime.Linker(engine())
        linker.allow_shadowing = True
        for item in module.imports:
            if isinstance(item.type, wasmtime.FuncType) and item.module == _MODULE:
                function = self._wrap(self._find(str(item.name)), bool(item.type.results))
                linker.define_func(_MODULE, str(item.name), item.type, function, access_caller=True)
        return linker

    def run(self) -> None:
        """Run `_start`; raises what stopped it (the guest's own end is on the guest)."""
        start = self._instance.exports(self._store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(self._store)

    def close(self) -> None:
        """Free the store."""
        GUESTS.pop(self._guest.context, None)
        self._store.close()

    def _find(self, name: str) -> Function:
        entry = getattr(self, f"_{name}", None)
        return entry if entry is not None else _missing(name)

    def _wrap(self, function: Function, answers: bool) -> Callable[..., int | None]:
        guest = self._guest

        def call(caller: wasmtime.Caller, *arguments: Any) -> int | None:
            try:
                code = function(Memory(caller), *arguments)
            except BadAddressError:
                code = FAULT
            except BaseException as error:
                guest.failure = error  # the package keeps one exception for all threads; this one is ours
                raise
            return code if answers else None

        return call

    def _args_sizes_get(self, memory: Memory, count: int, size: int) -> int:
        return _sizes(memory, self._arguments, count, size)

    def _args_get(self, memory: Memory, pointers: int, texts: int) -> int:
        return _texts(memory, self._arguments, pointers, texts)

    def _environ_sizes_get(self, memory: Memory, count: int, size: int) -> int:
        return _sizes(memory, self._environment, count, size)

    def _environ_get(self, memory: Memory, pointers: int, texts: int) -> int:
        return _texts(memory, self._environment, pointers, texts)

    def _clock_res_get(self, memory: Memory, clock: int, at: int) -> int:
        if clock not in {0, 1}:
            return INVAL
        memory.write(at, struct.pack("<Q", 1))
        return 0

    def _clock_time_get(self, memory: Memory, clock: int, precision: int, at: int) -> int:
        if clock not in {0, 1}:
            return INVAL
        memory.write(at, struct.pack("<Q", time.time_ns() if clock == 0 else time.monotonic_ns()))
        return 0

    def _random_get(self, memory: Memory, at: int, size: int) -> int:
        if not 0 <= size <= RANDOM_MAX_BYTES:
            return INVAL
        memory.write(at, secrets.token_bytes(size))
        return 0

    def _sched_yield(self, memory: Memory) -> int:
        self._guest.call.tick()
        return 0

    def _proc_exit(self, memory: Memory, code: int) -> int:
        raise ExitCalled(code)

    def _fd_write(self, memory: Memory, descriptor: int, vectors: int, count: int, written: int) -> int:
        log = {1: self._guest.stdout, 2: self._guest.stderr}.get(descriptor)
        if log is None:
            return BADF
        if not 0 <= count <= IO_VECTORS_MAX:
            return INVAL
        total = 0
        table = memory.read(vectors, 8 * count)
        for entry, size in struct.iter_unpack("<II", table):
            log.write(memory.read(entry, size))
            total += size
        memory.write(written, struct.pack("<I", total))
        return 0

    def _fd_read(self, memory: Memory, descriptor: int, vectors: int, count: int, read: int) -> int:
        if descriptor != 0:
            return BADF
        memory.write(read, bytes(4))
        return 0

    def _fd_close(self, memory: Memory, descriptor: int) -> int:
        return 0 if 0 <= descriptor <= 2 else BADF

    def _fd_seek(self, memory: Memory, descriptor: int, offset: int, whence: int, at: int) -> int:
        return SPIPE if 0 <= descriptor <= 2 else BADF

    def _fd_fdstat_get(self, memory: Memory, descriptor: int, at: int) -> int:
        if not 0 <= descriptor <= 2:
            return BADF
        rights = 1 << 1 if descriptor == 0 else 1 << 6
        memory.write(at, struct.pack("<BxHxxxxQQ", _UNKNOWN, 0, rights, 0))
        return 0

    def _fd_fdstat_set_flags(self, memory: Memory, descriptor: int, flags: int) -> int:
        return 0 if 0 <= descriptor <= 2 else BADF

    def _fd_filestat_get(self, memory: Memory, descriptor: int, at: int) -> int:
        if not 0 <= descriptor <= 2:
            return BADF
        memory.write(at, struct.pack("<QQB7xQQQQQ", 0, 0, _UNKNOWN, 1, 0, 0, 0, 0))
        return 0

    def _poll_oneoff(self, memory: Memory, subscriptions: int, events: int, count: int, happened: int) -> int:
        if not 0 < count <= SUBSCRIPTIONS_MAX:
            return INVAL
        wanted = [_Subscription(memory.read(subscriptions + 48 * n, 48)) for n in range(count)]
        while True:
            now_ns = time.monotonic_ns()
            ready = [entry for entry in wanted if entry.at_ns is None or entry.at_ns <= now_ns]
            if ready:
                break
            self._guest.call.sleep(min(entry.at_ns for entry in wanted if entry.at_ns is not None) / _NS_PER_S)
        for n, subscription in enumerate(ready):
            memory.write(
                events + 32 * n, struct.pack("<QHB5xQHxxxxxx", subscription.user_data, 0, subscription.kind, 0, 0)
            )
        memory.write(happened, struct.pack("<I", len(ready)))
        return 0


class _Subscription:
    """One entry of `poll_oneoff`: a clock, or a descriptor, which is always ready here."""

    __slots__ = ("at_ns", "kind", "user_data")

    def __init__(self, entry: bytes) -> None:
        self.user_data, self.kind = struct.unpack_from("<QB", entry)
        self.at_ns: int | None = None
        if self.kind == 0:
            clock, timeout, _precision, flags = struct.unpack_from("<IxxxxQQH", entry, 16)
            now_ns = time.time_ns() if clock == 0 else time.monotonic_ns()
            remaining = timeout - now_ns if flags & 1 else timeout
            self.at_ns = time.monotonic_ns() + max(remaining, 0)


_UNFIT: Final = {"sock": NOTSOCK, "path": NOTDIR, "fd_readdir": NOTDIR} | dict.fromkeys(
    ("fd_pread", "fd_pwrite", "fd_tell"), SPIPE
)
"""What a standard stream answers to what only another kind of descriptor can do."""


def _missing(name: str) -> Function:
    kind = name.partition("_")[0]
    unfit = _UNFIT.get(name, _UNFIT.get(kind, BADF))
    place = 2 if name == "path_symlink" else 0  # of the descriptor among the arguments

    def answer(memory: Memory, *arguments: Any) -> int:
        if kind not in {"fd", "path", "sock"}:
            return NOSYS
        return unfit if 0 <= arguments[place] <= 2 else BADF

    return answer


def _sizes(memory: Memory, texts: list[bytes], count: int, size: int) -> int:
    memory.write(count, struct.pack("<I", len(texts)))
    memory.write(size, struct.pack("<I", sum(map(len, texts))))
    return 0


def _texts(memory: Memory, texts: list[bytes], pointers: int, at: int) -> int:
    for n, text in enumerate(texts):
        memory.write(pointers + 4 * n, struct.pack("<I", at & 0xFFFF_FFFF))
        memory.write(at, text)
        at += len(text)
    return 0
