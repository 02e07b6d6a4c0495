"""Values cross to a guest and back unchanged, for every type WASI uses; hostile values fail without harm."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wasmtime import component as wc

from runtime.call import GuestCall
from runtime.engine import bindings
from runtime.engine.bindings import VAL_BYTES, RawComponent, RawStore, WasmError
from runtime.engine.codecs import Err, Ok, signature_of
from runtime.engine.engine import engine
from runtime.engine.guest import Guest, GuestServices
from runtime.engine.linking import GUESTS, ON_EPOCH, _callback
from runtime.providers import Providers
from tests.support.runtime.wasm_parts import SilentLog, a_spec

ECHO = """
(component
  (import "test:codecs/echo" (instance $echo
    (type $t0 {type})
    {named}
    (export "f" (func (param "x" {ref}) (result {ref})))))
  {alias}
  (core module $memory
    (memory (export "memory") 256)
    (global $next (mut i32) (i32.const 65536))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $next (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get 3)))))
  (core instance $m (instantiate $memory))
  (core func $f (canon lower (func $echo "f")
    (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (core module $main
    (import "" "f" (func $f (param {flat} {return_pointer}) {lowered_result}))
    (func (export "run") (param {flat}) (result {result})
      {gets}
      {call}))
  (core instance $main (instantiate $main (with "" (instance (export "f" (func $f))))))
  (func (export "run") (param "x" {outer}) (result {outer})
    (canon lift (core func $main "run")
      (memory (core memory $m "memory")) (realloc (core func $m "realloc")))))
"""

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
BYTES = st.binary(max_size=300)
FLOATS = st.floats(allow_nan=False)

CASES: dict[str, tuple[str, str, Any]] = {
    "bool": ("bool", "i32", st.booleans()),
    "u8": ("u8", "i32", st.integers(0, 2**8 - 1)),
    "s8": ("s8", "i32", st.integers(-(2**7), 2**7 - 1)),
    "u16": ("u16", "i32", st.integers(0, 2**16 - 1)),
    "s16": ("s16", "i32", st.integers(-(2**15), 2**15 - 1)),
    "u32": ("u32", "i32", st.integers(0, 2**32 - 1)),
    "s32": ("s32", "i32", st.integers(-(2**31), 2**31 - 1)),
    "u64": ("u64", "i64", st.integers(0, 2**64 - 1)),
    "s64": ("s64", "i64", st.integers(-(2**63), 2**63 - 1)),
    "f32": ("f32", "f32", st.floats(allow_nan=False, width=32)),
    "f64": ("f64", "f64", FLOATS),
    "char": ("char", "i32", st.characters(exclude_categories=["Cs"])),
    "string": ("string", "i32 i32", TEXT),
    "bytes": ("(list u8)", "i32 i32", BYTES),
    "strings": ("(list string)", "i32 i32", st.lists(TEXT, max_size=6)),
    "numbers": ("(list u32)", "i32 i32", st.lists(st.integers(0, 2**32 - 1), max_size=20)),
    "tuple": ("(tuple string u8)", "i32 i32 i32", st.tuples(TEXT, st.integers(0, 255))),
    "headers": ("(list (tuple string (list u8)))", "i32 i32", st.lists(st.tuples(TEXT, BYTES), max_size=5)),
    "option": ("(option u64)", "i32 i64", st.none() | st.integers(0, 2**64 - 1)),
    "option of text": ("(option string)", "i32 i32 i32", st.none() | TEXT),
    "result": (
        "(result string (error u32))", "i32 i32 i32",
        TEXT.map(Ok) | st.integers(0, 2**32 - 1).map(Err),
    ),
    "record": (
        '(record (field "a" u32) (field "b" (option string)))', "i32 i32 i32 i32",
        st.tuples(st.integers(0, 2**32 - 1), st.none() | TEXT),
    ),
    "variant": (
        '(variant (case "x") (case "y" string) (case "z" (list u8)))', "i32 i32 i32",
        st.just(("x", None)) | TEXT.map(lambda t: ("y", t)) | BYTES.map(lambda b: ("z", b)),
    ),
    "enum": ('(enum "one" "two" "three")', "i32", st.sampled_from(["one", "two", "three"])),
    "flags": (
        '(flags "r" "w" "x")', "i32",
        st.frozensets(st.sampled_from(["r", "w", "x"])),
    ),
}  # fmt: skip


class Echo:
    """A component that hands its argument to the host and returns the host's answer."""

    def __init__(self, type_: str, flat: str) -> None:
        named = type_.startswith(("(record", "(variant", "(enum", "(flags"))
        parts = flat.split()
        pointer = len(parts) > 1
        text = ECHO.format(
            type=type_,
            named='(export "t" (type $t (eq $t0)))' if named else "",
            ref="$t" if named else type_,
            alias='(alias export $echo "t" (type $outer))' if named else "",
            outer="$outer" if named else type_,
            flat=flat,
            return_pointer="i32" if pointer else "",
            lowered_result="" if pointer else f"(result {flat})",
            result="i32" if pointer else flat,
            gets=" ".join(f"(local.get {n})" for n in range(len(parts))),
            call="(i32.const 1024) (call $f) (i32.const 1024)" if pointer else "(call $f)",
        )
        component = wc.Component(engine(), wasmtime.wat2wasm(text))
        ty = component.type
        function = ty.exports(engine())["run"].ty
        assert isinstance(function, wc.FuncType)
        self.signature = signature_of(function)
        self.seen: list[Any] = []
        self.answer: Any = None
        linker = wc.Linker(engine())
        callback = bindings.CALLBACK(_callback(self._echo, self.signature))
        with linker.root() as root, root.add_instance("test:codecs/echo") as instance:
            bindings.add_function(instance, "f", callback)
        linked = RawComponent(component, linker, [callback])
        self.store = RawStore(engine(), ON_EPOCH)
        self.guest = Guest(GuestServices(a_spec(), SilentLog(), Providers(), None))
        self.guest.begin(GuestCall(math.inf), None)
        self.guest.context = self.store.context
        GUESTS[self.store.context] = self.guest
        index = linked.export_index(None, "run")
        assert index is not None
        self.function = linked.function(self.store, linked.instantiate(self.store), index)
        self.values = ctypes.create_string_buffer(VAL_BYTES * 2)
        self.keep = linked

    def _echo(self, guest: Guest, value: Any) -> Any:
        self.seen.append(value)
        return self.answer

    def __call__(self, value: Any, answer: Any) -> Any:
        self.answer = answer
        self.seen.clear()
        position = ctypes.addressof(self.values)
        self.signature.params[0].lower(value, position, self.guest)
        self.function.call(position, 1, position + VAL_BYTES, 1)
        bindings.val_delete(position)
        assert self.signature.result is not None
        result = self.signature.result.lift(position + VAL_BYTES, self.guest)
        bindings.val_delete(position + VAL_BYTES)
        return result

    def close(self) -> None:
        GUESTS.pop(self.store.context)
        self.store.close()


@pytest.mark.parametrize("name", CASES)
def test_every_value_crosses_unchanged_both_ways(name: str) -> None:
    type_, flat, values = CASES[name]
    echo = Echo(type_, flat)

    @settings(max_examples=40, database=None, suppress_health_check=list(HealthCheck))
    @given(values, values)
    def round_trip(sent: Any, answered: Any) -> None:
        got = echo(sent, answered)
        assert echo.seen == [sent]
        assert got == answered

    round_trip()
    echo.close()


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 70_000])
def test_byte_lists_of_every_block_size_cross(size: int) -> None:
    echo = Echo("(list u8)", "i32 i32")
    data = bytes(n * 7 % 256 for n in range(size))
    assert echo(data, data[::-1]) == data[::-1]
    assert echo.seen == [data]
    echo.close()


