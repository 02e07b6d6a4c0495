"""Topics between workers and nodes: `topics.sock` for this node's workers, `/freehold/topic/1` between daemons.

    worker -> daemon, daemon -> worker, daemon -> peer: blocks, each a publication (runtime/ingress/topics.py)

What a worker publishes goes to the node's other workers and to every connected member; what a member publishes goes to the
workers here and no further. At most once, in order for each publisher: whoever does not keep up loses what does not fit.
Not here: who listens to what, which workers know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from node.mesh.worker_socket import serve_workers
from node.transport import Stream, StreamError, Transport
from protocols.machine import PeerId
from runtime.ingress.topics import (
    BLOCK_MAX_BYTES,
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
        may_publish: Callable[[PeerId], bool],
    ) -> None:
        """Take the workers' folder, the members that are connected, and whose publications are taken."""
        self._transport = transport
        self._path = folder / TOPICS_SOCKET
        self._peers = peers
        self._may_publish = may_publish
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
                self._tell_workers(said, writer)
                self._tell_peers(block_of(said))
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

    def _tell_peers(self, block: bytes) -> None:
        assert self._tasks is not None
        for peer in self._peers():
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
        if not self._may_publish(stream.peer):
            raise StreamError("topics.refused")
        while (data := await stream.read_block(BLOCK_MAX_BYTES)) is not None:
            try:
                said = read_publication_bytes(data)
            except ValueError:
                raise StreamError("topics.malformed") from None
            if not self._may_publish(stream.peer):
                raise StreamError("topics.refused")
            self._tell_workers(said)
