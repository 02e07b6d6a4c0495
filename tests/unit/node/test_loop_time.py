"""Whoever has used up its part of the loop waits between two steps, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from node.loop_time import LOOP_SHARE, SAVED_MAX_S, LoopTime, Metered

GREEDY, MODEST = "greedy", "modest"
STEP_S = 0.01


class FakeClock:
    """Time that passes when a step takes some, or when all wait; callbacks are due in its order."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now_s

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.due.append((self.now_s + delay_s, callback))

    def advance(self) -> None:
        """Go on to what is due first."""
        self.due.sort(key=lambda one: one[0])
        at_s, callback = self.due.pop(0)
        self.now_s = max(self.now_s, at_s)
        callback()


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    return FakeClock()


def made(clock: FakeClock) -> LoopTime:
    return LoopTime(LOOP_SHARE, clock, clock.later)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def working(clock: FakeClock, loop_time: LoopTime, payer: str, done: list[str], steps: int) -> asyncio.Task[str]:
    """A task of so many steps at the expense of a payer."""
    meter = Metered(clock)

    async def work() -> str:
        meter.pays(payer, loop_time)
        for _ in range(steps):
            await asyncio.sleep(0)
            clock.now_s += STEP_S
            done.append(payer)
        return payer

    return asyncio.ensure_future(meter.run(work()))  # type: ignore[arg-type]


async def test_a_payer_that_used_up_what_it_had_goes_on_step_by_step_and_another_does_not_wait(
    clock: FakeClock,
) -> None:
    loop_time, done = made(clock), []
    tasks = [working(clock, loop_time, GREEDY, done, steps=50) for _ in range(20)]
    for _ in range(200):
        await asyncio.sleep(0)
    saved = SAVED_MAX_S / STEP_S
    assert saved <= len(done) <= saved / (1 - LOOP_SHARE) + 1, "it may use what it saved, and what it gains meanwhile"
    assert clock.due, "the rest waits"
    before = len(done)
    modest = working(clock, loop_time, MODEST, done, steps=5)
    await settle()
    assert modest.done()
    assert done[before:] == [MODEST] * 5, "not one step of the greedy one came between"
    for _ in range(10):
        before = len(done)
        clock.advance()
        await settle()
        assert len(done) - before <= 1, "one step at a time, each charged before the next"
    while clock.due:
        clock.advance()
        await settle()
    assert await asyncio.gather(*tasks) == [GREEDY] * 20
    assert done.count(GREEDY) == 1_000


async def test_the_pace_is_the_share_alone_and_half_of_it_beside_another(clock: FakeClock) -> None:
    loop_time = made(clock)
    greedy = loop_time.account(GREEDY)
    greedy.spend(SAVED_MAX_S + LOOP_SHARE)
    assert greedy.wait_s() == pytest.approx(1.0)
    modest = loop_time.account(MODEST)
    assert greedy.wait_s() == pytest.approx(2.0), "half of it beside somebody who has time left"
    assert modest.wait_s() == 0
    modest.spend(2 * SAVED_MAX_S)
    assert greedy.wait_s() == pytest.approx(2.0), "two that have none left share it"
    for number in range(100):
        loop_time.account(f"light {number}")
    assert greedy.wait_s() == pytest.approx(3.0), "a hundred that want little are one share, not a hundred"


async def test_what_was_saved_has_an_end_and_full_accounts_are_forgotten(clock: FakeClock) -> None:
    loop_time = made(clock)
    account = loop_time.account(GREEDY)
    clock.now_s += 1_000
    account.spend(SAVED_MAX_S)
    assert account.wait_s() > 0, "a long pause saves no more than a short one"
    assert loop_time.account(GREEDY) is account, "it is not full: nobody forgets what it owes"
    clock.now_s += 1_000
    assert loop_time.account("other") is not account
    assert loop_time.account(GREEDY) is not account
    assert loop_time.debtor_count == 0


async def test_work_that_is_cancelled_while_it_waits_ends_and_passes_its_turn_on(clock: FakeClock) -> None:
    loop_time, done = made(clock), []
    loop_time.account(GREEDY).spend(2 * SAVED_MAX_S)
    first, second = (working(clock, loop_time, GREEDY, done, steps=1) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    assert done == []
    for _ in range(3):
        if clock.due:
            clock.advance()
            await settle()
    assert await second == GREEDY
    assert done == [GREEDY]


async def test_work_without_a_payer_never_waits_and_pays_for_what_it_did_once_it_has_one(clock: FakeClock) -> None:
    loop_time, meter = made(clock), Metered(clock)

    async def work() -> None:
        clock.now_s += 2 * SAVED_MAX_S
        await asyncio.sleep(0)
        meter.pays(GREEDY, loop_time)

    await meter.run(work())
    assert loop_time.account(GREEDY).wait_s() > 0


async def test_what_the_work_raises_is_raised_and_what_it_waits_for_is_waited_for(clock: FakeClock) -> None:
    gate = asyncio.get_running_loop().create_future()

    async def work() -> None:
        raise ValueError(await gate)

    task = asyncio.ensure_future(Metered(clock).run(work()))  # type: ignore[arg-type]
    await settle()
    assert not task.done()
    gate.set_result("wrong")
    with pytest.raises(ValueError, match="wrong"):
        await task
