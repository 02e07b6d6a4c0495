"""Wraps a guest so that the bytes of its streams cross into the host as hexadecimal text instead of `list<u8>`.

wasmtime's C API makes a 32-byte value of each element of a list, in both directions, but one copy of a string. So what
is compiled is a component around the guest. It imports what the guest imports, and gives the guest a `wasi:io/streams`
whose four functions that move bytes are an adapter's, which calls `freehold:io/hex` (`wasi/streams.py`) instead; the
others, and the resources, are the host's own. Between guest and adapter bytes are copied by compiled code. Two digits
for a byte, because they cost the same for every body: Latin-1 text, of one or two bytes of UTF-8 for each, crosses
slower than digits unless all of it is ASCII, and text that is no UTF-8 ends the process.

A guest that is none of that keeps its component: one that moves no bytes to speak of, since an instance of the adapter
costs 10 to 20 microseconds, and one whose imports have another form than toolchains give them. The guest's bytes are
embedded unchanged, and its digest stays that of the file it came in. Sources: component-model Binary.md and
CanonicalABI.md; WASI 0.2 `wasi:io/streams`. Not here: compiling (`compiler.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import wasmtime

from runtime.engine.interface import split_import
from runtime.engine.wasm_binary import Reader, component_name, encoded_name, encoded_number, section, sections, vector
from runtime.wasi.streams import READ_MAX_BYTES, hex_streams

VERSION: Final = 1
"""Part of every compiled artifact's name: another one for every change of what `wrapped` returns."""

TRANSFER_MAX_BYTES: Final = READ_MAX_BYTES
"""Bytes of one call: no read gives more, and no permit is larger. A guest that writes more traps in the adapter."""

_STREAMS: Final = "wasi:io/streams"
_TYPES: Final = ("error", "pollable", "input-stream", "output-stream", "stream-error")
_DONE: Final = "(result (result (error $stream-error)))"
_COUNT: Final = "(result (result u64 (error $stream-error)))"
_SIGNATURES: Final = {
    "[method]input-stream.read": '(param "len" u64) (result (result BYTES (error $stream-error)))',
    "[method]input-stream.blocking-read": '(param "len" u64) (result (result BYTES (error $stream-error)))',
    "[method]input-stream.skip": f'(param "len" u64) {_COUNT}',
    "[method]input-stream.blocking-skip": f'(param "len" u64) {_COUNT}',
    "[method]input-stream.subscribe": "(result (own $pollable))",
    "[method]output-stream.check-write": _COUNT,
    "[method]output-stream.write": f'(param "contents" BYTES) {_DONE}',
    "[method]output-stream.blocking-write-and-flush": f'(param "contents" BYTES) {_DONE}',
    "[method]output-stream.flush": _DONE,
    "[method]output-stream.blocking-flush": _DONE,
    "[method]output-stream.subscribe": "(result (own $pollable))",
    "[method]output-stream.write-zeroes": f'(param "len" u64) {_DONE}',
    "[method]output-stream.blocking-write-zeroes-and-flush": f'(param "len" u64) {_DONE}',
    "[method]output-stream.splice": f'(param "src" (borrow $input-stream)) (param "len" u64) {_COUNT}',
    "[method]output-stream.blocking-splice": f'(param "src" (borrow $input-stream)) (param "len" u64) {_COUNT}',
}
"""What follows the parameter `self`. Those with BYTES are the adapter's."""
_WORTH: Final = {"[method]input-stream.read", "[method]input-stream.blocking-read", "[method]output-stream.write"}
"""A guest gets the adapter if it uses one of these; the fourth takes 4 KiB at most."""

_BUFFER: Final = 1024
_PAGES: Final = (_BUFFER + 2 * TRANSFER_MAX_BYTES) // 65536 + 1

