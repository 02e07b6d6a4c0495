"""One member asks another what it sees: descriptions and logs over a stream, for members alone, until the asker goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import pytest

from node.journal.logs import LogStore
from node.loop_time import LoopTime
from node.mesh.peer_questions import ANSWERS_MAX, ASK_MAX_BYTES, Answering, Ask, Asking
from node.transport import Stream, StreamError
from protocols.machine import PeerId

ASKER = PeerId("asker")


class Pipe:
    """One end of a stream in memory, as much of it as asking needs."""

    asker = ASKER

    def __init__(self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamReader) -> None:
        self.peer = self.asker
        self._incoming, self._outgoing = incoming, outgoing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.finish()

    read_block, write_block = Stream.read_block, Stream.write_block

    async def read(self, limit: int = 65536) -> bytes:
        return await self._incoming.read(limit)

    async def read_exactly(self, count: int) -> bytes:
        try:
            return await self._incoming.readexactly(count)
        except asyncio.IncompleteReadError:
            raise StreamError("transport.ended-early") from None

    async def write(self, data: bytes) -> None:
        self._outgoing.feed_data(data)

    def finish(self) -> None:
        self._outgoing.feed_eof()


class Wire:
    """A transport between one asker and one answerer."""

    def __init__(self) -> None:
        self.handler: Callable[[Any], Awaitable[None]] | None = None
        self.ended: list[str] = []
        self.tasks: list[asyncio.Future[None]] = []

    def serve(self, protocol: str, handler: Callable[[Any], Awaitable[None]]) -> None:
        self.handler = handler

    def connect(self) -> Pipe:
        there, here = asyncio.StreamReader(), asyncio.StreamReader()
        self.tasks.append(asyncio.ensure_future(self._handle(Pipe(there, here))))
        return Pipe(here, there)

    async def open_stream(self, peer: PeerId, protocol: str) -> Pipe:
        return self.connect()

    async def _handle(self, stream: Pipe) -> None:
        assert self.handler is not None
        try:
            async with stream:
                await self.handler(stream)
        except StreamError as error:
            self.ended.append(error.reason)


@pytest.fixture
def logs(tmp_path: Path) -> Any:
    store = LogStore(tmp_path / "logs", 1 << 20)
    yield store
    store.close()


def asking(logs: LogStore, *, member: bool = True) -> tuple[Asking, Wire]:
    wire = Wire()
    entry: Any = wire
    Answering(entry, lambda peer: member and peer == ASKER, lambda: b'{"name":"oslo"}', logs)
    return Asking(entry), wire


def line(number: int, app: str = "web") -> bytes:
    return json.dumps({"time": f"t{number}", "app": app, "n": number}).encode()


async def test_a_member_is_told_what_a_node_is_and_its_newest_lines(logs: LogStore) -> None:
    service, _ = asking(logs)
    for number in range(5):
        logs.append(line(number, "web" if number % 2 else "job"))
    assert await service.description(ASKER) == b'{"name":"oslo"}'
    assert [line async for line in service.lines(ASKER, Ask("logs", limit=2))] == [line(3), line(4, "job")]
    assert [line async for line in service.lines(ASKER, Ask("logs", app="web"))] == [line(1), line(3)]


async def test_who_has_used_up_its_part_of_the_loop_waits_for_answers_and_another_does_not(
    logs: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop_time = LoopTime(later=lambda _delay_s, _callback: None)  # nobody gets anything back
    wire: Any = Wire()
    Answering(wire, lambda _peer: True, lambda: b"{}", logs, loop_time=loop_time)
    service = Asking(wire)
    assert await service.description(ASKER) == b"{}"
    loop_time.account(ASKER).spend(1_000)
    waiting = asyncio.ensure_future(service.description(ASKER))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    monkeypatch.setattr(Pipe, "asker", PeerId("another"))
    assert await service.description(PeerId("another")) == b"{}"


async def test_who_is_no_member_is_told_nothing(logs: LogStore) -> None:
    service, wire = asking(logs, member=False)
    with pytest.raises(StreamError):
        await service.description(ASKER)
    assert wire.ended == ["asking.refused"]


async def test_a_follower_gets_lines_as_they_come_and_is_forgotten_when_it_goes(logs: LogStore) -> None:
    service, wire = asking(logs)
    lines = service.lines(ASKER, Ask("logs", follow=True))
    logs.append(line(0))
    assert await anext(lines) == line(0)
    waiting = asyncio.ensure_future(anext(lines))  # type: ignore[arg-type]
    while not logs._followers:  # noqa: ASYNC110  nobody announces a follower
        await asyncio.sleep(0)
    logs.append(line(1))
    assert await waiting == line(1)
    await lines.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(asyncio.gather(*wire.tasks), 5)
    assert not logs._followers


async def test_a_malformed_or_oversized_question_ends_its_stream(logs: LogStore) -> None:
    _, wire = asking(logs)
    for block in (b"\x00\x00\x00\x01\xff", (ASK_MAX_BYTES + 1).to_bytes(4, "big"), b"\x00\x00\x00\x09cut"):
        stream = wire.connect()
        await stream.write(block)
        stream.finish()
    await asyncio.gather(*wire.tasks)
    assert sorted(wire.ended) == ["asking.malformed", "transport.block-too-large", "transport.ended-early"]


async def test_more_questions_than_a_node_answers_at_once_are_refused(logs: LogStore) -> None:
    service, wire = asking(logs)
    logs.append(line(0))
    followers = [service.lines(ASKER, Ask("logs", follow=True)) for _ in range(ANSWERS_MAX)]
    for follower in followers:
        await anext(follower)
    with pytest.raises(StreamError):
        await service.description(ASKER)
    for follower in followers:
        await follower.aclose()  # type: ignore[attr-defined]
    await asyncio.gather(*wire.tasks)
    assert await service.description(ASKER) == b'{"name":"oslo"}'
