"""Real nodes' machines over real sockets and disks, in one process: they admit each other, decide, and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from node.keys import SystemEntropy
from node.mesh.mesh import Mesh
from node.mesh.pump import system_now
from node.store.storage import Storage
from node.transport import Transport, TransportSettings
from protocols.chain.acceptor import founding_effects
from protocols.chain.ballots import BOOT_NONCE_BYTES
from protocols.chain.context import Stored
from protocols.chain.fence import FENCE_TABLE
from protocols.chain.messages import Outcome, Submit
from protocols.changes.demands import SOLO
from protocols.core import CoreSetup, CoreStored
from protocols.envelope import Signed, encode
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.libp2p import multiaddr
from protocols.state.commands import Action, Command, ConfirmNode, CreateProject, sign_command
from protocols.trust.certificates import issue
from protocols.trust.genesis import Genesis, mesh_id
from protocols.trust.store import Credentials

ENTROPY = SystemEntropy()
VERIFIER = Ed25519Verifier()
STORE_ID = b"s" * 16
LOOPBACK = multiaddr.from_tcp("127.0.0.1", 0)


def new_signer() -> Ed25519Signer:
    return Ed25519Signer(ENTROPY.random_bytes(32))


class Fleet:
    """Nodes that share one genesis, each with a folder of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.admin = new_signer()
        self.signers = [new_signer() for _ in range(count)]
        self.ids = [peer_id(signer.public_key) for signer in self.signers]
        now = system_now()
        self.genesis = encode(
            Genesis("home", b"n" * 16, (self.admin.public_key,), 1, self.ids[0], STORE_ID, encode(SOLO), now.wall_ms)
        )
        self.mesh_id = mesh_id(self.genesis)
        self.certificates: list[Signed] = [
            issue(
                self.admin, self.mesh_id, node, roles=("issuer", "voter", "worker"), labels=(), serial=index + 1,
                wall_ms=now.wall_ms,
            )
            for index, node in enumerate(self.ids)
        ]  # fmt: skip
        self.running: dict[int, Mesh] = {}

    @asynccontextmanager
    async def node(self, index: int) -> AsyncIterator[Mesh]:
        folder = self.folder / str(index)
        first_start = not folder.exists()
        folder.mkdir(exist_ok=True)
        storage = Storage(folder)
        if first_start and index == 0:
            await storage.open()
            for effect in founding_effects(STORE_ID):
                await storage.apply(effect)
            await storage.close()
            storage = Storage(folder)
        vote, state, fence = await storage.open()
        signer = self.signers[index]
        transport = Transport(TransportSettings(listen=(LOOPBACK,)), signer=signer, verifier=VERIFIER, entropy=ENTROPY)
        nonce = ENTROPY.random_bytes(BOOT_NONCE_BYTES)
        mesh = Mesh(
            CoreSetup(self.genesis, signer, VERIFIER, ENTROPY, nonce),
            CoreStored(
                Stored(vote, {FENCE_TABLE: fence} if fence else {}, same_boot=True),
                state or {},
                (Credentials((self.certificates[index],)),),
            ),
            transport,
            storage.apply,
        )
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(mesh.run())
                await transport.started.wait()
                self.running[index] = mesh
                self.connect()
                yield mesh
                task.cancel()
        finally:
            self.running.pop(index, None)
            await storage.close()

    def connect(self) -> None:
        addresses = {self.ids[index]: tuple(mesh.transport.listening) for index, mesh in self.running.items()}
        for mesh in self.running.values():
            mesh.set_addresses({peer: where for peer, where in addresses.items() if peer != mesh.core.node})

    async def decide(self, mesh: Mesh, number: int, action: Action, expect: int) -> Outcome:
        command = Command(number.to_bytes(16, "big"), action, expect=expect)
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def listen(event: Any) -> None:
            if isinstance(event, Outcome) and event.request_id == command.id and not done.done():
                done.set_result(event)

        mesh.listeners.append(listen)
        mesh.post(Submit(command.id, encode(sign_command([self.admin], self.mesh_id, command))))
        try:
            return await asyncio.wait_for(done, 15)
        finally:
            mesh.listeners.remove(listen)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for what other tasks bring about; nobody in the product announces it."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_three_nodes_admit_each_other_grow_to_three_voters_and_decide_together(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 3)
    async with AsyncExitStack() as stack:
        meshes = [await stack.enter_async_context(fleet.node(index)) for index in range(3)]
        await until(lambda: all(len(mesh.core.hello.admitted()) == 2 for mesh in meshes))
        for index in (1, 2):
            node = fleet.ids[index]
            confirmed = await fleet.decide(
                meshes[0], index, ConfirmNode(node, (), ("issuer", "voter", "worker")), expect=0
            )
            assert confirmed.outcome == "decided", confirmed
        outcome = await fleet.decide(meshes[2], 9, CreateProject("guestbook"), expect=0)
        assert outcome.outcome == "decided", outcome
        await until(lambda: all(mesh.core.state.projects for mesh in meshes))
        assert len({mesh.core.chain.position for mesh in meshes}) == 1
        assert not any(mesh.rejects for mesh in meshes), [mesh.rejects for mesh in meshes]


async def test_a_restarted_node_knows_what_it_decided(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 1)
    async with fleet.node(0) as mesh:
        assert (await fleet.decide(mesh, 1, CreateProject("guestbook"), expect=0)).outcome == "decided"
        position = mesh.core.chain.position
    async with fleet.node(0) as mesh:
        assert mesh.core.chain.position == position
        assert [project.name for project in mesh.core.state.projects] == ["guestbook"]
        assert (await fleet.decide(mesh, 2, CreateProject("second"), expect=0)).outcome == "decided"
