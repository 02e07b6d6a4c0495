"""Fetching over real transports and real files: holders that die, lie and come back, and a node that restarts midway."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from node.mesh.artifact_fetcher import ASKS_MAX, PROTOCOL, UNWRITTEN_MAX, Fetcher, read_ask
from node.store.artifacts import ArtifactError, ArtifactStore
from node.transport import Stream
from protocols.artifacts import (
    ASK_MAX_BYTES,
    CHUNK_BYTES,
    IN_FLIGHT_PER_PEER,
    ArtifactAsk,
    Chunk,
    ChunkAsk,
    FetchTimes,
    offer_of,
)
from protocols.envelope import decode, digest, encode
from tests.support.mesh.libp2p_peers import LOOPBACK, TestNode, make_transport

CHUNKS = 160
DATA = random.Random(1).randbytes(CHUNKS * CHUNK_BYTES - 77)
NAME = digest(DATA)
MIDWAY = CHUNKS // 3


class Member(TestNode):
    """A transport that admits everybody, with what serves and fetches on it. `peers` are those it asks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(make_transport(LOOPBACK))
        self.store = ArtifactStore(folder)
        self.rejected: list[tuple[str, str]] = []
        self.members: list[Member] = []
        self.fetcher = Fetcher(
            self.store,
            self.transport,
            lambda: [other.peer for other in self.members if self.transport.link_to(other.peer) is not None],
            may_fetch=lambda _peer: True,
            on_reject=lambda peer, rule, _detail: self.rejected.append((peer, rule)),
            times=FetchTimes(chunk_ms=60_000, nobody_ms=2_000),
        )
        self.life: contextlib.AsyncExitStack = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(entry) for entry in (self.transport.run(), self.watch(), self.fetcher.run())]
            await self.transport.started.wait()
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def start(self) -> Member:
        await self.life.enter_async_context(self.living())
        return self

    async def stop(self) -> None:
        await self.life.aclose()

    async def meet(self, *others: Member) -> None:
        self.members = list(others)
        self.transport.set_members({other.peer: (other.address,) for other in others})
        await self.until(lambda: len({event.peer for event in self.ready}) == len(others))

    def missing(self) -> int | None:
        return self.fetcher._machine.missing(NAME)


@contextlib.asynccontextmanager
async def members(folder: Path, count: int) -> AsyncIterator[list[Member]]:
    found_members: list[Member] = []
    try:
        for index in range(count):
            found_members.append(await Member(folder / f"m{index}").start())  # noqa: PERF401  those that started are stopped
        yield found_members
    finally:
        for member in reversed(found_members):
            await member.stop()


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def serve_instead(member: Member, handler: Callable[[Stream], object]) -> None:
    """Answer artifact streams with something other than a fetcher's answers."""
    member.transport.serve(PROTOCOL, handler)  # type: ignore[arg-type]


async def lie(stream: Stream) -> None:
    """Offer the true list of chunks and send other bytes for every one."""
    while (block := await stream.read_block(ASK_MAX_BYTES)) is not None:
        ask: ArtifactAsk | ChunkAsk = decode(block, ArtifactAsk | ChunkAsk)
        answer = offer_of(DATA) if isinstance(ask, ArtifactAsk) else Chunk(NAME, ask.index, bytes(CHUNK_BYTES))
        await stream.write_block(encode(answer))


async def babble(stream: Stream) -> None:
    """Send what is no message."""
    await stream.write(random.Random(2).randbytes(4 * CHUNK_BYTES))


async def test_a_fetch_ends_when_one_holder_is_killed_midway_and_others_lie(tmp_path: Path) -> None:
    async with members(tmp_path, 6) as (me, good, slow, dying, liar, babbler):
        for holder in (good, slow, dying):
            await holder.store.put(DATA)
        serve_instead(liar, lie)
        serve_instead(babbler, babble)
        await me.meet(good, slow, dying, liar, babbler)
        fetching = asyncio.ensure_future(me.fetcher.ensure(NAME))
        await until(lambda: (me.missing() or CHUNKS) <= CHUNKS - MIDWAY)
        assert not fetching.done()
        assert dying.transport.link_to(me.peer) is not None
        await dying.stop()
        await asyncio.wait_for(fetching, 60)
        assert me.store.path(NAME).read_bytes() == DATA
        assert sorted(me.rejected) == sorted([(liar.peer, "artifact.bad-chunk"), (babbler.peer, "artifact.garbled")])
        assert sorted(path.name for path in (tmp_path / "m0").iterdir()) == [NAME.hex()]


