"""A member that answers without end costs the asker what it asked for, and no block more; and the near misses."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import pytest

from node.journal.logs import LINE_MAX_BYTES
from node.mesh.peer_questions import ANSWER_MAX_BYTES, Ask, Asking
from node.transport import StreamError
from protocols.machine import PeerId

LIAR = PeerId("liar")


class EndlessPeer:
    """A peer whose stream holds these blocks; `read` counts what the asker took of them."""

    def __init__(self, blocks: Any) -> None:
        self.blocks, self.read = iter(blocks), 0

    async def open_stream(self, _peer: PeerId, _protocol: str) -> EndlessPeer:
        return self

    async def __aenter__(self) -> EndlessPeer:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.blocks = iter(())

    async def write_block(self, _data: bytes) -> None:
        pass

    async def read_block(self, _limit: int) -> bytes | None:
        self.read += 1
        return next(self.blocks, None)


async def taken(peer: EndlessPeer, ask: Ask) -> int:
    asking: Any = Asking(peer)  # type: ignore[arg-type]
    return sum([1 async for _ in asking.lines(LIAR, ask)])


@pytest.mark.parametrize(
    ("line", "limit", "most"),
    [(b"{}", 100, 101), (b"", 100, 101), (b"x" * LINE_MAX_BYTES, 1 << 40, ANSWER_MAX_BYTES // LINE_MAX_BYTES + 1)],
    ids=["many lines", "empty lines", "long lines"],
)
async def test_an_answer_without_end_is_left_at_what_was_asked_for(line: bytes, limit: int, most: int) -> None:
    peer = EndlessPeer(repeat(line))
    with pytest.raises(StreamError, match="more-than-asked"):
        await taken(peer, Ask("logs", limit=limit))
    assert peer.read <= most


async def test_as_many_lines_as_were_asked_for_are_taken_and_one_more_is_too_many() -> None:
    assert await taken(EndlessPeer(repeat(b"{}", 100)), Ask("logs", limit=100)) == 100
    with pytest.raises(StreamError, match="more-than-asked"):
        await taken(EndlessPeer(repeat(b"{}", 101)), Ask("logs", limit=100))


async def test_who_follows_may_be_told_for_ever() -> None:
    assert await taken(EndlessPeer(repeat(b"{}", 5_000)), Ask("logs", limit=100, follow=True)) == 5_000
