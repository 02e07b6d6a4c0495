"""Standbys: a lost holder's data goes on from the copy, and a holder that is cut off never writes beside its successor."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from node.errors import NotDoneError
from node.mesh.pump import system_now
from node.serving import data_standby
from protocols.changes.mandates import DataMandate, sign_mandate
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.machine import PeerId
from protocols.state.commands import PlaceData
from runtime.services import freeze
from tests.e2e.data.test_moves import HOST, PATH, count, finished, holder, ticket
from tests.support.mesh.alerting import firing, need_promtool, scraped
from tests.support.mesh.in_process import LANE, House, a_house, until

LEASE_S = 1.5
WAIT_S = 4.0


@pytest.fixture
async def house(component: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(data_standby, "READ_EVERY_S", 0.2)
    monkeypatch.setattr(data_standby, "READ_TIMEOUT_S", 1.0)
    monkeypatch.setattr(data_standby, "LEASE_S", LEASE_S)
    monkeypatch.setattr(data_standby, "WAIT_S", WAIT_S)
    monkeypatch.setattr(data_standby, "CONFIRM_EVERY_S", 0.5)
    async with a_house(3, voter_after_s=1) as new_house:
        await until(lambda: len(new_house.control(0).core.chain.voters) == 3, 60)
        await new_house.prepare_lane()
        await new_house.deploy(component("services"), app='keyvalue = ["visits"]', smoke="/env")
        await until(lambda: any(new_house.runs(index) for index in range(3)), 60)
        yield new_house


async def shipping(house: House, source: int, target: int, *, by: Ed25519Signer | None = None) -> None:
    """Have `source` ship to `target`, as the command does; return when a copy is there."""
    control = house.control(source)
    mandate = DataMandate(
        "standby", *LANE, PeerId(control.core.node), secrets.token_bytes(16), system_now().wall_ms,
        target=house.control(target).core.node,
    )  # fmt: skip
    signed = encode(sign_mandate(by or house.admin, control.core.trust.mesh, mandate))
    control.custody.check(signed, "standby", LANE)
    await control.standby.plan(LANE, mandate, signed)


async def copied(house: House, source: int, target: int) -> None:
    """Return when all that was written before is in the copy."""
    now_ms = system_now().wall_ms
    await until(lambda: house.control(target).standby.copy_ms(LANE) > now_ms, 30)


async def promote(house: House, through: int, target: int) -> None:
    lane = house.control(through).core.state.lane(*LANE)
    assert lane is not None
    node = PeerId(house.control(target).core.node)
    async with house.client(through) as client:
        await client.decide(house.admin, PlaceData(node), project=LANE[0], environment=LANE[1], expect=lane.sequence)


@pytest.mark.timeout(240)
async def test_a_lost_holders_data_goes_on_from_the_copy(house: House) -> None:
    source = holder(house)
    target, other = (index for index in range(3) if index != source)
    await shipping(house, source, target)
    for _ in range(20):
        counted = await count(house, source)
    await copied(house, source, target)
    await house.stop(source)
    began_s = time.monotonic()
    await promote(house, other, target)
    await until(lambda: house.runs(target), 60)
    assert await count(house, target) == counted + 1, "what was in the copy is not there"
    assert time.monotonic() - began_s >= WAIT_S, "it wrote while the former holder might have"
    await house.start(source)  # the former holder comes back: it holds nothing, and begins nothing
    await until(lambda: house.control(source).core.state.lane(*LANE).data_node != house.control(source).core.node, 30)  # type: ignore[union-attr]
    stores = house.control(source).data.place.stores(LANE)
    await until(lambda: [path.name for path in stores.iterdir()] == ["frozen"], 20)
    assert house.control(source).data.place.kept(LANE)
    assert await count(house, target) == counted + 2


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "mutant", ["", pytest.param("no-lease", marks=pytest.mark.long), pytest.param("no-wait", marks=pytest.mark.long)]
)
async def test_a_holder_that_is_cut_off_never_writes_beside_its_successor(
    house: House, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    """The two mutants show that the test would see it."""
    source = holder(house)
    target, other = (index for index in range(3) if index != source)
    await shipping(house, source, target)
    await count(house, source)
    await copied(house, source, target)
    if mutant == "no-lease":
        monkeypatch.setattr(data_standby, "LEASE_S", 1e9)
        await asyncio.sleep(1.0)  # it is renewed so
    elif mutant == "no-wait":
        monkeypatch.setattr(data_standby, "WAIT_S", 0.0)

    async def unheard() -> int:
        return -1

    cut = house.control(source)
    monkeypatch.setattr(cut.standby, "_read", unheard)  # it hears no majority, and nothing of what is decided
    cut.mesh.listeners.clear()
    last: dict[int, float] = {}
    first: dict[int, float] = {}
    stop = asyncio.Event()

    async def visit(index: int) -> None:
        async with aiohttp.ClientSession(headers=HOST, timeout=aiohttp.ClientTimeout(20)) as session:
            while not stop.is_set():
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"http://{house.ingress(index)}{PATH}") as answer:
                        if answer.status == 200:
                            last[index] = time.monotonic()
                            first.setdefault(index, last[index])
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(visit(source))
        await promote(house, other, target)
        await until(lambda: house.runs(target), 60)
        tasks.create_task(visit(target))
        await until(lambda: target in first, 60)
        await asyncio.sleep(1.0)
        stop.set()
    apart = last[source] < first[target]
    assert apart == (mutant == ""), (last[source] - first[target], mutant)
    if not mutant:
        assert not freeze.leased(cut.data.place.stores(LANE))


@pytest.mark.timeout(240)
async def test_a_holder_without_a_majority_writes_again_once_it_hears_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = holder(house)
    target = (source + 1) % 3
    await shipping(house, source, target)
    counted = await count(house, source)
    stores = house.control(source).data.place.stores(LANE)
    with monkeypatch.context() as patch:

        async def unheard() -> int:
            raise TimeoutError

        patch.setattr(house.control(source).standby, "_read", unheard)
        await until(lambda: not freeze.leased(stores), 20)
        async with aiohttp.ClientSession(headers=HOST) as session:
            answer = await session.get(f"http://{house.ingress(source)}{PATH}")
            assert answer.status == 503
    await until(lambda: freeze.leased(stores), 20)
    assert await count(house, source) == counted + 1


@pytest.mark.timeout(240)
async def test_a_move_to_the_standby_loses_nothing_and_ends_the_shipping(house: House) -> None:
    source = holder(house)
    target = (source + 1) % 3
    await shipping(house, source, target)
    await copied(house, source, target)
    counted = await count(house, source)  # perhaps not in the copy
    house.control(target).data.begin(ticket(house, source, target))
    assert await finished(house, target) == "done"
    await until(lambda: house.runs(target), 60)
    assert await count(house, target) == counted + 1
    assert LANE not in house.control(source).standby.states
    assert house.control(target).standby.copy_ms(LANE) == 0


@pytest.mark.timeout(240)
async def test_only_an_admin_and_only_the_holder_ships_and_only_where_it_was_said(house: House) -> None:
    source = holder(house)
    target, other = (index for index in range(3) if index != source)
    with pytest.raises(NotDoneError) as refused:
        await shipping(house, source, target, by=Ed25519Signer(secrets.token_bytes(32)))
    assert refused.value.refusal.rule == "command.not-allowed"
    with pytest.raises(NotDoneError) as refused:
        await shipping(house, source, source)
    assert refused.value.refusal.rule == "placement.not-eligible"
    with pytest.raises(NotDoneError) as refused:
        await shipping(house, other, target)
    assert refused.value.refusal.rule == "data.elsewhere"
    await shipping(house, source, target)
    await copied(house, source, target)
    # The right mandate in the hands of another member, and for another standby.
    (plan,) = [plan for _, plan in house.control(source).standby._plans()]
    ship = data_standby.Ship(plan.mandate, 1)
    for index, peer in ((target, other), (other, source)):
        answer = house.control(index).standby._allowed(ship, PeerId(house.control(peer).core.node))
        assert getattr(answer, "rule", "") == "data.mandate", answer
    assert isinstance(
        house.control(target).standby._allowed(ship, PeerId(house.control(source).core.node)), DataMandate
    )


@pytest.mark.timeout(240)
async def test_a_copy_that_gets_old_is_told_to_whoever_watches(house: House) -> None:
    need_promtool()
    source = holder(house)
    target = (source + 1) % 3
    await shipping(house, source, target)
    await copied(house, source, target)
    first = await scraped(house, source)
    now_ms = system_now().wall_ms
    await until(lambda: house.control(target).standby.copy_ms(LANE) > now_ms, 30)
    good = await scraped(house, source)
    await house.stop(target)
    await until(lambda: bool(house.control(source).standby.states[LANE].problem), 60)
    last = await scraped(house, source)
    await asyncio.sleep(3 * data_standby.CONFIRM_EVERY_S)
    stopped = await scraped(house, source)
    assert "FreeholdStandbyLags" not in firing(good, first), "the copy is as old as ever, and that is seconds"
    assert "FreeholdStandbyLags" not in firing(stopped, last, minutes=2)
    table = firing(stopped, last)
    assert {"FreeholdStandbyLags"} <= set(table) <= {"FreeholdStandbyLags", "FreeholdNodeDown"}
    assert f'project="{LANE[0]}"' in table["FreeholdStandbyLags"]