_ADAPTER: Final = """
(component
  {imports}
  (core module $memory
    (memory (export "memory") {pages} {pages})
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) ;; each call here has one transfer, so one place
      (if (i32.gt_u (local.get 3) (i32.const {transfer_max_digits})) (then unreachable))
      (i32.const {buffer})))
  (core instance $memory (instantiate $memory))
  {lowered}
  (core module $code
    (import "memory" "memory" (memory {pages} {pages}))
    {core_imports}
    (func $pairs (param i32) (result v128) (local $digits v128) ;; 16 digits make 8 bytes, one in each 16-bit lane
      (local.set $digits (v128.load offset={buffer} (local.get 0))) ;; '0' to '9' are 30 to 39, 'a' to 'f' 61 to 66
      (local.set $digits (i8x16.add
        (v128.and (local.get $digits) (i8x16.splat (i32.const 15)))
        (v128.and (i8x16.gt_u (local.get $digits) (i8x16.splat (i32.const 57))) (i8x16.splat (i32.const 9)))))
      (v128.or
        (i16x8.shr_u (local.get $digits) (i32.const 8))
        (v128.and (i16x8.shl (local.get $digits) (i32.const 4)) (i16x8.splat (i32.const 240)))))
    (func $decode (param $digits i32) (local $at i32) ;; in place, forward
      (loop $next
        (if (i32.lt_u (local.get $at) (local.get $digits)) (then
          (v128.store offset={buffer} (i32.shr_u (local.get $at) (i32.const 1))
            (i8x16.narrow_i16x8_u
              (call $pairs (local.get $at)) (call $pairs (i32.add (local.get $at) (i32.const 16)))))
          (local.set $at (i32.add (local.get $at) (i32.const 32)))
          (br $next)))))
    (func $encode (param $size i32) (local $at i32) (local $bytes v128) ;; in place, backward
      (local.set $at (i32.and (i32.add (local.get $size) (i32.const 7)) (i32.const -8)))
      (loop $next
        (if (local.get $at) (then
          (local.set $at (i32.sub (local.get $at) (i32.const 8)))
          (local.set $bytes (v128.load8x8_u offset={buffer} (local.get $at)))
          (v128.store offset={buffer} (i32.shl (local.get $at) (i32.const 1))
            (i8x16.swizzle
              (v128.const i8x16 48 49 50 51 52 53 54 55 56 57 97 98 99 100 101 102)
              (v128.or
                (i16x8.shr_u (local.get $bytes) (i32.const 4))
                (v128.and (i16x8.shl (local.get $bytes) (i32.const 8)) (i16x8.splat (i32.const 3840))))))
          (br $next)))))
    {code})
  (core instance $code (instantiate $code
    (with "memory" (instance $memory))
    (with "host" (instance {host}))))
  {exports})
"""

_OPTIONS: Final = '(memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))'

_READ: Final = """
    (func (export "{name}") (param $self i32) (param $len i64) (result i32)
      (call ${name} (local.get $self) (local.get $len) (i32.const 0))
      (call $drop-input-stream (local.get $self))
      (if (i32.eqz (i32.load8_u (i32.const 0))) (then ;; the result at 0: its case, at 4 where and at 8 how many
        (call $decode (i32.load (i32.const 8)))
        (i32.store (i32.const 8) (i32.shr_u (i32.load (i32.const 8)) (i32.const 1)))))
      (i32.const 0))"""

_WRITE: Final = """
    (func (export "{name}") (param $self i32) (param $contents i32) (param $size i32) (result i32)
      (if (i32.gt_u (local.get $size) (i32.const {transfer_max_bytes})) (then unreachable))
      (call $encode (local.get $size))
      (call ${name} (local.get $self) (local.get $contents) (i32.shl (local.get $size) (i32.const 1)) (i32.const 0))
      (call $drop-output-stream (local.get $self))
      (i32.const 0))"""


def wrapped(data: bytes, entry: str) -> bytes | None:
    """Return a component around `data` that exports its interface `entry`; None if it has to stay as it is.

    Types are not looked at: if those of `data` are not the interface's, what is returned does not validate.
    """
    try:
        prefix = _prefix(data)
    except (_UnknownForm, IndexError, UnicodeDecodeError):
        return None
    names = [name for name, sort in prefix.streams.items() if sort == _FUNCTION]
    types = [name for name in _TYPES if prefix.streams.get(name) == _TYPE]
    moved = [name for name in names if _moves(name)]
    known = set(names) <= set(_SIGNATURES) and len(names) + len(types) == len(prefix.streams)
    if not (known and _WORTH & set(names) and {"error", "stream-error", *map(_resource, moved)} <= set(types)):
        return None
    hexes = len(prefix.imports)  # the index of the first instance after the imported ones; the adapter's is the next
    position = {name: prefix.types + n for n, name in enumerate(types)}
    kept_names = [name for name in names if name not in moved]
    arguments = [_argument(name, _TYPE, index) for name, index in position.items()]
    arguments += [_argument(_plain(name), _FUNCTION, n) for n, name in enumerate([*kept_names, *moved])]
    imported = [
        _argument(name, _INSTANCE, hexes + 1 if split_import(name)[0] == _STREAMS else n)
        for n, name in enumerate(prefix.imports)
    ]
    return b"".join([
        data[:8],
        prefix.data,
        _items(6, [_alias(prefix.at, name, _TYPE) for name in types]),
        _items(7, [_hex_type(position, moved)]),
        _items(10, [b"\0" + encoded_name(hex_streams.name) + bytes([_INSTANCE]) + encoded_number(prefix.types + len(types))]),
        _items(6, [_alias(prefix.at, name, _FUNCTION) for name in kept_names]),
        _items(6, [_alias(hexes, _plain(name), _FUNCTION) for name in moved]),
        section(4, _adapter(types, names)),
        _items(5, [b"\0\0" + vector(arguments)]),
        section(4, data),
        _items(5, [b"\0\1" + vector(imported)]),
        _items(6, [_alias(hexes + 2, entry, _INSTANCE)]),
        _items(11, [b"\0" + encoded_name(entry) + bytes([_INSTANCE]) + encoded_number(hexes + 3) + b"\0"]),
    ])  # fmt: skip


