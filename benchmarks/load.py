"""Runs the load generator `load.c` in a process of its own; compiled once with the fixtures' C compiler."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tests.fixtures.build import CACHE, digest_of, locked, run, zig

SOURCE: Final = Path(__file__).with_name("load.c")
MARGIN_S: Final = 30


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of the generator saw. Times in microseconds; `cpu_us` is the generator's own cost per request."""

    requests: int
    errors: int
    not_ok: int
    seconds: float
    p50_us: int
    p99_us: int
    cpu_us: float

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


@cache
def generator() -> Path:
    """The compiled generator."""
    home = CACHE / "tools" / f"load-{digest_of(SOURCE.read_text())[:16]}"
    with locked(home.with_suffix(".lock")):
        if not home.exists():
            run(*zig(), "cc", "-O2", SOURCE, "-o", home.with_suffix(".part"))
            home.with_suffix(".part").replace(home)
    return home


def load(port: int, connections: int, seconds: float, path: str = "/") -> Load:
    """Load 127.0.0.1:`port` for `seconds`. Raises if any response was broken or not 200."""
    command = [str(generator()), str(port), str(connections), str(seconds), path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + MARGIN_S, check=True)
    result = Load(**json.loads(done.stdout))
    if result.errors or result.not_ok or not result.requests:
        raise RuntimeError(f"the server did not answer well: {result}")
    return result
