"""The compiler process: one file in, one artifact out, under its own limits of memory and time.

`python -m runtime.sandbox.compiler SOURCE TARGET` compiles, links the result against the host's interfaces so that wrong
types are found before anything runs, writes the serialized artifact to TARGET, and prints one JSON object: `{"ok": true,
"kind": ...}` or `{"error": "..."}`, with the processor time it took, `cpu_s`. A crash of the compiler is an exit without
that line. Not here: the cache.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Final

import wasmtime
from wasmtime import component as wc

from runtime.engine.engine import engine
from runtime.engine.interface import split_import
from runtime.engine.linking import LinkError, link
from runtime.sandbox.adapter import wrapped
from runtime.sandbox.code_size import limits_for
from runtime.sandbox.component import ComponentError, ComponentInfo, check
from runtime.sandbox.sandbox import ENTRIES
from runtime.wasi import WITH_ADAPTER

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
    cpu_s, memory_bytes = limits_for(Path(source).stat().st_size)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # Ended by SIGXCPU, which tells a component that takes too long from a compiler that somebody killed.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICENESS)
    answer: dict[str, object]
    try:
        answer = {"ok": True, "kind": compile_file(Path(source), Path(target))}
    except ComponentError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "The compiler ran out of memory."}
    answer["cpu_s"] = round(time.process_time(), 3)
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