def _moves(name: str) -> bool:
    return "BYTES" in _SIGNATURES.get(name, "")


def _resource(name: str) -> str:
    return name.removeprefix("[method]").partition(".")[0]


def _plain(name: str) -> str:
    return name.removeprefix("[method]").replace(".", "-")


def _adapter(types: Sequence[str], names: Sequence[str]) -> bytes:
    """Return the component that takes these types and functions and exports them, those that move bytes as lists."""
    parts: dict[str, list[str]] = {
        part: [] for part in ("imports", "lowered", "core_imports", "code", "host", "exports")
    }
    for name in types:
        _add_type(parts, name)
    for name in names:
        _add_function(parts, name)
    numbers = {"pages": _PAGES, "buffer": _BUFFER, "transfer_max_digits": 2 * TRANSFER_MAX_BYTES}
    text = _ADAPTER.format(**{part: "\n    ".join(lines) for part, lines in parts.items()}, **numbers)
    return bytes(wasmtime.wat2wasm(text))


def _add_type(parts: dict[str, list[str]], name: str) -> None:
    bound = "(sub resource)"
    if name == "stream-error":
        parts["imports"].append('(type $failure (variant (case "last-operation-failed" (own $error)) (case "closed")))')
        bound = "(eq $failure)"
    parts["imports"].append(f'(import "{name}" (type ${name} {bound}))')
    parts["exports"].append(f'(export $its-{name} "{name}" (type ${name}))')
    if name in {"input-stream", "output-stream"}:
        _lower(parts, f"drop-{name}", f"(canon resource.drop ${name})", "i32")


def _add_function(parts: dict[str, list[str]], name: str) -> None:
    plain, resource = _plain(name), _resource(name)
    signature = f'(param "self" (borrow ${resource})) {_SIGNATURES[name]}'
    outer = signature.replace("BYTES", "(list u8)")
    parts["imports"].append(f'(import "{plain}" (func ${plain} {signature.replace("BYTES", "string")}))')
    if _moves(name):
        code, parameters = (_READ, "i32 i64 i32") if resource == "input-stream" else (_WRITE, "i32 i32 i32 i32")
        _lower(parts, plain, f"(canon lower (func ${plain}) {_OPTIONS})", parameters)
        parts["code"].append(code.format(name=plain, transfer_max_bytes=TRANSFER_MAX_BYTES))
        parts["exports"].append(f'(func $its-{plain} {outer} (canon lift (core func $code "{plain}") {_OPTIONS}))')
        plain = f"its-{plain}"
    parts["exports"].append(f'(export "{name}" (func ${plain}) (func {outer.replace("$", "$its-")}))')


def _lower(parts: dict[str, list[str]], name: str, how: str, parameters: str) -> None:
    """Give the core module a function of the component model."""
    parts["lowered"].append(f"(core func ${name} {how})")
    parts["host"].append(f'(export "{name}" (func ${name}))')
    parts["core_imports"].append(f'(import "host" "{name}" (func ${name} (param {parameters})))')


_FUNCTION: Final = 1
_TYPE: Final = 3
_INSTANCE: Final = 5


def _hex_type(at: dict[str, int], moved: Sequence[str]) -> bytes:
    """Return the type of the instance `freehold:io/hex` with `moved`, in a component whose types are `at` there."""
    declared: list[bytes] = []
    types: dict[str, int] = {}
    for name, index in at.items():
        if name not in {"error", "pollable"}:
            declared.append(bytes([2, _TYPE, 2, 1]) + encoded_number(index))
            declared.append(b"\4\0" + encoded_name(name) + bytes([_TYPE, 0]) + encoded_number(2 * len(types)))
            types[name] = 2 * len(types) + 1
    count = 2 * len(types)
    for name in moved:
        reads = _resource(name) == "input-stream"
        content = encoded_name("len") + b"\x77" if reads else encoded_name("contents") + b"\x73"
        declared += [
            b"\1\x68" + encoded_number(types[_resource(name)]),
            b"\1\x6a" + (b"\1\x73" if reads else b"\0") + b"\1" + encoded_number(types["stream-error"]),
            b"\1\x40"
            + vector([encoded_name("self") + encoded_number(count), content])
            + b"\0"
            + encoded_number(count + 1),
            b"\4\0" + encoded_name(_plain(name)) + bytes([_FUNCTION]) + encoded_number(count + 2),
        ]
        count += 3
    return b"\x42" + vector(declared)


