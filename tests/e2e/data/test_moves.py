"""Data that moves under load: every acknowledged increment is counted, whoever dies at whichever step of the move."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.serving import data_moves
from node.serving.data_moves import MoveError, MoveTicket
from node.transport import StreamError
from protocols.chain.messages import Outcome
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.machine import PeerId
from protocols.state.commands import Command, CreateProject, PlaceData, sign_command
from runtime.services import freeze
from tests.support.mesh.in_process import LANE, House, a_house, until

HOST = {"host": "site.test"}
PATH = "/kv/increment?store=visits&key=n"


@pytest.fixture
async def house(component: Callable[[str], Path]) -> AsyncIterator[House]:
    async with a_house(2) as new_house:
        await new_house.prepare_lane()
        await new_house.deploy(component("services"), app='keyvalue = ["visits"]', smoke="/env")
        await until(lambda: new_house.runs(0) or new_house.runs(1), 30)
        yield new_house


def holder(house: House) -> int:
    lane = house.control(0).core.state.lane(*LANE)
    assert lane is not None
    return house.index_of(lane.data_node)


def ticket(house: House, source: int, target: int, *, by: Ed25519Signer | None = None, expect: int | None = None,
           project: str = LANE[0]) -> MoveTicket:  # fmt: skip
    core = house.control(0).core
    lane = core.state.lane(*LANE)
    assert lane is not None
    wanted = lane.sequence if expect is None else expect
    commands = [
        encode(sign_command([by or house.admin], core.trust.mesh,
                            Command(secrets.token_bytes(16), PlaceData(PeerId(house.control(index).core.node)), project,
                                    LANE[1], wanted)))
        for index in (target, source)
    ]  # fmt: skip
    return MoveTicket(commands[0], commands[1], ())


class Visitors:
    """Increments through one node, until stopped: what was acknowledged, and what may have been counted."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.doubtful = 0
        self.statuses: list[int] = []
        self._stop = asyncio.Event()

    async def run(self, house: House, index: int) -> None:
        async with aiohttp.ClientSession(headers=HOST, timeout=aiohttp.ClientTimeout(20)) as session:
            while not self._stop.is_set():
                try:
                    async with session.get(f"http://{house.ingress(index)}{PATH}") as answer:
                        body = await answer.text()
                        self.statuses.append(answer.status)
                        if answer.status == 200:
                            self.acknowledged.append(int(body))
                        elif answer.status != 503:
                            self.doubtful += 1
                except (aiohttp.ClientError, TimeoutError, OSError):
                    self.doubtful += 1
                    await asyncio.sleep(0.1)

    def stop(self) -> None:
        self._stop.set()


@contextlib.asynccontextmanager
async def visited(house: House, index: int) -> AsyncIterator[Visitors]:
    visitors = Visitors()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(visitors.run(house, index))
        await until(lambda: len(visitors.acknowledged) > 20, 30)
        try:
            yield visitors
        finally:
            visitors.stop()


async def count(house: House, index: int) -> int:
    """The counter as it is, by one more increment."""
    url = f"http://{house.ingress(index)}{PATH}"
    async with asyncio.timeout(40), aiohttp.ClientSession(headers=HOST) as session:
        while True:
            async with session.get(url) as answer:
                if answer.status == 200:
                    return int(await answer.text())
            await asyncio.sleep(0.2)


def nothing_lost(visitors: Visitors, counter: int) -> None:
    seen = visitors.acknowledged
    assert len(set(seen)) == len(seen), "two visitors were given one number: two nodes wrote"
    assert len(seen) < counter <= len(seen) + visitors.doubtful + 1, (len(seen), visitors.doubtful, counter)


async def finished(house: House, index: int) -> str:
    moves = house.control(index).data.moves
    await until(lambda: LANE in moves and moves[LANE].phase in {"done", "failed"}, 60)
    return moves[LANE].phase


@pytest.mark.timeout(300)
async def test_writers_lose_nothing_while_data_moves_there_and_back(house: House) -> None:
    for _ in range(2):
        source = holder(house)
        target = 1 - source
        async with visited(house, 0) as visitors:
            house.control(0).data.begin(ticket(house, source, target))
            assert await finished(house, 0) == "done", house.control(0).data.moves[LANE]
            await until(lambda target=target: house.runs(target), 30)  # type: ignore[misc]
            answered = len(visitors.acknowledged)
            await until(lambda answered=answered: len(visitors.acknowledged) > answered + 20, 30)  # type: ignore[misc]
        assert set(visitors.statuses) <= {200, 503}
        assert len(set(visitors.acknowledged)) == len(visitors.acknowledged)
        assert await count(house, 0) > max(visitors.acknowledged)
        source_place = house.control(source).data.place
        assert [path.name for path in source_place.stores(LANE).iterdir()] == ["frozen"]
        numbers = source_place.kept(LANE)
        assert numbers
        database = source_place.folder / "kept" / LANE[0] / LANE[1] / str(numbers[-1]) / "keyvalue.db"
        assert database.stat().st_mode & 0o222 == 0, "the old copy can be written"


