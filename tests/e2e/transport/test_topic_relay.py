"""Topics between nodes: what a worker publishes reaches the workers of all nodes, once.

What a stranger says reaches none of them, nor what a member says of an app that it does not run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from node.mesh.topic_relay import PROTOCOL, WAITING_MAX, WAITING_MAX_BYTES, TopicRelay
from protocols.machine import PeerId
from runtime.ingress.socket_events import SocketEvent
from runtime.ingress.topics import EVERYWHERE, HERE, Publication, Topics, block_of
from tests.support.mesh.libp2p_peers import LOOPBACK, TestNode, make_transport

LANE = "site production"
LANES = [("site", "production"), ("site", "staging")]


class Heard:
    """A socket that keeps what it hears."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []

    def deliver(self, event: SocketEvent) -> None:
        self.texts.append(event.data)


class Machine:
    """A node's transport and relay, and two workers that listen to a room."""

    def __init__(self, folder: Path, strangers: set[PeerId], runs: dict[PeerId, list[tuple[str, str]]]) -> None:
        folder.mkdir()
        self.node = TestNode(make_transport(LOOPBACK))
        self.others: list[PeerId] = []
        self.relay = TopicRelay(
            self.node.transport, folder, peers=lambda: self.others, is_member=lambda peer: peer not in strangers,
            runs=self.judges,
        )  # fmt: skip
        self.placed = runs
        self.judged: list[PeerId] = []
        self.workers = [Topics(folder, self.node.peer), Topics(folder, self.node.peer)]
        self.heard = [Heard(), Heard()]
        for worker, heard in zip(self.workers, self.heard, strict=True):
            worker.subscribe(LANE, "room", heard)

    def judges(self, peer: PeerId, lane: tuple[str, str]) -> bool:
        self.judged.append(peer)
        return lane in self.placed.get(peer, LANES)

    @property
    def texts(self) -> list[list[bytes]]:
        return [heard.texts for heard in self.heard]


@contextlib.asynccontextmanager
async def machines(
    folder: Path, strangers: set[PeerId], runs: dict[PeerId, list[tuple[str, str]]] | None = None
) -> AsyncIterator[list[Machine]]:
    placed = {} if runs is None else runs
    new_machines = [Machine(folder / name, strangers, placed) for name in "abc"]
    async with asyncio.TaskGroup() as group:
        services = [
            service
            for entry in new_machines
            for service in (
                entry.node.transport.run(),
                entry.node.watch(),
                entry.relay.run(),
                *(w.run() for w in entry.workers),
            )
        ]
        tasks = [group.create_task(service) for service in services]
        for machine in new_machines:
            await machine.node.transport.started.wait()
        for machine in new_machines:
            rest = [other for other in new_machines if other is not machine]
            machine.others = [other.node.peer for other in rest]
            machine.node.transport.set_members({other.node.peer: (other.node.address,) for other in rest})
        for machine in new_machines:
            await machine.node.until(lambda one=machine: len({up.peer for up in one.node.ups}) == 2)  # type: ignore[misc]
        await asyncio.sleep(1.5)  # workers look for their daemon each second
        try:
            yield new_machines
        finally:
            for task in tasks:
                task.cancel()


async def hears(made: list[Machine], wanted: list[bytes]) -> None:
    async with asyncio.timeout(20):
        while any(texts != wanted for machine in made for texts in machine.texts):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_topic_reaches_every_worker_of_every_node_once_and_in_order(tmp_path: Path) -> None:
    async with machines(tmp_path, set()) as new_machines:
        for number in range(50):
            new_machines[0].workers[0].publish(Publication(LANE, "room", "TEXT", b"%d" % number))
        new_machines[0].workers[0].publish(Publication(LANE, "other", "TEXT", b"x"))
        new_machines[0].workers[0].publish(Publication("site staging", "room", "TEXT", b"x"))
        await hears(new_machines, [b"%d" % number for number in range(50)])
        new_machines[1].workers[1].publish(Publication(LANE, "room", "TEXT", b"back"))
        await hears(new_machines, [*(b"%d" % number for number in range(50)), b"back"])


