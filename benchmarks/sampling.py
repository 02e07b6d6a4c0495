"""Rounds of load on several running servers in turn: what the generator saw, and what each request cost the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.load import Load, load
from benchmarks.processes import cpu_s
from runtime.native.choice import load_module

ENGINES: Final = {"python": ""} if load_module()[0] is None else {"python": "", "native": "native "}
"""Our engines, and what stands before the names of their rows; the native one where it is built."""

REUSE_PEER: Final = "1000"
"""Requests that one instance of `wasmtime serve` answers, where it reuses them."""


@dataclass(frozen=True, slots=True)
class Target:
    """One running server: how it is called in the rows, and the processes whose time counts."""

    name: str
    port: int
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One round at one target: what the generator saw, and the server's processor time per request."""

    seen: Load
    cpu_us: float


def sampled(
    targets: list[Target], connections: Sequence[int], count: int, seconds: float
) -> dict[tuple[str, int], list[Sample]]:
    """Load the targets in turn, `count` times over with each number of connections, after one short warm-up each."""
    for target in targets:
        load(target.port, 4, 0.3)
    samples: dict[tuple[str, int], list[Sample]] = {}
    for _ in range(count):
        for clients in connections:
            for target in targets:
                try:
                    sample = _round(target, clients, seconds)
                except RuntimeError:  # a busy machine may leave a server without a turn for a whole round: once more
                    sample = _round(target, clients, 2 * seconds)
                samples.setdefault((target.name, clients), []).append(sample)
    return samples


def _round(target: Target, clients: int, seconds: float) -> Sample:
    before_s = cpu_s(target.pids)
    seen = load(target.port, clients, seconds)
    return Sample(seen, (cpu_s(target.pids) - before_s) * 1e6 / seen.requests)
