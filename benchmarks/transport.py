"""A connection between two processes over loopback: ours, and py-libp2p 0.8.1 in the same run.

Echo: 100 bytes there and back on one open stream, one at a time. Bulk: one stream, 64 KiB writes, until the receiver
confirms the count. Both sides of each pair share the machine's cores. Not here: the wire's own CPU (`wire`).
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import Row, beside
from protocols.libp2p import multiaddr
from protocols.libp2p.multiaddr import Multiaddr
from tests.support.mesh import libp2p_peers
from tests.support.mesh.libp2p_peers import ECHO, SINK, MissingToolError, running

NODE = Path(libp2p_peers.__file__).with_name("garbage_node.py")
MESSAGE = bytes(100)
ECHOES = 3000
BLOCK_BYTES = 64 * 1024
BULK_MIB = 256
ROUNDS = 3
IDLE_S = 12


@dataclass(frozen=True, slots=True)
class Measured:
    connect_ms: float
    echo_p50_us: float
    echo_p99_us: float
    bulk_mib_s: float
    idle_cpu_percent: float


async def measure(address: Multiaddr, share: int) -> Measured:
    peer = address.peer()
    assert peer is not None
    async with running() as node:
        began = time.perf_counter()
        await node.transport.dial([address])
        await node.until(lambda: bool(node.ready))
        connect_ms = (time.perf_counter() - began) * 1000
        latencies = []
        async with await node.transport.open_stream(peer, ECHO) as stream:
            for _ in range(ECHOES // share):
                began = time.perf_counter()
                await stream.write(MESSAGE)
                await stream.read_exactly(len(MESSAGE))
                latencies.append(time.perf_counter() - began)
            stream.finish()
        count = BULK_MIB // share * 2**20 // BLOCK_BYTES
        block, rates = bytes(BLOCK_BYTES), []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            async with await node.transport.open_stream(peer, SINK) as stream:
                for _ in range(count):
                    await stream.write(block)
                stream.finish()
                assert int.from_bytes(await stream.read_exactly(8), "big") == count * BLOCK_BYTES
            rates.append(count * BLOCK_BYTES / 2**20 / (time.perf_counter() - began))
        before = cpu_s()
        await asyncio.sleep(IDLE_S / share)
        idle = (cpu_s() - before) / (IDLE_S / share) * 100
    latencies.sort()
    return Measured(
        connect_ms, statistics.median(latencies) * 1e6, latencies[len(latencies) * 99 // 100] * 1e6, max(rates), idle
    )


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def ours(share: int) -> Measured:
    environment = {"PYTHONPATH": str(NODE.parents[2])}
    with subprocess.Popen(
        [sys.executable, str(NODE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        address = multiaddr.parse(process.stdout.readline().strip())
        measured = asyncio.run(measure(address, share))
        process.stdin.close()
    return measured


def theirs() -> dict[str, float]:
    """py-libp2p's two processes; empty if it cannot be installed here."""
    try:
        command = libp2p_peers.python_peer()
    except MissingToolError as missing:
        print(f"  no peer: {missing}")
        return {}
    with subprocess.Popen(
        [*command, "listen"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as listener:
        assert listener.stdout is not None
        assert listener.stdin is not None
        address = json.loads(listener.stdout.readline())["address"]
        best: dict[str, float] = {}
        for _ in range(ROUNDS):
            done = subprocess.run([*command, "bench", address], capture_output=True, text=True, check=True, timeout=120)
            seen = json.loads(done.stdout.splitlines()[-1])
            best["bulk_mib_s"] = max(best.get("bulk_mib_s", 0), seen["bulk_mib_s"])
            best["echo_p50_us"] = min(best.get("echo_p50_us", 1e9), seen["echo_p50_us"])
        listener.stdin.close()
    return best


def run(quick: bool) -> Iterator[Row]:
    share = 6 if quick else 1
    mine, peer = ours(share), theirs()
    yield Row("dial to both sides admitted", round(mine.connect_ms, 1), "ms")
    echo_us, bulk = round(mine.echo_p50_us), round(mine.bulk_mib_s)
    if peer:
        their_us = round(peer["echo_p50_us"])
        met = echo_us < their_us
        ratio = round(echo_us / their_us, 3)
        yield Row("echo of 100 bytes, p50", echo_us, "us", "< peer", met, f"py-libp2p 0.8.1: {their_us}", ratio)
        their_rate = round(peer["bulk_mib_s"])
        yield beside("bulk, one stream", bulk, "MiB/s", "py-libp2p 0.8.1", their_rate, at_least=1, note="best of three")
    else:
        yield Row("echo of 100 bytes, p50", echo_us, "us")
        yield Row("bulk, one stream", bulk, "MiB/s")
    yield Row("echo of 100 bytes, p99", round(mine.echo_p99_us), "us")
    yield Row("idle with one link, CPU", round(mine.idle_cpu_percent, 2), "%", note="one core; keep-alive pings only")
