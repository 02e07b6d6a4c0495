"""Hello through a real worker pool and through `wasmtime serve`: rate, latency, processor time per request.

The same component files, the same run, alternating rounds (A B A B), medians. Both engines of ours are asked, the native one
where it is built. Our pool has one worker per core, which is its default; `wasmtime serve` has one thread per core by
itself. The generator is a C program whose own cost is a row. Processor time is that of every process of the server, from
/proc. "fresh" is an instance per request, "reuse" one for many; `wasmtime serve` is fresh unless the row says otherwise,
and a componentize-js component can only be fresh. Last come the rows beside what a user would pick instead (choosing.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks import choosing
from benchmarks.load import Load, load
from benchmarks.rows import Row, beside
from benchmarks.sampling import ENGINES, REUSE_PEER, Sample, Target, sampled
from tests.conformance import peer
from tests.conformance.ours import serve_ours
from tests.fixtures.build import component

GUESTS: Final = {"python": "Python", "wsgi": "WSGI", "javascript": "JavaScript", "hello": "minimal C"}
CONNECTIONS: Final = (1, 32)
ROUNDS: Final = 3
ROUND_S: Final = 1.2
NATIVE_AIM: Final = {"hello": 1.1, "python": 1.2}
"""How many times less processor time and latency than `wasmtime serve` the native engine takes, both reusing."""
FRESH_AIM: Final = {"python": 0.5, "wsgi": 0.5, "javascript": 0.5}
"""Of `wasmtime serve`'s rate, fresh against fresh; with reuse the aim is all of its (fresh) rate."""


def run(quick: bool) -> Iterator[Row]:
    binary = peer.wasmtime(build=not quick)
    quickest: list[Load] = []
    for guest, spoken in GUESTS.items():
        with contextlib.ExitStack() as stack:
            targets = list(start(stack, component(guest), guest, binary))
            samples = sampled(targets, CONNECTIONS, 1 if quick else ROUNDS, ROUND_S / 2 if quick else ROUND_S)
        for connections in CONNECTIONS:
            modes = ("fresh", "reuse", "native fresh", "native reuse")
            mine = {name: samples[name, connections] for name in modes if (name, connections) in samples}
            theirs = {
                name: samples[name, connections] for name in ("peer", "peer reuse") if (name, connections) in samples
            }
            version = peer.wasmtime_version(binary) if binary else ""
            yield from compare(f"{spoken}, {connections} conn", guest, mine, theirs, version)
        quickest.append(
            max((sample.seen for group in samples.values() for sample in group), key=lambda seen: seen.requests)
        )
    busiest = max(quickest, key=lambda seen: seen.requests)
    yield Row(
        "load generator's own cost", busiest.cpu_us, "us/request", note="its start included, in the busiest round"
    )
    yield from scaling(quick)
    yield from choosing.beside_alternatives(quick)


def start(stack: contextlib.ExitStack, file: Path, guest: str, binary: Path | None) -> Iterator[Target]:
    """Start our pool fresh, our pool with reuse, and the peer both ways where that works."""
    workers = os.cpu_count() or 1
    modes = ("fresh",) if guest == "javascript" else ("fresh", "reuse")
    for mode in modes:
        more: dict[str, Any] = {"instances": mode, "memory_max_bytes": 512 << 20}
        for engine, prefix in ENGINES.items():
            ours = stack.enter_context(serve_ours(file, workers=workers, engine=engine, **more))
            yield Target(prefix + mode, ours.port, (ours.pid, *ours.workers))
    if binary is None:
        return
    theirs = stack.enter_context(peer.wasmtime_serve(binary, file))
    yield Target("peer", theirs.port, (theirs.pid,))
    if guest != "javascript":
        theirs = stack.enter_context(peer.wasmtime_serve(binary, file, "--max-instance-reuse-count", REUSE_PEER))
        yield Target("peer reuse", theirs.port, (theirs.pid,))


def compare(
    name: str, guest: str, mine: dict[str, list[Sample]], theirs: dict[str, list[Sample]], version: str
) -> Iterator[Row]:
    """Rate, latency and processor time of each of our modes, each beside the peer's fresh numbers."""
    for mode, group in mine.items():
        aim = FRESH_AIM.get(guest) if mode == "fresh" else 1.0 if guest in FRESH_AIM else None
        for what, unit, pick in (
            ("requests/s", "1/s", lambda sample: sample.seen.per_s),
            ("p50", "us", lambda sample: sample.seen.p50_us),
            ("p99", "us", lambda sample: sample.seen.p99_us),
            ("CPU", "us/request", lambda sample: sample.cpu_us),
        ):
            value = round(median(map(pick, group)), 1)
            title = f"{name}, {mode}: {what}"
            if not theirs:
                yield Row(title, value, unit, note=peer.NOTHING_TO_ASK)
                continue
            other = round(median(map(pick, theirs["peer"])), 1)
            yield beside(title, value, unit, f"{version} serve", other, at_least=aim if what == "requests/s" else None)
            if mode.endswith("reuse"):
                again = round(median(map(pick, theirs["peer reuse"])), 1)
                yield both_reusing(f"{title}, both reusing", value, unit, again, f"{version} serve, reuse", mode, guest)


def both_reusing(title: str, value: float, unit: str, theirs: float, by: str, mode: str, guest: str) -> Row:
    """A row beside the peer that reuses too, with the native engine's aim where it has one: less time is better."""
    row = beside(title, value, unit, by, theirs)
    aim = NATIVE_AIM.get(guest)
    if mode != "native reuse" or aim is None or not title.endswith(("CPU, both reusing", "p50, both reusing")):
        return row
    return row._replace(aim=f"<= peer / {aim:g}", met=value * aim <= theirs)


def scaling(quick: bool) -> Iterator[Row]:
    """From one worker to two, alternating; 2.0 is out of reach while the generator shares the cores."""
    for guest, mode in (("python", "reuse"), ("hello", "fresh"), ("javascript", "fresh")):
        with contextlib.ExitStack() as stack:
            targets = []
            for workers in (1, 2):
                more: dict[str, Any] = {"instances": mode, "memory_max_bytes": 512 << 20}
                ours = stack.enter_context(serve_ours(component(guest), workers=workers, **more))
                targets.append(Target(str(workers), ours.port, (ours.pid, *ours.workers)))
            for target in targets:
                load(target.port, 4, 0.3)
            rates: dict[str, list[float]] = {"1": [], "2": []}
            for _ in range(1 if quick else ROUNDS):
                for target in targets:
                    rates[target.name].append(load(target.port, 32, ROUND_S / 2 if quick else ROUND_S).per_s)
        number, two = median(rates["1"]), median(rates["2"])
        name = f"{GUESTS[guest]}, {mode}, 32 conn: from 1 to 2 workers"
        yield Row(name, round(two / number, 2), "x", note=f"{number:,.0f} to {two:,.0f} requests/s")
