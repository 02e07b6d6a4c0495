"""The one file that touches wasmtime's private binding surface: raw calls, raw memory, raw callbacks.

A component value is 32 bytes, kind at 0 and payload at 8 (`wasmtime_component_val_t`, wasmtime/component/val.h).
Everything here works on plain integer addresses through one memoryview over the whole address space, because making a
ctypes object per field costs more than the call it serves. Small calls keep the GIL (`PyDLL`): letting it go for 50 ns
of work only invites another thread in. Calls that run guest code or unmap memory release it.

Exceptions of host functions travel on the guest they belong to; the package's own process-wide "last exception" is
never used, since several guests run at once. Not here: what the values mean (`codecs.py`) or any interface.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final

import wasmtime
import wasmtime.component
from wasmtime import _bindings, _ffi

KNOWN_VERSIONS: Final = frozenset({"50.0.1"})
"""Releases whose C structures were read and tested; any other runs through the public API (`public_api.py`)."""

VAL_BYTES: Final = 32
ENTRY_BYTES: Final = 48
"""One record field: a name (16 bytes), then its value."""

_KEEP: Final = ctypes.PyDLL(None, handle=_ffi.dll._handle)
_FREE: Final = ctypes.CDLL(None, handle=_ffi.dll._handle)
_ADDRESS_SPACE_BYTES: Final = (1 << 47) - 1
MEM: Final = memoryview((ctypes.c_char * _ADDRESS_SPACE_BYTES).from_address(0)).cast("B")
"""This process's memory by address. Reading or writing outside memory wasmtime gave us ends the process."""

_P: Final = ctypes.c_void_p
_N: Final = ctypes.c_size_t


def _absent(*_: Any) -> Any:
    raise AssertionError("this release of wasmtime does not have the function")


