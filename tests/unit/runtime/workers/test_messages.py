"""The control protocol: every message comes back as it was, and damage of any kind is one error."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import messages
from runtime.ingress.listeners import address_of, bind, forget
from runtime.messages import (
    FRAME_MAX_BYTES,
    Activate,
    AppLoad,
    AwaitDaemon,
    ControlError,
    Done,
    Drain,
    Greeting,
    Load,
    LogBatch,
    Ping,
    ReleaseLoad,
    RunJob,
    WorkerRoute,
    frame,
    read_answer,
    read_request,
    receive_greeting,
    send_greeting,
)
from runtime.spec import AppSpec

SPEC = AppSpec("p", "web", "r", Path("/a/b.cwasm"), "d1", config={"A": "b"}, keyvalue=("s",), environment={"K": "v"})
GREETING = Greeting(1, "b", 0, 7, ("127.0.0.1:80",), ("k",), False)


def fed(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


@pytest.mark.parametrize(
    "request_",
    [
        Load(1, ReleaseLoad("k", "d", "p", (AppLoad(SPEC),))),
        Activate(2, (WorkerRoute(None, "/", "k", "web"), WorkerRoute("a", "/b", "k", "web"))),
        RunJob(3, "k", "job", ("a", "b")),
        Drain(4, 1000),
        AwaitDaemon(5, 15_000, 10_000),
        Ping(5),
    ],
)
async def test_a_request_comes_back_as_it_was(request_: messages.Request) -> None:
    assert await read_request(fed(frame(request_))) == request_


@pytest.mark.parametrize("answer", [Done(1), LogBatch((b"{}",), 2), GREETING])
async def test_an_answer_comes_back_as_it_was(answer: messages.FromWorker) -> None:
    assert await read_answer(fed(frame(answer))) == answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        frame(Ping(1))[:-1],
        (FRAME_MAX_BYTES + 1).to_bytes(4, "big") + b"x" * 100,
        b"\xff\xff\xff\xff",
        b"\0\0\0\x01\xc1",
        b"\0\0\0\x04" + msgspec.msgpack.encode([1, 2, 3]),
        frame(Done(1)),
    ],
)
async def test_damage_is_one_error(data: bytes) -> None:
    with pytest.raises(ControlError):
        await read_request(fed(data))


@given(st.binary(max_size=200))
def test_no_bytes_whatever_do_more_than_raise_that_error(data: bytes) -> None:
    async def read() -> None:
        for reader in (read_request, read_answer):
            with pytest.raises(ControlError):
                await reader(fed(len(data).to_bytes(4, "big") + data))

    asyncio.run(read())


def test_a_message_above_the_cap_is_never_sent() -> None:
    with pytest.raises(ControlError, match="more than"):
        frame(LogBatch((b"x" * FRAME_MAX_BYTES,), 0))


def test_a_greeting_carries_its_listening_sockets() -> None:
    ours, theirs = socket.socketpair()
    listener = bind("127.0.0.1:0")
    with ours, theirs, listener:
        send_greeting(theirs, GREETING, [listener])
        greeting, (received,) = receive_greeting(ours)
        with received:
            assert greeting == GREETING
            assert received.fileno() != listener.fileno()
            assert address_of(received) == address_of(listener)


@pytest.mark.parametrize("data", [b"", b"\0\0\0\x05abc", frame(Done(1)), b"\xff" * 100])
def test_a_bad_greeting_leaks_no_descriptor(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    listener = bind("127.0.0.1:0")
    with ours, theirs, listener:
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(theirs, [data or b"\0"], [listener.fileno()])
        with pytest.raises(ControlError):
            receive_greeting(ours)
        assert len(os.listdir("/proc/self/fd")) == before


def test_addresses_are_bound_and_named_alike(tmp_path: Path) -> None:
    for address in ("127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/in.sock"):
        with bind(address) as listener:
            assert address_of(listener).rpartition(":")[0] == address.rpartition(":")[0]


def test_a_unix_path_left_behind_is_taken_over_and_one_in_use_is_not(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/in.sock"
    bind(address).close()
    with bind(address), pytest.raises(OSError, match="in use"):
        bind(address)
    forget([address, "127.0.0.1:1"])
    assert not (tmp_path / "in.sock").exists()
