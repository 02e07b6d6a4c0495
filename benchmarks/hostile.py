"""The worst that one token, and one member, can do to a node in a minute at full speed, beside the same node at rest.

The token may propose in one project. Twenty writers file evidence about an artifact of its own, four send artifacts of a
mebibyte, eight follow events, four read lists, all as fast as they are answered. The member is a whole node of ours that
joined by invite and publishes records of its own without end (16 KiB each: prepared releases, verdicts, health) while it
asks for logs. Beside it, another principal asks for its lane twenty times a second, each answer timed; what it waits
longer at the 99th percentile, the daemon's growth of resident memory, the records of others, and how long the node's own
log would last at that pace are the rows. Not here: strangers and visitors (tests of floods).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from benchmarks import fleet
from benchmarks.processes import reset_high_water, resident_mib
from benchmarks.rows import Row, at_most
from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.errors import CommandError
from node.config import NodeConfig, read_config
from node.daemon import Daemon
from node.membership.found import join_mesh
from node.mesh.peer_questions import Ask
from node.mesh.pump import system_now
from protocols.api_models import AuditView, PrincipalView
from protocols.changes.evidence import EvidenceRun, attest
from protocols.envelope import digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.records.gossip import Publish
from protocols.records.key_table import DAY_MS, make_key
from protocols.state.commands import CreateEnvironment, CreateProject
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from protocols.trust.invites import read_line
from tests.support.mesh.nodes import Machine

REST_S: Final = 20.0
ATTACK_S: Final = 60.0
EVERY_S: Final = 0.05
WRITERS, UPLOADERS, FOLLOWERS, READERS = 20, 4, 8, 4
GROWTH_AIM_MIB: Final = 64
P99_AIM: Final = 3.0
LOG_RING_MIB: Final = 256
LOG_AIM_H: Final = 24


def run(quick: bool) -> Iterator[Row]:
    for who, attack in (("token", by_token), ("member", by_member)):
        with fleet.running(1) as (machine,):
            yield from asyncio.run(measured(machine, who, attack, quick=quick))


async def measured(machine: Machine, who: str, attack: Callable[..., Any], *, quick: bool) -> list[Row]:
    rest_s, attack_s = (5.0, 15.0) if quick else (REST_S, ATTACK_S)
    assert machine.process is not None
    pid = machine.process.pid
    async with fleet.clients([machine]) as (operator,):
        admin = fleet.admin(machine)
        for action in (CreateEnvironment("production"), CreateProject("mine"), CreateProject("theirs")):
            await operator.decide(admin, action, expect=(await operator.state()).sequence)
        beside = await key_of(operator, admin, "theirs", "deployer")
        hostile = Ed25519Signer(await key_of(operator, admin, "mine", "proposer"))
        with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
            at_rest = await asyncio.wrap_future(elsewhere.submit(timed, socket_of(machine), beside, rest_s))
            before, logged = await others(operator), log_bytes(machine)
            reset_high_water(pid)
            rss = resident_mib(pid)
            async with attack(machine, operator, hostile) as done:
                under = await asyncio.wrap_future(elsewhere.submit(timed, socket_of(machine), beside, attack_s))
            grown = resident_mib(pid, "VmHWM") - rss
            pace = (log_bytes(machine) - logged) / attack_s
            lost = len(before - await others(operator))
    rest, worst = p99(at_rest), p99(under)
    hours = LOG_RING_MIB * 2**20 / max(pace, 1.0) / 3600
    note = f"{attack_s:.0f} s; {done()}"
    return [
        at_most(f"one {who} at full speed: growth of memory", round(grown, 1), "MiB", GROWTH_AIM_MIB, note=note),
        at_most(
            f"one {who} at full speed: another's p99 over that at rest", round(worst / rest, 2), "x", P99_AIM,
            note=f"{rest * 1000:.1f} ms at rest, {worst * 1000:.1f} ms under it, of {len(under)} calls",
        ),
        at_most(f"one {who} at full speed: records of others that are gone", lost, "records", 0),
        Row(
            f"one {who} at full speed: the node's log would reach back", round(hours, 1), "h", f">= {LOG_AIM_H}",
            hours >= LOG_AIM_H, note=f"{pace / 1024:.1f} KiB a second into a ring of {LOG_RING_MIB} MiB",
        ),
    ]  # fmt: skip


def p99(times: list[float]) -> float:
    """The 99th percentile."""
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.99))]


def log_bytes(machine: Machine) -> int:
    """What the node's log files hold."""
    return sum(path.stat().st_size for path in (machine.data / "logs").rglob("*.jsonl"))


async def others(operator: NodeClient) -> set[str]:
    """Records that the attacker did not write: audit entries by now, and whose grants there are."""
    entries = await operator.read_all(AuditView, "/v1/audit")
    grants = await operator.read_all(PrincipalView, "/v1/principals")
    return {f"{entry.node}/{entry.number}" for entry in entries} | {grant.key for grant in grants}


