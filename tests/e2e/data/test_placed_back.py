"""Data placed elsewhere, its copy replaced, and placed back: every acknowledged write is there, also after a restart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from protocols.state.commands import PlaceData
from tests.support.mesh.in_process import LANE, House, a_house, until

HOST = {"host": "site.test"}
PATH = "/kv/increment?store=visits&key=n"
VISITS = 50


async def place(house: House, index: int) -> None:
    """Decide where the data is, and wait until that node serves and the other does not."""
    lane = house.control(0).core.state.lane(*LANE)
    assert lane is not None
    node = house.control(index).core.node
    async with house.client() as client:
        await client.decide(house.admin, PlaceData(node), project=LANE[0], environment=LANE[1], expect=lane.sequence)
    await until(lambda: house.runs(index) and not house.runs(1 - index), 30)


async def visit(house: House, index: int) -> int:
    url = f"http://{house.ingress(index)}{PATH}"
    async with aiohttp.ClientSession(headers=HOST) as session, session.get(url) as answer:
        body = await answer.text()
        assert answer.status == 200, body
        return int(body)


@pytest.mark.timeout(240)
async def test_fifty_visits_after_a_move_there_and_back_survive_a_restart(component: Callable[[str], Path]) -> None:
    async with a_house(2) as house:
        await house.prepare_lane()
        await house.deploy(component("services"), app='keyvalue = ["visits"]', smoke="/env")
        await until(lambda: house.runs(0) or house.runs(1), 30)
        here = 0 if house.runs(0) else 1
        there = 1 - here
        stores = [house.folder / f"n{index}" / "data" / LANE[0] / LANE[1] for index in (0, 1)]
        for expected in range(1, 6):
            assert await visit(house, here) == expected
        await place(house, there)
        assert await visit(house, there) == 1, "the new holder begins empty: nothing was copied"
        shutil.rmtree(stores[here])
        shutil.copytree(stores[there], stores[here])
        await place(house, here)
        for expected in range(2, 2 + VISITS):
            assert await visit(house, here) == expected
        await house.stop(here)
        await house.start(here)
        await until(lambda: house.runs(here), 30)
        assert await visit(house, here) == 2 + VISITS
