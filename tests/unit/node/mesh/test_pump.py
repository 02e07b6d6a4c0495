"""A pump performs a machine's effects in order, and its ticks come when the machine asks for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from node.errors import StorageError
from node.loop_time import LoopTime
from node.mesh.pump import BATCH_MAX, Pump, share_commits
from protocols.machine import Disconnect, Effect, Notify, Now, PeerId, Persist, Reject, Send, Store, Tick, Write

PEER = PeerId("peer")


class Script:
    """A machine that answers each event with the effects written for it."""

    def __init__(self, answers: dict[Any, list[Effect]], due_ms: int | None = None) -> None:
        self.answers = answers
        self.due_ms = due_ms
        self.seen: list[Any] = []

    def handle(self, event: Any, now: Now) -> list[Effect]:
        self.seen.append(event)
        if isinstance(event, Tick):
            self.due_ms = None
        return self.answers.get(event, [])

    def deadline_ms(self) -> int | None:
        return self.due_ms


class Recorder:
    """An outlet and a disk that write down what they are asked to do, in order."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.broken = False

    def send(self, peer: PeerId, message: Any) -> None:
        self.done.append(("send", peer, message))

    def broadcast(self, message: Any, exclude: tuple[PeerId, ...]) -> None:
        self.done.append(("broadcast", message, exclude))

    def disconnect(self, peer: PeerId, reason: str) -> None:
        self.done.append(("disconnect", peer, reason))

    def reject(self, peer: PeerId, rule: str, detail: str) -> None:
        self.done.append(("reject", peer, rule))

    async def persist(self, effect: Persist) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise StorageError("the disk is full")
        self.done.append(("persist", effect.store, len(effect.writes)))

    def notify(self, event: Any) -> None:
        self.done.append(("notify", event))


async def drive(machine: Script, recorder: Recorder, *events: Any) -> None:
    pump = Pump(machine, recorder, recorder.persist, recorder.notify)
    for event in events:
        assert pump.post(event)
    finished = asyncio.Event()
    original = machine.handle

    def handle(event: Any, now: Now) -> list[Effect]:
        if event == "end":
            return [Notify("end")]
        return original(event, now)

    machine.handle = handle  # type: ignore[method-assign]
    notify = recorder.notify
    pump._on_notify = lambda event: finished.set() if event == "end" else notify(event)
    pump.post("end")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pump.run())
        await finished.wait()
        task.cancel()


async def test_effects_are_performed_in_order_and_a_write_before_what_follows_it() -> None:
    write = Persist(Store.VOTE, (Write("t", b"k", b"v"),))
    machine = Script({"go": [write, Send(PEER, "hello"), Reject(PEER, "rule"), Disconnect(PEER, "bye"), Notify("x")]})
    recorder = Recorder()
    await drive(machine, recorder, "go")
    assert recorder.done == [
        ("persist", Store.VOTE, 1),
        ("send", PEER, "hello"),
        ("reject", PEER, "rule"),
        ("disconnect", PEER, "bye"),
        ("notify", "x"),
    ]


async def test_nothing_behind_a_failed_write_is_performed() -> None:
    machine = Script({"go": [Persist(Store.VOTE, ()), Send(PEER, "hello")]})
    recorder = Recorder()
    recorder.broken = True
    pump = Pump(machine, recorder, recorder.persist, recorder.notify)
    pump.post("go")
    with pytest.raises(StorageError):
        await pump.run()
    assert recorder.done == []


async def test_a_due_tick_comes_without_any_event() -> None:
    machine = Script({Tick(): [Notify("ticked")]}, due_ms=5)
    recorder = Recorder()
    ticked = asyncio.Event()
    pump = Pump(machine, recorder, recorder.persist, lambda event: ticked.set(), lambda: Now(6, 0))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pump.run())
        await ticked.wait()
        task.cancel()
    assert machine.seen == [Tick()]


def test_state_writes_share_one_commit_at_the_first_place_and_votes_keep_their_barriers() -> None:
    first = Persist(Store.STATE, (Write("a", b"1", b""),))
    second = Persist(Store.STATE, (Write("a", b"2", b""),))
    vote = Persist(Store.VOTE, (Write("v", b"1", b""),))
    fence, voted = Persist(Store.FENCE, (Write("fence", b"0", b"f"),)), Persist(Store.VOTE, vote.writes + vote.writes)
    shared = share_commits([Notify(1), first, Send(PEER, 1), vote, second, Send(PEER, 2), vote, fence, vote, fence])
    assert shared == [
        Notify(1),
        Persist(Store.STATE, first.writes + second.writes),
        Send(PEER, 1),
        voted,
        Send(PEER, 2),
        fence,
        vote,
        fence,
    ]


def test_a_fence_ends_what_a_commit_of_votes_may_hold_and_no_commit_holds_two_statements() -> None:
    fence = Persist(Store.FENCE, (Write("fence", b"0", b"f"),))
    entry, promise, vote = (Persist(Store.VOTE, (Write("t", name, b""),)) for name in (b"entry", b"promise", b"vote"))
    effects = [entry, Notify("stored"), promise, fence, Send(PEER, "promised"), vote, fence, Send(PEER, "voted")]
    both = Persist(Store.VOTE, entry.writes + promise.writes)
    assert share_commits(effects) == [
        both, Notify("stored"), fence, Send(PEER, "promised"), vote, fence, Send(PEER, "voted"),
    ]  # fmt: skip


