"""What waits for the machine: this node's own events, and in a lane for each peer what that peer sent.

Own events and lanes take turns, and so do the lanes, so nobody's flood delays another's message by more than one of its
own. Handling a peer's message is charged to the peer: a lane whose peer has used up its part of the loop's time is passed
over until it has some again. What waits in a lane holds back its peer, whose window stays shut for as long (transport).
Not here: the machine (pump.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from node.loop_time import LoopTime
from protocols.machine import PeerId

OWN_MAX = 10_000
"""Own events that wait for the machine; beyond it whoever posts one more is told that the node is busy."""


class InboxItem(NamedTuple):
    """An event, the peer that caused it (empty: this node), and what to call once it was handled."""

    event: Any
    peer: PeerId = PeerId("")
    done: Callable[[], None] | None = None


class Inbox:
    """Own events and the peers' lanes."""

    def __init__(self, loop_time: LoopTime) -> None:
        """Begin empty; the peers pay from `loop_time`."""
        self._loop_time = loop_time
        self._own: deque[InboxItem] = deque()
        self._lanes: dict[PeerId, deque[InboxItem]] = {}
        """Those that are not empty, in the order of their next turns."""
        self._own_turn = True
        self._arrival: asyncio.Future[None] | None = None
        self._for_room: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        """How many events wait."""
        return len(self._own) + sum(map(len, self._lanes.values()))

    def post(self, event: Any) -> bool:
        """Add an own event; False if too many wait."""
        if len(self._own) >= OWN_MAX:
            return False
        self._own.append(InboxItem(event))
        self._tell()
        return True

    def put_for(self, peer: PeerId, event: Any, done: Callable[[], None] | None = None) -> None:
        """Add what a peer caused, behind all that it caused before."""
        self._lanes.setdefault(peer, deque()).append(InboxItem(event, peer, done))
        self._tell()

    def take(self) -> InboxItem | None:
        """Return whose turn it is, or None if nothing waits that may go on now."""
        lane = self._next_lane() if self._lanes and not (self._own and self._own_turn) else None
        if lane is None:
            self._own_turn = False
            while self._for_room:
                _settle(self._for_room.pop())
            return self._own.popleft() if self._own else None
        self._own_turn = True
        waiting = self._lanes.pop(lane)
        taken = waiting.popleft()
        if waiting:
            self._lanes[lane] = waiting
        return taken

    def wait_s(self) -> float | None:
        """How long until the first lane may go on, None if none waits."""
        return min((self._loop_time.account(peer).wait_s() for peer in self._lanes), default=None)

    async def arrival(self) -> None:
        """Wait until an event is added."""
        self._arrival = asyncio.get_running_loop().create_future()
        try:
            await self._arrival
        finally:
            self._arrival = None

    async def room(self) -> None:
        """Wait until an own event was taken."""
        self._for_room.append(asyncio.get_running_loop().create_future())
        await self._for_room[-1]

    def _next_lane(self) -> PeerId | None:
        return next((peer for peer in self._lanes if self._loop_time.account(peer).wait_s() == 0), None)

    def _tell(self) -> None:
        if self._arrival is not None:
            _settle(self._arrival)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
