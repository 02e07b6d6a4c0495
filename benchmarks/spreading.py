"""How soon a record that one node publishes is known, and durable, on every other, over real sockets and disks.

Signed evidence of about a kilobyte is filed through the API of one node after the other, one at a time; the time runs
from the request until the last of the other nodes tells so on its event stream. Not here: what merging costs (`records`)
and what a node that was away catches up with (`records`, docs/reports/scale.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import Final

from benchmarks import fleet
from benchmarks.rows import Row
from cli.access.client import NodeClient
from protocols.changes.evidence import EvidenceRun, attest
from protocols.keys import Ed25519Signer
from protocols.machine import Digest

NODES: Final = (3, 5)
RECORDS: Final = 150
PAUSE_S: Final = 0.02
SETTLE_S: Final = 0.5
"""For the event streams to be open before anything is published."""

ARRIVAL_TIMEOUT_S: Final = 20


def run(quick: bool) -> Iterator[Row]:
    for count in NODES:
        with fleet.running(count) as machines:
            taken = asyncio.run(measure(machines, RECORDS // (5 if quick else 1)))
        p50, p99 = fleet.p50_p99(taken)
        note = f"{len(taken)} records, published by all {count} nodes in turn"
        yield Row(f"a record on all {count} nodes: p50", round(p50, 2), "ms", note=note)
        yield Row(f"a record on all {count} nodes: p99", round(p99, 2), "ms", note=note)


async def measure(machines: list[fleet.Machine], records: int) -> list[float]:
    """Milliseconds from each record's request until the last of the others has it."""
    signer = fleet.admin(machines[0])
    taken = []
    async with fleet.clients(machines) as clients:
        mesh = await clients[0].mesh()
        arrived: dict[tuple[int, str], asyncio.Future[float]] = {}
        async with asyncio.TaskGroup() as group:
            watches = [group.create_task(watch(index, client, arrived)) for index, client in enumerate(clients)]
            await asyncio.sleep(SETTLE_S)
            for number in range(records):
                author = number % len(clients)
                component, body = evidence(signer, mesh)
                began_s = time.perf_counter()
                key = await clients[author].publish("evidence", component.hex(), body)
                others = [heard(arrived, index, key) for index in range(len(clients)) if index != author]
                async with asyncio.timeout(ARRIVAL_TIMEOUT_S):
                    taken.append((max(await asyncio.gather(*others)) - began_s) * 1000)
                await asyncio.sleep(PAUSE_S)
            for task in watches:
                task.cancel()
    return taken


def evidence(signer: Ed25519Signer, mesh: Digest) -> tuple[bytes, bytes]:
    """A component that nobody knows, and a signed test result about it."""
    component = secrets.token_bytes(32)
    said = EvidenceRun(mesh=mesh.hex(), kind="smoke", covers="sandbox", finished_ms=int(time.time() * 1000), tools={})
    return component, attest(
        signer, said, passed=True, components=(("web", component),), configuration=secrets.token_bytes(32)
    )


def heard(arrived: dict[tuple[int, str], asyncio.Future[float]], index: int, key: str) -> asyncio.Future[float]:
    """The moment when a node told that it has a record, which may be over already."""
    return arrived.setdefault((index, key), asyncio.get_running_loop().create_future())


async def watch(index: int, client: NodeClient, arrived: dict[tuple[int, str], asyncio.Future[float]]) -> None:
    """Take down when a node tells of each record."""
    async with contextlib.aclosing(client.follow("/v1/events")) as events:
        async for kind, fields in events:
            if kind == "record":
                future = heard(arrived, index, str(fields["key"]))
                if not future.done():
                    future.set_result(time.perf_counter())
