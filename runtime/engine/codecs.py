"""Lift and lower component values: one pair of functions per type, resolved once per function per component.

The mapping: integers, floats, bool, char and string are themselves; `list<u8>` is bytes, other lists are lists; records
and tuples are tuples, in field order; an enum is its name; flags are a frozenset of names; `option` is None or the
value; a variant is `(case, payload or None)`; a lifted `result` is `Ok` or `Err`; to lower one, give `Err(e)`, `Ok(v)`
or just the value; a resource is the host object behind it.

Each type also has a shape: its structure as text, with names of resources only, so that a component whose import has
another signature than the interface's is refused before it runs. Sources: component-model Canonical ABI; wasmtime
component/val.h. Not here: the interfaces' functions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from wasmtime import component as wc

from runtime.engine import bindings
from runtime.engine.bindings import ENTRY_BYTES, MEM, VAL_BYTES, word, words2, words3


class ResourceHolder(Protocol):
    """Who owns the host objects behind resource handles: one guest instance."""

    context: int

    def take(self, rep: int) -> Any:
        """Remove and return the object of an owned handle that the guest gave away."""
        ...

    def borrow(self, rep: int) -> Any:
        """Return the object of a borrowed handle."""
        ...

    def give(self, resource: Any) -> tuple[int, int]:
        """Keep `resource` for the guest; return its rep and its host type id."""
        ...


Lift = Callable[[int, Any], Any]
"""(address of the value, holder) -> Python value."""
Lower = Callable[[Any, int, Any], None]
"""(Python value, address to write, holder). The kind byte is written last, so a failure frees nothing half made."""


@dataclass(frozen=True, slots=True)
class Ok:
    """A lifted `result` that succeeded, or an explicit success to lower."""

    value: Any = None


@dataclass(frozen=True, slots=True)
class Err:
    """A `result` that failed."""

    value: Any = None


@dataclass(frozen=True, slots=True)
class Codec:
    """How one type crosses, and its shape."""

    lift: Lift
    lower: Lower
    shape: str


class UnsupportedTypeError(Exception):
    """A type that no 0.2 interface uses (futures, streams, error contexts of 0.3)."""


_CHAR: Final = 11
_STRING: Final = 12
LIST: Final = 13
_RECORD: Final = 14
_TUPLE: Final = 15
_VARIANT: Final = 16
_ENUM: Final = 17
_OPTION: Final = 18
_RESULT: Final = 19
_FLAGS: Final = 20
_RESOURCE: Final = 21

_put_option: Final = struct.Struct("<QQ").pack_into
_put_result: Final = struct.Struct("<QQQ").pack_into
_put_word: Final = struct.Struct("<Q").pack_into

_SCALARS: Final[dict[type, tuple[str, int, str]]] = {
    wc.Bool: ("bool", 0, "?"),
    wc.S8: ("s8", 1, "b"),
    wc.U8: ("u8", 2, "B"),
    wc.S16: ("s16", 3, "h"),
    wc.U16: ("u16", 4, "H"),
    wc.S32: ("s32", 5, "i"),
    wc.U32: ("u32", 6, "I"),
    wc.S64: ("s64", 7, "q"),
    wc.U64: ("u64", 8, "Q"),
    wc.F32: ("f32", 9, "f"),
    wc.F64: ("f64", 10, "d"),
}


def _scalar(name: str, kind: int, code: str) -> Codec:
    unpack = struct.Struct("<" + code).unpack_from
    pack = struct.Struct("<Q" + code).pack_into

    def lift(at: int, holder: ResourceHolder) -> Any:
        return unpack(MEM, at + 8)[0]

    def lower(value: Any, at: int, holder: ResourceHolder) -> None:
        pack(MEM, at, kind, value)

    return Codec(lift, lower, name)


def _lift_char(at: int, holder: ResourceHolder) -> str:
    return chr(word(MEM, at + 8)[0] & 0xFFFFFFFF)


def _lower_char(value: str, at: int, holder: ResourceHolder) -> None:
    _put_option(MEM, at, _CHAR, ord(value))


def _lift_string(at: int, holder: ResourceHolder) -> str:
    size, data = words2(MEM, at + 8)
    return str(MEM[data : data + size], "utf-8") if size else ""


def _lower_string(value: str, at: int, holder: ResourceHolder) -> None:
    text = value.encode()
    bindings.bytes_new(at + 8, len(text), text)
    MEM[at] = _STRING


def _lift_bytes(at: int, holder: ResourceHolder) -> bytes:
    size, data = words2(MEM, at + 8)
    return bindings.read_u8_list(size, data) if size else b""


def _lower_bytes(value: bytes, at: int, holder: ResourceHolder) -> None:
    bindings.list_new(at + 8, len(value))
    if value:
        bindings.write_u8_list(value, word(MEM, at + 16)[0])
    MEM[at] = LIST


def _list(element: Codec) -> Codec:
    if element.shape == "u8":
        return Codec(_lift_bytes, _lower_bytes, "list<u8>")
    lift_one, lower_one = element.lift, element.lower

    def lift(at: int, holder: ResourceHolder) -> list[Any]:
        size, data = words2(MEM, at + 8)
        return [lift_one(data + VAL_BYTES * n, holder) for n in range(size)]

    def lower(value: Any, at: int, holder: ResourceHolder) -> None:
        bindings.list_new(at + 8, len(value))
        data = word(MEM, at + 16)[0]
        for item in value:
            lower_one(item, data, holder)
            data += VAL_BYTES
        MEM[at] = LIST

    return Codec(lift, lower, f"list<{element.shape}>")


def _tuple(elements: list[Codec]) -> Codec:
    lifts = [(codec.lift, VAL_BYTES * n) for n, codec in enumerate(elements)]
    lowers = [(codec.lower, VAL_BYTES * n) for n, codec in enumerate(elements)]
    count = len(elements)

    def lift(at: int, holder: ResourceHolder) -> tuple[Any, ...]:
        data = word(MEM, at + 16)[0]
        return tuple([entry(data + offset, holder) for entry, offset in lifts])

    def lower(value: Any, at: int, holder: ResourceHolder) -> None:
        bindings.tuple_new(at + 8, count)
        data = word(MEM, at + 16)[0]
        for item, (entry, offset) in zip(value, lowers, strict=True):
            entry(item, data + offset, holder)
        MEM[at] = _TUPLE

    return Codec(lift, lower, f"tuple<{','.join(codec.shape for codec in elements)}>")


def _record(fields: list[tuple[str, Codec]]) -> Codec:
    lifts = [(codec.lift, ENTRY_BYTES * n + 16) for n, (_, codec) in enumerate(fields)]
    lowers = [(name.encode(), codec.lower, ENTRY_BYTES * n) for n, (name, codec) in enumerate(fields)]
    count = len(fields)

    def lift(at: int, holder: ResourceHolder) -> tuple[Any, ...]:
        data = word(MEM, at + 16)[0]
        return tuple([entry(data + offset, holder) for entry, offset in lifts])

    def lower(value: Any, at: int, holder: ResourceHolder) -> None:
        bindings.record_new(at + 8, count)
        data = word(MEM, at + 16)[0]
        for item, (name, entry, offset) in zip(value, lowers, strict=True):
            bindings.bytes_new(data + offset, len(name), name)
            entry(item, data + offset + 16, holder)
        MEM[at] = _RECORD

    return Codec(lift, lower, "record{" + ",".join(f"{name}:{codec.shape}" for name, codec in fields) + "}")


def _variant(cases: list[tuple[str, Codec | None]]) -> Codec:
    by_name = {name.encode(): (name, codec.lift if codec else None) for name, codec in cases}
    to_write = {name: (name.encode(), codec.lower if codec else None) for name, codec in cases}

    def lift(at: int, holder: ResourceHolder) -> tuple[str, Any]:
        size, data, payload = words3(MEM, at + 8)
        name, answer = by_name[bytes(MEM[data : data + size])]
        return name, answer(payload, holder) if answer is not None else None

    def lower(value: tuple[str, Any], at: int, holder: ResourceHolder) -> None:
        name, answer = to_write[value[0]]
        boxed = 0
        if answer is not None:
            boxed = bindings.box()
            answer(value[1], boxed, holder)
        bindings.bytes_new(at + 8, len(name), name)
        _put_word(MEM, at + 24, boxed)
        MEM[at] = _VARIANT

    shape = ",".join(f"{name}({codec.shape})" if codec else name for name, codec in cases)
    return Codec(lift, lower, f"variant{{{shape}}}")


def _enum(names: list[str]) -> Codec:
    by_name = {name.encode(): name for name in names}
    to_write = {name: name.encode() for name in names}

    def lift(at: int, holder: ResourceHolder) -> str:
        size, data = words2(MEM, at + 8)
        return by_name[bytes(MEM[data : data + size])]

    def lower(value: str, at: int, holder: ResourceHolder) -> None:
        text = to_write[value]
        bindings.bytes_new(at + 8, len(text), text)
        MEM[at] = _ENUM

    return Codec(lift, lower, f"enum{{{','.join(names)}}}")


def _flags(names: list[str]) -> Codec:
    by_name = {name.encode(): name for name in names}

    def lift(at: int, holder: ResourceHolder) -> frozenset[str]:
        count, data = words2(MEM, at + 8)
        spans = [words2(MEM, data + 16 * n) for n in range(count)]
        return frozenset(by_name[bytes(MEM[start : start + size])] for size, start in spans)

    def lower(value: frozenset[str], at: int, holder: ResourceHolder) -> None:
        chosen = [name for name in names if name in value]
        bindings.flags_new(at + 8, len(chosen))
        data = word(MEM, at + 16)[0]
        for n, name in enumerate(chosen):
            text = name.encode()
            bindings.bytes_new(data + 16 * n, len(text), text)
        MEM[at] = _FLAGS

    return Codec(lift, lower, f"flags{{{','.join(names)}}}")


def _option(some: Codec) -> Codec:
    lift_some, lower_some = some.lift, some.lower

    def lift(at: int, holder: ResourceHolder) -> Any:
        payload = word(MEM, at + 8)[0]
        return lift_some(payload, holder) if payload else None

    def lower(value: Any, at: int, holder: ResourceHolder) -> None:
        boxed = 0
        if value is not None:
            boxed = bindings.box()
            lower_some(value, boxed, holder)
        _put_option(MEM, at, _OPTION, boxed)

    return Codec(lift, lower, f"option<{some.shape}>")


def _result(ok: Codec | None, err: Codec | None) -> Codec:
    lift_ok, lift_err = ok.lift if ok else None, err.lift if err else None
    lower_ok, lower_err = ok.lower if ok else None, err.lower if err else None

    def lift(at: int, holder: ResourceHolder) -> Ok | Err:
        is_ok, payload = words2(MEM, at + 8)
        if is_ok & 0xFF:
            return Ok(lift_ok(payload, holder) if lift_ok is not None else None)
        return Err(lift_err(payload, holder) if lift_err is not None else None)

    def lower(value: Any, at: int, holder: ResourceHolder) -> None:
        is_ok, answer = 1, lower_ok
        if type(value) is Err:
            is_ok, answer, value = 0, lower_err, value.value
        elif type(value) is Ok:
            value = value.value
        boxed = 0
        if answer is not None:
            boxed = bindings.box()
            answer(value, boxed, holder)
        _put_result(MEM, at, _RESULT, is_ok, boxed)

    return Codec(lift, lower, f"result<{ok.shape if ok else '_'},{err.shape if err else '_'}>")


def _lift_own(at: int, holder: ResourceHolder) -> Any:
    return holder.take(bindings.take_resource(holder.context, word(MEM, at + 8)[0]))


def _lift_borrow(at: int, holder: ResourceHolder) -> Any:
    return holder.borrow(bindings.take_resource(holder.context, word(MEM, at + 8)[0]))


def _lower_own(value: Any, at: int, holder: ResourceHolder) -> None:
    rep, type_id = holder.give(value)
    bindings.give_resource(holder.context, rep, type_id, at + 8)
    MEM[at] = _RESOURCE


def _lower_borrow(value: Any, at: int, holder: ResourceHolder) -> None:
    raise AssertionError("no export of ours takes a borrow")


@dataclass(frozen=True, slots=True)
class Handles:
    """How handles cross: as those of a store, or otherwise."""

    lift_own: Lift
    lift_borrow: Lift
    lower_own: Lower


OF_STORE: Final = Handles(_lift_own, _lift_borrow, _lower_own)


_CHAR_CODEC: Final = Codec(_lift_char, _lower_char, "char")
_STRING_CODEC: Final = Codec(_lift_string, _lower_string, "string")

ENTRIES: Final = _list(_tuple([_STRING_CODEC, Codec(_lift_bytes, _lower_bytes, "list<u8>")]))
"""The names and values of HTTP fields."""

ResourceNames = Sequence[tuple[wc.ResourceType, str]]
"""The resource types of one component's imports, each with its name."""


