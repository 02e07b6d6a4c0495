"""The compiler process: one file in, one artifact out, under its own limits of memory and time.

`python -m runtime.sandbox.compiler SOURCE TARGET` compiles, links the result against the host's interfaces so that wrong types
are found before anything runs, writes the serialized artifact to TARGET, and prints one JSON object: `{"ok": true,
"kind": ...}` or `{"error": "..."}`. A crash of the compiler is an exit without that line. Not here: the cache.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Final

import wasmtime
from wasmtime import component as wc

from runtime.engine.engine import engine
from runtime.engine.interface import split_import
from runtime.engine.linking import LinkError, link
from runtime.sandbox.adapter import wrapped
from runtime.sandbox.component import ComponentError, ComponentInfo, check
from runtime.sandbox.sandbox import ENTRIES
from runtime.wasi import WITH_ADAPTER

MEMORY_MAX_BYTES: Final = 8 * 1024**3
"""Address space; an 18 MB Python component takes about 1.5 GiB of it."""
CPU_MAX_S: Final = 300
"""Processor seconds; that component takes 11 on a slow machine."""
NICENESS: Final = 5
"""Requests come first."""


def compile_file(source: Path, target: Path) -> str:
    """Compile `source` to `target` and return its kind; raises `ComponentError`, also if nobody waits any more."""
    parent = os.getppid()
    data = source.read_bytes()
    info = check(data)
    try:
        if info.kind == "module":
            artifact = bytes(wasmtime.Module(engine(), data).serialize())
        else:
            component = _with_adapter(data, info) or wc.Component(engine(), data)
            link(engine(), component, WITH_ADAPTER, ENTRIES[info.kind])
            artifact = bytes(component.serialize())
    except wasmtime.WasmtimeError as error:
        raise ComponentError(f"The WebAssembly file is invalid: {_first_line(str(error))}.") from None
    except LinkError as error:
        text = str(error)
        raise ComponentError(text[0].upper() + text[1:] + ".") from None
    if os.getppid() != parent:
        raise ComponentError("Whoever asked for this has ended.")  # and what is written now would be left behind
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(artifact)
        file.flush()
        os.fsync(file.fileno())
    return info.kind


def _with_adapter(data: bytes, info: ComponentInfo) -> wc.Component | None:
    """Compile a component with the adapter around it; None where there can be none, for whatever reason."""
    entry = next(name for name in info.exports if split_import(name)[0] == ENTRIES[info.kind][0])
    try:
        around = wrapped(data, entry)
        return wc.Component(engine(), around) if around is not None else None
    except wasmtime.WasmtimeError:
        return None  # if it is wrong in itself, compiling it alone says how


def _first_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.strip().splitlines()[:3]).rstrip(".")


def main(arguments: list[str]) -> int:
    """Run once; the exit code is 0 whenever the JSON line was printed."""
    source, target = arguments
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
    # Ended by SIGXCPU, which tells a component that takes too long from a compiler that somebody killed.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_MAX_S, CPU_MAX_S + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICENESS)
    try:
        answer = {"ok": True, "kind": compile_file(Path(source), Path(target))}
    except ComponentError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "The compiler ran out of memory."}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
