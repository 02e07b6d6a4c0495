"""/ipfs/ping/1.0.0: echo 32-byte payloads until the peer finishes.

Not here: our own keep-alive, which uses the muxer's cheaper ping (`connection`). Source: libp2p specs, ping/ping.md.
"""

from __future__ import annotations

PROTOCOL = "/ipfs/ping/1.0.0"
PAYLOAD_BYTES = 32


class Responder:
    """Answers one ping stream. Memory: less than one payload."""

    def __init__(self) -> None:
        self._partial = bytearray()

    def receive_data(self, data: bytes) -> bytes:
        """Return the payloads now complete, to be sent back as they are."""
        self._partial += data
        whole = len(self._partial) - len(self._partial) % PAYLOAD_BYTES
        answer = bytes(self._partial[:whole])
        del self._partial[:whole]
        return answer