async def test_a_member_is_heard_only_of_what_it_runs_there(tmp_path: Path) -> None:
    runs: dict[PeerId, list[tuple[str, str]]] = {}
    async with machines(tmp_path, set(), runs) as new_machines:
        liar = new_machines[0]
        for number, elsewhere in enumerate(
            ([], [("blog", "production")], [("site", "staging")], [("site production", "")], [("site", "productio")])
        ):
            runs[liar.node.peer] = elsewhere
            liar.workers[0].publish(Publication(LANE, "room", "TEXT", b"false %d" % number))
            async with asyncio.timeout(20):
                while any(machine.judged.count(liar.node.peer) <= number for machine in new_machines[1:]):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        runs[liar.node.peer] = [("site", "production")]
        liar.workers[0].publish(Publication(LANE, "room", "TEXT", b"true"))
        await hears(new_machines[1:], [b"true"])  # and over the same stream: what is not heard ends none
        runs[liar.node.peer] = []
        liar.workers[0].publish(Publication(LANE, "room", "TEXT", b"late"))
        new_machines[1].workers[0].publish(Publication(LANE, "room", "TEXT", b"well"))
        await hears(new_machines[1:], [b"true", b"well"])


async def test_a_publication_reaches_no_further_than_it_says(tmp_path: Path) -> None:
    async with machines(tmp_path, set()) as new_machines:
        machine, two, three = new_machines
        machine.workers[0].publish(Publication(LANE, "room", "TEXT", b"here", HERE))
        machine.workers[0].publish(Publication(LANE, "room", "TEXT", b"but two", two.node.peer))
        machine.workers[0].publish(Publication(LANE, "room", "TEXT", b"all", EVERYWHERE))
        await hears([two], [b"all"])
        await hears([three], [b"but two", b"all"])
        for heard in machine.heard:
            assert heard.texts == [b"here", b"but two", b"all"]


async def test_a_peer_that_reads_nothing_costs_a_node_a_few_mebibytes(tmp_path: Path) -> None:
    async with machines(tmp_path, set()) as new_machines:
        relay, peer = new_machines[0].relay, new_machines[1].node.peer
        new_machines[0].others = [peer]
        hole = asyncio.Event()

        async def never(_peer: PeerId, _protocol: str) -> None:
            await hole.wait()

        new_machines[0].node.transport.open_stream = never  # type: ignore[method-assign,assignment]
        block = block_of(Publication(LANE, "room", "BINARY", bytes(250_000)))
        for _ in range(300):
            relay._tell_peers(block)
        assert len(block) * relay._waiting[peer].qsize() <= WAITING_MAX_BYTES
        assert relay._waiting[peer].qsize() == WAITING_MAX_BYTES // len(block)
        small = block_of(Publication(LANE, "room", "TEXT", b"x"))
        for _ in range(2 * WAITING_MAX):
            relay._tell_peers(small)
        assert relay._waiting[peer].qsize() <= WAITING_MAX


async def test_what_a_stranger_or_a_broken_peer_says_reaches_nobody(tmp_path: Path) -> None:
    strangers: set[PeerId] = set()
    async with machines(tmp_path, strangers) as new_machines:
        strangers.add(new_machines[0].node.peer)
        new_machines[0].workers[0].publish(Publication(LANE, "room", "TEXT", b"psst"))
        await hears(new_machines[:1], [b"psst"])
        async with await new_machines[1].node.transport.open_stream(new_machines[2].node.peer, PROTOCOL) as stream:
            await stream.write_block(b"\xc1 no publication")
        new_machines[1].workers[0].publish(Publication(LANE, "room", "TEXT", b"well"))
        await hears(new_machines[1:], [b"well"])
        assert len(block_of(Publication(LANE, "room", "TEXT", b"well"))) < 64
