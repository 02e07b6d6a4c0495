"""The adapter around a guest: any bytes pass both ways unchanged, it is there where it pays, and nobody gains by it."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from wasmtime import component as wc

from runtime.engine import bindings
from runtime.engine.engine import engine
from runtime.outcome import Completed, Exited, Trapped
from runtime.sandbox import adapter
from runtime.sandbox.adapter import TRANSFER_MAX_BYTES, wrapped
from runtime.sandbox.compiler import compile_file
from runtime.sandbox.component import ComponentError, check, inspect
from runtime.sandbox.sandbox import CommandResult, LoadedApp, Sandbox
from runtime.wasi.streams import BLOCKING_WRITE_MAX_BYTES, hex_streams
from tests.support.runtime.wasm_parts import SilentLog, a_spec, an_exchange
from tests.support.runtime.wasm_text import command, importing

EVERY_BYTE = bytes(range(256))
SIZES = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257, 4095, 65_535, 65_537, 200_001)


@pytest.fixture(scope="module", params=["raw calls", "the public API"])
def probe(request: pytest.FixtureRequest, component: Callable[[str], Path]) -> LoadedApp:
    """The compiled probe with the adapter, on both roads into a guest."""
    data = component("probe").read_bytes()
    around = wrapped(data, "wasi:http/incoming-handler@0.2.12")
    assert around is not None
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "the public API":
            patch.setattr(bindings, "supported", lambda: False)
        return Sandbox().load_component(a_spec(), SilentLog(), wc.Component(engine(), around))


@pytest.mark.parametrize("size", SIZES)
def test_any_bytes_pass_unchanged_both_ways(probe: LoadedApp, size: int) -> None:
    noise = random.Random(size).randbytes(max(size - 256, 0))
    body = (EVERY_BYTE + noise)[:size]
    exchange = an_exchange("/echo", "POST")
    with pytest.raises(StopIteration):
        exchange.body.feed(body).send(None)  # it has room, so it does not wait
    assert probe.handle(exchange) == Completed()
    assert b"".join(exchange.response.collect().chunks) == body


STREAMS = """
  (import "wasi:io/error@0.2.0" (instance $error (export "error" (type (sub resource)))))
  (alias export $error "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $out (sub resource)))
    (export "error" (type $e (eq $error)))
    (type $failure (variant (case "last-operation-failed" (own $e)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $failure)))
    (export "{method}" (func (param "self" (borrow $out)) {signature}))
    {more}))
  (alias export $streams "output-stream" (type $out))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (export "output-stream" (type $o (eq $out)))
    (export "get-stdout" (func (result (own $o))))))