STEPS = ("copying", "freezing", "comparing", "frozen-statement", "switching", "decided")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", ["source", "target"])
async def test_nothing_is_lost_whoever_ends_at_any_step(
    house: House, monkeypatch: pytest.MonkeyPatch, step: str, victim: str
) -> None:
    monkeypatch.setattr(data_moves, "ABORT_AFTER_MS", 2_000)
    monkeypatch.setattr(data_moves, "LOOK_EVERY_S", 0.2)
    source = holder(house)
    target = 1 - source
    dies = source if victim == "source" else target
    reached = asyncio.Event()

    async def die() -> None:
        reached.set()
        await asyncio.Event().wait()  # nothing more happens in this move: its node is ended

    _stop_at(monkeypatch, house, target, step, die)
    async with visited(house, source if victim == "target" else target) as visitors:
        house.control(target).data.begin(ticket(house, source, target))
        await asyncio.wait_for(reached.wait(), 60)
        await house.stop(dies)
        monkeypatch.undo()
        monkeypatch.setattr(data_moves, "ABORT_AFTER_MS", 2_000)
        monkeypatch.setattr(data_moves, "LOOK_EVERY_S", 0.2)
        await house.start(dies)
        await until(lambda: house.runs(0) or house.runs(1), 60)
        answered = len(visitors.acknowledged)
        await until(lambda: len(visitors.acknowledged) > answered + 5, 90)
    nothing_lost(visitors, await count(house, 0))
    stores = [house.control(index).data.place.stores(LANE) for index in (0, 1)]
    assert freeze.note_of(stores[holder(house)]) is None
    assert house.runs(holder(house))


def _stop_at(monkeypatch: pytest.MonkeyPatch, house: House, target: int, step: str, die: Callable[[], Any]) -> None:
    """Have the target's part in a move go no further than `step`."""
    mover = house.control(target).data
    fetch, submit = mover._fetch, mover._submit

    async def at_fetch(move: Any, files: Path, *, last: bool) -> Any:
        if step == "freezing" and last:
            await die()
        copy = await fetch(move, files, last=last)
        if (step, last) in {("copying", False), ("comparing", True)}:
            await die()
        return copy

    async def at_read(*arguments: Any, **options: Any) -> Any:
        copy = await read(*arguments, **options)
        if options["last"] and step == "frozen-statement":
            await die()
        return copy

    async def at_submit(command: bytes, material: tuple[bytes, ...]) -> Outcome:
        if step == "switching":
            await die()
        outcome = await submit(command, material)
        if step == "decided":
            await die()
        return outcome

    read = mover._read_copy
    monkeypatch.setattr(mover, "_fetch", at_fetch)
    monkeypatch.setattr(mover, "_read_copy", at_read)
    monkeypatch.setattr(mover, "_submit", at_submit)


@pytest.mark.timeout(200)
async def test_a_target_that_falls_silent_costs_a_minute_and_no_write(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_moves, "ABORT_AFTER_MS", 1_500)
    monkeypatch.setattr(data_moves, "LOOK_EVERY_S", 0.2)
    source = holder(house)
    silent = asyncio.Event()

    async def never(*_: Any) -> Outcome:
        silent.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(house.control(1 - source).data, "_submit", never)
    async with visited(house, source) as visitors:
        house.control(1 - source).data.begin(ticket(house, source, 1 - source))
        await asyncio.wait_for(silent.wait(), 60)
        stores = house.control(source).data.place.stores(LANE)
        assert freeze.note_of(stores) is not None
        await until(lambda: freeze.note_of(stores) is None, 30)
        answered = len(visitors.acknowledged)
        await until(lambda: len(visitors.acknowledged) > answered + 5, 30)
    assert holder(house) == source, "the abort was not what was decided"
    nothing_lost(visitors, await count(house, source))


@pytest.mark.timeout(120)
async def test_only_an_admin_moves_data_and_only_what_was_signed(house: House) -> None:
    source = holder(house)
    stores = house.control(source).data.place.stores(LANE)
    stranger = Ed25519Signer(secrets.token_bytes(32))
    async with house.client() as client:
        expect = (await client.state()).sequence
        await client.decide(house.admin, CreateProject("other", ("me",)), expect=expect)
    good = ticket(house, source, 1 - source)
    mixed = ticket(house, source, 1 - source, project="other")
    for index in (0, 1):
        mover = house.control(index).data
        for wrong, rule in (
            (ticket(house, source, 1 - source, by=stranger), "grant"),
            (ticket(house, source, source), "data.ticket"),
            (ticket(house, 1 - source, source), "data.elsewhere"),
            (ticket(house, source, 1 - source, expect=10_000), "lane.sequence"),
            (MoveTicket(good.switch, mixed.abort, ()), "data.ticket"),
            (MoveTicket(good.switch, ticket(house, source, 1 - source, expect=9).abort, ()), "data.ticket"),
            (MoveTicket(good.switch[:-1], good.abort, ()), "command"),
        ):
            with pytest.raises(MoveError) as refused:
                mover.begin(wrong)
            assert refused.value.rule.startswith(rule), (refused.value.rule, rule)
    # The right ticket in the hands of the wrong node: only the target that it names is given the bytes.
    mover = house.control(1 - source).data
    move = mover.check(ticket(house, source, 1 - source))
    wrong_way = mover.check(good)
    assert move.lane == wrong_way.lane
    stolen = _as_from(mover.check(ticket(house, 1 - source, source)), house.control(source).core.node)
    with pytest.raises((MoveError, StreamError)):
        await mover._fetch(stolen, stores.parent / "stolen", last=True)
    assert freeze.note_of(stores) is None, "a refused request froze the data"


def _as_from(move: data_moves.Move, source: str) -> data_moves.Move:
    return data_moves.Move(
        move.ticket, move.project, move.environment, move.expect, PeerId(source), move.target, move.switch
    )
