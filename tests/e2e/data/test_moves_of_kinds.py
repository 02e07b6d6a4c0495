"""Every kind of data moves with its lane: what was acknowledged before and during a move is there behind it, exactly.

Kills are test_moves.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.data.test_moves import HOST, finished, holder, ticket
from tests.fixtures.build import CACHE
from tests.support.mesh import in_process
from tests.support.mesh.in_process import House, a_house, until


@pytest.fixture
async def house(component: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(in_process, "DECIDED_WITHIN_S", 240.0)  # an interpreter of 19 MB is compiled
    monkeypatch.setattr(House, "compiled", str(CACHE / "compiled"))
    async with a_house(2) as new_house:
        await new_house.prepare_lane()
        await new_house.deploy(component("data"), app='sql = ["main"]\nblobs = ["uploads"]', smoke="/env")
        await until(lambda: new_house.runs(0) or new_house.runs(1), 60)
        yield new_house


async def ask(house: House, index: int, **operation: Any) -> tuple[int, Any]:
    url, body = f"http://{house.ingress(index)}/", json.dumps(operation)
    async with (
        aiohttp.ClientSession(headers=HOST, timeout=aiohttp.ClientTimeout(30)) as session,
        session.post(url, data=body) as answer,
    ):
        return answer.status, json.loads(await answer.text()) if answer.status == 200 else None


async def done(house: House, index: int, **operation: Any) -> Any:
    """The answer, once the app gives one."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                status, answer = await ask(house, index, **operation)
                if status == 200:
                    return answer
            await asyncio.sleep(0.2)


async def move_under(
    house: House, writer: Coroutine[Any, Any, None], acknowledged: Sequence[object], stop: asyncio.Event
) -> None:
    """Move the data to the other node while `writer` writes: some writes before, and some behind it."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(writer)
        await until(lambda: len(acknowledged) > 5, 30)
        source = holder(house)
        house.control(0).data.begin(ticket(house, source, 1 - source))
        assert await finished(house, 0) == "done"
        before = len(acknowledged)
        await until(lambda: len(acknowledged) > before + 5, 60)
        stop.set()


@pytest.mark.timeout(500)
async def test_rows_written_while_a_database_moves_are_all_there(house: House) -> None:
    await done(house, 0, kind="sql", name="main", sql="CREATE TABLE t (x INTEGER PRIMARY KEY)")
    acknowledged: list[int] = []
    statuses: list[int] = []
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            status, _ = await ask(
                house, 0, kind="sql", name="main", sql="INSERT INTO t VALUES (?)", parameters=[number]
            )
            statuses.append(status)
            if status == 200:
                acknowledged.append(number)

    await move_under(house, write(), acknowledged, stop)
    entry = await done(house, 0, kind="sql", name="main", sql="SELECT x FROM t ORDER BY x")
    rows = [row[0] for row in entry]
    assert set(acknowledged) <= set(rows), "an acknowledged row is gone"
    assert set(statuses) <= {200, 503}, "a writer saw something else than a wait"


@pytest.mark.timeout(500)
async def test_objects_written_while_they_move_are_all_there(house: House) -> None:
    await done(house, 0, kind="blob", name="uploads", do="put-large", object="large", pieces=8)
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            status, _ = await ask(
                house, 0, kind="blob", name="uploads", do="put", object=f"n{number}", data=f"v{number}"
            )
            if status == 200:
                acknowledged.append(f"n{number}")

    await move_under(house, write(), acknowledged, stop)
    names = await done(house, 0, kind="blob", name="uploads", do="names")
    assert set(acknowledged) <= set(names)
    assert (
        await done(house, 0, kind="blob", name="uploads", do="get", object=acknowledged[0]) == "v" + acknowledged[0][1:]
    )
    size, _ = await done(house, 0, kind="blob", name="uploads", do="digest", object="large")
    assert size == 8 * 256 * 1024
