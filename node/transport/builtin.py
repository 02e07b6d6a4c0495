"""The two protocols every libp2p peer may ask for, answered without the daemon: ping and identify."""

from __future__ import annotations

import asyncio

from node.transport.link import Link
from protocols.libp2p import identify
from protocols.libp2p.identify import Identify
from protocols.libp2p.ping import Responder

FINISH_DELAY_S = 0.05
"""js-libp2p 3 drops an answer whose end arrives together with the negotiation, so the end comes a moment later."""


class PingSink:
    """Echoes. A peer that does not read its echoes loses the stream."""

    def __init__(self, link: Link, stream_id: int) -> None:
        self._link = link
        self._stream_id = stream_id
        self._responder = Responder()

    def opened(self) -> None:
        """Nothing to say first."""

    def data_received(self, data: bytes) -> None:
        """Send back the payloads that are whole."""
        echo = self._responder.receive_data(data)
        if len(echo) > self._link.send_room(self._stream_id):
            self._link.reset(self._stream_id)
            return
        if echo:
            self._link.send(self._stream_id, echo)
        self._link.consumed(self._stream_id, len(data))

    def finished(self) -> None:
        """The peer has enough."""
        self._link.finish(self._stream_id)
        self._link.release(self._stream_id)

    def reset(self, reason: str) -> None:
        """Nothing is kept."""

    def room(self) -> None:
        """Nothing waits."""


class IdentifySink:
    """Says who we are, once."""

    def __init__(self, link: Link, stream_id: int, message: Identify) -> None:
        self._link = link
        self._stream_id = stream_id
        self._message = message

    def opened(self) -> None:
        """Answer, and finish a little later; what the peer might say is dropped."""
        answer = identify.encode(self._message)
        # The stream may be gone already, if its reset came with its opening.
        if self._link.send_room(self._stream_id) >= len(answer):
            self._link.send(self._stream_id, answer)
        self._link.release(self._stream_id)
        asyncio.get_running_loop().call_later(FINISH_DELAY_S, self._link.finish, self._stream_id)

    def data_received(self, data: bytes) -> None:
        """Never called: the stream is released."""

    def finished(self) -> None:
        """Never called: the stream is released."""

    def reset(self, reason: str) -> None:
        """Never called: the stream is released."""

    def room(self) -> None:
        """Nothing waits."""
