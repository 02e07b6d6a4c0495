"""Links between real nodes that a test can cut: a TCP proxy before each node. Needs no privileges.

Each node advertises its proxy, so all that nodes say to each other passes here. Who dialled stands in /proc, for Noise
hides it. Each direction of a pair is cut by itself: what is muted is held, connections stay open and new ones open into
silence, as where packets vanish; what is closed is reset and refused. Healing lets the held bytes go on, as TCP would
send them again. Linux only, as nodes are. Not here: any test.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHUNK_BYTES = 65536
STRANGER = ""
"""Whoever is no node of the test: `freehold mesh join`, and machines whose process is gone."""


@dataclass(eq=False)
class _Passage:
    """One connection: from the node that dialled to the node behind the proxy."""

    ends: tuple[str, str]
    inner: asyncio.StreamWriter
    outer: asyncio.StreamWriter

    def abort(self) -> None:
        for writer in (self.inner, self.outer):
            writer.transport.abort()


@dataclass
class Wires:
    """The proxies, on a thread with a loop of their own. `pids` gives the running nodes' processes by name."""

    pids: Callable[[], dict[str, int]]
    _ports: dict[str, int] = field(default_factory=dict)
    _targets: dict[str, int] = field(default_factory=dict)
    _servers: list[asyncio.Server] = field(default_factory=list)
    _passages: set[_Passage] = field(default_factory=set)
    _muted: set[tuple[str, str]] = field(default_factory=set)
    _closed: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._healed = asyncio.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def address(self, name: str) -> str:
        """Where others reach a node, from now on."""
        if name not in self._ports:
            self._ports[name] = self._do(self._listen(name))
        return f"127.0.0.1:{self._ports[name]}"

    def lead(self, name: str, port: int) -> None:
        """Say where a node really listens, since its last start."""
        self._targets[name] = port

    # --- cutting ------------------------------------------------------------------------------------------------------

    def mute(self, sender: str, receiver: str) -> None:
        """Let nothing through from one node to another, in this direction alone."""
        self._muted.add((sender, receiver))

    def mute_between(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Cut two sides apart as a lost cable does: nobody is told."""
        for text, other in _pairs(some, others):
            self._muted.add((text, other))

    def close_between(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Cut two sides apart as a firewall does: connections are reset, and new ones refused."""
        self._closed.update(_pairs(some, others))
        self._do(self._reset())

    def heal(self) -> None:
        """Mend everything."""
        self._muted.clear()
        self._closed.clear()
        self._do(self._wake())

    def stop(self) -> None:
        """End all connections and the thread."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- inside: on the loop's thread ---------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self, name: str) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                await self._carry(name, reader, writer)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _carry(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialler = _owner_of(writer.get_extra_info("peername")[1], self._ports[name], self.pids())
        while {(dialler, name), (name, dialler)} & self._muted:
            await self._healed.wait()  # TCP needs both directions to connect
        target = self._targets.get(name)
        if self._ended or target is None or (dialler, name) in self._closed:
            writer.transport.abort()
            return
        try:
            inner_reader, inner = await asyncio.open_connection("127.0.0.1", target, limit=CHUNK_BYTES)
        except OSError:
            writer.transport.abort()
            return
        passage = _Passage((dialler, name), inner, writer)
        self._passages.add(passage)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, inner, (dialler, name)))
                group.create_task(self._pump(inner_reader, writer, (name, dialler)))
        except* OSError:
            pass
        finally:
            passage.abort()
            self._passages.discard(passage)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: tuple[str, str]) -> None:
        while True:
            data = await reader.read(CHUNK_BYTES)
            while way in self._muted:
                await self._healed.wait()
            if not data:
                # What the other side still has to say is of no use to a node that hung up: it never closes by half.
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()

    async def _reset(self) -> None:
        for passage in list(self._passages):
            if passage.ends in self._closed:
                passage.abort()

    async def _wake(self) -> None:
        self._healed.set()
        self._healed = asyncio.Event()

    async def _end(self) -> None:
        self._ended = True
        for server in self._servers:
            server.close()
        self._muted.clear()
        await self._wake()
        for passage in list(self._passages):
            passage.abort()
        async with asyncio.timeout(5):
            while self._passages:  # noqa: ASYNC110  connections end on their own tasks
                await asyncio.sleep(0.01)


def _pairs(some: Iterable[str], others: Iterable[str]) -> set[tuple[str, str]]:
    sides = list(some), list(others)
    return {pair for side in sides[0] for other in sides[1] for pair in ((side, other), (other, side))}


def _owner_of(port: int, proxy: int, pids: dict[str, int]) -> str:
    """Return which of the processes has the TCP socket from this local port to this proxy.

    Both ends are looked for: connections to other addresses, and those just closed, may have the same local port.
    """
    ends = [f"0100007F:{port:04X}", f"0100007F:{proxy:04X}"]
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    inode = next((row[9] for row in rows if row[1:3] == ends), None)
    for name, pid in pids.items():
        folder = Path(f"/proc/{pid}/fd")
        with contextlib.suppress(OSError):
            if any(_points_to(folder / number, f"socket:[{inode}]") for number in os.listdir(folder)):
                return name
    return STRANGER


def _points_to(link: Path, target: str) -> bool:
    try:
        return os.readlink(link) == target
    except OSError:  # closed meanwhile
        return False
