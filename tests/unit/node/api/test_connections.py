"""A principal holds so many connections at once; its own oldest gives way, and nobody else's."""

from __future__ import annotations

import asyncio
from typing import cast

from node.api.callers.connections import CONNECTIONS_MAX, Connections


class Line:
    """A connection that says when it was ended."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = cast(asyncio.Transport, object())
        self.ended = False

    def force_close(self) -> None:
        self.ended, self.transport = True, None


def test_the_one_that_was_silent_longest_gives_way_to_one_too_many_of_the_same_principal() -> None:
    connections, lines, others = Connections(), [Line() for _ in range(CONNECTIONS_MAX)], Line()
    connections.use("another", others)
    for line in lines:
        connections.use("token", line)
    connections.use("token", lines[0])  # the second is the oldest now
    assert not any(line.ended for line in lines)
    fresh = Line()
    connections.use("token", fresh)
    assert [number for number, line in enumerate(lines) if line.ended] == [1]
    assert not fresh.ended
    assert not others.ended


def test_connections_that_ended_by_themselves_count_no_more_and_are_forgotten() -> None:
    connections, lines = Connections(), [Line() for _ in range(CONNECTIONS_MAX)]
    for line in lines:
        connections.use("token", line)
    lines[5].transport = None
    connections.use("token", Line())
    assert not any(line.ended for line in lines)
    for line in lines:
        line.transport = None
    connections.use("another", Line())
    assert [len(held) for held in connections._of.values()] == [1, 1]
