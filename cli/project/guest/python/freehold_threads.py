"""Threads, for a Python that has none: what is handed to one is done in place, at once. Runs only inside the sandbox.

A thread that is started and joined, and a pool that is given work, come to the same results; only at the same time they are
not. What would never come back, a daemon or a timer, is refused. Not here: asyncio's executors (`freehold_loop.py`).
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor

NO_THREADS = (
    "the sandbox has no threads: a {kind} cannot run beside a request; use an asyncio task, or give the work an app of its own"
    " with a schedule"
)


def _start(self) -> None:
    if self._started.is_set():
        raise RuntimeError("threads can only be started once")
    if self.daemon or isinstance(self, threading.Timer):
        raise RuntimeError(NO_THREADS.format(kind="timer" if isinstance(self, threading.Timer) else "daemon thread"))
    self._started.set()
    ident = threading.get_ident()
    caller = threading._active.get(ident)
    threading._active[ident] = self
    self._ident = ident
    try:
        self.run()
    except SystemExit:
        pass
    except Exception as error:
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, self)))
    finally:
        threading._active[ident] = caller


def _join(self, timeout=None) -> None:
    if not self._started.is_set():
        raise RuntimeError("cannot join thread before it is started")
    if threading.current_thread() is self:
        raise RuntimeError("cannot join current thread")


def _is_alive(self) -> bool:
    return self._started.is_set() and threading._active.get(threading.get_ident()) is self


def _submit(self, fn, /, *args, **kwargs) -> Future:
    if self._shutdown:
        raise RuntimeError("cannot schedule new futures after shutdown")
    future = Future()
    future.set_running_or_notify_cancel()
    try:
        if self.__dict__.pop("initialize_first", None) is not None:
            self.initialized_by()
        result = fn(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    return future


_real_init = ThreadPoolExecutor.__init__


def _init(self, max_workers=None, thread_name_prefix="", initializer=None, initargs=(), **others) -> None:
    _real_init(self, max_workers, thread_name_prefix, initializer, initargs, **others)
    if initializer is not None:
        self.initialize_first, self.initialized_by = True, lambda: initializer(*initargs)


def install() -> None:
    """Do work in place from now on."""
    threading.Thread.start, threading.Thread.join, threading.Thread.is_alive = _start, _join, _is_alive
    ThreadPoolExecutor.__init__, ThreadPoolExecutor.submit = _init, _submit
