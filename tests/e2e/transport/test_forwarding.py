"""An app that runs on another node is reached through any: requests and answers stream through, and none is lost in a move."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from node.journal.logs import LogFilter
from protocols.state.commands import DrainNode
from tests.support.mesh.in_process import LANE, House, a_house, until

Component = Callable[[str], Path]
HOST = {"host": "site.test"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(2) as new_house:
        await new_house.prepare_lane()
        yield new_house


def apart(house: House) -> tuple[str, str]:
    """The ingress of the node that runs the app, and of the one that does not."""
    running = next(index for index in (0, 1) if house.runs(index))
    assert not house.runs(1 - running)
    return house.ingress(running), house.ingress(1 - running)


async def test_an_app_with_data_runs_on_one_node_and_is_reached_through_the_other(
    house: House, component: Component
) -> None:
    await house.deploy(component("probe"), app='keyvalue = ["things"]')
    await until(lambda: house.runs(0) or house.runs(1))
    _, other = apart(house)
    async with aiohttp.ClientSession(headers=HOST) as session:
        async with session.get(f"http://{other}/") as answer:
            assert (answer.status, await answer.text()) == (200, "probe\n")
            lane = house.control(0).core.state.lane(*LANE)
            assert lane is not None
            assert lane.base is not None
            assert answer.headers["freehold-release"] == lane.base.release.hex()
        fields = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "from-a-client", "freehold-x": "1"}
        async with session.get(f"http://{other}/headers", headers=fields) as answer:
            seen = await answer.text()
            assert f"00-{TRACE}-" in seen
            assert "freehold-x" not in seen
            assert "freehold-forwarded" not in seen
            assert answer.headers["x-request-id"] in seen
        async with session.get(f"http://{other}/request") as answer:
            assert "site.test" in await answer.text()
        # A body of known and one of unknown length, larger than every buffer on the way.
        body = bytes(range(256)) * 20_000
        async with session.post(f"http://{other}/echo", data=io.BytesIO(body)) as answer:
            assert await answer.read() == body

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 100_000):
                yield body[start : start + 100_000]

        async with session.post(f"http://{other}/echo", data=pieces()) as answer:
            assert await answer.read() == body
        async with session.head(f"http://{other}/length") as answer:
            assert answer.status == 200
        async with session.get(f"http://{other}/stream?n=3&ms=300") as answer:
            first = await asyncio.wait_for(answer.content.readline(), 5)
            assert first == b"chunk 0\n"
            assert not answer.content.at_eof(), "the answer was held back until it was whole"
            assert (await answer.content.read()).endswith(b"chunk 2\n")
        async with session.get(f"http://{other}/trap") as answer:
            assert answer.status == 500
        answer = await session.get(f"http://{other}/stream?n=100&ms=100")
        await answer.content.readline()
        answer.close()
    logs = house.control(0 if house.runs(0) else 1).logs
    async with asyncio.timeout(5):
        while not any(  # noqa: ASYNC110
            b'"outcome":"cancelled"' in line for line in await logs.recent(LogFilter(), 100)
        ):
            await asyncio.sleep(0.05)


async def test_a_node_whose_app_is_nowhere_says_so_and_a_forwarded_request_goes_no_further(
    house: House, component: Component
) -> None:
    await house.deploy(component("probe"), app='keyvalue = ["things"]')
    await until(lambda: house.runs(0) or house.runs(1))
    running = next(index for index in (0, 1) if house.runs(index))
    other = house.ingress(1 - running)
    path = house.daemons[1 - running].runtime / "ingress.sock"
    marked = {**HOST, "freehold-forwarded": "1"}
    inner = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), headers=marked)
    async with inner as session, session.get("http://node/") as answer:
        assert answer.status == 503, "a request from a node was forwarded again"
        assert "not-placed" in await answer.text()
    async with aiohttp.ClientSession(headers=marked) as session, session.get(f"http://{other}/") as answer:
        assert answer.status == 200, "a stranger's mark was believed"
    await house.stop(running)
    async with aiohttp.ClientSession(headers=HOST) as session, session.get(f"http://{other}/") as answer:
        assert answer.status == 503
        assert answer.headers["retry-after"]
        assert "not-placed" in await answer.text()


async def test_no_request_is_lost_while_an_app_leaves_a_node(house: House, component: Component) -> None:
    await house.deploy(component("probe"))
    await until(lambda: house.runs(0) and house.runs(1))
    statuses: list[int] = []
    stop = asyncio.Event()

    async def ask(session: aiohttp.ClientSession, address: str) -> None:
        while not stop.is_set():
            async with session.get(f"http://{address}/stream?n=2&ms=5") as answer:
                body = await answer.read()
                statuses.append(answer.status if body == b"chunk 0\nchunk 1\n" else -1)

    async with aiohttp.ClientSession(headers=HOST) as session, asyncio.TaskGroup() as asking:
        for index in (0, 1, 1, 1):
            asking.create_task(ask(session, house.ingress(index)))
        await until(lambda: len(statuses) > 20)
        async with house.client() as client:
            await client.decide(house.admin, DrainNode(house.control(1).core.node))
        await until(lambda: not house.runs(1))
        count = len(statuses)
        await until(lambda: len(statuses) > count + 60)
        stop.set()
    assert set(statuses) == {200}, sorted(set(statuses))
