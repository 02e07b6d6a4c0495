"""Fetching artifacts from peers over bulk streams, and serving them: `/freehold/artifact/1`.

    asker    -> digest (32 bytes)
    answerer -> size (8 bytes, big-endian; all ones: not here), then that many bytes

Whole bytes are checked against the digest before they get a name; a peer that sent others is named in the log and not
asked again for this artifact. Two callers who want one artifact share one fetch. Not here: which artifacts are
needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from node.artifacts import ARTIFACT_MAX_BYTES, ArtifactError, ArtifactStore
from node.transport import Stream, StreamError, Transport
from protocols.envelope import DIGEST_BYTES
from protocols.machine import PeerId

PROTOCOL = "/freehold/artifact/1"
ABSENT = (1 << 64) - 1
FETCHES_MAX = 4
"""Artifacts fetched at once: enough to fill a link, few enough that each one finishes."""

PEER_TIMEOUT_S = 60.0
SERVE_CHUNK_BYTES = 256 * 1024
ROUNDS_MAX = 5
ROUND_PAUSE_S = 1.0

_log = logging.getLogger("freehold.artifacts")


class Fetcher:
    """Brings artifacts here and hands out those that are."""

    def __init__(self, store: ArtifactStore, transport: Transport) -> None:
        """Serve the store to admitted peers; call before the transport runs."""
        self._store = store
        self._transport = transport
        self._under_way: dict[bytes, asyncio.Future[None]] = {}
        self._slots = asyncio.Semaphore(FETCHES_MAX)
        transport.serve(PROTOCOL, self._serve)

    async def ensure(self, digest: bytes, peers: Sequence[PeerId]) -> None:
        """Have the artifact here, asking `peers` in turn. Raises ArtifactError if none had it."""
        if self._store.has(digest):
            return
        under_way = self._under_way.get(digest)
        if under_way is not None:
            await asyncio.shield(under_way)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way[digest] = done
        try:
            async with self._slots:
                await self._ask_all(digest, peers)
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error if isinstance(error, ArtifactError) else ArtifactError("the fetch was given up"))
            done.exception()  # seen: the error is raised here too
            raise
        finally:
            del self._under_way[digest]

    async def _ask_all(self, digest: bytes, peers: Sequence[PeerId]) -> None:
        liars: set[PeerId] = set()
        for _ in range(ROUNDS_MAX):
            for peer in peers:
                if peer in liars:
                    continue
                try:
                    async with asyncio.timeout(PEER_TIMEOUT_S):
                        if await self._ask(peer, digest):
                            return
                except ArtifactError as error:
                    liars.add(peer)
                    _log.warning("%s", error, extra={"event": "artifact.bad", "peer": peer})
                except (StreamError, TimeoutError, OSError) as error:
                    _log.info("fetch failed: %s", error, extra={"event": "artifact.failed", "peer": peer})
            await asyncio.sleep(ROUND_PAUSE_S)
        raise ArtifactError(f"no connected node has artifact {digest.hex()[:16]}")

    async def _ask(self, peer: PeerId, digest: bytes) -> bool:
        async with await self._transport.open_stream(peer, PROTOCOL) as stream:
            await stream.write(digest)
            stream.finish()
            size = int.from_bytes(await stream.read_exactly(8), "big")
            if size == ABSENT:
                return False
            if size > ARTIFACT_MAX_BYTES:
                raise ArtifactError(f"artifact {digest.hex()[:16]} is said to have {size} bytes")
            await self._store.receive(digest, _chunks(stream, size), size)
            return True

    async def _serve(self, stream: Stream) -> None:
        async with stream:
            digest = await stream.read_exactly(DIGEST_BYTES)
            if not self._store.has(digest):
                await stream.write(ABSENT.to_bytes(8, "big"))
                stream.finish()
                return
            with self._store.path(digest).open("rb") as file:
                file.seek(0, 2)
                await stream.write(file.tell().to_bytes(8, "big"))
                file.seek(0)
                while chunk := await asyncio.to_thread(file.read, SERVE_CHUNK_BYTES):
                    await stream.write(chunk)
            stream.finish()


async def _chunks(stream: Stream, size: int) -> AsyncIterator[bytes]:
    left = size
    while left:
        chunk = await stream.read(min(left, SERVE_CHUNK_BYTES))
        if not chunk:
            raise StreamError("transport.ended-early")
        left -= len(chunk)
        yield chunk
