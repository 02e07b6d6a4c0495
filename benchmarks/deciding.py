"""A decision on a mesh of three voters over real sockets and disks, beside a write to a cluster of three etcd.

One client asks for one decision at a time over HTTP, waits for its answer and pauses a moment: `CreateEnvironment`,
signed by an admin ahead of the clock; etcd gets a value of the same size, at the same pace. Every process runs on this
machine, with its default of syncing each durable write; rounds alternate (A B A B), and the numbers are over all
rounds. A sync is one wait for the disk: ours are the commits of a database and the writes of the fence
(`freehold_storage_syncs_total`), etcd's those of its log and its database (its own counters), on all three nodes
together. Not here: many clients at once; a chain decides one thing after the other, where etcd's log batches.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from typing import Final

import aiohttp

from benchmarks import etcd, fleet
from benchmarks.processes import cpu_s
from benchmarks.rows import Row
from cli.access.client import NodeClient
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.machine import Digest
from protocols.state.commands import Command, CreateEnvironment, SignedCommand, sign_command

ROUNDS: Final = 5
PER_ROUND: Final = 60
PAUSE_S: Final = 0.02
"""Between two requests: decisions are rare, and what a node does between them (promises ahead) is no part of waiting."""

TIMES_PEER_AIM: Final = 5
ENVIRONMENT: Final = "bench"


class Ours:
    """A client of one voter after the other."""

    def __init__(self, clients: list[NodeClient], signer: Ed25519Signer, mesh: Digest) -> None:
        self._clients, self._signer, self._mesh = clients, signer, mesh
        self._made = False
        self._sequence = 0

    def command(self) -> SignedCommand:
        action = CreateEnvironment(ENVIRONMENT, replace=self._made)
        command = Command(secrets.token_bytes(16), action, expect=self._sequence)
        return sign_command([self._signer], self._mesh, command)

    async def look(self, client: NodeClient) -> None:
        """Learn the sequence that the next command must expect, of a node that knows the newest decision."""
        self._sequence = (await client.state()).sequence

    async def decide(self, times: int, *, in_turn: bool = False) -> list[float]:
        """Milliseconds of each decision, asked at the first voter or at all in turn."""
        taken = []
        for number in range(times):
            client = self._clients[number % len(self._clients) if in_turn else 0]
            body = {"command": encode(self.command()), "material": ()}
            began_s = time.perf_counter()
            answer = await client.post("/v1/commands", body)
            taken.append((time.perf_counter() - began_s) * 1000)
            assert answer["outcome"] == "decided", answer
            self._made = True
            await self.look(client)
            await asyncio.sleep(PAUSE_S)
        return taken


class Theirs:
    """A client of etcd's leader."""

    def __init__(self, cluster: etcd.Cluster, session: aiohttp.ClientSession, value: bytes) -> None:
        self._url, self._session, self._value = f"{cluster.urls[0]}/v3/kv/put", session, value

    async def put(self, times: int) -> list[float]:
        """Milliseconds of each write."""
        taken = []
        for _ in range(times):
            body = etcd.put_body(b"bench", self._value)
            began_s = time.perf_counter()
            async with self._session.post(self._url, data=body) as answer:
                await answer.read()
            taken.append((time.perf_counter() - began_s) * 1000)
            assert answer.status == 200, answer.status
            await asyncio.sleep(PAUSE_S)
        return taken


def run(quick: bool) -> Iterator[Row]:
    with fleet.running(fleet.VOTERS) as machines, etcd.running() as cluster:
        yield from asyncio.run(measure(machines, cluster, ROUNDS // (5 if quick else 1)))


async def measure(machines: list[fleet.Machine], cluster: etcd.Cluster | None, rounds: int) -> list[Row]:
    mine: list[float] = []
    others: list[float] = []
    our_syncs = our_cpu_s = their_syncs = 0.0
    pids = [machine.process.pid for machine in machines if machine.process is not None]
    async with fleet.clients(machines) as clients, aiohttp.ClientSession() as session:
        ours = Ours(clients, fleet.admin(machines[0]), await clients[0].mesh())
        await ours.look(clients[0])
        await ours.decide(5)
        theirs = Theirs(cluster, session, encode(ours.command())) if cluster is not None else None
        if theirs is not None:
            await theirs.put(5)
        for _ in range(rounds):
            before, before_s = sum(map(fleet.syncs, machines)), cpu_s(pids)
            mine += await ours.decide(PER_ROUND)
            our_cpu_s += cpu_s(pids) - before_s
            our_syncs += sum(map(fleet.syncs, machines)) - before
            if theirs is not None and cluster is not None:
                before = cluster.syncs()
                others += await theirs.put(PER_ROUND)
                their_syncs += cluster.syncs() - before
        turns = await ours.decide(PER_ROUND, in_turn=True)
    return list(rows(mine, our_syncs, our_cpu_s, turns, others, their_syncs, cluster))


def rows(
    mine: list[float],
    our_syncs: float,
    our_cpu_s: float,
    turns: list[float],
    others: list[float],
    their_syncs: float,
    cluster: etcd.Cluster | None,
) -> Iterator[Row]:
    """Ours beside theirs, quantile by quantile."""
    ours_at = fleet.p50_p99(mine)
    theirs_at = fleet.p50_p99(others) if others else None
    for index, name in enumerate(("p50", "p99")):
        title, value = f"one decision, 3 voters: {name}", round(ours_at[index], 2)
        if theirs_at is None or cluster is None:
            yield Row(title, value, "ms", note=etcd.MISSING)
            continue
        ratio = ours_at[index] / theirs_at[index]
        aim, met = (f"<= {TIMES_PEER_AIM} x peer", ratio <= TIMES_PEER_AIM) if name == "p50" else ("", None)
        yield Row(title, value, "ms", aim, met, f"{cluster.version}: {theirs_at[index]:.2f}", round(ratio, 2))
    in_turn = fleet.p50_p99(turns)
    yield Row("the same, asked at the three voters in turn: p50", round(in_turn[0], 2), "ms")
    number = our_syncs / len(mine)
    if others and cluster is not None:
        peer_each = their_syncs / len(others)
        yield Row(
            "syncs per decision, all three nodes", round(number, 1), "",
            peer=f"{cluster.version}: {peer_each:.1f}", ratio=round(number / peer_each, 2),
        )  # fmt: skip
    else:
        yield Row("syncs per decision, all three nodes", round(number, 1), "")
    yield Row("CPU of the three nodes per decision", round(our_cpu_s / len(mine) * 1000, 1), "ms")
