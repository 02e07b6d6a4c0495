"""Fetching artifacts from peers over bulk streams, and serving them: `/freehold/artifact/1`.

    asker    -> blocks: `ArtifactAsk` and `ChunkAsk`, several before the first answer
    answerer -> one block for each, in their order: `ArtifactOffer`, `Chunk`

What to ask of whom, what to believe and when to give up is the machine's (protocols/artifacts.py); here a Pump drives
it, one stream to each peer carries its asks, and one writer puts its chunks on disk, in order. Memory: what the machine
has in flight and UNWRITTEN_MAX chunks, however large the artifact; readers stop while the disk is behind, which stops
the peers. What waits for the disk is written in one visit to another thread, and so is what a peer asked for read, since
the visit costs more than the bytes. Serving keeps no state but a few lists of chunk digests: asks are answered from the
files before the next ones are read, so a peer that does not read its answers holds ASKS_MAX chunks and one stream's
buffer. Callers who want one artifact share one fetch. Not here: which artifacts are needed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.mesh.pump import Pump
from node.store.artifacts import ArtifactError, ArtifactStore
from node.transport import Stream, StreamError, Transport
from node.transport.stream import BLOCK_TOO_LARGE
from protocols.artifacts import (
    ANSWER_MAX_BYTES,
    ASK_MAX_BYTES,
    WANTS_MAX,
    ArtifactAsk,
    ArtifactMachine,
    ArtifactOffer,
    BeginFile,
    CheckWhole,
    Chunk,
    ChunkAsk,
    Fetched,
    FetchTimes,
    Garbled,
    GivenUp,
    Unwant,
    Want,
    WholeChecked,
    WriteChunk,
)
from protocols.envelope import DIGEST_BYTES, DecodeError, decode, encode
from protocols.machine import Digest, PeerConnected, PeerDisconnected, PeerId, Persist, Received

PROTOCOL = "/freehold/artifact/1"
UNWRITTEN_MAX = 16
"""Verified chunks that wait for the disk: 2 MiB, a pause of tens of milliseconds."""

READS_MAX = 4
"""Peers for whom chunks are read at once; more would only queue in the disk."""

ASKS_MAX = 4
"""Asks of one peer that are answered together: half of what it has in flight, so that the next are on their way."""

STREAMS_PER_PEER_MAX = 2
"""One, and the one of a life before that has not been noticed to be dead."""

LISTS_MAX = 64
"""Lists of chunk digests kept, so that 31 fetchers cost one reading of the file; at most 64 KiB each."""

LOOK_EVERY_S = 1.0

_log = logging.getLogger("freehold.artifacts")


@dataclass(frozen=True, slots=True)
class _Release:
    """Close the file of a fetch that is over."""

    digest: Digest


_Order = BeginFile | WriteChunk | CheckWhole | _Release


@dataclass(slots=True)
class _Session:
    """The stream to one peer, and what is to be asked on it; None ends it."""

    outbox: asyncio.Queue[ArtifactAsk | ChunkAsk | None] = field(default_factory=asyncio.Queue)


class Fetcher:
    """Brings artifacts here and hands out those that are."""

    def __init__(
        self,
        store: ArtifactStore,
        transport: Transport,
        peers: Callable[[], Sequence[PeerId]],
        *,
        may_fetch: Callable[[PeerId], bool],
        on_reject: Callable[[PeerId, str, str], None],
        times: FetchTimes | None = None,
    ) -> None:
        """Take who is asked (`peers`), who is served, and who hears of liars; call before the transport runs."""
        self._store = store
        self._transport = transport
        self._peers = peers
        self._may_fetch = may_fetch
        self._on_reject = on_reject
        self._machine = ArtifactMachine(times)
        self._pump = Pump(self._machine, self, _persist, self._notified)
        self._group: asyncio.TaskGroup | None = None
        self._known: set[PeerId] = set()
        self._sessions: dict[PeerId, _Session] = {}
        self._waiting: dict[Digest, asyncio.Future[None]] = {}
        self._slots = asyncio.Semaphore(WANTS_MAX)
        self._orders: asyncio.Queue[_Order] = asyncio.Queue()
        self._unwritten = 0
        self._disk_keeps_up = asyncio.Event()
        self._disk_keeps_up.set()
        self._reads = asyncio.Semaphore(READS_MAX)
        self._streams: Counter[PeerId] = Counter()
        self._lists: OrderedDict[Digest, ArtifactOffer] = OrderedDict()
        self._listing = asyncio.Lock()
        transport.serve(PROTOCOL, self._serve)

    async def run(self) -> None:
        """Fetch until cancelled; what is on disk by then is where the next run goes on."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._pump.run())
            group.create_task(self._write())
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                self._look()

    async def ensure(self, digest: bytes) -> None:
        """Have the artifact here. Raises ArtifactError if no peer gives it or it cannot be stored."""
        name = Digest(digest)
        if self._store.has(name):
            return
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = asyncio.get_running_loop().create_future()
            waiting.add_done_callback(lambda done: done.exception())  # seen, also if every caller has gone
            assert self._group is not None, "a want before run"
            self._group.create_task(self._fetch(name, waiting))
        await asyncio.shield(waiting)

    async def _fetch(self, name: Digest, waiting: asyncio.Future[None]) -> None:
        async with self._slots:
            unfinished = await asyncio.to_thread(self._store.unfinished, name)
            offer, have = unfinished or (None, ())
            if offer is not None:
                detail = f"{len(have)} of {len(offer.chunks)} chunks are here"
                _log.info("a fetch goes on", extra={"event": "artifact.resumed", "detail": detail})
            await self._pump.put(Want(name, offer, have))
            self._meet()
            await asyncio.wait({waiting})
            self._orders.put_nowait(_Release(name))

    def _look(self) -> None:
        """Meet peers that came, leave all when nothing is wanted, and see what came another way (an upload)."""
        for name in [digest for digest in self._waiting if self._store.has(digest)]:
            self._pump.post(Unwant(name))
            self._end(name)
        if self._waiting:
            self._meet()
            return
        for peer in tuple(self._known):
            self._part(peer, self._sessions.get(peer))

    def _meet(self) -> None:
        for peer in self._peers():
            if peer not in self._known and self._pump.post(PeerConnected(peer, False)):
                self._known.add(peer)

    def _part(self, peer: PeerId, session: _Session | None) -> None:
        """Forget a peer, if `session` is still the stream to it; it is met again while something is wanted."""
        if peer in self._known and self._sessions.get(peer) is session:
            self._known.discard(peer)
            self._sessions.pop(peer, None)
            self._pump.post(PeerDisconnected(peer))
        if session is not None:
            session.outbox.put_nowait(None)

    def _end(self, name: Digest, error: ArtifactError | None = None) -> None:
        waiting = self._waiting.pop(name, None)
        if waiting is None:
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)

    # --- Outlet: what the machine's effects do ------------------------------------------------------------------------

    def send(self, peer: PeerId, message: Any) -> None:
        """Queue one ask; bounded by what the machine has in flight and wanted."""
        session = self._sessions.get(peer)
        if session is None:
            assert self._group is not None
            session = self._sessions[peer] = _Session()
            self._group.create_task(self._converse(peer, session))
        session.outbox.put_nowait(message)

    def broadcast(self, message: Any, exclude: tuple[PeerId, ...]) -> None:
        """Never happens."""
        raise AssertionError(f"a broadcast of {type(message).__name__}")

    def disconnect(self, peer: PeerId, reason: str) -> None:
        """Never happens."""
        raise AssertionError(f"a disconnect of {peer}: {reason}")

    def reject(self, peer: PeerId, rule: str, detail: str) -> None:
        """Name who lied."""
        self._on_reject(peer, rule, detail)

    def _notified(self, event: Any) -> None:
        match event:
            case Fetched(name):
                self._end(name)
            case GivenUp(name, offered):
                why = "those that have it send nothing" if offered else "no connected node has it"
                self._end(name, ArtifactError(f"artifact {name.hex()[:16]} cannot be fetched: {why}"))
            case _:
                if isinstance(event, WriteChunk):
                    self._unwritten += 1
                    if self._unwritten >= UNWRITTEN_MAX:
                        self._disk_keeps_up.clear()
                self._orders.put_nowait(event)

    # --- asking -------------------------------------------------------------------------------------------------------

    async def _converse(self, peer: PeerId, session: _Session) -> None:
        try:
            async with await self._transport.open_stream(peer, PROTOCOL) as stream:
                hearing = asyncio.ensure_future(self._hear(stream, session))
                try:
                    while (message := await session.outbox.get()) is not None:
                        await stream.write_block(encode(message))
                finally:
                    hearing.cancel()
                    await asyncio.gather(hearing, return_exceptions=True)
        except (StreamError, OSError) as error:
            _log.info("no artifacts from a peer: %s", error, extra={"event": "artifact.failed", "peer": peer})
        finally:
            self._part(peer, session)

    async def _hear(self, stream: Stream, session: _Session) -> None:
        try:
            while (block := await stream.read_block(ANSWER_MAX_BYTES)) is not None:
                answer: ArtifactOffer | Chunk = decode(block, ArtifactOffer | Chunk, ANSWER_MAX_BYTES)
                await self._disk_keeps_up.wait()
                await self._pump.put(Received(stream.peer, answer))
        except DecodeError as error:
            await self._pump.put(Garbled(stream.peer, str(error)))
        except StreamError as error:
            if error.reason == BLOCK_TOO_LARGE:
                await self._pump.put(Garbled(stream.peer, f"a block over {ANSWER_MAX_BYTES} bytes"))
        finally:
            self._part(stream.peer, session)

    # --- the disk -----------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Perform orders in turn, what waits in one go; a failure costs the fetch, and the half-written file with it."""
        while True:
            orders = [await self._orders.get()]
            while not self._orders.empty():
                orders.append(self._orders.get_nowait())
            for name, some in itertools.groupby(orders, _name_of):
                await self._write_some(name, tuple(some))

    async def _write_some(self, name: Digest, orders: tuple[_Order, ...]) -> None:
        try:
            good = await asyncio.to_thread(self._perform, name, orders)
            if good is not None:
                await self._pump.put(WholeChecked(name, good))
        except FileNotFoundError:
            pass  # abandoned: what was still queued for it is void
        except OSError as error:
            await asyncio.to_thread(self._store.abandon, name)
            await self._pump.put(Unwant(name))
            self._end(name, ArtifactError(f"artifact {name.hex()[:16]} cannot be stored: {error}"))
        finally:
            self._unwritten -= sum(isinstance(order, WriteChunk) for order in orders)
            if self._unwritten < UNWRITTEN_MAX:
                self._disk_keeps_up.set()

    def _perform(self, name: Digest, orders: tuple[_Order, ...]) -> bool | None:
        """Perform orders about one artifact, in a thread; return whether it was found whole, None if nobody asked."""
        good = None
        for kind, some in itertools.groupby(orders, type):
            if kind is WriteChunk:
                chunks = [(order.index, order.data) for order in some if isinstance(order, WriteChunk)]
                self._store.write_chunks(name, chunks)
                continue
            for order in some:
                match order:
                    case BeginFile(offer):
                        self._store.begin(offer)
                    case CheckWhole():
                        good = self._store.complete(name)
                    case _Release():
                        self._store.release(name)
        return good

    # --- serving ------------------------------------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        peer = stream.peer
        if not self._may_fetch(peer) or self._streams[peer] >= STREAMS_PER_PEER_MAX:
            raise StreamError("artifact.refused")
        self._streams[peer] += 1
        try:
            while (block := await stream.read_block(ASK_MAX_BYTES)) is not None:
                asks = [read_ask(block)]
                while len(asks) < ASKS_MAX and stream.has_block() and (block := await stream.read_block(ASK_MAX_BYTES)):
                    asks.append(read_ask(block))
                for _, some in itertools.groupby(asks, lambda ask: (type(ask), ask.digest)):
                    for answer in await self._answer(tuple(some)):
                        await stream.write_block(encode(answer))
            stream.finish()
        except DecodeError as error:
            self._on_reject(peer, "artifact.malformed-ask", str(error))
            raise StreamError("artifact.malformed-ask") from None
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _answer(self, asks: tuple[ArtifactAsk | ChunkAsk, ...]) -> list[ArtifactOffer | Chunk]:
        """Answer asks of one kind about one artifact."""
        name = Digest(asks[0].digest)
        indices = [ask.index for ask in asks if isinstance(ask, ChunkAsk)]
        if not indices:
            return [await self._offer(name) for _ in asks]
        async with self._reads:
            chunks = await asyncio.to_thread(self._store.read_chunks, name, indices)
        return [Chunk(name, index, data) for index, data in zip(indices, chunks, strict=True)]

    async def _offer(self, name: Digest) -> ArtifactOffer:
        """Return what is offered; one file is read at a time, once for all who ask."""
        if not self._store.has(name):
            self._lists.pop(name, None)
            return ArtifactOffer(name, 0)
        async with self._listing:
            offer = self._lists.get(name)
            if offer is None:
                offer = await asyncio.to_thread(self._store.offer, name)
                if offer.size == 0:
                    return offer
                self._lists[name] = offer
                if len(self._lists) > LISTS_MAX:
                    self._lists.popitem(last=False)
            self._lists.move_to_end(name)
            return offer


async def _persist(*effects: Persist) -> None:
    raise AssertionError(f"a persist to {effects[0].store}")


def _name_of(order: _Order) -> Digest:
    return Digest(order.offer.digest if isinstance(order, BeginFile) else order.digest)


def read_ask(block: bytes) -> ArtifactAsk | ChunkAsk:
    """Read one ask. Raises DecodeError."""
    ask: ArtifactAsk | ChunkAsk = decode(block, ArtifactAsk | ChunkAsk, ASK_MAX_BYTES)
    if len(ask.digest) != DIGEST_BYTES:
        raise DecodeError(f"a digest has {DIGEST_BYTES} bytes")
    return ask
