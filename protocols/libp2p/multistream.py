"""multistream-select 1.0: two peers agree on one protocol by name, at the head of a byte stream; both roles.

A message is a varint length, then text that ends in a newline. Each side first says `/multistream/1.0.0`. The dialler
proposes, the listener echoes the proposal or answers `na`.

state       dialler receives                    listener receives
GREETING    header -> PROPOSING, else error     header -> PROPOSING, else error
PROPOSING   the proposal -> AGREED              a protocol it serves: echo -> AGREED
            `na` -> next proposal, or REFUSED   anything else, `ls` too: `na`
AGREED, REFUSED: bytes belong to whoever asked

Names are compared as bytes and never decoded, so no name can fail to decode. `ls` is answered `na`: a list of what is
served is for admitted peers, in identify. The dialler sends its header and first proposal at once (one round trip);
a lazy dialler may send data behind them without waiting, and loses it if refused.
Source: multiformats/multistream-select README; libp2p specs, connections/README.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum

from protocols.libp2p import varint
from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError

FRAME_MAX_BYTES = 1024
"""The cap go-libp2p uses; the longest protocol name in use has under 100 bytes. Checked before buffering."""

PROPOSALS_MAX = 16
"""Names one listener answers before it gives up on the dialler; libp2p peers propose one to four."""

_HEADER = b"/multistream/1.0.0\n"
_REFUSAL = b"na\n"


class NegotiationPhase(Enum):
    """Where a negotiation stands."""

    GREETING = "greeting"
    PROPOSING = "proposing"
    AGREED = "agreed"
    REFUSED = "refused"


def frame(text: bytes) -> bytes:
    """Return one message: length prefix, text, newline."""
    return varint.encode(len(text) + 1) + text + b"\n"


_HEADER_FRAME = varint.encode(len(_HEADER)) + _HEADER
_REFUSAL_FRAME = varint.encode(len(_REFUSAL)) + _REFUSAL


class _Negotiation:
    """What both roles share: framing with a cap, and the bytes left over at the end."""

    def __init__(self) -> None:
        self.phase = NegotiationPhase.GREETING
        self.protocol: str | None = None
        self._buffer = bytearray()
        self._output = bytearray(_HEADER_FRAME)

    def data_to_send(self) -> bytes:
        """Return and forget the bytes to send."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def receive_data(self, data: bytes | memoryview) -> None:
        """Consume bytes; afterwards look at `phase`. Raises RemoteProtocolError; then the byte stream is lost."""
        self._buffer += data
        self._advance()

    def leftover(self) -> bytes:
        """Return and forget the bytes behind the agreement; they belong to the agreed protocol."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def _advance(self) -> None:
        while self.phase in (NegotiationPhase.GREETING, NegotiationPhase.PROPOSING):
            text = self._next_frame()
            if text is None:
                return
            if self.phase is NegotiationPhase.GREETING:
                if text != _HEADER:
                    raise RemoteProtocolError("multistream.header")
                self.phase = NegotiationPhase.PROPOSING
            elif not self._handle(text):
                return

    def _next_frame(self) -> bytes | None:
        decoded = varint.decode(self._buffer)
        if decoded is None:
            return None
        length, start = decoded
        if not 0 < length <= FRAME_MAX_BYTES:
            raise RemoteProtocolError("multistream.frame-length", f"{length} bytes, not 1 to {FRAME_MAX_BYTES}")
        if len(self._buffer) < start + length:
            return None
        text = bytes(self._buffer[start : start + length])
        if not text.endswith(b"\n"):
            raise RemoteProtocolError("multistream.no-newline")
        del self._buffer[: start + length]
        return text

    def _handle(self, text: bytes) -> bool:
        raise NotImplementedError


class Dialler(_Negotiation):
    """The side that proposes, in order of preference."""

    def __init__(self, protocols: Sequence[str]) -> None:
        """Propose `protocols` (1 to PROPOSALS_MAX names)."""
        super().__init__()
        if not 0 < len(protocols) <= PROPOSALS_MAX:
            raise LocalProtocolError("multistream.proposals", f"{len(protocols)} names")
        self._remaining = list(protocols)
        self._propose()

    def _propose(self) -> None:
        self._proposed = self._remaining.pop(0)
        self._output += frame(self._proposed.encode())

    def _handle(self, text: bytes) -> bool:
        if text == self._proposed.encode() + b"\n":
            self.phase = NegotiationPhase.AGREED
            self.protocol = self._proposed
        elif text != _REFUSAL:
            raise RemoteProtocolError("multistream.answer", "neither the proposal nor `na`")
        elif self._remaining:
            self._propose()
        else:
            self.phase = NegotiationPhase.REFUSED
        return True


class Listener(_Negotiation):
    """The side that chooses. A name in `later` is neither echoed nor refused until `serve` names it."""

    def __init__(self, protocols: Collection[str], later: Collection[str] = ()) -> None:
        """Serve `protocols`; hold proposals of `later` unanswered (what an unadmitted peer may ask for early)."""
        super().__init__()
        self._served = {name.encode() + b"\n": name for name in protocols}
        self._later = {name.encode() + b"\n" for name in later}
        self._held: bytes | None = None
        self._proposals = 0

    def serve(self, protocols: Collection[str]) -> None:
        """Replace what is served; a held proposal is answered now."""
        self._served = {name.encode() + b"\n": name for name in protocols}
        self._later.clear()
        held, self._held = self._held, None
        if held is not None:
            self._handle(held)
            self._advance()

    def _advance(self) -> None:
        if self._held is None:
            super()._advance()
        if self._held is not None and self._buffer:
            raise RemoteProtocolError("multistream.impatient", "data behind a proposal that is held back")

    def _handle(self, text: bytes) -> bool:
        self._proposals += 1
        if text in self._later:
            self._held = text
            return False
        if text in self._served:
            self.phase = NegotiationPhase.AGREED
            self.protocol = self._served[text]
            self._output += varint.encode(len(text)) + text
        elif self._proposals < PROPOSALS_MAX:
            self._output += _REFUSAL_FRAME
        else:
            raise RemoteProtocolError("multistream.too-many-proposals", f"over {PROPOSALS_MAX}")
        return True
