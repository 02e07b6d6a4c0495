"""Dialling: all addresses of a peer, each a little after the other, and a peer that is wanted, for ever.

`race` is one attempt over several addresses; `Backoff` spaces the attempts. Not here: sockets (`transport` passes the
function that dials one address), and which peers are wanted. Source: RFC 8305 for the staggered race.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from node.transport.link import Link
from node.transport.settings import BACKOFF_FIRST_S, BACKOFF_MAX_S, DIAL_STAGGER_S
from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import Entropy


class DialError(ConnectionError):
    """No address led to the peer; the text names each with its reason."""


class Backoff:
    """Doubling delays with jitter."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._base_s = BACKOFF_FIRST_S

    def reset(self) -> None:
        """The peer was reached and stayed: begin anew."""
        self._base_s = BACKOFF_FIRST_S

    def next_s(self) -> float:
        """Return the seconds to wait before the next attempt."""
        delay_s = self._base_s * self._entropy.uniform(0.5, 1.5)
        self._base_s = min(self._base_s * 2, BACKOFF_MAX_S)
        return delay_s


async def race(addresses: Sequence[Multiaddr], dial: Callable[[Multiaddr], Awaitable[Link]]) -> Link:
    """Return the first link any address gives; the others are abandoned. DialError if all fail.

    Each next address starts after DIAL_STAGGER_S, or at once when the one before failed.
    """
    if not addresses:
        raise DialError("no address to dial")
    failures: list[str] = []
    won: asyncio.Future[Link] = asyncio.get_running_loop().create_future()

    async def attempt(address: Multiaddr) -> None:
        try:
            link = await dial(address)
        except (OSError, TimeoutError) as error:
            failures.append(f"{address}: {str(error) or type(error).__name__}")
            if len(failures) == len(addresses) and not won.done():
                won.set_exception(DialError("; ".join(failures)))
            return
        if won.done():
            link.close("transport.spare")
        else:
            won.set_result(link)

    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []
        for address in addresses:
            tasks.append(group.create_task(attempt(address)))
            either: list[asyncio.Future[Any]] = [won, tasks[-1]]
            await asyncio.wait(either, timeout=DIAL_STAGGER_S, return_when=asyncio.FIRST_COMPLETED)
            if won.done():
                break
        await asyncio.wait([won])
        for task in tasks:
            task.cancel()
    return won.result()
