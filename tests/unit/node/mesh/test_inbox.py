"""Peers take turns, and with this node's own events; who has used up its part of the loop is passed over."""

from __future__ import annotations

import asyncio

from node.loop_time import SAVED_MAX_S, LoopTime
from node.mesh.inbox import OWN_MAX, Inbox
from protocols.machine import PeerId

LOUD, QUIET = PeerId("loud"), PeerId("quiet")


def taken(inbox: Inbox, count: int) -> list[object]:
    return [pair.event if (pair := inbox.take()) is not None else None for _ in range(count)]


def test_a_flood_of_one_peer_stands_before_nobody_elses_message_but_by_one() -> None:
    inbox = Inbox(LoopTime())
    for number in range(1_000):
        inbox.put_for(LOUD, f"loud {number}")
    inbox.put_for(QUIET, "quiet")
    inbox.post("own")
    assert "quiet" in taken(inbox, 3)
    assert len(inbox) == 999
    assert taken(inbox, 2) == ["loud 1", "loud 2"], "each peer's messages stay in their order"


def test_own_events_do_not_keep_the_peers_out_nor_the_other_way_round() -> None:
    inbox = Inbox(LoopTime())
    for number in range(4):
        inbox.post(number)
        inbox.put_for(LOUD, f"loud {number}")
    assert taken(inbox, 9) == [0, "loud 0", 1, "loud 1", 2, "loud 2", 3, "loud 3", None]


def test_a_peer_that_used_up_its_part_is_passed_over_until_it_has_some_again() -> None:
    now_s = [100.0]
    loop_time = LoopTime(clock=lambda: now_s[0])
    inbox = Inbox(loop_time)
    inbox.put_for(LOUD, "loud")
    inbox.put_for(QUIET, "quiet")
    assert inbox.wait_s() == 0
    loop_time.account(LOUD).spend(2 * SAVED_MAX_S)
    assert taken(inbox, 2) == ["quiet", None]
    wait_s = inbox.wait_s()
    assert wait_s is not None
    assert wait_s > 0
    now_s[0] += wait_s + 0.001
    assert taken(inbox, 2) == ["loud", None]
    assert inbox.wait_s() is None


async def test_own_events_have_an_end_and_room_is_told_of() -> None:
    inbox = Inbox(LoopTime())
    assert all(inbox.post(number) for number in range(OWN_MAX))
    assert not inbox.post("one more")
    waiting = asyncio.ensure_future(inbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.take()
    await waiting
    assert inbox.post("one more")


async def test_an_arrival_wakes_who_waits_for_one() -> None:
    inbox = Inbox(LoopTime())
    for put in (lambda: inbox.post("own"), lambda: inbox.put_for(LOUD, "loud")):
        waiting = asyncio.ensure_future(inbox.arrival())
        await asyncio.sleep(0)
        put()
        put()
        await waiting