HOSTILE: dict[str, tuple[str, list[Any]]] = {
    "u8": ("u8", [256, -1, "x", None, 1.5]),
    "u64": ("u64", [2**64, -1, b""]),
    "char": ("char", ["", "ab", 7]),
    "string": ("string", [b"bytes", None, 5, "\ud800"]),
    "bytes": ("bytes", ["text", None, [1, 2], 9]),
    "tuple": ("tuple", [("a",), ("a", 1, 2), None, ("a", 300)]),
    "record": ("record", [(1,), (1, 2), "no"]),
    "variant": ("variant", [("unknown", None), ("y", 5), None, ()]),
    "enum": ("enum", ["four", None]),
    "result": ("result", [Ok(5), Err("text")]),
    "headers": ("headers", [[("a", "not bytes")], [("a", b"ok"), None], 3]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_wrong_answer_of_the_host_is_an_error_of_the_call_and_the_process_lives(name: str) -> None:
    case, answers = HOSTILE[name]
    type_, flat, _ = CASES[case]
    for answer in answers:
        echo = Echo(type_, flat)
        good = {"u8": 1, "u64": 1, "char": "c", "string": "s", "bytes": b"b", "tuple": ("t", 1), "record": (1, None),
                "variant": ("x", None), "enum": "one", "result": Ok("r"), "headers": [("h", b"v")]}[case]  # fmt: skip
        with pytest.raises(WasmError):
            echo(good, answer)
        assert isinstance(echo.guest.failure, Exception)
        echo.close()
