"""The daemon's end of one worker's control connection: numbered requests, their answers, and whether it is alive.

Not here: starting workers and deciding what they run (`pool.py`), the messages (`runtime/messages.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Final

from runtime.messages import (
    Answer,
    ControlError,
    Done,
    Drain,
    Greeting,
    LogBatch,
    Ping,
    Pong,
    Request,
    RequestRefused,
    frame,
    read_answer,
    receive_greeting,
)

GREETING_TIMEOUT_S: Final = 30.0
"""A worker imports the sandbox before it greets; a loaded two-core machine has taken 4 s."""

ANSWER_TIMEOUT_S: Final = 120.0
"""Loading a release deserializes and instantiates its apps; letting one go waits for its last request."""

PENDING_MAX: Final = 1024
"""Requests without an answer; more means that nobody waits for the answers."""


class WorkerRefusedError(Exception):
    """The worker refused a request and changed nothing; the text says why."""


async def greeted(connection: socket.socket) -> tuple[Greeting, list[socket.socket]]:
    """Wait for the greeting on a fresh non-blocking connection; raises `ControlError`, or `TimeoutError`."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def arrived() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(connection.fileno(), arrived)
    try:
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            await readable
    finally:
        loop.remove_reader(connection.fileno())
    try:
        return receive_greeting(connection)
    except OSError as error:
        raise ControlError(str(error)) from error


class WorkerLink:
    """One live worker. `run` reads its answers until the connection ends, which is when the process ends."""

    def __init__(self, connection: socket.socket, greeting: Greeting, on_logs: Callable[[LogBatch], None]) -> None:
        self.greeting = greeting
        self.keys = dict.fromkeys(greeting.keys)
        self.alive = True
        self._connection = connection
        self._on_logs = on_logs
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0
        self._over = asyncio.Event()

    async def open(self) -> None:
        """Make ready to send; once, before `run`."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._connection)

    async def run(self) -> None:
        """Read until the worker is gone; every waiting request then fails with `ControlError`."""
        assert self._reader is not None, "open comes first"
        assert self._writer is not None, "open comes first"
        try:
            while True:
                message = await read_answer(self._reader)
                if isinstance(message, LogBatch):
                    self._on_logs(message)
                elif isinstance(message, Greeting):
                    raise ControlError("a second greeting")
                else:
                    waiter = self._waiting.pop(message.number, None)
                    if waiter is not None and not waiter.done():
                        waiter.set_result(message)
        except ControlError:
            return
        finally:
            self.alive = False
            self._over.set()
            self._writer.close()
            for waiter in self._waiting.values():
                if not waiter.done():
                    waiter.set_exception(ControlError("the worker ended"))
            self._waiting.clear()

    def next_number(self) -> int:
        """Return a request number not used before on this link."""
        self._number += 1
        return self._number

    async def ask(self, request: Request, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        """Send one request and wait for its answer; raises `WorkerRefusedError`, `ControlError` or `TimeoutError`."""
        if not self.alive or self._writer is None or len(self._waiting) >= PENDING_MAX:
            raise ControlError("the worker is not connected")
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request.number] = waiter
        try:
            self._writer.write(frame(request))
            async with asyncio.timeout(timeout_s):
                answer = await waiter
        finally:
            self._waiting.pop(request.number, None)
        if isinstance(answer, RequestRefused):
            raise WorkerRefusedError(answer.reason)
        return answer

    async def command(self, request: Request, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Like `ask`, for requests that are answered with `Done`."""
        answer = await self.ask(request, timeout_s)
        if not isinstance(answer, Done):
            raise ControlError(f"expected Done, got {type(answer).__name__}")

    async def ping(self, timeout_s: float) -> Pong:
        """Ask whether it is alive; raises `ControlError` or `TimeoutError`."""
        answer = await self.ask(Ping(self.next_number()), timeout_s)
        if not isinstance(answer, Pong):
            raise ControlError(f"expected Pong, got {type(answer).__name__}")
        return answer

    async def drain(self, grace_ms: int) -> None:
        """Tell it to finish and exit; returns once it has begun."""
        await self.command(Drain(self.next_number(), grace_ms), timeout_s=5.0)

    async def ended(self, within_s: float) -> bool:
        """Wait for the worker's end; whether it came within `within_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._over.wait()
        return not self.alive

    def kill(self) -> None:
        """End the process now. Safe against a reused pid: while the connection is open, the process exists."""
        if self.alive:
            try:
                os.kill(self.greeting.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def close(self) -> None:
        """Leave the worker alone; it goes on serving."""
        if self._writer is not None:
            self._writer.close()
