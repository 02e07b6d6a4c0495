"""The transport over real sockets: dialling, duplicates, hung peers, channels, streams, and what a failure costs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from node.transport import ChannelName, DialError, FramesReceived, LinkReady, Stream, StreamError
from node.transport.channel import INBOX_MAX_BYTES
from protocols.libp2p import connection, multiaddr
from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import PeerId
from tests.support.mesh.libp2p_peers import ECHO, LOOPBACK, SINK, TestNode, make_transport, running


@contextlib.asynccontextmanager
async def joined(a: TestNode, b: TestNode) -> AsyncIterator[None]:
    """Have `b` dial `a`, wait until both are ready."""
    b.transport.set_members({a.peer: (a.address,)})
    await a.until(lambda: bool(a.ready))
    await b.until(lambda: bool(b.ready))
    yield


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[TestNode, TestNode]]:
    async with running(LOOPBACK) as a, running() as b, joined(a, b):
        yield a, b


@contextlib.contextmanager
def seeds(lower_first: bool) -> Iterator[tuple[bytes, bytes]]:
    """Two keys, by the order of their peer ids."""
    first, second = sorted((secrets.token_bytes(32) for _ in range(2)), key=lambda seed: make_transport(seed=seed).peer)
    yield (first, second) if lower_first else (second, first)


# --- dialling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lower_first", [True, False])
async def test_of_two_simultaneous_dials_the_one_of_the_lower_peer_id_stays(lower_first: bool) -> None:
    with seeds(lower_first) as (first, second):
        async with running(LOOPBACK, seed=first) as a, running(LOOPBACK, seed=second) as b:
            await asyncio.gather(a.transport.dial([b.address]), b.transport.dial([a.address]))
            for node, other in ((a, b), (b, a)):
                await node.until(lambda node=node: len(node.downs) == 1 and len(node.ups) == 2)  # type: ignore[misc]
                link = node.transport.link_to(other.peer)
                up = next(event for event in node.ups if event.link == link)
                assert up.inbound == (node.peer > other.peer)
            async with await a.transport.open_stream(b.peer, ECHO) as stream:
                await stream.write(b"x")
                assert await stream.read_exactly(1) == b"x"
                stream.finish()


async def test_members_that_dial_each_other_end_with_one_link() -> None:
    async with running(LOOPBACK) as a, running(LOOPBACK) as b:
        a.transport.set_members({b.peer: (b.address,), a.peer: (a.address,)})
        b.transport.set_members({a.peer: (a.address,)})
        await a.until(lambda: bool(a.ready))
        await asyncio.sleep(0.6)
        assert a.transport.counts()["links"] == b.transport.counts()["links"] == 1


@contextlib.asynccontextmanager
async def mute_server() -> AsyncIterator[Multiaddr]:
    """A port that accepts and says nothing."""

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    try:
        yield multiaddr.from_tcp(*server.sockets[0].getsockname())
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_a_dead_and_a_mute_address_do_not_delay_the_good_one() -> None:
    async with running(LOOPBACK) as a, running() as b, mute_server() as mute:
        started = time.perf_counter()
        dead = multiaddr.parse("/ip4/127.0.0.1/tcp/1")
        await b.transport.dial([dead, mute, a.address], expected=a.peer)
        assert time.perf_counter() - started < 1.5


async def test_a_failed_dial_names_every_address_and_its_reason() -> None:
    async with running(LOOPBACK) as a, running() as b:
        with pytest.raises(DialError) as caught:
            await b.transport.dial([multiaddr.parse("/ip4/127.0.0.1/tcp/1"), a.address], expected=b.peer)
        assert "tcp/1:" in str(caught.value)
        assert "upgrade.peer" in str(caught.value)
        with pytest.raises(DialError):
            await b.transport.dial([])
        with pytest.raises(DialError, match="not a TCP address"):
            await b.transport.dial([multiaddr.parse(f"/p2p/{a.peer}")])


async def test_a_member_that_returns_is_found_again() -> None:
    seed = secrets.token_bytes(32)
    async with running() as b:
        async with running(LOOPBACK, seed=seed) as a:
            address = a.transport.listening[0]
            b.transport.set_members({a.peer: (address,)})
            await b.until(lambda: len(b.ready) == 1)
        await b.until(lambda: len(b.downs) == 1)
        await asyncio.sleep(0.3)
        async with running(address, seed=seed):
            await b.until(lambda: len(b.ready) == 2)


async def test_a_new_address_of_a_member_is_tried_at_once() -> None:
    async with running(LOOPBACK) as a, running() as b:
        b.transport.set_members({a.peer: (multiaddr.parse("/ip4/127.0.0.1/tcp/1"),)})
        await asyncio.sleep(1.2)
        b.transport.set_members({a.peer: (a.address,)})
        await b.until(lambda: bool(b.ready), timeout_s=1.5)
        b.transport.set_members({})
        assert b.transport.link_to(a.peer) is not None


async def test_a_node_does_not_talk_to_itself() -> None:
    async with running(LOOPBACK) as a:
        with contextlib.suppress(DialError):
            await a.transport.dial([a.address])
        await asyncio.sleep(0.1)
        assert a.transport.counts()["links"] == 0


@contextlib.asynccontextmanager
async def freezer(target: Multiaddr) -> AsyncIterator[tuple[Multiaddr, asyncio.Event]]:
    """A proxy that stops passing bytes when told, and leaves the connections open."""
    frozen, over = asyncio.Event(), asyncio.Event()
    writers: list[asyncio.StreamWriter] = []
    host, port = target.tcp() or ("", 0)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if frozen.is_set():
                    await over.wait()
                writer.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        writers.extend((writer, back))
        await asyncio.gather(copy(reader, back), copy(there, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield multiaddr.from_tcp(*server.sockets[0].getsockname()), frozen
    finally:
        server.close()
        over.set()
        for open_writer in writers:
            open_writer.transport.abort()
        await asyncio.sleep(0.05)


async def test_a_hung_peer_is_noticed_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection.KEEP_ALIVE_MS + connection.SILENCE_MAX_MS < 15_000
    monkeypatch.setattr(connection, "KEEP_ALIVE_MS", 200)
    monkeypatch.setattr(connection, "SILENCE_MAX_MS", 400)
    async with running(LOOPBACK) as a, running() as b, freezer(a.address) as (detour, frozen):
        b.transport.set_members({a.peer: (detour,)})
        await b.until(lambda: bool(b.ready))
        await asyncio.sleep(1)
        assert not b.downs
        assert await b.transport.is_alive(b.ready[0].link, 1)
        frozen.set()
        assert not await b.transport.is_alive(b.ready[0].link, 0.1)
        await b.until(lambda: bool(b.downs), timeout_s=2)
        await a.until(lambda: bool(a.downs), timeout_s=2)
        assert b.downs[0].reason == a.downs[0].reason == "connection.silent"
        assert not await b.transport.is_alive(b.ready[0].link, 0.1)


# --- channels ---------------------------------------------------------------------------------------------------------


async def test_hello_frames_pass_before_admission_and_control_frames_after() -> None:
    def refuse(peer: PeerId) -> bool:
        return False

    async with running(LOOPBACK, admits=refuse) as a, running(admits=refuse) as b:
        link = await b.transport.dial([a.address])
        await a.until(lambda: bool(a.ups))
        assert b.transport.send(link, ChannelName.HELLO, b"from b")
        assert a.transport.send(a.ups[0].link, ChannelName.HELLO, b"from a")
        assert not b.transport.send_to(a.peer, b"too early")
        await a.until(lambda: bool(a.frames))
        await b.until(lambda: bool(b.frames))
        assert (a.frames[0].frames, b.frames[0].frames) == ((b"from b",), (b"from a",))
        assert b.transport.admit(link)
        assert b.transport.send_to(a.peer, b"waits for a")
        await asyncio.sleep(0.1)
        assert not b.ready
        assert a.transport.admit(a.ups[0].link)
        await b.until(lambda: bool(b.ready))
        await a.until(lambda: len(a.frames) == 2)
        assert a.frames[1].channel is ChannelName.CONTROL
        assert a.frames[1].frames == (b"waits for a",)
        assert not a.transport.admit(99)


async def test_control_frames_arrive_whole_in_order_and_in_batches() -> None:
    async with pair() as (a, b):
        sent = [bytes([n % 251]) * size for n, size in enumerate([1, 100, 70_000, 1 << 20, 5] + [200] * 500)]
        for frame in sent:
            assert b.transport.send_to(a.peer, frame)
        await a.until(lambda: sum(len(event.frames) for event in a.frames) == len(sent))
        assert [frame for event in a.frames for frame in event.frames] == sent
        assert len(a.frames) < 100
        for wrong in (b"", bytes((1 << 20) + 1)):
            with pytest.raises(ValueError, match="control frame"):
                b.transport.send_to(a.peer, wrong)


async def test_a_daemon_that_falls_behind_holds_its_peer_back_and_then_frames_are_dropped() -> None:
    slow = make_transport(LOOPBACK)
    async with running() as b, asyncio.TaskGroup() as group:
        task = group.create_task(slow.run())
        await slow.started.wait()
        events = slow.events()
        b.transport.set_members({slow.peer: (slow.listening[0],)})
        up = await anext(events)
        slow.admit(up.link)
        while not isinstance(await anext(events), LinkReady):
            pass
        await b.until(lambda: bool(b.ready))
        accepted = 0
        for _ in range(100):
            accepted += sum(b.transport.send_to(slow.peer, bytes(100_000)) for _ in range(10))
            await asyncio.sleep(0.002)
        assert accepted * 100_000 < 20 * 2**20
        assert b.transport.counts()["dropped_frames"] == 1000 - accepted
        received = 0
        while received < accepted:
            event = await anext(events)
            received += len(getattr(event, "frames", ()))
        assert b.transport.send_to(slow.peer, b"again")
        task.cancel()


async def test_frames_that_somebody_answers_for_hold_their_peer_back_until_he_is_done_with_them() -> None:
    slow = make_transport(LOOPBACK)
    async with running() as b, asyncio.TaskGroup() as group:
        task = group.create_task(slow.run())
        await slow.started.wait()
        events = slow.events()
        b.transport.set_members({slow.peer: (slow.listening[0],)})
        slow.admit((await anext(events)).link)
        while not isinstance(await anext(events), LinkReady):
            pass
        await b.until(lambda: bool(b.ready))
        held, received, accepted = [], 0, 0
        with contextlib.suppress(TimeoutError):
            for _ in range(300):
                accepted += b.transport.send_to(slow.peer, bytes(100_000))
                async with asyncio.timeout(2):
                    event = await anext(events)
                assert isinstance(event, FramesReceived)
                received += sum(map(len, event.frames))
                held.append(slow.hold())
        assert received < 5 * INBOX_MAX_BYTES, "what is not dealt with counts, though the next event was asked for"
        events = slow.events()
        for done in held:
            done()
        while received < accepted * 100_000:
            event = await anext(events)
            assert isinstance(event, FramesReceived)
            received += sum(map(len, event.frames))
        task.cancel()


async def write_for(stream: Stream, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while True:
            await stream.write(bytes(200_000))


async def open_for_ever(node: TestNode, peer: PeerId, streams: list[Stream]) -> None:
    while True:
        streams.append(await node.transport.open_stream(peer, ECHO))


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_a_reader_that_stops_stalls_its_own_stream_alone() -> None:
    async with pair() as (a, b), await b.transport.open_stream(a.peer, ECHO) as stuck:
        with pytest.raises(TimeoutError):
            await write_for(stuck, 0.5)
        async with await b.transport.open_stream(a.peer, SINK) as moving:
            await moving.write(bytes(10_000_000))
            moving.finish()
            assert int.from_bytes(await moving.read_exactly(8), "big") == 10_000_000


async def test_a_cancelled_write_costs_its_stream_and_not_the_link() -> None:
    async with pair() as (a, b):
        for _ in range(20):
            stream = await b.transport.open_stream(a.peer, ECHO)
            with pytest.raises(TimeoutError):
                await write_for(stream, 0.01)
            with pytest.raises(StreamError):
                await stream.write(b"x")
        async with await b.transport.open_stream(a.peer, ECHO) as stream:
            await stream.write(b"fine")
            assert await stream.read_exactly(4) == b"fine"
            stream.finish()
        assert not a.downs
        assert not b.downs


async def test_a_handler_that_fails_costs_its_stream_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(stream: Stream) -> None:
        raise RuntimeError("a bug")

    a_transport = make_transport(LOOPBACK)
    a_transport.serve("/broken/1", broken)
    a = TestNode(a_transport)
    async with running() as b, asyncio.TaskGroup() as group:
        tasks = [group.create_task(a_transport.run()), group.create_task(a.watch())]
        await a_transport.started.wait()
        async with joined(a, b):
            stream = await b.transport.open_stream(a.peer, "/broken/1")
            with pytest.raises(StreamError):
                await stream.read()
            assert "a bug" in caplog.text
            with pytest.raises(StreamError, match=r"multistream\.refused"):
                await (await b.transport.open_stream(a.peer, "/nobody/1")).agreed()
            assert not b.downs
        for task in tasks:
            task.cancel()


async def test_streams_over_the_cap_are_refused_here_and_come_free_again() -> None:
    async with pair() as (a, b):
        streams: list[Stream] = []
        with pytest.raises(StreamError, match=r"yamux\.streams"):
            await open_for_ever(b, a.peer, streams)
        assert len(streams) > 200
        for stream in streams:
            stream.reset_stream()
        async with await b.transport.open_stream(a.peer, ECHO) as stream:
            await stream.write(b"x")
            assert await stream.read_exactly(1) == b"x"
            stream.finish()


async def test_a_link_that_ends_ends_its_streams_and_is_announced_once() -> None:
    async with pair() as (a, b):
        stream = await b.transport.open_stream(a.peer, ECHO)
        b.transport.set_members({})
        a.transport.close(a.ready[0].link, "test.done")
        with pytest.raises(StreamError):
            await stream.read()
        await b.until(lambda: bool(b.downs))
        assert [event.reason for event in a.downs] == ["test.done"]
        assert [event.reason for event in b.downs] == ["transport.gone-away"]
        with pytest.raises(StreamError, match=r"transport\.not-connected"):
            await b.transport.open_stream(a.peer, ECHO)
        with pytest.raises(StreamError, match=r"transport\.not-connected"):
            await b.transport.identify(b.ready[0].link)
        assert not b.transport.send_to(a.peer, b"x")


async def test_a_stream_that_ends_early_says_so() -> None:
    async with pair() as (a, b), await b.transport.open_stream(a.peer, ECHO) as stream:
        await stream.write(b"abc")
        stream.finish()
        with pytest.raises(StreamError, match=r"transport\.ended-early"):
            await stream.read_exactly(4)
