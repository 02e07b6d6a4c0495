"""A room on three nodes whose app runs on one: everybody hears everything once and in order, and no liar among the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from runtime.ingress.topics import TOPICS_SOCKET, Publication, block_of
from tests.support.mesh.in_process import LANE, House, a_house, until

HEARD_WITHIN_S = 20.0
TALK = 12


@asynccontextmanager
async def room(house: House) -> AsyncIterator[list[aiohttp.ClientWebSocketResponse]]:
    """A socket at each node; all have heard that the last one came."""
    async with aiohttp.ClientSession(headers={"host": "site.test"}) as http:
        sockets: list[aiohttp.ClientWebSocketResponse] = []
        for index in range(3):
            sockets.append(await http.ws_connect(f"http://{house.ingress(index)}/ws"))
            for socket in sockets:
                assert await heard(socket) == "one came"
        yield sockets
        for socket in sockets:
            await socket.close()


async def heard(socket: aiohttp.ClientWebSocketResponse) -> str:
    message = await socket.receive(timeout=HEARD_WITHIN_S)
    assert message.type is aiohttp.WSMsgType.TEXT, message
    return str(message.data)


async def say(house: House, index: int, said: Publication) -> None:
    """Have a node publish as its worker would, whatever it runs: what a hostile member is free to do."""
    path = house.daemons[index].runtime / "workers" / TOPICS_SOCKET
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(block_of(said))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def of_a_release_before(house: House, runner: int) -> None:
    """A node that knows nothing of this asks for nothing, and publishes what it is answered: so the app's node does not."""
    path = house.daemons[runner].runtime / "ingress.sock"
    marked = {"host": "site.test", "freehold-forwarded": "1", "content-type": "application/websocket-events"}
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), headers=marked) as http:
        for asks in ({}, {"freehold-topics": "x" * 65}):
            async with http.post("http://node/ws", data=b"TEXT 5\r\nearly\r\n", headers=asks) as answer:
                assert b"PUBLISH" in await answer.read()
                assert "freehold-published" not in answer.headers


async def test_everybody_hears_everything_once_and_nobody_a_node_that_does_not_run_the_app(
    component: Callable[[str], Path],
) -> None:
    async with a_house(3) as house:
        await house.prepare_lane()
        await house.deploy(component("sockets"), app='websocket = "/ws"\nkeyvalue = ["things"]')
        await until(lambda: any(house.runs(index) for index in range(3)))
        await asyncio.sleep(1.5)  # workers look for their daemon each second
        runner = next(index for index in range(3) if house.runs(index))
        liar, third = (index for index in range(3) if index != runner)
        async with room(house) as sockets:
            for number in range(TALK):
                for index in range(3):
                    await sockets[index].send_str(f"{index} {number}")
                    for socket in sockets:
                        assert await heard(socket) == f"{index} {number}"
            lane = " ".join(LANE)
            await say(house, liar, Publication(lane, "room", "TEXT", b"false"))
            assert await heard(sockets[liar]) == "false", "its own visitors are in its hand"
            await say(house, runner, Publication(lane, "room", "TEXT", b"true"))
            for index in range(3):
                assert await heard(sockets[index]) == "true"
            await of_a_release_before(house, runner)
            await sockets[third].send_str("last")
            for socket in sockets:
                assert await heard(socket) == "last"
