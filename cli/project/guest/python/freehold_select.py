"""`select.select`, `select.poll` and `selectors` over the sandbox's sockets. Runs only inside the sandbox.

A socket can be read when bytes are here, when it has ended or failed, and written when nothing waits for the other side. Not
here: asyncio, whose loop waits by itself (`freehold_loop.py`).
"""

from __future__ import annotations

import contextlib
import errno
import select
import selectors

import freehold_outbound
import freehold_sockets


class _Several:
    """Connections that are waited for together."""

    def __init__(self, connections) -> None:
        self._connections = connections

    def step(self) -> None:
        for one in self._connections:
            with contextlib.suppress(OSError):  # its reader is told
                one.step()

    def subscribe(self):
        return [pollable for one in self._connections for pollable in one.subscribe()]


def _number(file) -> int:
    return file if isinstance(file, int) else file.fileno()


def _connection(number):
    descriptor = freehold_sockets.descriptor(number)
    if descriptor is None or descriptor.connection is None:
        raise OSError(errno.EBADF, "Bad file descriptor: only connected sockets can be waited for in the sandbox")
    return descriptor.connection


def _ready(reads, writes, timeout_s):
    """Return which numbers of `reads` and `writes` are ready, after at most `timeout_s` seconds; None means when one is."""
    known = {number: _connection(number) for number in {*reads, *writes}}
    several = _Several(known.values())

    def now():
        return ({one for one in reads if known[one].readable}, {one for one in writes if not known[one].backlog_bytes})

    if timeout_s == 0:
        several.step()
    else:
        with contextlib.suppress(TimeoutError):
            freehold_outbound.wait_for(several, lambda: any(now()), timeout_s)
    return now()


def _select(rlist, wlist, xlist, timeout=None):
    if timeout is not None and timeout < 0:
        raise ValueError("timeout must be non-negative")
    reads, writes = ({_number(one): one for one in listed} for listed in (rlist, wlist))
    readable, writable = _ready(reads, writes, timeout)
    return ([reads[one] for one in reads if one in readable], [writes[one] for one in writes if one in writable], [])


class _Poll:
    """`select.poll()`."""

    def __init__(self) -> None:
        self._wanted = {}

    def register(self, fd, eventmask=select.POLLIN | select.POLLOUT) -> None:
        self._wanted[_number(fd)] = eventmask

    def modify(self, fd, eventmask) -> None:
        if _number(fd) not in self._wanted:
            raise OSError(errno.ENOENT, "this descriptor was not registered")
        self.register(fd, eventmask)

    def unregister(self, fd) -> None:
        del self._wanted[_number(fd)]

    def poll(self, timeout=None):
        reads, writes = (
            {one for one, mask in self._wanted.items() if mask & event} for event in (select.POLLIN, select.POLLOUT)
        )
        seconds = None if timeout is None or timeout < 0 else timeout / 1000
        readable, writable = _ready(reads, writes, seconds)
        masks = {one: select.POLLIN * (one in readable) | select.POLLOUT * (one in writable) for one in self._wanted}
        return [(one, mask) for one, mask in masks.items() if mask]


def install() -> None:
    """Put the stand-ins in place, before the app or a library looks."""
    select.select, select.poll = _select, _Poll
    selectors.SelectSelector._select = staticmethod(_select)
    if hasattr(selectors, "PollSelector"):
        selectors.PollSelector._selector_cls = _Poll