async def test_a_fetch_goes_on_after_a_restart_with_the_chunks_on_disk(tmp_path: Path) -> None:
    async with members(tmp_path, 3) as (me, member, other):
        for holder in (member, other):
            await holder.store.put(DATA)
        await me.meet(member, other)
        fetching = asyncio.ensure_future(me.fetcher.ensure(NAME))
        await until(lambda: (me.missing() or CHUNKS) <= CHUNKS - MIDWAY)
        fetching.cancel()
        await me.stop()
        left = ArtifactStore(tmp_path / "m0").unfinished(NAME)
        assert left is not None
        assert MIDWAY // 2 < len(left[1]) < CHUNKS
        served = [0]

        async def counting(stream: Stream) -> None:
            while (block := await stream.read_block(ASK_MAX_BYTES)) is not None:
                for answer in await member.fetcher._answer((read_ask(block),)):
                    served[0] += isinstance(answer, Chunk)
                    await stream.write_block(encode(answer))

        again = Member(tmp_path / "m0")
        serve_instead(member, counting)
        await again.start()
        try:
            await again.meet(member)
            await asyncio.wait_for(again.fetcher.ensure(NAME), 60)
        finally:
            await again.stop()
        assert again.store.path(NAME).read_bytes() == DATA
        assert served[0] == CHUNKS - len(left[1])


async def test_what_waits_is_written_and_what_was_asked_is_read_in_one_visit_to_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, read = [], []
    write_chunks, read_chunks = ArtifactStore.write_chunks, ArtifactStore.read_chunks

    def slowly(store: ArtifactStore, name: bytes, chunks: Sequence[tuple[int, bytes]]) -> None:
        time.sleep(0.02)
        written.append(len(chunks))
        write_chunks(store, name, chunks)

    def noted(store: ArtifactStore, name: bytes, indices: Sequence[int]) -> list[bytes]:
        read.append(len(indices))
        return read_chunks(store, name, indices)

    monkeypatch.setattr(ArtifactStore, "write_chunks", slowly)
    monkeypatch.setattr(ArtifactStore, "read_chunks", noted)
    async with members(tmp_path, 2) as (me, holder):
        await holder.store.put(DATA)
        await me.meet(holder)
        await asyncio.wait_for(me.fetcher.ensure(NAME), 60)
        assert me.store.path(NAME).read_bytes() == DATA
    assert sum(written) == sum(read) == CHUNKS
    assert len(written) < CHUNKS / 2
    assert max(written) <= UNWRITTEN_MAX + IN_FLIGHT_PER_PEER
    assert 1 < max(read) <= ASKS_MAX


async def test_many_fetch_from_one_holder_at_once_and_it_holds_a_few_chunks_of_it(tmp_path: Path) -> None:
    async with members(tmp_path, 5) as (holder, *others):
        await holder.store.put(DATA)
        for other in others:
            await other.meet(holder)
        tracemalloc.start()
        try:
            await asyncio.wait_for(asyncio.gather(*(other.fetcher.ensure(NAME) for other in others)), 120)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert all(other.store.path(NAME).stat().st_size == len(DATA) for other in others)
        assert peak < 1.5 * len(DATA), f"{peak >> 20} MiB for 4 fetchers and their holder in one process"


async def test_what_nobody_has_is_given_up_and_what_is_uploaded_meanwhile_is_found(tmp_path: Path) -> None:
    async with members(tmp_path, 2) as (me, other):
        await me.meet(other)
        with pytest.raises(ArtifactError, match="no connected node has it"):
            await me.fetcher.ensure(NAME)
        both = asyncio.gather(*(me.fetcher.ensure(NAME) for _ in range(2)))
        await me.store.put(DATA)
        await asyncio.wait_for(both, 10)


async def test_a_full_disk_fails_the_fetch_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    async with members(tmp_path, 2) as (me, holder):
        await holder.store.put(DATA)
        await me.meet(holder)
        fetching = asyncio.ensure_future(me.fetcher.ensure(NAME))
        await until(lambda: (me.missing() or CHUNKS) <= CHUNKS - MIDWAY)
        me.store.closed = "no room"
        with pytest.raises(ArtifactError, match="no room"):
            await fetching
        assert list((tmp_path / "m0").iterdir()) == []
        me.store.closed = ""
        await me.fetcher.ensure(NAME)
        assert me.store.has(NAME)
