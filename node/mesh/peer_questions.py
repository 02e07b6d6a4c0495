"""Asking another node what it sees: its description, its log lines, whether it answers a challenge; `/freehold/ask/1`.

    asker    -> one block: an encoded `Ask`; it keeps its direction open while it listens
    answerer -> blocks; with `follow`, until the asker goes

Only confirmed members are answered, and only for reading. An answer is the peer's word, shown and never judged. Not
here: what a description contains (api/reports/views.py), and what is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Literal

import msgspec

from node.journal.logs import LINE_MAX_BYTES, LogFilter, LogStore
from node.loop_time import LoopTime, Metered
from node.transport import Stream, StreamError, Transport
from protocols.envelope import DecodeError, decode, encode
from protocols.machine import PeerId

PROTOCOL = "/freehold/ask/1"
ASK_MAX_BYTES = 2 * 1024
BLOCK_MAX_BYTES = 256 * 1024
LINES_MAX = 2_000
ANSWERS_MAX = 32
"""Questions answered at once: a follower on every node of the largest mesh."""

ANSWER_MAX_BYTES = 16 << 20
"""Of one answer that ends: 2,000 lines of 8 KiB. The asking node pays, so it is what it asked for."""

ANSWER_TIMEOUT_S = 10.0
assert LINE_MAX_BYTES <= BLOCK_MAX_BYTES


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """One question: a description of the node, or its newest `limit` log lines and, with `follow`, those to come.

    About a "challenge", `contains` is the token that a certificate authority will ask for.
    """

    about: Literal["node", "logs", "challenge"]
    project: str = ""
    app: str = ""
    release: str = ""
    contains: str = ""
    limit: int = 100
    follow: bool = False


class Asking:
    """Asks members."""

    def __init__(self, transport: Transport) -> None:
        """Take what opens streams."""
        self._transport = transport

    async def description(self, peer: PeerId) -> bytes:
        """Return a member's description of itself (JSON). Raises StreamError or TimeoutError."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            async for block in self.lines(peer, Ask("node")):
                return block
        raise StreamError("asking.no-answer")

    async def proves(self, peer: PeerId, token: str) -> bool:
        """Whether a member says that it answers an authority for `token`. Raises StreamError or TimeoutError."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            async for block in self.lines(peer, Ask("challenge", contains=token, limit=1)):
                return block == b"1"
        return False

    async def lines(self, peer: PeerId, ask: Ask) -> AsyncIterator[bytes]:
        """Yield the blocks of an answer. Raises StreamError if the peer is not connected, goes, or says more than was asked.

        A peer that follows may go on for ever; else it has as many blocks as lines were asked for, of ANSWER_MAX_BYTES.
        """
        left, room = max(1, ask.limit), ANSWER_MAX_BYTES
        async with await self._transport.open_stream(peer, PROTOCOL) as stream:
            await stream.write_block(encode(ask))
            while (
                block := await stream.read_block(BLOCK_MAX_BYTES if ask.about == "node" else LINE_MAX_BYTES)
            ) is not None:
                left, room = left - 1, room - len(block)
                if not ask.follow and (left < 0 or room < 0):
                    raise StreamError("asking.more-than-asked")
                yield block


class Answering:
    """Answers members."""

    def __init__(
        self,
        transport: Transport,
        may_ask: Callable[[PeerId], bool],
        describe: Callable[[], bytes],
        logs: LogStore,
        proves: Callable[[str], bool] = lambda _token: False,
        loop_time: LoopTime | None = None,
    ) -> None:
        """Take who is answered, what describes this node, its logs, and whether it answers for a challenge's token.

        Who asks pays from `loop_time`. Call before the transport runs.
        """
        self._loop_time = loop_time or LoopTime()
        self._proves = proves
        self._may_ask = may_ask
        self._describe = describe
        self._logs = logs
        self._answering = 0
        transport.serve(PROTOCOL, self._serve)

    async def _serve(self, stream: Stream) -> None:
        meter = Metered(self._loop_time.clock)
        meter.pays(stream.peer, self._loop_time)
        await meter.run(self._answer(stream))

    async def _answer(self, stream: Stream) -> None:
        if not self._may_ask(stream.peer) or self._answering >= ANSWERS_MAX:
            raise StreamError("asking.refused")
        self._answering += 1
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                ask = await _read_ask(stream)
            if ask.about == "node":
                await stream.write_block(self._describe())
            elif ask.about == "challenge":
                await stream.write_block(b"1" if self._proves(ask.contains) else b"0")
            else:
                await self._send_logs(stream, ask)
            stream.finish()
        except TimeoutError:
            raise StreamError("asking.slow") from None
        finally:
            self._answering -= 1

    async def _send_logs(self, stream: Stream, ask: Ask) -> None:
        wanted = LogFilter(ask.project, ask.app, ask.release, ask.contains)
        for line in await self._logs.recent(wanted, max(0, min(ask.limit, LINES_MAX))):
            await stream.write_block(line)
        if ask.follow:
            # A quiet log would never notice that the asker is gone, so its direction is read beside it.
            following = asyncio.ensure_future(self._follow(stream, wanted))
            leaving = asyncio.ensure_future(stream.read())
            try:
                await asyncio.wait({following, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (following, leaving):
                    task.cancel()
                await asyncio.gather(following, leaving, return_exceptions=True)

    async def _follow(self, stream: Stream, wanted: LogFilter) -> None:
        async for line in self._logs.follow(wanted):
            if not self._may_ask(stream.peer):
                return
            await stream.write_block(line)


async def _read_ask(stream: Stream) -> Ask:
    data = await stream.read_block(ASK_MAX_BYTES)
    try:
        ask: Ask = decode(data or b"", Ask, ASK_MAX_BYTES)
    except DecodeError:
        raise StreamError("asking.malformed") from None
    return ask
