"""Requests that belong to another node: `/freehold/http/1` between daemons, a Unix socket between worker and daemon.

    worker   -> daemon: "PROJECT ENVIRONMENT ROLE\\n"                       daemon -> worker: one word, a line
    daemon   -> peer:   the same line on a new stream                      peer   -> daemon: one byte, 1 or 0
    then the request one way and the answer the other, blind, both with back-pressure, until one side ends

ROLE is `base`, `candidate` or `any`: which release of the lane has the route. A peer says 1 once its own workers took
the connection, so until the daemon says `go` no byte of the request has left this node and any other peer may be asked.
What a peer gets here goes to its own apps only: a worker never forwards what came from a node. Not here: HTTP
(runtime/ingress/forwarding.py), and where lanes are placed (protocols/state/placement.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node.mesh.mesh import Mesh
from node.mesh.worker_socket import serve_workers
from node.transport import Stream, StreamError, Transport
from protocols.liveness import Belief
from protocols.machine import PeerId
from protocols.state.model import MeshState
from protocols.state.placement import eligible, placed
from runtime.ingress.forwarding import BUSY_THERE, GO, HERE, NOWHERE
from runtime.messages import FORWARD_SOCKET, WorkerRoute

PROTOCOL = "/freehold/http/1"
FORWARDS_MAX = 1_024
"""Requests under way to other nodes, and as many from them; each holds two sockets and a stream's window."""

LINE_MAX_BYTES = 256
"""Two names of at most 63 characters and a role, with room."""

LINE_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 5.0
"""A peer that has not taken a request after this long is asked no more for it; the transport notices dead ones."""

PATIENCE_S = 5.0
"""How long a request waits for an app that is on its way from one node to another."""

PAUSE_S = 0.1
DRAIN_LOOK_S = 0.02
CHUNK_BYTES = 64 * 1024

Lane = tuple[str, str]
_log = logging.getLogger("freehold.forwarding")


class ServesLanes(Protocol):
    """What this node serves now."""

    def serves(self, lane: Lane, role: str) -> bool:
        """Whether the workers here answer for the lane, in this role or, if it is `any`, in either."""
        ...


def runners(state: MeshState, lane: Lane, role: str, down: Collection[PeerId] = ()) -> tuple[PeerId, ...]:
    """Return the nodes that should serve a role of a lane, ascending; replicas are looked for past those down, too."""
    found_lane = state.lane(*lane)
    if found_lane is None:
        return ()
    nodes = eligible(state, lane[1])
    cohort = found_lane.rollout.cohort if found_lane.rollout is not None else ()
    wanted: list[PeerId] = []
    if role != "base":
        wanted += cohort
    if role != "candidate" and found_lane.base is not None:
        based = (*placed(found_lane, found_lane.base, nodes), *placed(found_lane, found_lane.base, nodes, down))
        wanted += [node for node in based if role == "any" or node not in cohort]
    return tuple(sorted(set(wanted)))


def routes_away(state: MeshState, here: Mapping[Lane, Collection[tuple[str, str]]]) -> list[WorkerRoute]:
    """Return a route to other nodes for everything that is served but not here; `here` are (host, path) per lane.

    What a lane has claimed before its first release leads away, too: visitors hear that no node runs it yet, and when to
    try again.
    """
    taken = {address for addresses in here.values() for address in addresses}
    routes = []
    for lane in state.lanes:
        base = {(route.host, route.path) for route in lane.base.routes} if lane.base is not None else set()
        candidate = (
            {(route.host, route.path) for route in lane.rollout.candidate.routes} if lane.rollout is not None else set()
        )
        if lane.base is None and lane.rollout is None:
            mine = (
                route
                for route in state.routes
                if (route.project, route.environment) == (lane.project, lane.environment)
            )
            base = {(route_claim.route.host, route_claim.route.path) for route_claim in mine}
        for address in sorted((base | candidate) - taken):
            role = "any" if address in base and address in candidate else "base" if address in base else "candidate"
            if lane.rollout is None:
                role = "any"
            text = f"{lane.project} {lane.environment} {role}"
            routes.append(WorkerRoute(address[0] or None, address[1], "", "", text))
    return routes


@dataclass(frozen=True, slots=True)
class Candidates:
    """The connected peers that should serve `role` of a lane, and whether waiting for another may help."""

    peers: tuple[PeerId, ...]
    role: str
    more_may_come: bool


def candidates(mesh: Mesh, lane: Lane, role: str) -> Candidates:
    """Return whom to ask now; without a rollout under way every role is `any`: the worker's word may be a step old."""
    core = mesh.core
    decided = core.state.lane(*lane)
    if decided is None or decided.rollout is None:
        role = "any"
    down = _down(mesh)
    wanted = runners(core.state, lane, role, down)
    peers = tuple(node for node in wanted if node != core.node and mesh.transport.link_to(node) is not None)
    return Candidates(peers, role, any(node not in down for node in wanted))


def runs_lane(mesh: Mesh, node: PeerId, lane: Lane) -> bool:
    """Whether a node runs the lane as it is decided: of the base or the candidate, or in place of one that is down."""
    return node in runners(mesh.core.state, lane, "any", _down(mesh))