async def key_of(operator: NodeClient, admin: Ed25519Signer, project: str, role: Role) -> bytes:
    """The seed of a new key with one role in one project."""
    seed = secrets.token_bytes(32)
    ed25519_signer = Ed25519Signer(seed)
    grant = Grant(
        ed25519_signer.public_key,
        "agent",
        project,
        (role,),
        (project,),
        ("*",),
        system_now().wall_ms + DAY_MS,
        secrets.token_bytes(16),
    )
    await operator.publish(
        "grant", ed25519_signer.public_key.hex(), encode((sign(admin, GRANT_DOMAIN, await operator.mesh(), grant),))
    )
    return seed


def socket_of(machine: Machine) -> str:
    """Where a node's API is on its own machine."""
    return str(next(machine.runtime.glob("*/api.sock")))


@contextlib.asynccontextmanager
async def acting(socket: str, signer: Ed25519Signer) -> AsyncIterator[NodeClient]:
    """A session in which each request is signed by a key: on the socket, too, it is judged as that key's."""
    async with NodeClient(Context("home", socket, "bench"), signer) as client:
        yield client


def timed(socket: str, seed: bytes, for_s: float) -> list[float]:
    """How long each of some calls took, begun at a steady pace. Runs in a process of its own: the attacker is in this one."""

    async def call() -> list[float]:
        numbers: list[float] = []
        async with acting(socket, Ed25519Signer(seed)) as client:
            until_s = time.monotonic() + for_s
            while (began_s := time.monotonic()) < until_s:
                await client.get("/v1/lanes", project="theirs")
                numbers.append(time.monotonic() - began_s)
                await asyncio.sleep(max(0.0, EVERY_S - numbers[-1]))
        return numbers

    return asyncio.run(call())


@contextlib.asynccontextmanager
async def going(loops: list[Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """Run each again and again, whatever it is answered."""

    async def again(one: Callable[[], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(CommandError):
                await one()
            await asyncio.sleep(0)

    tasks = [asyncio.ensure_future(again(loop)) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def by_token(machine: Machine, operator: NodeClient, signer: Ed25519Signer) -> AsyncIterator[Callable[[], str]]:
    """Let a token do all that it may."""
    mesh, tried, filed = await operator.mesh(), [0], [0]
    component = secrets.token_bytes(100)
    async with acting(socket_of(machine), signer) as client:
        await client.put_artifact(component, digest(component))

        async def write() -> None:
            tried[0] += 1
            run = EvidenceRun(mesh.hex(), "test", "host", system_now().wall_ms, log=secrets.token_hex(4_000))
            paper = attest(
                signer,
                run,
                passed=True,
                components=(("web", digest(component)),),
                configuration=secrets.token_bytes(32),
            )
            await client.publish("evidence", digest(component).hex(), paper)
            filed[0] += 1

        async def upload() -> None:
            data = secrets.token_bytes(1 << 20)
            await client.put_artifact(data, digest(data))

        async def follow() -> None:
            async for _ in client.follow("/v1/events"):
                pass

        async def read() -> None:
            await client.get("/v1/audit")

        loops = [*[write] * WRITERS, *[upload] * UPLOADERS, *[follow] * FOLLOWERS, *[read] * READERS]
        async with going(loops):
            yield lambda: f"{filed[0]} of {tried[0]} papers were filed"


@contextlib.asynccontextmanager
async def by_member(machine: Machine, operator: NodeClient, _: Ed25519Signer) -> AsyncIterator[Callable[[], str]]:
    """Let a member say what it likes without end; it is a node of ours in this process."""
    line = machine.typed_ok("mesh", "invite", *fleet.ROLES)["line"]
    folder = Path(tempfile.mkdtemp(prefix="fh"))
    config = NodeConfig("liar", listen=("127.0.0.1:0",), ingress=("127.0.0.1:0",), workers=1)
    await join_mesh(folder / "n", config, read_line(line))
    daemon = Daemon(folder / "n", read_config(folder / "n"))
    running, said = asyncio.ensure_future(daemon.run()), [0]
    await daemon.started.wait()
    control = daemon.control
    assert control is not None
    node = str(control.core.node)
    asked = (await operator.get("/v1/node"))["node"]

    async def say() -> None:
        body = secrets.token_bytes(16_000)
        for key, ttl_ms in (
            (make_key("prepared", node, secrets.token_hex(32)), DAY_MS),
            (make_key("verdict", node, secrets.token_hex(16), "1"), DAY_MS),
            (make_key("health", node, secrets.token_hex(8)), 60_000),
        ):
            said[0] += control.mesh.post(Publish(key, body, ttl_ms=ttl_ms))

    async def ask() -> None:
        with contextlib.suppress(Exception):
            async for _ in control.asking.lines(asked, Ask("logs", "", "", "", "", 2_000, False)):
                pass

    try:
        async with going([say, ask, ask]):
            yield lambda: f"{said[0]} records were published"
    finally:
        daemon.stop()
        await asyncio.gather(running, return_exceptions=True)
        shutil.rmtree(folder, ignore_errors=True)
