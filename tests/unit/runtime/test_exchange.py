"""The conversation between loop and guest thread: order, bounds, back-pressure, cancellation."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from runtime.call import CallCancelled, DeadlinePassed, GuestCall
from runtime.exchange import (
    REQUEST_BUFFER_MAX_BYTES,
    RESPONSE_BUFFER_MAX_BYTES,
    BodyFailure,
    Exchange,
    RequestHead,
    ResponseHead,
)
from runtime.outcome import Cancelled, Completed, NoResponse

HEAD = RequestHead("GET", "http", "a.example", "/", ())
OK = ResponseHead(200, (("content-type", b"text/plain"),))


def an_exchange(timeout_s: float = 60.0) -> Exchange:
    return Exchange(HEAD, deadline_s=time.monotonic() + timeout_s, loop=asyncio.get_running_loop())


async def test_a_small_response_crosses_in_one_batch_with_its_outcome() -> None:
    exchange = an_exchange()

    def guest() -> None:
        exchange.response.start(OK)
        exchange.response.write(b"hel")
        exchange.response.write(b"lo")
        exchange.response.finish((("x-sum", b"1"),))
        exchange.close(Completed())

    taker = asyncio.ensure_future(exchange.take())
    await asyncio.to_thread(guest)
    batch = await taker
    assert batch.whole
    assert batch.complete
    assert (batch.head, b"".join(batch.chunks), batch.trailers) == (OK, b"hello", (("x-sum", b"1"),))
    assert batch.outcome == Completed()


async def test_what_was_written_leaves_when_the_guest_waits() -> None:
    exchange = an_exchange()
    more = threading.Event()

    def guest() -> None:
        exchange.response.start(OK)
        exchange.response.write(b"first")
        exchange.call.sleep()
        assert more.is_set()
        exchange.response.finish()
        exchange.close(Completed())

    done = asyncio.ensure_future(asyncio.to_thread(guest))
    first = await exchange.take()
    assert (first.head, first.chunks, first.complete, first.outcome) == (OK, (b"first",), False, None)
    more.set()
    exchange.call.waker.wake()
    last = await exchange.take()
    assert (last.head, last.chunks, last.complete, last.whole) == (None, (), True, False)
    assert last.outcome == Completed()
    await done


async def test_a_slow_guest_stops_the_feeder_and_reading_releases_it() -> None:
    exchange = an_exchange()
    chunk = bytes(REQUEST_BUFFER_MAX_BYTES)
    assert await exchange.body.feed(chunk)
    blocked = asyncio.ensure_future(exchange.body.feed(b"tail"))
    await asyncio.sleep(0)
    assert not blocked.done()
    assert len(await asyncio.to_thread(exchange.body.read, 10)) == 10
    assert await blocked
    rest = b""
    while piece := exchange.body.read(1 << 20):
        rest += piece
    assert rest == chunk[10:] + b"tail"


async def test_closing_the_body_tells_a_waiting_feeder_to_discard() -> None:
    exchange = an_exchange()
    await exchange.body.feed(bytes(REQUEST_BUFFER_MAX_BYTES))
    blocked = asyncio.ensure_future(exchange.body.feed(b"x"))
    await asyncio.sleep(0)
    await asyncio.to_thread(exchange.close, NoResponse())
    assert await blocked is False
    assert await exchange.body.feed(b"y") is False


async def test_a_slow_client_takes_the_permit_away_and_taking_gives_it_back() -> None:
    exchange = an_exchange()
    exchange.response.start(OK)
    exchange.response.write(bytes(RESPONSE_BUFFER_MAX_BYTES))
    assert exchange.response.permit() == 0
    await exchange.take()
    assert exchange.response.permit() == RESPONSE_BUFFER_MAX_BYTES
    exchange.call.sleep(time.monotonic() + 60)  # returns at once: taking woke the starved writer


async def test_the_end_and_a_failure_make_the_body_readable() -> None:
    ended = an_exchange()
    assert not ended.body.readable
    ended.body.feed_end((("t", b"1"),))
    assert (ended.body.readable, ended.body.drained, ended.body.trailers) == (True, True, (("t", b"1"),))
    failed = an_exchange()
    failed.body.feed_failure(BodyFailure.CONNECTION_LOST)
    assert (failed.body.readable, failed.body.drained) == (True, False)


async def test_cancelling_wakes_a_waiting_guest() -> None:
    exchange = an_exchange()

    def guest() -> None:
        with pytest.raises(CallCancelled):
            exchange.call.sleep()
        exchange.close(Cancelled())

    done = asyncio.ensure_future(asyncio.to_thread(guest))
    exchange.cancel()
    batch = await exchange.take()
    assert (batch.head, batch.outcome) == (None, Cancelled())
    await done


def test_a_passed_deadline_ends_every_wait() -> None:
    call = GuestCall(time.monotonic() - 1)
    with pytest.raises(DeadlinePassed):
        call.sleep()
    with pytest.raises(DeadlinePassed):
        call.tick()


async def test_many_chunks_arrive_in_order_through_both_pipes() -> None:
    exchange = an_exchange()

    def echo() -> None:
        exchange.response.start(OK)
        while not exchange.body.drained:
            data = exchange.body.read(7000)
            if not data:
                if not exchange.body.drained:
                    exchange.call.sleep()
                continue
            while data:  # a part of what there is room for: only a permit of 0 asks to be woken
                if permit := exchange.response.permit():
                    exchange.response.write(data[:permit])
                    data = data[permit:]
                else:
                    exchange.call.sleep()
        exchange.response.finish()
        exchange.close(Completed())

    sent = [bytes([n % 251]) * 50_000 for n in range(40)]

    async def feed() -> None:
        for chunk in sent:
            assert await exchange.body.feed(chunk)
        exchange.body.feed_end()

    thread = asyncio.ensure_future(asyncio.to_thread(echo))
    feeder = asyncio.ensure_future(feed())
    received = bytearray()
    while True:
        batch = await exchange.take()
        received += b"".join(batch.chunks)
        assert sum(map(len, batch.chunks)) <= RESPONSE_BUFFER_MAX_BYTES
        if batch.outcome is not None:
            break
    await asyncio.gather(thread, feeder)
    assert bytes(received) == b"".join(sent)
