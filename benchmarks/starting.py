"""How long a fresh instance takes to its first byte, and what workers and instances occupy in memory.

First byte: one request at a time with a pause before each, on a connection that is already open, timed from the write of
the request to the first byte of the answer. "prepared" is the default (an instance made while idle waits for the next
request), "made on demand" has none ready and is the whole cost of a fresh instance. The peer always makes one on
demand. Memory is the proportional set size (shared pages divided among their users) of an idle worker.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.load import load
from benchmarks.processes import proportional_mib, resident_mib
from benchmarks.rows import Row
from tests.conformance import peer
from tests.conformance.ours import serve_ours
from tests.fixtures.build import component

FIRST_BYTE_AIM_MS: Final = 3.0
REQUESTS: Final = 60
PAUSE_S: Final = 0.015
"""Long enough for the worker to make the next instance before the next request."""

INSTANCES: Final = (1, 9)
USED: Final = {"python": "Python", "probe": "compiled C"}
USED_INSTANCES: Final = 8
REQUEST: Final = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
GUESTS: Final = {"javascript": "JavaScript", "python": "Python", "wsgi": "WSGI", "hello": "minimal C"}


def run(quick: bool) -> Iterator[Row]:
    binary = peer.wasmtime(build=not quick)
    for guest, spoken in GUESTS.items():
        with contextlib.ExitStack() as stack:
            taken = rounds(list(start(stack, component(guest), binary)), quick)
        theirs = f"{peer.wasmtime_version(binary)} serve: {taken.pop('peer')} ms" if binary is not None else ""
        for how, value in taken.items():
            name = f"first byte, fresh {spoken} instance, {how}"
            aimed = guest == "javascript"
            aim, met = (f"< {FIRST_BYTE_AIM_MS:g}", value < FIRST_BYTE_AIM_MS) if aimed else ("", None)
            yield Row(name, value, "ms", aim, met, theirs)
    yield from memory()


def start(stack: contextlib.ExitStack, file: Path, binary: Path | None) -> Iterator[tuple[str, int]]:
    """Our host with instances made ahead, without, and the peer."""
    for name, ready in (("prepared", 4), ("made on demand", 0)):
        yield name, stack.enter_context(serve_ours(file, memory_max_bytes=512 << 20, instances_ready=ready)).port
    if binary is not None:
        yield "peer", stack.enter_context(peer.wasmtime_serve(binary, file)).port


def rounds(servers: list[tuple[str, int]], quick: bool) -> dict[str, float]:
    """The median milliseconds to the first byte of each server, asked in turn."""
    taken: dict[str, list[float]] = {name: [] for name, _ in servers}
    with contextlib.ExitStack() as stack:
        connections = {
            name: stack.enter_context(socket.create_connection(("127.0.0.1", port))) for name, port in servers
        }
        for connection in connections.values():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(REQUESTS // (4 if quick else 1)):
            for name, connection in connections.items():
                time.sleep(PAUSE_S)
                taken[name].append(first_byte_ms(connection))
    return {name: round(median(times), 2) for name, times in taken.items()}


def first_byte_ms(connection: socket.socket) -> float:
    """One request; what is left of its answer is read too."""
    began_s = time.perf_counter()
    connection.sendall(REQUEST)
    data = connection.recv(65536)
    taken_ms = (time.perf_counter() - began_s) * 1000
    while b"hello world" not in data or (b"chunked" in data and not data.endswith(b"0\r\n\r\n")):
        data += connection.recv(65536)
    return taken_ms


def memory() -> Iterator[Row]:
    """An idle worker, and what each further waiting instance adds."""
    for guest, spoken in GUESTS.items():
        sizes = []
        for count in INSTANCES:
            with serve_ours(component(guest), instances_ready=count, memory_max_bytes=512 << 20) as server:
                time.sleep(0.3)  # the worker makes its instances while it is idle
                sizes.append(proportional_mib(server.workers[0]))
                resident = resident_mib(server.workers[0])
        yield Row(
            f"an idle worker with one {spoken} instance", round(sizes[0], 1), "MiB", note=f"{resident:.0f} MiB resident"
        )
        number = (sizes[1] - sizes[0]) / (INSTANCES[1] - INSTANCES[0])
        yield Row(f"each further {spoken} instance, not yet used", round(number, 2), "MiB")
    for guest, spoken in USED.items():
        with serve_ours(component(guest), instances="reuse", memory_max_bytes=512 << 20) as server:
            used = []
            for connections in (
                1,
                USED_INSTANCES,
            ):  # every request of `/stream` holds its instance for a third of a second
                load(server.port, connections, 1.0, "/stream")
                used.append(proportional_mib(server.workers[0]))
        number = (used[1] - used[0]) / (USED_INSTANCES - 1)
        yield Row(f"each kept {spoken} instance that has served", round(number, 2), "MiB")