def _bind(library: Any, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    try:
        function = library[name]  # indexing gives a fresh object; the package's own keeps its argument types
    except AttributeError:
        return _absent  # another release; `supported` keeps everyone from calling it
    function.restype = result
    function.argtypes = arguments
    return function  # type: ignore[no-any-return]


bytes_new: Final = _bind(_KEEP, "wasm_byte_vec_new", None, _P, _N, ctypes.c_char_p)
list_new: Final = _bind(_KEEP, "wasmtime_component_vallist_new_uninit", None, _P, _N)
record_new: Final = _bind(_KEEP, "wasmtime_component_valrecord_new_uninit", None, _P, _N)
tuple_new: Final = _bind(_KEEP, "wasmtime_component_valtuple_new_uninit", None, _P, _N)
flags_new: Final = _bind(_KEEP, "wasmtime_component_valflags_new_uninit", None, _P, _N)
_val_new: Final = _bind(_KEEP, "wasmtime_component_val_new", _N, _P)
val_delete: Final = _bind(_KEEP, "wasmtime_component_val_delete", None, _P)
_host_new: Final = _bind(
    _KEEP, "wasmtime_component_resource_host_new", _N, ctypes.c_bool, ctypes.c_uint32, ctypes.c_uint32
)
_host_rep: Final = _bind(_KEEP, "wasmtime_component_resource_host_rep", ctypes.c_uint32, _P)
_host_delete: Final = _bind(_KEEP, "wasmtime_component_resource_host_delete", None, _P)
_any_to_host: Final = _bind(_KEEP, "wasmtime_component_resource_any_to_host", _N, _P, _P, _P)
_host_to_any: Final = _bind(_KEEP, "wasmtime_component_resource_host_to_any", _N, _P, _P, _P)
_error_new: Final = _bind(_KEEP, "wasmtime_error_new", _N, ctypes.c_char_p)
_error_message: Final = _bind(_KEEP, "wasmtime_error_message", None, _P, _P)
_error_delete: Final = _bind(_KEEP, "wasmtime_error_delete", None, _P)
_error_exit: Final = _bind(_KEEP, "wasmtime_error_exit_status", ctypes.c_bool, _P, _P)
_bytes_delete: Final = _bind(_KEEP, "wasm_byte_vec_delete", None, _P)
_store_new: Final = _bind(_KEEP, "wasmtime_store_new", _N, _P, _P, _P)
_store_context: Final = _bind(_KEEP, "wasmtime_store_context", _N, _P)
_store_limiter: Final = _bind(_KEEP, "wasmtime_store_limiter", None, _P, *[ctypes.c_int64] * 5)
_store_epoch: Final = _bind(_KEEP, "wasmtime_store_epoch_deadline_callback", None, _P, _P, _P, _P)
_set_epoch: Final = _bind(_KEEP, "wasmtime_context_set_epoch_deadline", None, _P, ctypes.c_uint64)
_store_delete: Final = _bind(_FREE, "wasmtime_store_delete", None, _P)
_instantiate: Final = _bind(_FREE, "wasmtime_component_linker_instantiate", _N, _P, _P, _P, _P)
_get_index: Final = _bind(_KEEP, "wasmtime_component_get_export_index", _N, _P, _P, ctypes.c_char_p, _N)
_get_func: Final = _bind(_KEEP, "wasmtime_component_instance_get_func", ctypes.c_bool, _P, _P, _P, _P)
_func_call: Final = _bind(_FREE, "wasmtime_component_func_call", _N, _P, _P, _P, _N, _P, _N)
_add_func: Final = _bind(_KEEP, "wasmtime_component_linker_instance_add_func", _N, _P, ctypes.c_char_p, _N, _P, _P, _P)
_add_resource: Final = _bind(
    _KEEP, "wasmtime_component_linker_instance_add_resource", _N, _P, ctypes.c_char_p, _N, _P, _P, _P, _P
)
_concurrency: Final = _bind(_KEEP, "wasmtime_config_concurrency_support_set", None, _P, ctypes.c_bool)

CALLBACK: Final = ctypes.CFUNCTYPE(_N, _N, _N, _N, _N, _N, _N, _N)
"""(data, context, type, args, nargs, results, nresults) -> error or 0, all as integers."""
DESTRUCTOR: Final = ctypes.CFUNCTYPE(_N, _N, _N, ctypes.c_uint32)
"""(data, context, rep) -> error or 0."""
EPOCH: Final = ctypes.CFUNCTYPE(_N, _N, _N, _N, _N)
"""(context, data, delta out, kind out) -> error or 0."""

word: Final = struct.Struct("<Q").unpack_from
words2: Final = struct.Struct("<QQ").unpack_from
words3: Final = struct.Struct("<QQQ").unpack_from
_put_word: Final = struct.Struct("<Q").pack_into

_BLANK: Final = ctypes.create_string_buffer(VAL_BYTES)
_BLANK_ADDRESS: Final = ctypes.addressof(_BLANK)

KIND_U8: Final = 2
_BLOCK: Final = 4096
_SMALL: Final = 256
"""Bytes up to which a strided copy into place costs less than making a block first."""
_U8_KINDS: Final = (bytes([KIND_U8]) + bytes(VAL_BYTES - 1)) * _BLOCK


class WasmError(Exception):
    """An error object of wasmtime, as text; `exit_status` is set when the guest called `exit` of preview 1."""

    def __init__(self, message: str, exit_status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.exit_status = exit_status


def supported() -> bool:
    """Whether this wasmtime release is one whose structures are known."""
    return version("wasmtime") in KNOWN_VERSIONS


def box() -> int:
    """Return the address of a new heap value, for a payload; owned by the value that will point to it."""
    return _val_new(_BLANK_ADDRESS)  # type: ignore[no-any-return]


def read_u8_list(size: int, data: int) -> bytes:
    """Return a `list<u8>` as bytes: every 32nd byte, copied by C in blocks that stay in the cache."""
    if size <= _BLOCK:
        return bytes(MEM[data : data + VAL_BYTES * size])[8::VAL_BYTES]
    step = VAL_BYTES * _BLOCK
    end = data + VAL_BYTES * size
    return b"".join([bytes(MEM[start : min(start + step, end)])[8::VAL_BYTES] for start in range(data, end, step)])


def write_u8_list(value: bytes, data: int) -> None:
    """Fill the values at `data` from `value`: the payload with a stride into a block of kinds, the block at once."""
    size = len(value)
    if size <= _SMALL:
        end = data + VAL_BYTES * size
        MEM[data:end] = _U8_KINDS[: VAL_BYTES * size]
        MEM[data + 8 : end : VAL_BYTES] = value
        return
    block = bytearray(_U8_KINDS[: VAL_BYTES * min(size, _BLOCK)])
    for start in range(0, size, _BLOCK):
        piece = value[start : start + _BLOCK]
        count = len(piece)
        block[8 : 8 + VAL_BYTES * count : VAL_BYTES] = piece
        position = data + VAL_BYTES * start
        MEM[position : position + VAL_BYTES * count] = (
            block if count * VAL_BYTES == len(block) else block[: VAL_BYTES * count]
        )


def take_resource(context: int, any_resource: int) -> int:
    """Return the rep of a host resource argument; a borrow is consumed by this, as it must be exactly once."""
    slot = ctypes.c_size_t()
    error = _any_to_host(context, any_resource, ctypes.byref(slot))
    if error:
        raise error_from(error)
    host = slot.value
    rep: int = _host_rep(host)
    _host_delete(host)
    return rep


def give_resource(context: int, rep: int, type_id: int, target: int) -> None:
    """Write an owned host resource, as an `any` pointer, to the address `target`."""
    host = _host_new(True, rep, type_id)
    error = _host_to_any(context, host, target)
    _host_delete(host)
    if error:
        raise error_from(error)


def new_error(message: str) -> int:
    """Return an owned error pointer for a callback to give back: the guest traps."""
    return _error_new(message.encode("utf-8", "replace").replace(b"\0", b" "))  # type: ignore[no-any-return]


def error_from(pointer: int) -> WasmError:
    """Consume an error pointer."""
    text = (ctypes.c_size_t * 2)()
    _error_message(pointer, text)
    message = bytes(MEM[text[1] : text[1] + text[0]]).decode("utf-8", "replace")
    _bytes_delete(text)
    status = ctypes.c_int()
    exited = _error_exit(pointer, ctypes.byref(status))
    _error_delete(pointer)
    return WasmError(message, status.value if exited else None)


class RawStore:
    """A store with its caps and its epoch callback. Closed by hand: unmapping takes time and must not be lazy."""

    __slots__ = ("_engine", "_pointer", "context")

    def __init__(self, engine: wasmtime.Engine, on_epoch: Any) -> None:
        self._engine = engine
        self._pointer: int = _store_new(_address(engine), None, None)
        self.context: int = _store_context(self._pointer)
        _store_epoch(self._pointer, on_epoch, None, None)
        _set_epoch(self.context, 1)

    def limit(self, memory: int, table_elements: int, instances: int, tables: int, memories: int) -> None:
        """Cap each memory in bytes, each table in elements, and how many of each there are."""
        _store_limiter(self._pointer, memory, table_elements, instances, tables, memories)

    def close(self) -> None:
        """Free the store and every instance in it."""
        pointer, self._pointer = self._pointer, 0
        if pointer:
            _store_delete(pointer)


def watch_store(store: wasmtime.Store, on_epoch: Any) -> int:
    """Give a store of the public API the epoch callback; return its context address."""
    _store_epoch(_address(store), on_epoch, None, None)
    context: int = _store_context(_address(store))
    _set_epoch(context, 1)
    return context


class RawFunc:
    """An exported function of one instance."""

    __slots__ = ("_context", "_func")

    def __init__(self, context: int, func: Any) -> None:
        self._context = context
        self._func = func

    def call(self, args: int, nargs: int, results: int, nresults: int) -> None:
        """Run guest code; raises WasmError. Values at `args` stay the caller's to delete, at `results` become so.

        What stood at `results` before is overwritten, never freed: wasmtime would free it again.
        """
        MEM[results : results + VAL_BYTES * nresults] = bytes(VAL_BYTES * nresults)
        error = _func_call(self._func, self._context, args, nargs, results, nresults)
        if error:
            raise error_from(error)


class RawComponent:
    """A compiled component with a filled linker, and the way to one of its exports."""

    __slots__ = ("_keep", "_linker", "component")

    def __init__(self, component: Any, linker: Any, keep: list[Any]) -> None:
        self.component = component
        self._linker = linker
        self._keep = keep

    def export_index(self, instance: str | None, name: str) -> int | None:
        """Return the index of function `name`, in the exported instance `instance` or at the top; None if absent."""
        parent: int | None = None
        if instance is not None:
            parent = _get_index(_address(self.component), None, instance.encode(), len(instance.encode()))
            if not parent:
                return None
        return _get_index(_address(self.component), parent, name.encode(), len(name.encode())) or None

    def instantiate(self, store: RawStore) -> Any:
        """Return the raw instance; runs the guest's start functions. Raises WasmError."""
        instance = _bindings.wasmtime_component_instance_t()
        error = _instantiate(_address(self._linker), store.context, _address(self.component), ctypes.byref(instance))
        if error:
            raise error_from(error)
        return instance

    def function(self, store: RawStore, instance: Any, index: int) -> RawFunc:
        """Return the export at `index`."""
        func = _bindings.wasmtime_component_func_t()
        exists = _get_func(ctypes.byref(instance), store.context, index, ctypes.byref(func))
        assert exists, "the index came from this component's own function"
        return RawFunc(store.context, ctypes.byref(func))


def add_function(linker_instance: Any, name: str, callback: Any) -> None:
    """Define `name`; `callback` is a `CALLBACK` that the caller keeps alive as long as the linker."""
    raw = name.encode()
    error = _add_func(_address(linker_instance), raw, len(raw), callback, None, None)
    if error:
        raise error_from(error)


def add_resource(linker_instance: Any, name: str, type_id: int, destructor: Any) -> None:
    """Define the resource `name` as the host type `type_id`; `destructor` is kept alive by the caller."""
    raw = name.encode()
    resource = wasmtime.component.ResourceType.host(type_id)
    error = _add_resource(_address(linker_instance), raw, len(raw), _address(resource), destructor, None, None)
    if error:
        raise error_from(error)


def without_concurrency(config: wasmtime.Config) -> None:
    """Turn component-model concurrency off, which no guest of `wasi` 0.2 uses.

    With it on, wasmtime 50.0.1 traps every host call that receives two borrowed handles (`poll` of two pollables,
    `splice`): the second `lift_borrow` finds the deferred host scope already materialized by the first
    (wasmtime/src/runtime/vm/component/resources.rs, `current_scope`).
    """
    if _concurrency is not _absent:
        _concurrency(_address(config), False)


def set_epoch_delta(target: int, ticks: int) -> None:
    """Inside an epoch callback: come back after `ticks` more."""
    _put_word(MEM, target, ticks)


def _address(managed: Any) -> int:
    address = ctypes.cast(managed.ptr(), ctypes.c_void_p).value
    assert address, "a live wasmtime object has an address"
    return address
