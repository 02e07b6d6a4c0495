"""An asyncio event loop that waits in wasi:io/poll: timers, tasks and pollables. Runs only inside the sandbox.

It is asyncio's own BaseEventLoop with another selector, so tasks, timers, context variables and task groups are CPython's.
There are no threads: an executor runs its function where it stands. Not here: sockets, signals, child processes.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import contextvars

from wit_world.imports import monotonic_clock, poll

NANOSECONDS = 1_000_000_000


class _Selector:
    """What BaseEventLoop asks of a selector: wait until a pollable is ready or the time is over."""

    def __init__(self) -> None:
        self.waiting = []

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
        future = self.create_future()
        waiter = (pollable, future, owner)
        self._selector.waiting.append(waiter)
        try:
            await future
        except asyncio.CancelledError:
            if any(waiter is one for one in self._selector.waiting):
                self._selector.waiting = [one for one in self._selector.waiting if one is not waiter]
                pollable.__exit__(None, None, None)
            raise


def let_go(owner) -> None:
    """End every wait for something of `owner`, before its streams are let go of: a pollable may not outlive its stream."""
    if _kept is None:
        return
    for waiter in [waiter for waiter in _kept._selector.waiting if waiter[2] is owner]:
        _kept._selector.waiting = [one for one in _kept._selector.waiting if one is not waiter]
        waiter[0].__exit__(None, None, None)
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
