"""A compiled module for the guest's Python, made here of WebAssembly text: the loops of scrypt and PBKDF2.

It is a shared library as componentize-py links them (`dylink.0`): memory, table, and CPython's own functions are imports. No
toolchain is needed: wasmtime, which Freehold has anyway, assembles it. `_freehold_hash.romix(block, table, work, n, r)` is
scryptROMix of RFC 7914 on bytearrays of 128 r, 128 r n and 256 r bytes. `rounds256(work, count)` and `rounds512(work, count)`
repeat HMAC `count` times, as PBKDF2 does. `work` is 72 words of the hash, in the machine's byte order: the state before the
inner key and before the outer one, the block to hash (8 words of the last round, 8 of padding), the sum of the rounds, the two
keys. Not here: the rest of both (`freehold_hash.py`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

import wasmtime

FILE_NAME: Final = "_freehold_hash.cpython-314-wasm32-wasi.so"

_METHODS: Final = ("romix", "rounds256", "rounds512")
_METHOD: Final = 64  # where in the module's data what lies; the definition of the module is at 0
_NAMES: Final = 128
_NAME_BYTES: Final = 16
_DATA_BYTES: Final = 192
_API_VERSION: Final = 1013
_METH_FASTCALL: Final = 0x80


@dataclass(frozen=True, slots=True)
class _Sha2:
    """What sets SHA-256 and SHA-512 apart: the word's bits, the rounds, and by how much they rotate."""

    bits: int
    rounds: int
    sums: tuple[tuple[int, int, int], tuple[int, int, int]]
    mixes: tuple[tuple[int, int, int], tuple[int, int, int]]
    """Two rotations and a shift each."""


_SHA256: Final = _Sha2(32, 64, ((2, 13, 22), (6, 11, 25)), ((7, 18, 3), (17, 19, 10)))
_SHA512: Final = _Sha2(64, 80, ((28, 34, 39), (14, 18, 41)), ((1, 8, 7), (19, 61, 6)))

_COLUMNS: Final = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS: Final = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))


_MIX: Final = """\
  (func $mix (param $block i32) (param $table i32) (param $work i32) (param $n i32) (param $r i32)
    (local $size i32) (local $i i32) (local $at i32) (local $from i32)
    (local.set $size (i32.shl (local.get $r) (i32.const 7)))
    (loop $fill
      (memory.copy (i32.add (local.get $table) (i32.mul (local.get $i) (local.get $size))) (local.get $block) (local.get $size))
      (call $blockmix (local.get $block) (local.get $work) (local.get $r))
      (memory.copy (local.get $block) (local.get $work) (local.get $size))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $fill (i32.lt_u (local.get $i) (local.get $n))))
    (local.set $i (i32.const 0))
    (loop $look
      (local.set $from (i32.add (local.get $table) (i32.mul (local.get $size) (i32.and
        (i32.load (i32.add (local.get $block) (i32.sub (local.get $size) (i32.const 64))))
        (i32.sub (local.get $n) (i32.const 1))))))
      (local.set $at (i32.const 0))
      (loop $xor
        (i64.store (i32.add (local.get $block) (local.get $at)) (i64.xor
          (i64.load (i32.add (local.get $block) (local.get $at))) (i64.load (i32.add (local.get $from) (local.get $at)))))
        (local.set $at (i32.add (local.get $at) (i32.const 8)))
        (br_if $xor (i32.lt_u (local.get $at) (local.get $size))))
      (call $blockmix (local.get $block) (local.get $work) (local.get $r))
      (memory.copy (local.get $block) (local.get $work) (local.get $size))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $look (i32.lt_u (local.get $i) (local.get $n)))))"""

_ROMIX: Final = """\
  (func $romix (param $self i32) (param $given i32) (param $count i32) (result i32)
    (call $mix
      (call $bytes (i32.load (local.get $given))) (call $bytes (i32.load offset=4 (local.get $given)))
      (call $bytes (i32.load offset=8 (local.get $given))) (call $number (i32.load offset=12 (local.get $given)))
      (call $number (i32.load offset=16 (local.get $given))))
    (call $long (i32.const 0)))
  (export "mix" (func $mix))"""


def _compress(sha: _Sha2) -> str:
    """`$compressN(state, block, to)`: all three may be one place, since everything is read first."""
    word, size = f"i{sha.bits}", sha.bits // 8
    names = "abcdefgh"
    locals_ = " ".join(f"(local ${name} {word})" for name in (*names, "t", *(f"w{place}" for place in range(16))))
    lines = [
        f"(local.set ${name} ({word}.load offset={place * size} (local.get $state)))"
        for place, name in enumerate(names)
    ]
    lines += [f"(local.set $w{place} ({word}.load offset={place * size} (local.get $block)))" for place in range(16)]
    for number, constant in enumerate(_constants(sha)):
        if number >= 16:
            lines.append(_extended(sha, number))
        lines += _round(sha, [names[(place - number) % 8] for place in range(8)], f"w{number % 16}", constant)
    for place, name in enumerate(names):
        total = f"({word}.add ({word}.load offset={place * size} (local.get $state)) (local.get ${name}))"
        lines.append(f"(local.set ${name} {total})")
    lines += [
        f"({word}.store offset={place * size} (local.get $to) (local.get ${name}))" for place, name in enumerate(names)
    ]
    body = "\n    ".join(lines)
    return f"""  (func $compress{sha.bits * 8} (param $state i32) (param $block i32) (param $to i32) {locals_}
    {body})"""