def resource_name(ty: wc.ResourceType, resources: ResourceNames) -> str:
    """Return the name of a resource type, "?" for one the component does not import."""
    return next((name for known, name in resources if known == ty), "?")


def codec_for(ty: Any, resources: ResourceNames = (), handles: Handles = OF_STORE) -> Codec:
    """Return the codec of a type of the public API; raises `UnsupportedTypeError`."""
    scalar = _SCALARS.get(type(ty))
    if scalar is not None:
        return _scalar(*scalar)
    match ty:
        case wc.Char():
            return _CHAR_CODEC
        case wc.String():
            return _STRING_CODEC
        case wc.ListType():
            return _list(codec_for(ty.element, resources, handles))
        case wc.TupleType():
            return _tuple([codec_for(element, resources, handles) for element in ty.elements])
        case wc.RecordType():
            return _record([(name, codec_for(field, resources, handles)) for name, field in ty.fields])
        case wc.VariantType():
            return _variant([(name, _maybe(case, resources, handles)) for name, case in ty.cases])
        case wc.EnumType():
            return _enum(ty.names)
        case wc.FlagsType():
            return _flags(ty.names)
        case wc.OptionType():
            return _option(codec_for(ty.payload, resources, handles))
        case wc.ResultType():
            return _result(_maybe(ty.ok, resources, handles), _maybe(ty.err, resources, handles))
        case wc.OwnType():
            return Codec(handles.lift_own, handles.lower_own, f"own<{resource_name(ty.ty, resources)}>")
        case wc.BorrowType():
            return Codec(handles.lift_borrow, _lower_borrow, f"borrow<{resource_name(ty.ty, resources)}>")
    raise UnsupportedTypeError(f"{type(ty).__name__} is not a WASI 0.2 type")


