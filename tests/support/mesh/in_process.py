"""Whole daemons in the test's own process, each with a folder, real sockets and real workers, and a deploy by library.

For what needs to look inside a node; commands and signals are tested with processes (nodes.py). Not here: any test.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.access.secrets import versions_for
from cli.change.proposal import ChangeProposal, built_here, lane_of, make_proposal, pinned_nodes, start_of
from cli.change.propose import claim_missing_routes, upload
from cli.project.build import build_project
from cli.project.find import open_project
from node.config import NodeConfig, read_config
from node.control import Control
from node.daemon import Daemon
from node.keys import SystemEntropy
from node.membership.found import found_mesh, join_mesh
from node.mesh.pump import system_now
from protocols.changes.demands import SOLO, Policy
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.machine import Digest
from protocols.state.commands import CreateEnvironment, CreateProject, SignedCommand
from protocols.trust.invites import Address, Invite, make_invite, read_line, write_line

ENTROPY = SystemEntropy()
DECIDED_WITHIN_S = 60.0
LANE = ("site", "production")

PROJECT = """
[project]
name = "site"
owners = ["me"]

[app.web]
language = "component"
source = "web.wasm"
routes = ["site.test"]
{app}

[rollout]
stages = ["100%"]
min_healthy_time = "{healthy}"

