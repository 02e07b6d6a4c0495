"""The answer to an event of a WebSocket that another node holds: passed on whole, and what it publishes is told from here.

For only nodes that run an app are heard on its topics. The socket's own node is left out: it tells its own workers when it
has the answer, in the order the app said. A node of a release before this asks for none of it, and publishes by itself.
Not here: sockets of this node (websocket.py).
"""

from __future__ import annotations

from dataclasses import replace

from runtime.exchange import Batch, Exchange, ResponseHead
from runtime.ingress.answer import GuestAnswer
from runtime.ingress.dispatch import HostedApp
from runtime.ingress.faces import Line
from runtime.ingress.forwarding import PUBLISHED, TELLS_ITSELF, has_been_forwarded
from runtime.ingress.incoming import Incoming
from runtime.ingress.request_head import GuestRequest, field_name
from runtime.ingress.socket_events import REPLY_MAX_BYTES, BadEventsError, read_events
from runtime.ingress.topics import REACH_MAX_CHARS
from runtime.ingress.websocket import is_event_call, is_events, lane_of, publication_of


def answer_of(connection: Line, incoming: Incoming, request: GuestRequest, app: HostedApp) -> GuestAnswer:
    """Return what carries the app's answer to one request."""
    if is_event_call(incoming) and has_been_forwarded(incoming, connection.client.address):
        asked = next((value for name, value in incoming.headers if field_name(name) == TELLS_ITSELF), b"")
        if 0 < len(asked) <= REACH_MAX_CHARS:
            return EventAnswer(connection, incoming, request, app, asked.decode("latin-1"))
    return GuestAnswer(connection, incoming, request, app)


class EventAnswer(GuestAnswer):
    """See the module. `asker` is the peer id of the socket's node, by its own word: who lies hides its own visitors' words."""

    __slots__ = ("_asker", "_body", "_hosted", "_line", "_size", "_speaks")

    def __init__(self, connection: Line, incoming: Incoming, request: GuestRequest, app: HostedApp, asker: str) -> None:
        super().__init__(connection, incoming, request, app)
        self._line, self._hosted, self._asker = connection, app, asker
        self._body: list[bytes] = []
        self._size = 0
        self._speaks = False

    async def relay(self, exchange: Exchange) -> bool:
        """Write what the guest sends until its outcome, then publish; return whether the connection may go on."""
        keep_alive = await super().relay(exchange)
        if self._speaks and self.whole and self._size <= REPLY_MAX_BYTES:
            self._publish()
        return keep_alive

    def _write(self, batch: Batch) -> bool:
        self._size += sum(map(len, batch.chunks))
        if self._size <= REPLY_MAX_BYTES:
            self._body += batch.chunks
        return super()._write(batch)

    def _head(self, head: ResponseHead, batch: Batch) -> bytes:
        self._speaks = is_events(head.status, head.headers)
        headers = tuple(header for header in head.headers if header[0] != PUBLISHED)
        return super()._head(replace(head, headers=(*headers, (PUBLISHED, b"1"))), batch)

    def _publish(self) -> None:
        lane, topics = lane_of(self._hosted), self._line.ingress.topics
        try:
            for event in read_events(b"".join(self._body)):
                if event.name == "PUBLISH":
                    topics.publish(publication_of(lane, event, self._asker))
        except BadEventsError:
            pass  # the socket's node says so, and ends it