"""
WRITES = """
(component
  {streams}
  (core module $memory (memory (export "memory") 40)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable)
    (data (i32.const 16) "\\00\\01some \\7f\\80\\ff text\\0a"))
  (core instance $memory (instantiate $memory))
  (core func $get (canon lower (func $stdout "get-stdout")))
  (core func $write (canon lower (func $streams "{method}")
    (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (core module $main
    (import "" "get" (func $get (result i32)))
    (import "" "write" (func $write (param i32 i32 i32 i32)))
    (import "memory" "memory" (memory 1))
    (func (export "run") (result i32)
      (call $write (call $get) (i32.const 16) (i32.const {size}) (i32.const 0))
      (i32.load8_u (i32.const 0))))
  (core instance $main (instantiate $main
    (with "" (instance (export "get" (func $get)) (export "write" (func $write))))
    (with "memory" (instance $memory))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $exports (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exports)))
"""
BLOCKING = "[method]output-stream.blocking-write-and-flush"
WRITE = "[method]output-stream.write"
CONTENTS = '(param "contents" (list u8)) (result (result (error $stream-error)))'


def streams(method: str = WRITE, signature: str = CONTENTS, more: str = "") -> str:
    return STREAMS.format(method=method, signature=signature, more=more)


def a_writer(method: str, size: int) -> bytes:
    """A command that writes `size` bytes to its output by `method`, which asks for no permit."""
    also = f'(export "{WRITE}" (func (param "self" (borrow $out)) {CONTENTS}))' if method != WRITE else ""
    text = WRITES.format(streams=streams(method, more=also), method=method, size=size)
    return bytes(wasmtime.wat2wasm(text))


def run(data: bytes) -> CommandResult:
    around = wrapped(data, "wasi:cli/run@0.2.0")
    assert around is not None
    app = Sandbox().load_component(a_spec(kind="command"), SilentLog(), wc.Component(engine(), around))
    return app.run()


def test_a_blocking_write_passes_too() -> None:
    result = run(a_writer(BLOCKING, 19))
    assert result.outcome == Exited(0)
    assert result.stdout == b"\x00\x01some \x7f\x80\xff text\n" + bytes(3)


@pytest.mark.parametrize(
    ("method", "size"),
    [
        (WRITE, 1),
        (BLOCKING, BLOCKING_WRITE_MAX_BYTES + 1),
        (WRITE, TRANSFER_MAX_BYTES + 1),
        (WRITE, 2 * TRANSFER_MAX_BYTES + 1),
        (WRITE, 0x8000_0000),
        (WRITE, 0xFFFF_FFFF),
    ],
)
def test_writing_more_than_is_permitted_traps_and_writes_nothing(method: str, size: int) -> None:
    result = run(a_writer(method, size))
    assert isinstance(result.outcome, Trapped)
    assert result.stdout == b""


def imports_of(source: Path, target: Path) -> set[str]:
    compile_file(source, target)
    return set(wc.Component.deserialize_file(engine(), str(target)).type.imports(engine()))


def test_the_compiler_puts_it_where_bytes_are_moved_and_nowhere_else(
    component: Callable[[str], Path], tmp_path: Path
) -> None:
    assert hex_streams.name in imports_of(component("probe"), tmp_path / "probe")
    assert hex_streams.name not in imports_of(component("hello"), tmp_path / "hello"), "it writes 4 KiB at most"


def test_no_guest_may_import_what_the_adapter_does() -> None:
    with pytest.raises(ComponentError, match="does not offer"):
        check(importing(hex_streams.name))


OTHER_FORMS = {
    "no streams": "",
    "nothing that moves bytes": streams("[method]output-stream.flush", "(result (result (error $stream-error)))"),
    "a function nobody knows": streams(
        more='(export "[method]output-stream.sing" (func (param "self" (borrow $out))))'
    ),
    "a type nobody knows": streams(more='(export "song" (type (sub resource)))'),
    "an import behind a module": '(core module) (import "wasi:random/random@0.2.0" (instance))' + streams(),
    "streams twice": streams() + '(import "wasi:io/streams@0.2.1" (instance))',
    "an import that is no interface": streams() + '(import "f" (func))',
    "a type inside a type": streams() + "(type (instance (type (instance))))" + '(import "a:b/c" (instance))',
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_component_of_another_form_stays_as_it_is(form: str) -> None:
    assert wrapped(command("(i32.const 0)", imports=OTHER_FORMS[form]), "wasi:cli/run@0.2.0") is None


def test_wrong_types_are_named_as_without_it(tmp_path: Path) -> None:
    imports = streams(signature='(param "contents" (list u16)) (result (result (error $stream-error)))')
    source = tmp_path / "wrong.wasm"
    source.write_bytes(command("(i32.const 0)", imports=imports))
    with pytest.raises(ComponentError, match="another type for"):
        compile_file(source, tmp_path / "out")


def test_no_damage_makes_it_fail(component: Callable[[str], Path]) -> None:
    data = component("probe").read_bytes()
    chance = random.Random(7)
    for _ in range(300):
        damaged = bytearray(data[: chance.randrange(8, 12_000)])
        for _ in range(chance.randrange(4)):
            damaged[chance.randrange(8, len(damaged))] = chance.randrange(256)
        with contextlib.suppress(wasmtime.WasmtimeError):  # the compiler then compiles it alone, and says what is wrong
            wrapped(bytes(damaged), "wasi:http/incoming-handler@0.2.12")


def test_what_it_makes_has_a_version() -> None:
    """A compiled artifact's name holds `VERSION`: without another one, nodes would go on with what they compiled."""
    sample = a_writer(WRITE, 1)
    assert inspect(sample).kind == "command"
    text = hashlib.sha256(wrapped(sample, "wasi:cli/run@0.2.0") or b"").hexdigest()[:16]
    assert (adapter.VERSION, text) == (1, "03f030f6f4e7886f"), (
        "give adapter.VERSION another number, and both of them here"
    )
