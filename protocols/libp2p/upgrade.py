"""From raw bytes to an authenticated peer and an agreed muxer; what happens before there are streams.

stage      bytes are              ends when
SECURITY   multistream `/noise`   both agree (the dialler's first Noise message already travels behind its proposal)
HANDSHAKE  Noise XX, framed       three messages; the payload's signature verifies; the peer is the one expected
MUXER      Noise messages with    skipped if both payloads name yamux (inlined negotiation), else the dialler
           multistream inside     proposes `/yamux/1.0.0`
DONE       see `result`

`/noise` alone is offered: a listener that also spoke `/plaintext` could be impersonated by anybody. Until DONE a peer
can make us hold one multistream frame or one handshake message, under 3 KiB. Not here: the time limit (`connection`).
Source: libp2p specs, connections/README.md, noise/README.md, connections/inlined-muxer-negotiation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protocols.libp2p import multistream
from protocols.libp2p.errors import RemoteProtocolError
from protocols.libp2p.noise import KEY_BYTES, TAG_BYTES, Handshake
from protocols.libp2p.noise_channel import LENGTH_BYTES, NoiseChannel
from protocols.libp2p.noise_payload import PAYLOAD_MAX_BYTES, Identity, RemoteIdentity, verify_payload
from protocols.machine import Entropy, PeerId, Verifier

NOISE = "/noise"
YAMUX = "/yamux/1.0.0"
MUXERS = (YAMUX,)

MESSAGE_MAX_BYTES = PAYLOAD_MAX_BYTES + 2 * (KEY_BYTES + TAG_BYTES)
"""The largest handshake message: payload, two keys and two tags. The peer that sends it is not authenticated yet."""


class UpgradeStage(Enum):
    """Where the upgrade stands."""

    SECURITY = "security"
    HANDSHAKE = "handshake"
    MUXER = "muxer"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The end of an upgrade: who the peer is, the sealed channel, and the muxer's first bytes if any came along."""

    peer: PeerId
    channel: NoiseChannel
    leftover: bytes


class Upgrade:
    """One side of one upgrade. After an error it is useless; close the connection."""

    def __init__(
        self,
        *,
        initiator: bool,
        identity: Identity,
        entropy: Entropy,
        verifier: Verifier,
        expected: PeerId | None = None,
    ) -> None:
        """Prepare to dial (`initiator`) or to be dialled; `expected` refuses every other peer."""
        self.stage = UpgradeStage.SECURITY
        self.result: Upgraded | None = None
        self._initiator = initiator
        self._identity = identity
        self._verifier = verifier
        self._expected = expected
        self._output = bytearray()
        self._buffer = bytearray()
        self._remote: RemoteIdentity | None = None
        self._channel: NoiseChannel | None = None
        self._handshake = Handshake(
            initiator=initiator, static=identity.static_private, ephemeral=entropy.random_bytes(KEY_BYTES)
        )
        self._negotiation: multistream.Dialler | multistream.Listener
        self._negotiation = multistream.Dialler([NOISE]) if initiator else multistream.Listener([NOISE])
        self._output += self._negotiation.data_to_send()
        if initiator:
            self._write_message(b"")

    def data_to_send(self) -> bytes:
        """Return and forget the bytes to send."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def receive_data(self, data: bytes) -> None:
        """Consume bytes; afterwards `result` is set if the upgrade is done. Raises RemoteProtocolError."""
        if self.stage is UpgradeStage.SECURITY:
            self._negotiation.receive_data(data)
            self._output += self._negotiation.data_to_send()
            if self._agreed():
                self.stage = UpgradeStage.HANDSHAKE
                data = self._negotiation.leftover()
        if self.stage is UpgradeStage.HANDSHAKE:
            self._buffer += data
            self._exchange_messages()
            if self._handshake.finished:
                data = self._begin_muxer()
        if self.stage is UpgradeStage.MUXER:
            self._negotiate_muxer(data)

    def _agreed(self) -> bool:
        if self._negotiation.phase is multistream.NegotiationPhase.REFUSED:
            raise RemoteProtocolError("upgrade.refused", f"the peer does not speak {NOISE} and {YAMUX}")
        return self._negotiation.phase is multistream.NegotiationPhase.AGREED

    def _exchange_messages(self) -> None:
        handshake = self._handshake
        while not handshake.finished:
            if handshake.our_turn:
                self._write_message(self._identity.payload)
                continue
            message = self._next_message()
            if message is None:
                return
            payload = handshake.read_message(message)
            # The responder reads the initiator's first message before either side has a key: it carries no identity.
            if self._initiator or handshake.finished:
                self._remote = verify_payload(payload, handshake.remote_static, self._verifier)
                if self._expected is not None and self._remote.peer != self._expected:
                    raise RemoteProtocolError("upgrade.peer", f"{self._remote.peer}, not {self._expected}")

    def _write_message(self, payload: bytes) -> None:
        message = self._handshake.write_message(payload)
        self._output += len(message).to_bytes(LENGTH_BYTES, "big") + message

    def _next_message(self) -> bytes | None:
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = self._buffer[0] << 8 | self._buffer[1]
        if length > MESSAGE_MAX_BYTES:
            raise RemoteProtocolError("upgrade.message-length", f"{length} bytes, over {MESSAGE_MAX_BYTES}")
        if len(self._buffer) < LENGTH_BYTES + length:
            return None
        message = bytes(self._buffer[LENGTH_BYTES : LENGTH_BYTES + length])
        del self._buffer[: LENGTH_BYTES + length]
        return message

    def _begin_muxer(self) -> bytes:
        """Enter MUXER or DONE; return the bytes received behind the handshake."""
        assert self._remote is not None, "a finished handshake has verified a payload"
        self.stage = UpgradeStage.MUXER
        self._channel = NoiseChannel(*self._handshake.split())
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._identity.muxers and self._remote.muxers:
            if YAMUX not in self._remote.muxers:
                raise RemoteProtocolError("upgrade.muxer", "the peer names muxers, none of them yamux")
            self._finish(b"".join(self._channel.receive_data(data)))
            return b""
        self._negotiation = multistream.Dialler(MUXERS) if self._initiator else multistream.Listener(MUXERS)
        self._output += self._channel.seal(self._negotiation.data_to_send())
        return data

    def _negotiate_muxer(self, data: bytes) -> None:
        assert self._channel is not None, "the muxer is agreed inside the channel"
        for plaintext in self._channel.receive_data(data):
            self._negotiation.receive_data(plaintext)
        answer = self._negotiation.data_to_send()
        if answer:
            self._output += self._channel.seal(answer)
        if self._agreed():
            self._finish(self._negotiation.leftover())

    def _finish(self, leftover: bytes) -> None:
        assert self._remote is not None, "only a verified peer finishes"
        assert self._channel is not None, "only a sealed channel finishes"
        self.stage = UpgradeStage.DONE
        self.result = Upgraded(self._remote.peer, self._channel, leftover)
