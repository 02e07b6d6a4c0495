"""Topics between workers and nodes: `topics.sock` for this node's workers, `/freehold/topic/1` between daemons.

    worker -> daemon, daemon -> worker, daemon -> peer: blocks, each a publication (runtime/ingress/topics.py)

What a worker publishes goes to the node's other workers and, as far as it reaches, to every connected member; what a member
publishes goes to the workers here and no further, and only if that member runs the project in that environment, by what is
decided here. At most once, in order for each publisher: whoever does not keep up loses what does not fit, and so does a
node that hears of a decision before the other does. Not here: who listens to what, which workers know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from node.mesh.worker_socket import serve_workers
from node.transport import Stream, StreamError, Transport
from protocols.machine import PeerId
from runtime.ingress.topics import (
    BLOCK_MAX_BYTES,
    EVERYWHERE,
    HERE,
    TOPICS_SOCKET,
    Publication,
    block_of,
    read_publication_block,
    read_publication_bytes,
)

PROTOCOL: Final = "/freehold/topic/1"
UNSENT_MAX_BYTES: Final = 4 << 20
WAITING_MAX: Final = 256
"""Blocks for one peer."""

WAITING_MAX_BYTES: Final = 4 << 20
"""Of those blocks: a peer that reads nothing costs this node no more."""

WORKERS_MAX: Final = 256
IDLE_S: Final = 120.0
"""A stream to a peer that nothing goes over is closed."""

REFUSED_FOR_S: Final = 30.0
_log = logging.getLogger("freehold.topics")


class TopicRelay:
    """Passes publications on."""

    def __init__(
        self,
        transport: Transport,
        folder: Path,
        *,
        peers: Callable[[], Sequence[PeerId]],
        is_member: Callable[[PeerId], bool],
        runs: Callable[[PeerId, tuple[str, str]], bool],
    ) -> None:
        """Take the workers' folder, the members that are connected, who is one, and which of them runs a lane."""
        self._transport = transport
        self._path = folder / TOPICS_SOCKET
        self._peers = peers
        self._is_member = is_member
        self._runs = runs
        self._workers: dict[asyncio.StreamWriter, None] = {}
        self._waiting: dict[PeerId, asyncio.Queue[bytes]] = {}
        self._held_bytes: dict[PeerId, int] = {}
        self._tasks: asyncio.TaskGroup | None = None
        transport.serve(PROTOCOL, self._serve)

    async def run(self) -> None:
        """Serve this node's workers until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            await serve_workers(self._path, self._accept, limit_bytes=BLOCK_MAX_BYTES)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._tasks is None or len(self._workers) >= WORKERS_MAX:
            writer.close()
            return
        self._tasks.create_task(self._hear_worker(reader, writer))

    async def _hear_worker(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._workers[writer] = None
        try:
            while True:
                said = await read_publication_block(reader)
                everywhere = replace(said, reach=EVERYWHERE)
                self._tell_workers(everywhere, writer)
                if said.reach != HERE:
                    self._tell_peers(block_of(everywhere), PeerId(said.reach))
        except (OSError, EOFError, ValueError):
            pass  # the worker ended
        finally:
            del self._workers[writer]
            writer.close()

    def _tell_workers(self, said: Publication, but: asyncio.StreamWriter | None = None) -> None:
        block = block_of(said)
        for writer in self._workers:
            if writer is not but and writer.transport.get_write_buffer_size() < UNSENT_MAX_BYTES:
                writer.write(block)

    # --- between nodes ------------------------------------------------------------------------------------------------

    def _tell_peers(self, block: bytes, but: PeerId | None = None) -> None:
        assert self._tasks is not None
        for peer in self._peers():
            if peer == but:
                continue
            waiting = self._waiting.get(peer)
            if waiting is None:
                waiting = self._waiting[peer] = asyncio.Queue(WAITING_MAX)
                self._held_bytes[peer] = 0
                self._tasks.create_task(self._tell_peer(peer, waiting))
            if not waiting.full() and self._held_bytes[peer] + len(block) <= WAITING_MAX_BYTES:
                waiting.put_nowait(block)
                self._held_bytes[peer] += len(block)

    async def _tell_peer(self, peer: PeerId, waiting: asyncio.Queue[bytes]) -> None:
        """Send a peer what waits for it, over one stream, until nothing has for a while."""
        try:
            async with await self._transport.open_stream(peer, PROTOCOL) as stream:
                while True:
                    async with asyncio.timeout(IDLE_S):
                        block = await waiting.get()
                    await stream.write_block(block[4:])
                    self._held_bytes[peer] -= len(block)
        except TimeoutError:
            pass
        except StreamError as error:
            _log.debug("a peer takes no publications now: %s", error)
            await asyncio.sleep(REFUSED_FOR_S if self._transport.link_to(peer) is not None else 1.0)
        finally:
            del self._waiting[peer], self._held_bytes[peer]

    async def _serve(self, stream: Stream) -> None:
        peer = stream.peer
        if not self._is_member(peer):
            raise StreamError("topics.refused")
        told = False
        while (data := await stream.read_block(BLOCK_MAX_BYTES)) is not None:
            try:
                said = read_publication_bytes(data)
            except ValueError:
                raise StreamError("topics.malformed") from None
            if not self._is_member(peer):
                raise StreamError("topics.refused")
            project, _, environment = said.lane.partition(" ")
            if self._runs(peer, (project, environment)):
                self._tell_workers(said)
            elif not told:
                told = True
                _log.info(
                    "it does not run that here", extra={"event": "topics.not-placed", "peer": peer, "lane": said.lane}
                )
