"""One hello over the number of connections: our two engines, `wasmtime serve`, and what a user would pick instead.

All in one run, alternating rounds, medians. Ours and `wasmtime serve` run the same component, in Python, reusing instances;
Flask, FastAPI and Hono run outside any sandbox. Every server has one process or thread per core. Processor time is that of
all processes of a server. Two pictures show requests per second and p99: `serving-rate.svg` and `serving-p99.svg`. The
rows are a part of the section `serving`. Not here: guests in other languages and fresh instances (`serving.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks import alternatives, plot
from benchmarks.rows import Row, beside
from benchmarks.sampling import ENGINES, REUSE_PEER, Sample, Target, sampled
from tests.conformance import peer
from tests.conformance.ours import serve_ours
from tests.fixtures.build import component

CONNECTIONS: Final = (1, 4, 16, 64)
ROUNDS: Final = 3
ROUND_S: Final = 1.0
TIMED: Final = 16
"""Connections whose processor time is a row: enough that no server waits for its clients."""

NAMES: Final = {"python": "Freehold, Python engine", "native": "Freehold, native engine"}
AIMS: Final = (("requests/s", 64, 1.1), ("p99", 64, 1.0), ("p50", 1, 1.2), ("CPU", TIMED, 1.2))
"""A value, the connections it is taken at, and how many times better than `wasmtime serve` the native engine is to be."""

PICTURES: Final = {"serving-rate.svg": "requests/s", "serving-p99.svg": "p99"}
VALUES: Final[dict[str, tuple[str, Callable[[Sample], float]]]] = {
    "requests/s": ("1/s", lambda sample: sample.seen.per_s),
    "p50": ("us", lambda sample: sample.seen.p50_us),
    "p99": ("us", lambda sample: sample.seen.p99_us),
    "CPU": ("us/request", lambda sample: sample.cpu_us),
}


def beside_alternatives(quick: bool) -> Iterator[Row]:
    """Measure all of them; draw the pictures, unless it is only a look."""
    binary = peer.wasmtime(build=not quick)
    with contextlib.ExitStack() as stack:
        targets = list(_start(stack, binary))
        table = sampled(targets, CONNECTIONS, 1 if quick else ROUNDS, ROUND_S / 2 if quick else ROUND_S)
    drawn: dict[str, dict[str, dict[int, float]]] = {what: {} for what in VALUES}
    for target in targets:
        for connections in CONNECTIONS:
            group = table[target.name, connections]
            for what, (unit, pick) in VALUES.items():
                value = round(median(map(pick, group)), 1)
                drawn[what].setdefault(target.name, {})[connections] = value
                if what != "CPU" or connections == TIMED:
                    yield Row(f"{target.name}, {connections} conn: {what}", value, unit)
    if not quick:
        for file, what in PICTURES.items():
            picture = plot.lines(f"Hello: {what}", VALUES[what][0], "connections", drawn[what])
            Path(__file__).with_name(file).write_text(picture)
    if binary is None:
        yield Row("wasmtime serve", 0, "requests", note=peer.NOTHING_TO_ASK)
    elif "native" in ENGINES:
        yield from _aimed(table, peer.wasmtime_version(binary) + " serve")


def _aimed(found: dict[tuple[str, int], list[Sample]], by: str) -> Iterator[Row]:
    """The native engine beside `wasmtime serve`, both reusing instances on as many threads as there are cores."""
    for what, connections, times in AIMS:
        unit, pick = VALUES[what]
        ours, theirs = (round(median(map(pick, found[name, connections])), 1) for name in (NAMES["native"], by))
        row = beside(f"native engine beside {by}, {connections} conn: {what}", ours, unit, by, theirs)
        if unit == "1/s":
            yield row._replace(aim=f">= {times:g} x peer", met=ours >= times * theirs)
        else:
            yield row._replace(aim=f"<= peer / {times:g}", met=ours * times <= theirs)


def _start(stack: contextlib.ExitStack, binary: Path | None) -> Iterator[Target]:
    workers, guest = os.cpu_count() or 1, component("python")
    for engine in ENGINES:
        ours = stack.enter_context(
            serve_ours(guest, workers=workers, engine=engine, instances="reuse", memory_max_bytes=512 << 20)
        )
        yield Target(NAMES[engine], ours.port, (ours.pid, *ours.workers))
    if binary is not None:
        theirs = stack.enter_context(peer.wasmtime_serve(binary, guest, "--max-instance-reuse-count", REUSE_PEER))
        yield Target(peer.wasmtime_version(binary) + " serve", theirs.port, (theirs.pid,))
    for name in alternatives.available():
        other = stack.enter_context(alternatives.serve(name))
        yield Target(name, other.port, other.pids)
