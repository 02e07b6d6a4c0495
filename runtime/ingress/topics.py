"""Topics of WebSockets: who listens in this worker, and the way to the listeners of every other worker and node.

A worker keeps one connection to `topics.sock` in its runtime folder; what is published here goes there as a block and comes
back from there for what is published elsewhere. At most once, in order for each publisher; while no daemon runs a topic
reaches this worker's own sockets. A topic belongs to a project and an environment, and only nodes that run it there are
heard on it. So where the app of a socket runs on another node, that node tells all nodes but the socket's own, which tells
its own workers. Not here: passing on between nodes, and whom they hear (node/mesh/topic_relay.py).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final, Protocol

import msgspec

from runtime.ingress.socket_events import SocketEvent

TOPICS_SOCKET: Final = "topics.sock"
BLOCK_MAX_BYTES: Final = 300 * 1024
UNSENT_MAX_BYTES: Final = 4 << 20
"""Publications that wait for the daemon to take them; more are dropped, and counted."""

CONNECT_AGAIN_S: Final = 1.0


EVERYWHERE: Final = ""
HERE: Final = "here"

REACH_MAX_CHARS: Final = 64


class Publication(msgspec.Struct, frozen=True, array_like=True):
    """One message to a topic of a lane ("PROJECT ENVIRONMENT"); `name` is TEXT or BINARY.

    `reach` is EVERYWHERE, HERE for this node alone, or the peer id of the node that is left out. Between nodes it says
    nothing.
    """

    lane: str
    topic: str
    name: str
    data: bytes
    reach: str = EVERYWHERE


class TopicListener(Protocol):
    """A socket that may listen to topics."""

    def deliver(self, event: SocketEvent) -> None:
        """Send its client a message, or give the client up that is too slow; never waits."""
        ...


class Topics:
    """The listeners of one worker. All methods belong to the loop."""

    def __init__(self, folder: Path, node: str = "") -> None:
        """Take the runtime folder, and the node's peer id ("" where there is no mesh)."""
        self.node = node
        self._path = folder / TOPICS_SOCKET
        self._listeners: dict[tuple[str, str], dict[TopicListener, None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self.dropped = 0

    def subscribe(self, lane: str, topic: str, listener: TopicListener) -> None:
        """Have a socket hear a topic from now on."""
        self._listeners.setdefault((lane, topic), {})[listener] = None

    def unsubscribe(self, lane: str, topic: str, listener: TopicListener) -> None:
        """Have it hear no more."""
        found_listener = self._listeners.get((lane, topic))
        if found_listener is not None:
            found_listener.pop(listener, None)
            if not found_listener:
                del self._listeners[lane, topic]

    def publish(self, said: Publication) -> None:
        """Tell every listener in reach."""
        self._deliver(said)
        writer = self._writer
        if writer is None or writer.transport.get_write_buffer_size() > UNSENT_MAX_BYTES:
            self.dropped += 1
            return
        writer.write(block_of(said))

    async def run(self) -> None:
        """Keep the connection to the daemon and hear what others publish, until cancelled."""
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(str(self._path), limit=BLOCK_MAX_BYTES)
                try:
                    while True:
                        self._deliver(await read_publication_block(reader))
                finally:
                    self._writer.close()
                    self._writer = None
            except (OSError, EOFError, ValueError):
                await asyncio.sleep(CONNECT_AGAIN_S)

    def _deliver(self, said: Publication) -> None:
        for listener in tuple(self._listeners.get((said.lane, said.topic), ())):
            listener.deliver(SocketEvent(said.name, said.data))


def block_of(said: Publication) -> bytes:
    """Return a publication as it travels: four bytes of length, then MessagePack."""
    data = msgspec.msgpack.encode(said)
    return len(data).to_bytes(4) + data


async def read_publication_block(reader: asyncio.StreamReader) -> Publication:
    """Return the next publication. Raises EOFError, OSError, or ValueError for what is none."""
    size = int.from_bytes(await reader.readexactly(4))
    if size > BLOCK_MAX_BYTES:
        raise ValueError(f"a block of {size} bytes")
    return read_publication_bytes(await reader.readexactly(size))


def read_publication_bytes(data: bytes) -> Publication:
    """Return the publication in bytes. Raises ValueError for what is none."""
    try:
        said = msgspec.msgpack.decode(data, type=Publication)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    if (
        said.name not in {"TEXT", "BINARY"}
        or len(said.lane) > 160
        or max(len(said.topic), len(said.reach)) > REACH_MAX_CHARS
    ):
        raise ValueError("no publication")
    return said
