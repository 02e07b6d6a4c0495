"""Bodies through a guest and back: megabytes per second, and the worker's memory while 64 MiB pass.

The compiled probe component reads pieces of up to 64 KiB and writes them back as they come; the client sends and
receives at the same time on one connection. The high-water mark of resident memory is reset before each body.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from benchmarks.processes import reset_high_water, resident_mib
from benchmarks.rows import Row, at_most, beside
from tests.conformance import peer
from tests.conformance.ours import serve_ours
from tests.fixtures.build import component

MIB: Final = 1024 * 1024
SIZES: Final = {1: 20, 64: 3}
"""Body in MiB -> how often it is sent."""

GROWTH_AIM_MIB: Final = 16
"""What "constant memory" allows a 64 MiB body: both buffers of an exchange, the guest's own, and the sockets'."""

BLOCK: Final = bytes(range(256)) * 256


def run(quick: bool) -> Iterator[Row]:
    binary, file = peer.wasmtime(build=not quick), component("probe")
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(serve_ours(file, timeout_ms=60_000))
        theirs = stack.enter_context(peer.wasmtime_serve(binary, file)) if binary is not None else None
        yield growth("echo of 64 MiB: rise of resident memory", ours.workers[0], ours.port)
        if theirs is not None:
            yield growth("the same in the peer", theirs.pid, theirs.port)._replace(aim="", met=None)
        for size, times in SIZES.items():
            mine: list[float] = []
            others: list[float] = []
            for _ in range(1 if quick else times):
                mine.append(size / echo(ours.port, size))
                if theirs is not None:
                    others.append(size / echo(theirs.port, size))
            name, value = f"echo of {size} MiB", round(median(mine), 1)
            if binary is None:
                yield Row(name, value, "MiB/s", note=peer.NOTHING_TO_ASK)
            else:
                version = peer.wasmtime_version(binary)
                yield beside(name, value, "MiB/s", f"{version} serve", round(median(others), 1))


def growth(name: str, pid: int, port: int) -> Row:
    """How far resident memory rises in a server that has seen one small body when a 64 MiB one passes."""
    echo(port, 1)
    reset_high_water(pid)
    before = resident_mib(pid)
    echo(port, 64)
    return at_most(name, round(resident_mib(pid, "VmHWM") - before, 1), "MiB", GROWTH_AIM_MIB)


def echo(port: int, size_mib: int) -> float:
    """Send `size_mib` and read it back; return the seconds it took. Raises if the bytes are not the same number."""
    total = size_mib * MIB
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        head = f"POST /echo HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {total}\r\nconnection: close\r\n\r\n"
        began_s = time.perf_counter()
        sender = threading.Thread(target=_send, args=(connection, head.encode(), total), daemon=True)
        sender.start()
        got = bytearray(4 * MIB)
        received = 0
        first = b""
        while count := connection.recv_into(got):
            first = first or bytes(got[: min(count, 400)])
            received += count
        took_s = time.perf_counter() - began_s
        sender.join()
    if received < total or b"200" not in first.split(b"\r\n")[0]:
        raise RuntimeError(f"{received} bytes came back of {total}")
    return took_s


def _send(connection: socket.socket, head: bytes, total: int) -> None:
    connection.sendall(head)
    for _ in range(total // len(BLOCK)):
        connection.sendall(BLOCK)
