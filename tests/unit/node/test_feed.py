"""The feed: event ids, what a watcher that comes back hears, the gap where that is not known any more, starts that wait."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from node.decisions.start_queue import Waiting
from node.feed import RECENT_MAX, Feed
from protocols.core import NodeCore
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.rollout.orders import Stop
from protocols.state.commands import SignedCommand


class NoRollouts:
    class State:
        lanes = ()

    state = State()


def a_feed() -> Feed:
    return Feed(cast("NodeCore", NoRollouts()))


async def take(feed: Feed, count: int, after: str = "", project: str = "") -> list[bytes]:
    def wanted(_kind: str, fields: dict[str, Any]) -> bool:
        return not project or fields.get("project") == project

    watching = feed.watch(wanted, after)
    try:
        return [await asyncio.wait_for(anext(watching), 5) for _ in range(count)]
    finally:
        await watching.aclose()  # type: ignore[attr-defined]


def id_of(frame: bytes) -> str:
    return frame.partition(b"\n")[0].decode().removeprefix("id: ")


async def test_who_comes_back_hears_what_it_missed_and_nothing_twice() -> None:
    feed = a_feed()
    for number in range(5):
        feed.hear(Stop(f"p{number % 2}", "production"))
    boot = id_of((await take(feed, 1, after="00000000-0"))[0].replace(b"event: gap", b"id: gap"))
    assert boot == "gap", "an id of another process is none of this one's"
    first = feed._boot
    frames = await take(feed, 3, after=f"{first}-2")
    assert [id_of(frame) for frame in frames] == [f"{first}-{number}" for number in (3, 4, 5)]
    frames = await take(feed, 2, after=f"{first}-1", project="p0")
    assert [id_of(frame) for frame in frames] == [f"{first}-3", f"{first}-5"]


async def test_what_is_too_old_or_was_never_told_is_a_gap() -> None:
    feed = a_feed()
    for _ in range(RECENT_MAX + 5):
        feed.hear(Stop("p", "production"))
    for after in (f"{feed._boot}-3", f"{feed._boot}-99999", f"{feed._boot}-x", "junk"):
        assert b"event: gap" in (await take(feed, 1, after=after))[0], after
    assert b"event: stop" in (await take(feed, 1, after=f"{feed._boot}-{RECENT_MAX}"))[0]


class OneChange(NoRollouts):
    class Dossiers:
        changes = {Digest(b"c"): SimpleNamespace(change=SimpleNamespace(project="p", environment="production"))}  # noqa: RUF012

    dossiers = Dossiers()


async def test_a_start_that_begins_to_wait_or_waits_for_something_else_is_told_to_who_may_hear_it() -> None:
    starts: dict[Digest, Waiting] = {}
    feed = Feed(cast("NodeCore", OneChange()), starts)
    mine = feed.watch(lambda kind, fields: kind == "start" and fields["project"] == "p")
    other = feed.watch(lambda kind, fields: kind == "start" and fields["project"] == "another")
    hears, silent = asyncio.ensure_future(anext(mine)), asyncio.ensure_future(anext(other))
    await asyncio.sleep(0)
    waiting = Waiting(cast("SignedCommand", None), (), 0, refusal=Refusal("approval.missing", ""))
    starts[Digest(b"c")] = starts[Digest(b"not here yet")] = waiting
    told = await asyncio.wait_for(hears, 5)
    assert told == (
        b'event: start\ndata: {"project":"p","environment":"production","change":"63","outcome":"waiting",'
        b'"rule":"approval.missing"}\n\n'
    )
    hears = asyncio.ensure_future(anext(mine))
    await asyncio.sleep(1.2)
    assert not hears.done(), "what did not change is told once"
    waiting.refusal = Refusal("rollout.not-prepared", "")
    assert b"rollout.not-prepared" in await asyncio.wait_for(hears, 5)
    assert not silent.done()
    silent.cancel()
    await asyncio.gather(silent, return_exceptions=True)
    for watching in (mine, other):
        await watching.aclose()  # type: ignore[attr-defined]