def _constants(sha: _Sha2) -> list[int]:
    """The fractions of the primes' cube roots, as FIPS 180-4 has them."""
    primes = [n for n in range(2, 420) if all(n % below for below in range(2, math.isqrt(n) + 1))]
    return [(_cube_root(prime << 192) & (1 << 64) - 1) >> (64 - sha.bits) for prime in primes[: sha.rounds]]


def _cube_root(number: int) -> int:
    root = 1 << -(-number.bit_length() // 3)
    while (better := (2 * root + number // (root * root)) // 3) < root:
        root = better
    return root


def _turned(sha: _Sha2, name: str, turns: tuple[int, ...], shift: int | None = None) -> str:
    word = f"i{sha.bits}"
    parts = [f"({word}.rotr (local.get ${name}) ({word}.const {by}))" for by in turns]
    if shift is not None:
        parts.append(f"({word}.shr_u (local.get ${name}) ({word}.const {shift}))")
    return f"({word}.xor ({word}.xor {parts[0]} {parts[1]}) {parts[2]})"


def _extended(sha: _Sha2, number: int) -> str:
    word, here = f"i{sha.bits}", f"w{number % 16}"
    (low_turn, low_other, low_shift), (high_turn, high_other, high_shift) = sha.mixes
    low = _turned(sha, f"w{(number + 1) % 16}", (low_turn, low_other), low_shift)
    high = _turned(sha, f"w{(number + 14) % 16}", (high_turn, high_other), high_shift)
    text = f"({word}.add (local.get ${here}) (local.get $w{(number + 9) % 16}))"
    return f"(local.set ${here} ({word}.add {text} ({word}.add {low} {high})))"


def _round(sha: _Sha2, names: list[str], given: str, constant: int) -> list[str]:
    word = f"i{sha.bits}"
    a, b, c, d, e, f, g, h = (f"(local.get ${name})" for name in names)
    choice = f"({word}.xor {g} ({word}.and {e} ({word}.xor {f} {g})))"
    majority = f"({word}.or ({word}.and {a} {b}) ({word}.and {c} ({word}.or {a} {b})))"
    added = f"({word}.add (local.get ${given}) ({word}.const {constant:#x}))"
    total = f"({word}.add ({word}.add {h} {_turned(sha, names[4], sha.sums[1])}) ({word}.add {choice} {added}))"
    return [
        f"(local.set $t {total})",
        f"(local.set ${names[3]} ({word}.add {d} (local.get $t)))",
        f"(local.set ${names[7]} ({word}.add (local.get $t) ({word}.add {_turned(sha, names[0], sha.sums[0])} {majority})))",
    ]


def _repeated(sha: _Sha2) -> str:
    """`$repeatN(work, count)`, and what Python calls."""
    word, bits, size = f"i{sha.bits}", sha.bits * 8, sha.bits // 8

    def at(place: int) -> str:
        return f"(i32.add (local.get $work) (i32.const {place * size}))"

    sums = "\n      ".join(
        f"({word}.store offset={(32 + place) * size} (local.get $work) ({word}.xor"
        f" ({word}.load offset={(32 + place) * size} (local.get $work))"
        f" ({word}.load offset={(16 + place) * size} (local.get $work))))"
        for place in range(8)
    )
    return f"""  (func $repeat{bits} (param $work i32) (param $count i32)
    (call $compress{bits} {at(0)} {at(40)} {at(0)})
    (call $compress{bits} {at(8)} {at(56)} {at(8)})
    (block $done (loop $again
      (br_if $done (i32.eqz (local.get $count)))
      (call $compress{bits} {at(0)} {at(16)} {at(16)})
      (call $compress{bits} {at(8)} {at(16)} {at(16)})
      {sums}
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $again))))
  (export "repeat{bits}" (func $repeat{bits}))
  (func $rounds{bits} (param $self i32) (param $given i32) (param $count i32) (result i32)
    (call $repeat{bits} (call $bytes (i32.load (local.get $given))) (call $number (i32.load offset=4 (local.get $given))))
    (call $long (i32.const 0)))"""


def _quarter(a: int, b: int, c: int, d: int) -> str:
    steps = ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18))
    return "\n".join(
        f"(local.set $x{to} (i32.xor (local.get $x{to})"
        f" (i32.rotl (i32.add (local.get $x{number}) (local.get $x{other})) (i32.const {bits}))))"
        for to, number, other, bits in steps
    )


def _text() -> str:
    memory_info = bytes((1, 5, *_leb(_DATA_BYTES), 3, len(_METHODS), 0))
    return f"""(module
  (@custom "dylink.0" (before first) "{"".join(f"{chr(92)}{byte:02x}" for byte in memory_info)}")
  (import "env" "memory" (memory 0))
  (import "env" "__indirect_function_table" (table 0 funcref))
  (import "env" "__memory_base" (global $memory_base i32))
  (import "env" "__table_base" (global $table_base i32))
  (import "env" "PyModule_Create2" (func $create (param i32 i32) (result i32)))
  (import "env" "PyByteArray_AsString" (func $bytes (param i32) (result i32)))
  (import "env" "PyLong_AsLong" (func $number (param i32) (result i32)))
  (import "env" "PyLong_FromLong" (func $long (param i32) (result i32)))
  (elem (global.get $table_base) func $romix $rounds256 $rounds512)
  (data (global.get $memory_base) "{chr(92) + "00"}")

{_blockmix()}
{_MIX}
{_ROMIX}
{_compress(_SHA256)}
{_repeated(_SHA256)}
{_compress(_SHA512)}
{_repeated(_SHA512)}
{_init()}
)"""


def _blockmix() -> str:
    locals_ = " ".join(f"(local $x{word} i32) (local $t{word} i32)" for word in range(16))
    last = "\n".join(f"(local.set $t{word} (i32.load offset={4 * word} (local.get $last)))" for word in range(16))
    mixed_in = "\n".join(
        f"(local.set $t{word} (i32.xor (local.get $t{word}) (i32.load offset={4 * word} (local.get $in))))"
        f" (local.set $x{word} (local.get $t{word}))"
        for word in range(16)
    )
    rounds = "\n".join(_quarter(*places) for places in (*_COLUMNS, *_ROWS))
    added = "\n".join(
        f"(local.set $t{word} (i32.add (local.get $t{word}) (local.get $x{word})))"
        f" (i32.store offset={4 * word} (local.get $to) (local.get $t{word}))"
        for word in range(16)
    )
    return f"""  (func $blockmix (param $from i32) (param $result i32) (param $r i32)
    (local $i i32) (local $in i32) (local $to i32) (local $last i32) (local $round i32) {locals_}
    (local.set $last (i32.add (local.get $from)
      (i32.shl (i32.sub (i32.shl (local.get $r) (i32.const 1)) (i32.const 1)) (i32.const 6))))
    {last}
    (loop $blocks
      (local.set $in (i32.add (local.get $from) (i32.shl (local.get $i) (i32.const 6))))
      {mixed_in}
      (local.set $round (i32.const 4))
      (loop $rounds
        {rounds}
        (br_if $rounds (local.tee $round (i32.sub (local.get $round) (i32.const 1)))))
      (local.set $to (i32.add (local.get $result) (i32.shl (i32.add (i32.shr_u (local.get $i) (i32.const 1))
        (i32.mul (i32.and (local.get $i) (i32.const 1)) (local.get $r))) (i32.const 6))))
      {added}
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $blocks (i32.lt_u (local.get $i) (i32.shl (local.get $r) (i32.const 1))))))"""


def _init() -> str:
    names = ["_freehold_hash", *_METHODS]
    places = {name: _NAMES + _NAME_BYTES * place for place, name in enumerate(names)}
    fields = {0: "(i32.const 1)", 20: _at(places["_freehold_hash"]), 28: "(i32.const -1)", 32: _at(_METHOD)}
    for place, name in enumerate(_METHODS):
        row = _METHOD + 16 * place
        fields[row] = _at(places[name])
        fields[row + 4] = f"(i32.add (global.get $table_base) (i32.const {place}))"
        fields[row + 8] = f"(i32.const {_METH_FASTCALL})"
    stored = "\n".join(f"(i32.store {_at(place)} {value})" for place, value in fields.items())
    named = "\n".join(_put(name, place) for name, place in places.items())
    return f"""  (func (export "PyInit__freehold_hash") (result i32)
    {stored}
    {named}
    (call $create {_at(0)} (i32.const {_API_VERSION})))"""


def _at(place: int) -> str:
    return f"(i32.add (global.get $memory_base) (i32.const {place}))"


def _put(text: str, place: int) -> str:
    return "\n".join(
        f"(i32.store8 {_at(place + index)} (i32.const {byte}))" for index, byte in enumerate(text.encode() + b"\0")
    )


def _leb(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*parts, number))


@functools.cache
def module() -> bytes:
    """Return the compiled module; the same bytes each time."""
    return bytes(wasmtime.wat2wasm(_text()))