class Counting:
    """A machine that counts what it handled, which a reader may read, and the writes that made that durable."""

    def __init__(self, store: Store = Store.VOTE) -> None:
        self.handled = 0
        self.durable = 0
        self.disk = asyncio.Event()
        self.broken = False
        self.store = store

    def handle(self, _event: Any, _now: Now) -> list[Effect]:
        self.handled += 1
        return [Persist(self.store, (Write("t", b"k", self.handled.to_bytes(2, "big")),)), Notify(self.handled)]

    def deadline_ms(self) -> int | None:
        return None

    async def persist(self, *effects: Persist) -> None:
        await self.disk.wait()
        if self.broken:
            raise StorageError("the disk failed")
        values = [write.value or b"" for effect in effects for write in effect.writes]
        self.durable = max(self.durable, *(int.from_bytes(value, "big") for value in values))


async def test_who_waits_for_the_pump_reads_nothing_that_is_not_durable_however_much_there_is_to_do() -> None:
    machine = Counting()
    pump = Pump(machine, Recorder(), machine.persist, lambda _event: None)
    await pump.performed()  # nothing was done yet
    seen: list[tuple[int, int]] = []

    async def read() -> None:
        await pump.performed()
        seen.append((machine.handled, machine.durable))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(pump.run())
        for number in range(400):
            assert pump.post(number)
        while not machine.handled:  # noqa: ASYNC110
            await asyncio.sleep(0)
        readers = [group.create_task(read()) for _ in range(5)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert seen == []
        assert machine.durable == 0
        machine.disk.set()
        await asyncio.gather(*readers)
        assert len(seen) == 5
        assert all(handled == durable for handled, durable in seen), seen
        assert seen[0][0] < 400, "they waited for all there was to do"
        task.cancel()


async def test_who_reads_decisions_does_not_wait_for_records_to_be_durable() -> None:
    for store, waits in ((Store.STATE, False), (Store.FENCE, True), (Store.VOTE, True)):
        machine = Counting(store)
        pump = Pump(machine, Recorder(), machine.persist, lambda _event: None)
        pump.post("go")
        running = asyncio.ensure_future(pump.run())
        while not machine.handled:  # noqa: ASYNC110
            await asyncio.sleep(0)
        reader = asyncio.ensure_future(pump.performed())
        for _ in range(10):
            await asyncio.sleep(0)
        assert reader.done() is not waits, store
        assert machine.durable == 0, "the disk has not answered yet"
        machine.disk.set()
        await reader
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Slow(Script):
    """Each event takes a second of the clock, which is a list of one."""

    def __init__(self, now_s: list[float]) -> None:
        super().__init__({})
        self._now_s = now_s

    def handle(self, event: Any, now: Now) -> list[Effect]:
        self._now_s[0] += 1.0
        return super().handle(event, now)


async def test_a_peers_message_is_charged_to_it_and_told_of_once_it_was_handled() -> None:
    now_s = [10.0]

    loop_time = LoopTime(clock=lambda: now_s[0])
    machine, recorder, done = Slow(now_s), Recorder(), asyncio.Event()
    pump = Pump(machine, recorder, recorder.persist, recorder.notify, loop_time=loop_time)
    pump.put_for(PEER, "first", done.set)
    pump.put_for(PEER, "second")
    pump.post("own")
    running = asyncio.ensure_future(pump.run())
    await done.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert machine.seen == ["own", "first"], "the peer used up its part; this node's own events are not held back"
    assert loop_time.account(PEER).wait_s() > 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_tick_that_is_due_comes_in_a_flood_of_events_too() -> None:
    machine, recorder = Script({}, due_ms=5), Recorder()
    pump = Pump(machine, recorder, recorder.persist, recorder.notify, lambda: Now(6, 0))
    for number in range(1_000):
        pump.post(number)
    running = asyncio.ensure_future(pump.run())
    while len(machine.seen) < 1_000:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert machine.seen.index(Tick()) <= BATCH_MAX
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_loop_belongs_to_others_between_two_events_that_take_long() -> None:
    now_s = [10.0]

    machine, recorder = Slow(now_s), Recorder()
    pump = Pump(machine, recorder, recorder.persist, recorder.notify, loop_time=LoopTime(clock=lambda: now_s[0]))
    for number in range(BATCH_MAX):
        pump.post(number)
    running = asyncio.ensure_future(pump.run())
    turns = 0
    while len(machine.seen) < BATCH_MAX:
        turns += 1
        await asyncio.sleep(0)
    assert turns >= BATCH_MAX - 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_who_waits_for_a_pump_whose_disk_fails_reads_nothing() -> None:
    machine = Counting()
    machine.broken = True
    pump = Pump(machine, Recorder(), machine.persist, lambda _event: None)
    pump.post("go")
    running = asyncio.ensure_future(pump.run())
    while not machine.handled:  # noqa: ASYNC110
        await asyncio.sleep(0)
    reader = asyncio.ensure_future(pump.performed())
    await asyncio.sleep(0)
    machine.disk.set()
    ended = await asyncio.gather(running, reader, return_exceptions=True)
    assert [type(error) for error in ended] == [StorageError, asyncio.CancelledError]
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):  # whoever comes now is not left waiting for what nobody performs any more
            await pump.performed()
