"""An asyncio event loop that waits in wasi:io/poll: timers, tasks and pollables. Runs only inside the sandbox.

It is asyncio's own BaseEventLoop with another selector, so tasks, timers, context variables and task groups are CPython's.
There are no threads: an executor runs its function where it stands. Connections are those of `freehold_sockets`.
Not here: servers, signals, child processes.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import asyncio.sslproto
import asyncio.transports
import contextvars
import socket
import weakref

from wit_world.imports import monotonic_clock, poll

NANOSECONDS = 1_000_000_000
BACKLOG_MAX_BYTES = 64 * 1024

_selectors = weakref.WeakSet()


class _Selector:
    """What BaseEventLoop asks of a selector: wait until a pollable is ready or the time is over."""

    def __init__(self) -> None:
        self.waiting = []
        _selectors.add(self)

    def select(self, timeout_s):
        if timeout_s is None and not self.waiting:
            raise RuntimeError("no task of the app can ever go on: nothing is ready, timed or awaited from outside")
        if timeout_s is not None and timeout_s <= 0 and not self.waiting:
            return []
        pollables = [waiter[0] for waiter in self.waiting]
        timer = None
        if timeout_s is not None:
            timer = monotonic_clock.subscribe_duration(max(0, int(timeout_s * NANOSECONDS)))
            pollables.append(timer)
        try:
            ready = set(poll.poll(pollables))
        finally:
            if timer is not None:
                timer.__exit__(None, None, None)
        happened = [waiter for index, waiter in enumerate(self.waiting) if index in ready]
        self.waiting = [waiter for index, waiter in enumerate(self.waiting) if index not in ready]
        return happened

    def forget(self, waiter) -> None:
        """Let go of one pollable that is not waited for any more."""
        self.waiting = [one for one in self.waiting if one is not waiter]
        waiter[0].__exit__(None, None, None)

    def get_map(self):
        return {}

    def close(self) -> None:
        for waiter in self.waiting:
            waiter[0].__exit__(None, None, None)
        self.waiting = []


class Loop(asyncio.base_events.BaseEventLoop):
    """The only kind of loop here; `asyncio.run` makes one too."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Selector()
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return monotonic_clock.now() / NANOSECONDS

    def _process_events(self, happened) -> None:
        for pollable, future, _ in happened:
            pollable.__exit__(None, None, None)
            if not future.done():
                future.set_result(None)

    def _write_to_self(self) -> None:
        """Wake the loop from another thread: there is none."""

    def call_soon_threadsafe(self, callback, *args, context=None):
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor, func, *args):
        future = self.create_future()
        try:
            future.set_result(contextvars.copy_context().run(func, *args))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            future.set_exception(error)
        return future

    async def shutdown_default_executor(self, timeout=None):
        return None

    def add_signal_handler(self, sig, callback, *args):
        raise NotImplementedError("there are no signals in the sandbox")

    def remove_signal_handler(self, sig):
        return False

    def close(self) -> None:
        if not self.is_closed():
            self._selector.close()
        super().close()

    async def ready(self, pollable, owner=None) -> None:
        """Wait until `pollable` is ready; it is let go of then, also when the waiting task is cancelled.

        Where `owner` ends first, and the stream that the pollable was made from with it, `let_go` has to be called.
        """
        await self.any_ready([pollable], self.create_future(), owner)

    async def any_ready(self, pollables, future, owner=None) -> None:
        """Wait until one of `pollables` is ready or somebody sets `future`; all are let go of then."""
        self._selector.waiting += [(pollable, future, owner) for pollable in pollables]
        try:
            await future
        finally:
            for waiter in [waiter for waiter in self._selector.waiting if waiter[1] is future]:
                self._selector.forget(waiter)

    async def getaddrinfo(self, host, port, *, family=0, type=0, proto=0, flags=0):
        return socket.getaddrinfo(host, port, family, type, proto, flags)

    async def sock_connect(self, sock, address) -> None:
        sock.connect(address)

    def _make_socket_transport(self, sock, protocol, waiter=None, *, extra=None, server=None):
        return _Transport(self, sock, protocol, waiter, extra)

    def _make_ssl_transport(self, rawsock, protocol, sslcontext, waiter=None, *, server_side=False, server_hostname=None,
                            extra=None, server=None, ssl_handshake_timeout=None, ssl_shutdown_timeout=None,
                            call_connection_made=True):  # fmt: skip
        secured = asyncio.sslproto.SSLProtocol(
            self, protocol, sslcontext, waiter, server_side, server_hostname, ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )  # fmt: skip
        _Transport(self, rawsock, secured, None, extra)
        return secured._app_transport


own_tasks = weakref.WeakSet()
"""Those that move a connection's bytes: it may outlive the request that opened it."""


