"""A node under attack, in its own process so that its memory can be measured. Not a test.

Prints its address, then the reason of every link that ends. Admits everybody; serves echo, sink and a protocol that
never reads; runs until stdin ends.
"""

from __future__ import annotations

import asyncio
import sys

from node.transport import LinkDown, LinkUp, Stream, Transport
from tests.support.mesh.libp2p_peers import LOOPBACK, make_transport

STUCK = "/freehold/test/stuck/1"


async def never_reads(stream: Stream) -> None:
    await asyncio.Event().wait()


async def watch(transport: Transport) -> None:
    async for event in transport.events():
        if isinstance(event, LinkUp):
            transport.admit(event.link)
        elif isinstance(event, LinkDown):
            print(event.reason, flush=True)


async def main() -> None:
    transport = make_transport(LOOPBACK)
    transport.serve(STUCK, never_reads)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(transport.run()), group.create_task(watch(transport))]
        await transport.started.wait()
        print(transport.listening[0].with_peer(transport.peer), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
