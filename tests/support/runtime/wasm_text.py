"""Small components and modules as WebAssembly text. Not a test."""

from __future__ import annotations

import wasmtime

COMMAND = """
(component
  {imports}
  (core module $main
    {core_imports}
    (memory (export "memory") {memory})
    (func (export "run") (result i32) {body}))
  (core instance $main (instantiate $main {with_}))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $exports (export "run" (func $run)))
  (export "wasi:cli/run@{version}" (instance $exports)))
"""

EXIT_IMPORT = """
  (import "wasi:cli/exit@{version}" (instance $exit (export "exit" (func (param "status" (result))))))
  (core func $exit_lowered (canon lower (func $exit "exit")))
"""


def command(body: str, *, memory: str = "1", version: str = "0.2.0", imports: str = "") -> bytes:
    """A `wasi:cli/run` component whose `run` is `body`; 0 on the stack is success."""
    text = COMMAND.format(imports=imports, core_imports="", memory=memory, body=body, with_="", version=version)
    return bytes(wasmtime.wat2wasm(text))


def exiting_command(status: int, version: str = "0.2.3") -> bytes:
    """A command that calls `wasi:cli/exit`."""
    text = COMMAND.format(
        imports=EXIT_IMPORT.format(version=version),
        core_imports='(import "" "exit" (func $exit (param i32)))',
        memory="1",
        body=f"(call $exit (i32.const {status})) (i32.const 0)",
        with_='(with "" (instance (export "exit" (func $exit_lowered))))',
        version=version,
    )
    return bytes(wasmtime.wat2wasm(text))


def importing(name: str, items: str = "") -> bytes:
    """A command that imports the instance `name` with `items` and uses none of it."""
    return command("(i32.const 0)", imports=f'(import "{name}" (instance {items}))')


def module(body: str, *, imports: str = "", memory: str = "1", data: str = "") -> bytes:
    """A preview 1 command: a core module whose `_start` is `body`."""
    text = f'(module {imports} (memory (export "memory") {memory}) {data} (func (export "_start") {body}))'
    return bytes(wasmtime.wat2wasm(text))