@dataclass(frozen=True, slots=True)
class FunctionCodecs:
    """One function's codecs, in order, and its shape as text."""

    params: tuple[Codec, ...]
    result: Codec | None

    @property
    def shape(self) -> str:
        """The structure of the function, as `(a,b)->c`."""
        return f"({','.join(codec.shape for codec in self.params)})->{self.result.shape if self.result else '()'}"


def _maybe(ty: Any, resources: ResourceNames, handles: Handles) -> Codec | None:
    return codec_for(ty, resources, handles) if ty is not None else None


def signature_of(function: wc.FuncType, resources: ResourceNames = (), handles: Handles = OF_STORE) -> FunctionCodecs:
    """Resolve a function type; raises `UnsupportedTypeError`."""
    params = tuple(codec_for(ty, resources, handles) for _, ty in function.params)
    return FunctionCodecs(params, _maybe(function.result, resources, handles))


def stream_signatures(handles: Handles) -> tuple[FunctionCodecs, FunctionCodecs]:
    """Return the types of wasi:io's `read` and `write`, for a component that imports neither."""
    own = Codec(handles.lift_own, handles.lower_own, "own<error>")
    error = _variant([("last-operation-failed", own), ("closed", None)])
    stream = Codec(handles.lift_borrow, _lower_borrow, "borrow<stream>")
    data = Codec(_lift_bytes, _lower_bytes, "list<u8>")
    read = FunctionCodecs((stream, _scalar(*_SCALARS[wc.U64])), _result(data, error))
    return read, FunctionCodecs((stream, data), _result(None, error))