[[test.smoke]]
app = "web"
path = "{smoke}"
"""


class Quiet:
    """A build that reports nothing."""

    def step(self, app: str, text: str) -> None:
        del app, text


class House:
    """A mesh of daemons under one short folder: Unix sockets have short names.

    `compiled` is a cache of compiled code that all its nodes share; empty: each has its own.
    """

    compiled = ""

    def __init__(self, folder: Path, *, policy: Policy = SOLO, voter_after_s: int = 60) -> None:
        self.folder = folder
        self.policy, self.voter_after_s = policy, voter_after_s
        self.admin = Ed25519Signer(ENTROPY.random_bytes(32))
        self.daemons: list[Daemon] = []
        self._tasks: list[asyncio.Task[None]] = []

    def config(self, name: str) -> NodeConfig:
        return NodeConfig(
            name, listen=("127.0.0.1:0",), api="127.0.0.1:0", ingress=("127.0.0.1:0",), workers=1,
            voter_after_s=self.voter_after_s, compiled=self.compiled,
        )  # fmt: skip

    async def open(self, count: int) -> None:
        """Found a mesh and have the others join; return when every node is confirmed."""
        await found_mesh(self.folder / "n0", self.config("n0"), mesh_name="home", admin=self.admin, policy=self.policy)
        await self.start(0)
        for index in range(1, count):
            await self.join(index)
        await until(lambda: all(len(self.control(index).core.state.nodes) == count for index in range(count)))
        await until(lambda: all(len(self.control(index).core.hello.admitted()) == count - 1 for index in range(count)))

    async def join(self, index: int) -> None:
        first = self.control(0)
        seed = ENTROPY.random_bytes(32)
        now_ms = system_now().wall_ms
        invite = make_invite(
            self.admin,
            Invite(
                first.core.trust.mesh, Ed25519Signer(seed).public_key, "node", ("issuer", "voter", "worker"), (), 1,
                now_ms, now_ms + 3_600_000,
            ),
        )  # fmt: skip
        here = tuple(Address(str(address), first.core.node) for address in first.mesh.transport.listening)
        await join_mesh(self.folder / f"n{index}", self.config(f"n{index}"), read_line(write_line(seed, invite, here)))
        await self.start(index)

    async def start(self, index: int) -> None:
        folder = self.folder / f"n{index}"
        daemon = Daemon(folder, read_config(folder))
        self.daemons[index : index + 1] = [daemon]
        task = asyncio.get_running_loop().create_task(daemon.run())
        self._tasks[index : index + 1] = [task]
        started = asyncio.ensure_future(daemon.started.wait())
        await asyncio.wait({task, started}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            started.cancel()
            task.cancel()
            await task
            raise AssertionError("the daemon did not start")

    async def stop(self, index: int) -> None:
        self.daemons[index].stop()
        await asyncio.wait_for(self._tasks[index], 40)

    async def close(self) -> None:
        for daemon in self.daemons:
            daemon.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def control(self, index: int) -> Control:
        control = self.daemons[index].control
        assert control is not None
        return control

    def ingress(self, index: int) -> str:
        return self.control(index).ingress[0]

    @asynccontextmanager
    async def client(self, index: int = 0) -> AsyncIterator[NodeClient]:
        socket = str(self.daemons[index].runtime / "api.sock")
        async with NodeClient(Context("home", socket, "k")) as client:
            yield client

    async def prepare_lane(self, selector: tuple[tuple[str, str], ...] = ()) -> None:
        async with self.client() as client:
            for action in (CreateEnvironment(LANE[1], selector), CreateProject(LANE[0], ("me",))):
                await client.decide(self.admin, action, expect=(await client.state()).sequence)

    async def create_project(self) -> None:
        """Create the lane's project; its environment is there."""
        async with self.client() as client:
            action = CreateProject(LANE[0], ("me",))
            await client.decide(self.admin, action, expect=(await client.state()).sequence)

    async def deploy(self, component: Path, *, app: str = "", smoke: str = "/", healthy: str = "0s") -> None:
        """Deploy the component as `site`, with these lines in its app's table; return when it is the base."""
        proposal, _ = await self.propose(component, app=app, smoke=smoke, healthy=healthy)
        await until(lambda: self.based(proposal.id), DECIDED_WITHIN_S)

    def based(self, change: Digest) -> bool:
        decided = self.control(0).core.state.lane(*LANE)
        return decided is not None and decided.base is not None and decided.base.change == change

    async def propose(
        self, component: Path, *, app: str = "", smoke: str = "/", healthy: str = "0s", down: tuple[str, ...] = ()
    ) -> tuple[ChangeProposal, SignedCommand]:
        """File a change of `site` and hand over its start, which waits for what policy asks for; it leaves out `down`."""
        folder = self.folder / "project"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(component, folder / "web.wasm")
        text = PROJECT.format(app=app, smoke=smoke, healthy=healthy)
        (folder / "freehold.toml").write_text(text)
        project = open_project(folder)
        bundle = await asyncio.to_thread(build_project, project.project, text, folder, Quiet())
        async with self.client() as client:
            state = await client.state()
            offered = built_here(project, bundle, self.admin.public_key)
            proposal = make_proposal(
                state, self.control(0).core.trust.mesh, offered, environment=LANE[1], request="a test",
                signer=self.admin, versions=await versions_for(client, offered.effective(LANE[1])),
            )  # fmt: skip
            lane = lane_of(state, *LANE)
            await claim_missing_routes(client, lane, proposal.change.routes, self.admin)
            await upload(client, proposal)
            await client.publish("change", LANE[0], encode(proposal.signed))
            state = await client.state()
            lane = lane_of(state, *LANE)
            nodes = pinned_nodes(state, lane, proposal.change, down)
            mesh = self.control(0).core.trust.mesh
            start = start_of(mesh, lane, proposal.id, nodes, self.admin)
            await client.start(start)
        return proposal, start

    def runs(self, index: int) -> bool:
        return self.control(index).workloads.serves(LANE, "any")

    def index_of(self, node: str) -> int:
        return next(index for index in range(len(self.daemons)) if self.control(index).core.node == node)


@asynccontextmanager
async def a_house(count: int, *, policy: Policy = SOLO, voter_after_s: int = 60) -> AsyncIterator[House]:
    """A running mesh; everything is stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="fh-"))
    house = House(folder, policy=policy, voter_after_s=voter_after_s)
    try:
        await house.open(count)
        yield house
    finally:
        await house.close()
        shutil.rmtree(folder, ignore_errors=True)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for what daemons bring about; nobody announces it to a test."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


__all__ = ["LANE", "House", "a_house", "until"]
