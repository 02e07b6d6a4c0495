"""How large this process's linear memories are, read from the kernel, since wasmtime's C API does not say.

A linear memory is a run of writable pages before an inaccessible reservation of gigabytes. Reading the map costs about
0.3 ms, so it is done when an instance is made to be kept, every so many uses of it, and after a trap. Where there is no
`/proc` (macOS) nothing is known and instances retire by uses alone. Not here: limits, which the store enforces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

RESERVATION_MIN_BYTES: Final = 2 * 1024**3
"""wasmtime reserves 4 GiB for each memory; nothing else in a worker reserves that much."""

_MAPS: Final = Path("/proc/self/maps")


def linear_memories() -> dict[int, int]:
    """Return start address -> accessible bytes of every linear memory of this process."""
    try:
        return parse(_MAPS.read_text())
    except OSError:
        return {}


def parse(maps: str) -> dict[int, int]:
    """Return the linear memories in the text of a `/proc/PID/maps`."""
    table: dict[int, int] = {}
    run_start = run_end = 0
    for line in maps.splitlines():
        span, access = line.split(maxsplit=2)[:2]
        start_text, _, end_text = span.partition("-")
        start, end = int(start_text, 16), int(end_text, 16)
        if access.startswith("rw"):
            if start != run_end:
                run_start = start
            run_end = end
        elif access.startswith("---") and start == run_end and end - start >= RESERVATION_MIN_BYTES:
            table[run_start] = run_end - run_start
    return table
