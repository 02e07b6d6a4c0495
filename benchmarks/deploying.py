"""From the submitted start of a release until every node serves it, beyond the time that its stages ask for.

Small compiled components go through real daemons in stages of one node, two and all, each healthy for one second. Each
release's bytes are new to every node: fetched, compiled, smoked, loaded. The overhead runs from the request that
publishes the change and hands over its signed start, with the artifacts uploaded to one node, to the moment when the
last node says that the last stage is promoted (its ingress then answers with the new release), less the health
windows. Of it, "preparing" ends with the decision to start, "rolling" is the rest. All nodes, their workers and
compilers share this machine's cores. Not here: building, and the command line's own start.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import aiohttp

from benchmarks import fleet
from benchmarks.rows import Row, at_most
from cli.access.client import NodeClient
from cli.change.proposal import built_here, lane_of, make_proposal, pinned_nodes, start_of
from cli.change.propose import claim_missing_routes, upload
from cli.project.build import build_project
from cli.project.find import open_project
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.state.commands import CreateEnvironment, CreateProject
from tests.fixtures.build import component

NODES: Final = {1: ["100%"], 3: ["1", "2", "100%"], 5: ["1", "2", "100%"]}
"""Nodes of the mesh -> stages of the rollout. New nodes of a stage take a release one after the other (`max_parallel`
is 1), so each node has a health window of its own to wait for."""

HEALTHY_S: Final = 1.0
RELEASES: Final = 2
OVERHEAD_AIM_S: Final = 1.0
AIMED_NODES: Final = 3
LIVE_TIMEOUT_S: Final = 60.0
ANSWERS: Final = {"hello": b"hello world", "probe": b"probe\n"}
"""Components and what they answer; releases alternate, so that an answer tells which one gave it."""

CUSTOM_SECTION: Final = 0
PROJECT: Final = "site"
ENVIRONMENT: Final = "production"
SETTLE_S: Final = 0.3
"""For the event streams to be open before anything happens."""

TOML: Final = """
[project]
name = "{project}"
owners = ["bench"]

[app.web]
language = "component"
source = "web.wasm"
routes = ["{route}"]

[rollout]
stages = {stages}
min_healthy_time = "{healthy_s:g}s"

[[test.smoke]]
app = "web"
path = "/"
"""


class Quiet:
    """A build that reports nothing."""

    def step(self, app: str, text: str) -> None:
        del app, text


@dataclass(frozen=True, slots=True)
class Went:
    """Seconds of one release: until its start was decided, until all serve it, and what its stages asked for."""

    started_s: float
    live_s: float
    asked_s: float


def run(quick: bool) -> Iterator[Row]:
    for count, stages in NODES.items():
        with fleet.running(count) as machines:
            went = asyncio.run(releases(machines, stages, 1 if quick else RELEASES))
        spoken = f"{count} node{'s' if count > 1 else ''}"
        overhead = median(entry.live_s - entry.asked_s for entry in went)
        title = f"deploy to live beyond the health windows, {spoken}"
        note = f"{len(stages)} stages, {count} windows of {HEALTHY_S:g} s; the median of {len(went)} releases"
        if count == AIMED_NODES:
            yield at_most(title, round(overhead, 2), "s", OVERHEAD_AIM_S, note=note)
        else:
            yield Row(title, round(overhead, 2), "s", note=note)
        yield Row(f"of it preparing, {spoken}", round(median(entry.started_s for entry in went), 2), "s")
        rolling = median(entry.live_s - entry.started_s - entry.asked_s for entry in went)
        yield Row(f"of it rolling, {spoken}", round(rolling, 2), "s")


async def releases(machines: list[fleet.Machine], stages: list[str], count: int) -> list[Went]:
    """Deploy one release that is not counted, the first of its lane, and then `count` more."""
    folder = Path(tempfile.mkdtemp(prefix="fh"))
    signer = fleet.admin(machines[0])
    went = []
    try:
        async with fleet.clients(machines) as clients:
            for action in (CreateEnvironment(ENVIRONMENT), CreateProject(PROJECT, ("bench",))):
                await clients[0].decide(signer, action, expect=(await clients[0].state()).sequence)
            for number in range(count + 1):
                name = list(ANSWERS)[number % len(ANSWERS)]
                write_project(folder, name, number, stages)
                went.append(await release(clients, signer, folder, len(stages)))
                await answer_all(machines, ANSWERS[name])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return went[1:]


def write_project(
    folder: Path, name: str, number: int, stages: list[str], project: str = PROJECT, route: str = "/"
) -> None:
    """A project whose component no node has seen: the fixture, and the number in a section that nobody reads."""
    content = b"\x05bench" + number.to_bytes(8, "big")
    unread = bytes((CUSTOM_SECTION, len(content))) + content
    (folder / "web.wasm").write_bytes(component(name).read_bytes() + unread)
    spoken = str(stages).replace("'", '"')
    toml = TOML.format(project=project, route=route, stages=spoken, healthy_s=HEALTHY_S)
    (folder / "freehold.toml").write_text(toml)


async def release(clients: list[NodeClient], signer: Ed25519Signer, folder: Path, stages: int) -> Went:
    """Deploy what lies in the folder; return when every node holds the last promotion."""
    text = (folder / "freehold.toml").read_text()
    project = open_project(folder)
    project = project.project.name
    bundle = await asyncio.to_thread(build_project, project.project, text, folder, Quiet())
    first, mesh = clients[0], await clients[0].mesh()
    state = await first.state()
    offered = built_here(project, bundle, signer.public_key)
    proposal = make_proposal(state, mesh, offered, environment=ENVIRONMENT, request="a measurement", signer=signer)
    await claim_missing_routes(first, lane_of(state, project, ENVIRONMENT), proposal.change.routes, signer)
    await upload(first, proposal)
    state = await first.state()
    lane = lane_of(state, project, ENVIRONMENT)
    start = start_of(mesh, lane, proposal.id, pinned_nodes(state, lane, proposal.change), signer)
    async with asyncio.timeout(LIVE_TIMEOUT_S), asyncio.TaskGroup() as group:
        watches = [group.create_task(promoted(client, stages)) for client in clients]
        await asyncio.sleep(SETTLE_S)
        began_s = time.monotonic()
        await first.publish("change", project, encode(proposal.signed))
        await first.start(start)
    seen = [watch.result() for watch in watches]
    asked_s = len(clients) * HEALTHY_S
    return Went(min(pair[0] for pair in seen) - began_s, max(pair[1] for pair in seen) - began_s, asked_s)


async def promoted(client: NodeClient, stages: int) -> tuple[float, float]:
    """When a node learnt that the rollout began, and that its last stage is passed."""
    started_s = 0.0
    async with contextlib.aclosing(client.follow("/v1/events")) as events:
        async for kind, fields in events:
            match kind, fields.get("action"):
                case "decision", "start":
                    started_s = time.monotonic()
                case "decision", "promote":
                    stages -= 1
                    if not stages:
                        return started_s, time.monotonic()
                case "decision", action:
                    raise AssertionError(f"the rollout went another way: {action} {fields['reason']}")
    raise AssertionError("the node ended its stream")


async def answer_all(machines: list[fleet.Machine], expected: bytes) -> None:
    """Every node's ingress must answer with the new release now."""
    async with aiohttp.ClientSession() as session:
        for machine in machines:
            async with session.get(f"http://{machine.status()['ingress'][0]}/") as answer:
                body = await answer.read()
            assert body == expected, f"{machine.folder.name} answers {answer.status} {body!r}"