class _Transport(asyncio.transports.Transport):
    """A connection of `freehold_sockets` as asyncio's protocols see it. One task moves its bytes and lets go of it."""

    _start_tls_compatible = True

    def __init__(self, loop, sock, protocol, waiter, extra) -> None:
        super().__init__(extra)
        self._loop, self._sock, self._connection, self._protocol = loop, sock, sock.connection, protocol
        self._extra.update(socket=sock, peername=sock.getpeername(), sockname=sock.getsockname())
        self._closing = self._reading_paused = self._writing_paused = False
        self._failure = None
        self._wakened = loop.create_future()
        self._connection.timeout_s = None  # asyncio's own timeouts cancel what waits
        loop.call_soon(protocol.connection_made, self)
        self._task = loop.create_task(self._run())
        own_tasks.add(self._task)
        if waiter is not None:
            loop.call_soon(lambda: waiter.done() or waiter.set_result(None))

    def set_protocol(self, protocol) -> None:
        self._protocol = protocol

    def get_protocol(self):
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not (self._closing or self._reading_paused)

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._wake()

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        """One limit for all: what waits for the other side."""

    def get_write_buffer_limits(self):
        return (0, 0)

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def write(self, data) -> None:
        if self._closing:
            return
        try:
            self._connection.feed(bytes(data))  # the task sends it: it alone may end a stream that it waits for
        except OSError as error:
            self._failure = error
        if self._connection.backlog_bytes > BACKLOG_MAX_BYTES and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()
        self._wake()

    def writelines(self, pieces) -> None:
        self.write(b"".join(pieces))

    def close(self) -> None:
        self._closing = True
        self._wake()

    abort = close

    def _wake(self) -> None:
        if not self._wakened.done():
            self._wakened.set_result(None)

    async def _run(self) -> None:
        failure = None
        try:
            while not self._closing:
                if self._failure is not None:
                    raise self._failure
                self._connection.step()
                if self._writing_paused and not self._connection.backlog_bytes:
                    self._writing_paused = False
                    self._protocol.resume_writing()
                if self._connection.out and not self._reading_paused:
                    self._deliver()
                elif self._connection.ended and not self._connection.out:
                    if not self._protocol.eof_received():
                        break
                    await self._wakening([])
                else:
                    await self._wakening(self._connection.subscribe())
        except OSError as error:
            failure = error
        except asyncio.CancelledError:
            failure = ConnectionAbortedError("the event loop ends")
            raise
        finally:
            self._closing = True
            self._connection.release()
            self._sock.close()
            if not self._loop.is_closed():
                self._loop.call_soon(self._protocol.connection_lost, failure)

    async def _wakening(self, pollables) -> None:
        if self._wakened.done():
            self._wakened = self._loop.create_future()
            for pollable in pollables:
                pollable.__exit__(None, None, None)
            await asyncio.sleep(0)
            return
        await self._loop.any_ready(pollables, self._wakened, self._connection)
        self._wakened = self._loop.create_future()

    def _deliver(self) -> None:
        piece = bytes(self._connection.out)
        self._connection.out.clear()
        if not isinstance(self._protocol, asyncio.BufferedProtocol):
            self._protocol.data_received(piece)
            return
        while piece:
            buffer = self._protocol.get_buffer(len(piece))
            size = min(len(buffer), len(piece))
            buffer[:size] = piece[:size]
            self._protocol.buffer_updated(size)
            piece = piece[size:]


def let_go(owner) -> None:
    """End every wait for something of `owner`, before its streams are let go of: a pollable may not outlive its stream."""
    for selector in list(_selectors):
        for waiter in [waiter for waiter in selector.waiting if waiter[2] is owner]:
            selector.forget(waiter)
            if not waiter[1].done():
                waiter[1].set_exception(ConnectionAbortedError("what was awaited has ended"))


class _Policy(asyncio.events._BaseDefaultEventLoopPolicy):
    """Makes every new loop one of ours, so that `asyncio.run` works in any handler."""

    _loop_factory = Loop


_kept = None


def kept() -> Loop:
    """Return the instance's own loop, which lives as long as the instance."""
    global _kept
    if _kept is None or _kept.is_closed():
        _kept = Loop()
    return _kept


def install() -> None:
    """Make asyncio use this loop, and let libraries that hand work to threads run it in place."""
    asyncio.events._event_loop_policy = _Policy()
    try:
        import anyio._backends._asyncio as backend
    except ImportError:
        return

    async def run_sync_in_worker_thread(cls, func, args, abandon_on_cancel=False, limiter=None):
        await asyncio.sleep(0)
        return contextvars.copy_context().run(func, *args)

    def run_async_from_thread(cls, func, args, token):
        raise RuntimeError("there are no threads in the sandbox, so none can call back: anyio.from_thread cannot work")

    backend.AsyncIOBackend.run_sync_in_worker_thread = classmethod(run_sync_in_worker_thread)
    backend.AsyncIOBackend.run_async_from_thread = classmethod(run_async_from_thread)