class _UnknownForm(Exception):  # noqa: N818 - no error: the component stays as it is
    """The component has a form this file does not know."""


class _Prefix(NamedTuple):
    """A component's sections up to its last import: how many types they make, and what they import, in order.

    `at` is the index of the instance `wasi:io/streams`, and `streams` has its names, each with its sort.
    """

    data: bytes
    types: int
    imports: tuple[str, ...]
    at: int
    streams: dict[str, int]


def _prefix(data: bytes) -> _Prefix:
    types: list[dict[str, int]] = []
    imports: dict[str, dict[str, int]] = {}
    end = count = 0
    ended = False
    for kind, reader in sections(data):
        if kind == 10:
            if ended:
                raise _UnknownForm
            for _ in range(reader.count()):
                name = component_name(reader)
                if reader.byte() != _INSTANCE:
                    raise _UnknownForm
                imports[name] = types[reader.number()]
            end, count = reader.end, len(types)
        elif kind == 6 and not ended:
            for _ in range(reader.count()):
                if reader.take(2) != bytes([_TYPE, 0]):
                    ended = True
                    break
                reader.number()
                reader.name()
                types.append({})
        elif kind == 7 and not ended:
            types += [_type(reader) for _ in range(reader.count())]
        elif kind != 0:
            ended = True
    numbers = [n for n, name in enumerate(imports) if split_import(name)[0] == _STREAMS]
    if len(numbers) != 1:
        raise _UnknownForm
    names = tuple(imports)
    return _Prefix(data[8:end], count, names, numbers[0], imports[names[numbers[0]]])


def _type(reader: Reader) -> dict[str, int]:
    """Read one type; return the names that an instance type exports, each with its sort."""
    names: dict[str, int] = {}
    form = reader.byte()
    if form == 0x42:
        for _ in range(reader.count()):
            _declaration(reader, names)
    else:
        _skip_type(reader, form)
    return names


def _skip_type(reader: Reader, form: int) -> None:
    """Read the rest of a function's or a value's type."""
    if form == 0x40:  # function, whose result is 0 and a type, or 1 and 0
        _skip_fields(reader)
        reader.byte()
        reader.number()
    elif form == 0x72:  # record
        _skip_fields(reader)
    elif form == 0x71:  # variant
        for _ in range(reader.count()):
            reader.name()
            _skip_optional(reader)
            reader.byte()
    elif form in {0x70, 0x6B, 0x69, 0x68}:  # list, option, own, borrow
        reader.number()
    elif form == 0x6F:  # tuple
        for _ in range(reader.count()):
            reader.number()
    elif form in {0x6E, 0x6D}:  # flags, enum
        for _ in range(reader.count()):
            reader.name()
    elif form == 0x6A:  # result
        _skip_optional(reader)
        _skip_optional(reader)
    elif not 0x73 <= form <= 0x7F:
        raise _UnknownForm


def _declaration(reader: Reader, names: dict[str, int]) -> None:
    """Read one declaration of an instance type: a type, an outer alias of a type, or an export."""
    match reader.byte():
        case 1:
            _skip_type(reader, reader.byte())
        case 2:
            if reader.take(2) != bytes([_TYPE, 2]):
                raise _UnknownForm
            reader.number()
            reader.number()
        case 4:
            name = component_name(reader)
            sort = names[name] = reader.byte()
            if sort not in {_FUNCTION, _TYPE}:
                raise _UnknownForm
            if sort == _FUNCTION or reader.byte() == 0:
                reader.number()
        case _:
            raise _UnknownForm


def _skip_fields(reader: Reader) -> None:
    for _ in range(reader.count()):
        reader.name()
        reader.number()


def _skip_optional(reader: Reader) -> None:
    if reader.byte():
        reader.number()


def _alias(instance: int, name: str, sort: int) -> bytes:
    return bytes([sort, 0]) + encoded_number(instance) + encoded_name(name)


def _argument(name: str, sort: int, index: int) -> bytes:
    return encoded_name(name) + bytes([sort]) + encoded_number(index)


def _items(kind: int, items: Sequence[bytes]) -> bytes:
    return section(kind, vector(items))