def _down(mesh: Mesh) -> set[PeerId]:
    core = mesh.core
    return {node.node for node in core.state.nodes if core.liveness.belief(node.node) is Belief.DOWN}


class Forwarding:
    """Sends requests to the nodes that run their app, and takes those that other nodes send."""

    def __init__(
        self,
        transport: Transport,
        serving: ServesLanes,
        candidates: Callable[[Lane, str], Candidates],
        may_send: Callable[[PeerId], bool],
        *,
        folder: Path,
        ingress: Path,
    ) -> None:
        """Take the workers' runtime folder and the Unix ingress; call before the transport runs.

        `candidates` names the peers to ask; `may_send` says whose requests are taken.
        """
        self._transport = transport
        self._serving = serving
        self._candidates = candidates
        self._may_send = may_send
        self._path = folder / FORWARD_SOCKET
        self._ingress = ingress
        self._out = 0
        self._in = 0
        self._turn = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._server: asyncio.Task[None] | None = None
        transport.serve(PROTOCOL, self._serve)

    async def run(self) -> None:
        """Take requests from this node's workers until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self._server = self._tasks.create_task(serve_workers(self._path, self._accept, limit_bytes=CHUNK_BYTES))
            await asyncio.Event().wait()

    async def drain(self, limit_s: float) -> None:
        """Take no more requests of this node's workers, and let end what is under way, either way, for `limit_s` at most."""
        if self._server is not None:
            self._server.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._out or self._in:  # noqa: ASYNC110  a moment, at the end of the process
                    await asyncio.sleep(DRAIN_LOOK_S)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._tasks is not None
        self._tasks.create_task(self._take(reader, writer))

    # --- out ----------------------------------------------------------------------------------------------------------

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(LINE_TIMEOUT_S):
                line = await reader.readuntil(b"\n")
            if self._out >= FORWARDS_MAX:
                writer.write(BUSY_THERE)
                return
            self._out += 1
            try:
                answer = await self._find(line)
                if isinstance(answer, bytes):
                    writer.write(answer)
                    return
                async with answer:
                    writer.write(GO)
                    await _pipe(reader, writer, answer)
            finally:
                self._out -= 1
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError) as error:
            _log.debug("a forwarded request ended: %s", error)
        finally:
            writer.close()

    async def _find(self, line: bytes) -> Stream | bytes:
        lane, role = _parse(line)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + PATIENCE_S
        while True:
            now = self._candidates(lane, role)
            if self._serving.serves(lane, now.role):
                return HERE
            self._turn += 1
            for index in range(len(now.peers)):
                peer = now.peers[(index + self._turn) % len(now.peers)]
                stream = await self._ask(peer, _line(lane, now.role))
                if stream is not None:
                    return stream
            if not now.more_may_come or loop.time() >= end_s:
                return NOWHERE
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, peer: PeerId, line: bytes) -> Stream | None:
        try:
            stream = await self._transport.open_stream(peer, PROTOCOL)
        except StreamError:
            return None
        taken = False
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await stream.write(line)
                taken = await stream.read_exactly(1) == b"\1"
        except (StreamError, TimeoutError) as error:
            _log.info("not taken: %s", error, extra={"event": "forward.failed", "peer": peer})
        finally:
            if not taken:
                stream.leave(clean=False)
        return stream if taken else None

    # --- in -----------------------------------------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        if not self._may_send(stream.peer) or self._in >= FORWARDS_MAX:
            raise StreamError("forwarding.refused")
        self._in += 1
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(LINE_TIMEOUT_S):
                line = await _read_line(stream)
                if self._serving.serves(*_parse(line)):
                    reader, writer = await asyncio.open_unix_connection(str(self._ingress), limit=CHUNK_BYTES)
            if writer is None:
                await stream.write(b"\0")
                stream.finish()
                return
            await stream.write(b"\1")
            await _pipe(reader, writer, stream)
        except TimeoutError:
            raise StreamError("forwarding.slow") from None
        except (ValueError, OSError) as error:
            raise error if isinstance(error, StreamError) else StreamError("forwarding.failed") from None
        finally:
            self._in -= 1
            if writer is not None:
                writer.close()


def _line(lane: Lane, role: str) -> bytes:
    return f"{lane[0]} {lane[1]} {role}\n".encode("ascii")


def _parse(line: bytes) -> tuple[Lane, str]:
    project, environment, role = line.decode("ascii").rstrip("\n").split(" ")
    return (project, environment), role


async def _read_line(stream: Stream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = await stream.read(LINE_MAX_BYTES)
        line += data
        if not data or len(line) > LINE_MAX_BYTES:
            raise StreamError("forwarding.malformed")
    return line


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: Stream) -> None:
    """Carry bytes both ways until either side ends; what that side sent before is delivered. Raises what broke."""

    async def inward() -> None:
        while data := await stream.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()

    async def outward() -> None:
        while data := await reader.read(CHUNK_BYTES):
            await stream.write(data)
        stream.finish()

    tasks = [asyncio.ensure_future(inward()), asyncio.ensure_future(outward())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task
    for task in tasks:
        if not task.cancelled():
            task.result()
