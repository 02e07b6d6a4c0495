"""Noise messages on a byte stream after the handshake: two bytes of length, big endian, then the sealed message.

A message has at most 65535 bytes because two bytes say no more; memory is one incomplete message. Messages that arrive
whole are decrypted where they lie, only a split one is copied. Not here: the handshake's messages (`upgrade` caps them
far lower), and what the plaintext means. Source: libp2p specs, noise/README.md, wire format.
"""

from __future__ import annotations

from protocols.libp2p.errors import RemoteProtocolError
from protocols.libp2p.noise import TAG_BYTES, CipherState

MESSAGE_MAX_BYTES = 65535
PLAINTEXT_MAX_BYTES = MESSAGE_MAX_BYTES - TAG_BYTES
LENGTH_BYTES = 2


class NoiseChannel:
    """Plaintext to messages and back."""

    __slots__ = ("_partial", "_receive", "_send")

    def __init__(self, send: CipherState, receive: CipherState) -> None:
        self._send = send
        self._receive = receive
        self._partial = bytearray()

    def receive_data(self, data: bytes) -> list[bytes]:
        """Return the plaintext of every message now complete; RemoteProtocolError if one is forged or too short."""
        decrypt = self._receive.decrypt
        plaintexts: list[bytes] = []
        offset, end = 0, len(data)
        if self._partial:
            offset = self._complete_partial(data, plaintexts)
        view = memoryview(data)
        while end - offset >= LENGTH_BYTES:
            stop = offset + LENGTH_BYTES + self._checked_length(data, offset)
            if stop > end:
                break
            plaintexts.append(decrypt(view[offset + LENGTH_BYTES : stop]))
            offset = stop
        if offset < end:
            self._partial += view[offset:]
        return plaintexts

    def seal(self, plaintext: bytes) -> bytes:
        """Return one framed message with `plaintext` (1 to PLAINTEXT_MAX_BYTES bytes)."""
        sealed = self._send.encrypt(plaintext)
        return len(sealed).to_bytes(LENGTH_BYTES, "big") + sealed

    def _complete_partial(self, data: bytes, plaintexts: list[bytes]) -> int:
        """Add to the incomplete message what it still lacks; return how much of `data` that took."""
        partial, offset = self._partial, 0
        if len(partial) < LENGTH_BYTES:
            partial += data[:1]
            offset = 1
        if len(partial) < LENGTH_BYTES:
            return offset
        missing = LENGTH_BYTES + self._checked_length(partial, 0) - len(partial)
        partial += memoryview(data)[offset : offset + missing]
        if len(data) - offset >= missing:
            plaintexts.append(self._receive.decrypt(partial[LENGTH_BYTES:]))
            partial.clear()
        return min(offset + missing, len(data))

    @staticmethod
    def _checked_length(data: bytes | bytearray, offset: int) -> int:
        length = data[offset] << 8 | data[offset + 1]
        if length < TAG_BYTES:
            raise RemoteProtocolError("noise.short-message", f"{length} bytes hold no tag")
        return length
