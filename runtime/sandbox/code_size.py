"""What code may cost to compile, judged by its shape before a compiler sees it: the size and the width of each function.

A compiler's work and memory grow with both at once: each place of a function may have to know of each value that is alive
there. 1.1 MB of code in one function with 1,000 locals takes 4 minutes and 2.4 GiB, so it is refused by looking; the
largest function of CPython, StarlingMonkey, Go and wasm-tools is a fourth of the limit. Not here: holding a compilation to its
limits (compiler.py), and whose turn it is (compile_turns.py).
"""

from __future__ import annotations

from typing import Final

from runtime.engine.wasm_binary import Reader

WORK_MAX: Final = 100_000_000
"""Bytes of a function times its width, at most: some 8 s of one processor and 0.6 GiB."""

WIDTH_UNKNOWN: Final = 1_000
"""The width of a type that cannot be read here: the most parameters that WebAssembly lets a function have."""

DEPTH_MAX: Final = 16
"""Components within components."""

MIB: Final = 1024 * 1024
MEMORY_MAX_BYTES: Final = 8 * 1024**3
"""Address space, at most; an 18 MB Python component takes about 1.5 GiB of it."""
CPU_MAX_S: Final = 300
"""Processor seconds, at most; that component takes 11 on a slow machine."""

_MODULE: Final = b"\x01\x00\x00\x00"


def limits_for(size_bytes: int) -> tuple[int, int]:
    """Return how many processor seconds and bytes of address space a file of this size may cost."""
    mib = size_bytes // MIB + 1
    return min(CPU_MAX_S, 30 + 4 * mib), min(MEMORY_MAX_BYTES, 2 * 1024 * MIB + 128 * MIB * mib)


def code_problem(data: bytes) -> str | None:
    """Return a sentence if a function of a module or component is too costly to compile; raises IndexError if cut short."""
    return _problem(data, 0, len(data), 0)


def _problem(data: bytes, begin: int, end: int, depth: int) -> str | None:
    if depth > DEPTH_MAX:
        return f"Components are nested more than {DEPTH_MAX} deep."
    module = data[begin + 4 : begin + 8] == _MODULE
    reader = Reader(data, begin + 8, end)
    width = 0
    while reader.more:
        section = reader.byte()
        content = reader.part(reader.number())
        text = None
        if not module and section in {1, 4}:  # a module, a component
            text = _problem(data, content.at, content.end, depth + 1)
        elif module and section == 1:
            width = _type_width(content)
        elif module and section == 10:
            text = _functions_problem(content, width)
        if text is not None:
            return text
    return None


def _type_width(types: Reader) -> int:
    """The most parameters and results together that a type of the module has: functions and blocks carry them all."""
    widest = 0
    for _ in range(types.number()):
        if types.byte() != 0x60:
            return WIDTH_UNKNOWN
        width = 0
        for _ in range(2):
            count = types.number()
            for _ in range(count):
                if types.byte() in {0x63, 0x64}:  # a reference, whose heap type follows
                    types.number()
            width += count
        widest = max(widest, width)
    return widest


def _functions_problem(code: Reader, width: int) -> str | None:
    for number in range(code.number()):
        body = code.part(code.number())
        size_bytes = body.end - body.at
        local_count = 0
        for _ in range(body.number()):
            local_count += body.number()
            if body.byte() in {0x63, 0x64}:
                body.number()
        if size_bytes * (local_count + width) > WORK_MAX:
            return (
                f"Function {number} of its code has {size_bytes:,} bytes and {local_count:,} local variables, which is more "
                "than a node compiles; split it, or let the toolchain optimize for size."
            )
    return None
