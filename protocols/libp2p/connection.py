"""One libp2p connection, composed: bytes in; an authenticated peer, named streams and their data out.

state     receive_data gives                              ends by
UPGRADING nothing, then Secured                           10 s
PROBATION streams of the few protocols allowed            `admit`, or its time or bytes run out
ADMITTED  streams of everything served                    go-away, an error, 14 s of silence
CLOSED    nothing: bytes are dropped

Call `receive_data`, `tick` at `deadline_ms`, and pull `data_to_send` whenever the socket has room. RemoteProtocolError
from any of them means: send what `data_to_send` still returns (a go-away), then close. A broken stream is a
`StreamReset` event and harms nothing else. A stream opened by us may carry data before the peer agreed to its protocol
(saving a round trip); if it refuses, the stream is reset.
Not here: sockets; what streams carry; how many connections there may be.
Source: libp2p specs, connections/README.md; the limits are ours, each with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protocols.libp2p import multistream, yamux_frames
from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError
from protocols.libp2p.noise_channel import PLAINTEXT_MAX_BYTES, NoiseChannel
from protocols.libp2p.noise_payload import Identity
from protocols.libp2p.upgrade import Upgrade
from protocols.libp2p.yamux import Session
from protocols.libp2p.yamux_frames import DataReceived, GoneAway, Ponged, StreamFinished, StreamReset
from protocols.machine import Entropy, PeerId, Verifier

UPGRADE_MS = 10_000
"""Three messages take three round trips at most; what needs longer is holding a slot, not connecting."""

PROBATION_MS = 5_000
PROBATION_MAX_BYTES = 64 * 1024
"""A hello with its certificates has a few KiB; an unadmitted peer gets nothing else (design: admission)."""

KEEP_ALIVE_MS = 5_000
SILENCE_MAX_MS = 9_000
"""A ping every 5 s, and 9 s without a byte after one: a hung peer is noticed within 14 s."""

NEGOTIATION_MS = 10_000
"""A stream that has no protocol by then is reset; it would hold one of the peer's stream slots."""

SEND_BATCH_BYTES = 256 * 1024
"""Bytes per `data_to_send`: four full Noise messages for one system call."""


@dataclass(frozen=True, slots=True)
class Secured:
    """The peer proved that it holds the key of `peer`; the muxer is up."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """Both sides agreed on `protocol`; a stream of ours may have carried data before."""

    stream_id: int
    protocol: str
    inbound: bool


ConnectionEvent = Secured | StreamOpened | DataReceived | StreamFinished | StreamReset | Ponged | GoneAway


class State(Enum):
    """Where the connection stands."""

    UPGRADING = "upgrading"
    PROBATION = "probation"
    ADMITTED = "admitted"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class OpenableProtocols:
    """Protocols a peer may open streams of: `probation` before admission, `admitted` after; `held` waits for it."""

    probation: tuple[str, ...]
    admitted: tuple[str, ...]
    held: tuple[str, ...] = ()


class Connection:
    """One side of one connection."""

    def __init__(
        self,
        *,
        initiator: bool,
        identity: Identity,
        entropy: Entropy,
        verifier: Verifier,
        services: OpenableProtocols,
        now_ms: int,
        expected: PeerId | None = None,
    ) -> None:
        """Begin the upgrade at `now_ms` (monotonic); `expected` refuses every other peer."""
        self.state = State.UPGRADING
        self.initiator = initiator
        self.peer: PeerId | None = None
        self._services = services
        self._upgrade: Upgrade | None = Upgrade(
            initiator=initiator, identity=identity, entropy=entropy, verifier=verifier, expected=expected
        )
        self._channel: NoiseChannel | None = None
        self._session = Session(client=initiator)
        self._negotiations: dict[int, tuple[multistream.Dialler | multistream.Listener, int]] = {}
        self._state_since_ms = now_ms
        self._received_bytes = 0
        self._pinged_at_ms = now_ms
        self._answer_due_ms: int | None = None

    # --- bytes and time -----------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now_ms: int) -> list[ConnectionEvent]:
        """Consume bytes from the socket; return what they mean. Raises RemoteProtocolError."""
        if self.state is State.CLOSED:
            return []
        self._answer_due_ms = None
        events: list[ConnectionEvent] = []
        try:
            if self.state is not State.ADMITTED:
                self._spend_probation(len(data))
            if self._channel is None:
                self._advance_upgrade(data, now_ms, events)
            else:
                for plaintext in self._channel.receive_data(data):
                    self._receive_plaintext(plaintext, now_ms, events)
        except RemoteProtocolError:
            self.close(yamux_frames.PROTOCOL_ERROR)
            raise
        return events

    def data_to_send(self) -> bytes:
        """Return the next bytes for the socket, about SEND_BATCH_BYTES at most; empty if there are none."""
        parts: list[bytes] = []
        if self._upgrade is not None:
            parts.append(self._upgrade.data_to_send())
            if self._upgrade.result is not None:
                self._upgrade = None
        if self._channel is not None:
            size = 0
            while size < SEND_BATCH_BYTES and self._session.wants_to_send:
                plaintext = self._session.data_to_send(PLAINTEXT_MAX_BYTES)
                if not plaintext:
                    break
                parts.append(self._channel.seal(plaintext))
                size += len(plaintext)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def deadline_ms(self) -> int | None:
        """When `tick` is next due (monotonic ms)."""
        if self.state is State.CLOSED:
            return None
        if self.state is State.UPGRADING:
            return self._state_since_ms + UPGRADE_MS
        due = [self._pinged_at_ms + KEEP_ALIVE_MS if self._answer_due_ms is None else self._answer_due_ms]
        if self.state is State.PROBATION:
            due.append(self._state_since_ms + PROBATION_MS)
        if self._negotiations:
            _, oldest_ms = next(iter(self._negotiations.values()))
            due.append(oldest_ms + NEGOTIATION_MS)
        return min(due)

    def tick(self, now_ms: int) -> list[ConnectionEvent]:
        """Do what is due: ping, reset streams without a protocol. Raises RemoteProtocolError if time ran out."""
        events: list[ConnectionEvent] = []
        if self.state is State.CLOSED:
            return events
        try:
            self._check_time(now_ms)
        except RemoteProtocolError:
            self.close(yamux_frames.NORMAL)
            raise
        if self.state is State.UPGRADING:
            return events
        if self._answer_due_ms is None and now_ms >= self._pinged_at_ms + KEEP_ALIVE_MS:
            self._session.ping(now_ms)
            self._pinged_at_ms = now_ms
            self._answer_due_ms = now_ms + SILENCE_MAX_MS
        # Insertion order is order of age, so the first young one ends the search.
        while self._negotiations:
            stream_id, (_, since_ms) = next(iter(self._negotiations.items()))
            if now_ms < since_ms + NEGOTIATION_MS:
                break
            self._fail_stream(stream_id, "multistream.timeout", events)
        return events

    def ping(self, now_ms: int) -> None:
        """Ask the peer for a sign of life; the answer is `Ponged`."""
        self._session.ping(now_ms)

    def close(self, code: int = yamux_frames.NORMAL) -> None:
        """Announce the end; what `data_to_send` returns now is the last."""
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._upgrade = None
            self._session = _last_words(code)

    @property
    def served(self) -> tuple[str, ...]:
        """The protocols the peer may open streams of now."""
        return self._services.admitted if self.state is State.ADMITTED else self._services.probation

    # --- admission ----------------------------------------------------------------------------------------------------

    def admit(self) -> list[ConnectionEvent]:
        """Lift the probation and serve everything; proposals held back are answered now."""
        events: list[ConnectionEvent] = []
        if self.state is State.PROBATION:
            self.state = State.ADMITTED
            for stream_id, (negotiation, _) in list(self._negotiations.items()):
                if isinstance(negotiation, multistream.Listener):
                    try:
                        negotiation.serve(self._services.admitted)
                    except RemoteProtocolError as error:
                        self._fail_stream(stream_id, error.rule, events)
                    else:
                        self._after_negotiation(stream_id, negotiation, events)
        return events

    # --- streams ------------------------------------------------------------------------------------------------------

    def open_stream(self, protocol: str, now_ms: int) -> int:
        """Return the id of a new stream that asks for `protocol`; LocalProtocolError over a cap or before Secured."""
        if self.state not in (State.PROBATION, State.ADMITTED):
            raise LocalProtocolError("connection.state", f"no streams while {self.state.value}")
        stream_id = self._session.open_stream(now_ms)
        negotiation = multistream.Dialler([protocol])
        self._negotiations[stream_id] = (negotiation, now_ms)
        self._session.send(stream_id, negotiation.data_to_send())
        return stream_id

    def send_room(self, stream_id: int) -> int:
        """Return how many bytes `send` would take now; 0 if the stream is gone or finished."""
        return self._session.send_room(stream_id)

    def buffered(self, stream_id: int) -> int:
        """Return how many bytes of the stream have not left yet."""
        return self._session.buffered(stream_id)

    def send(self, stream_id: int, data: bytes) -> None:
        """Queue `data` on a stream; LocalProtocolError if it is gone, finished or full."""
        self._session.send(stream_id, data)

    def finish(self, stream_id: int) -> None:
        """End our direction of a stream after what is queued."""
        self._session.finish(stream_id)

    def reset(self, stream_id: int) -> None:
        """Drop a stream in both directions."""
        self._negotiations.pop(stream_id, None)
        self._session.reset(stream_id)

    def consumed(self, stream_id: int, count: int, now_ms: int) -> None:
        """Say that `count` bytes of a stream's data were used, so that the peer may send more."""
        self._session.consumed(stream_id, count, now_ms)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _spend_probation(self, count: int) -> None:
        self._received_bytes += count
        if self._received_bytes > PROBATION_MAX_BYTES:
            raise RemoteProtocolError("connection.probation-bytes", f"over {PROBATION_MAX_BYTES} before admission")

    def _check_time(self, now_ms: int) -> None:
        age_ms = now_ms - self._state_since_ms
        if self.state is State.UPGRADING and age_ms >= UPGRADE_MS:
            raise RemoteProtocolError("connection.upgrade-timeout", f"{age_ms} ms")
        if self.state is State.PROBATION and age_ms >= PROBATION_MS:
            raise RemoteProtocolError("connection.probation-timeout", f"{age_ms} ms")
        if self._answer_due_ms is not None and now_ms >= self._answer_due_ms:
            raise RemoteProtocolError("connection.silent", f"not a byte for {SILENCE_MAX_MS} ms after a ping")

    def _advance_upgrade(self, data: bytes, now_ms: int, events: list[ConnectionEvent]) -> None:
        assert self._upgrade is not None, "the channel exists once the upgrade is done"
        self._upgrade.receive_data(data)
        result = self._upgrade.result
        if result is None:
            return
        self._channel = result.channel
        self.peer = result.peer
        self.state = State.PROBATION
        self._state_since_ms = self._pinged_at_ms = now_ms
        # The first round trip is measured at once: windows grow by it.
        self._session.ping(now_ms)
        events.append(Secured(result.peer))
        if result.leftover:
            self._receive_plaintext(result.leftover, now_ms, events)

    def _receive_plaintext(self, plaintext: bytes, now_ms: int, events: list[ConnectionEvent]) -> None:
        for event in self._session.receive_data(plaintext, now_ms):
            if isinstance(event, yamux_frames.StreamAccepted):
                self._begin_negotiation(event.stream_id, now_ms)
            elif isinstance(event, Ponged | GoneAway) or event.stream_id not in self._negotiations:
                events.append(event)
            else:
                self._negotiate(event, now_ms, events)

    def _begin_negotiation(self, stream_id: int, now_ms: int) -> None:
        if self.state is State.ADMITTED:
            listener = multistream.Listener(self._services.admitted)
        else:
            listener = multistream.Listener(self._services.probation, self._services.held)
        self._negotiations[stream_id] = (listener, now_ms)
        self._answer(stream_id, listener)

    def _negotiate(
        self, event: DataReceived | StreamFinished | StreamReset, now_ms: int, events: list[ConnectionEvent]
    ) -> None:
        stream_id = event.stream_id
        negotiation, _ = self._negotiations[stream_id]
        if isinstance(event, DataReceived):
            try:
                negotiation.receive_data(event.data)
            except RemoteProtocolError as error:
                self._fail_stream(stream_id, error.rule, events)
                return
            leftover = negotiation.leftover() if negotiation.phase is multistream.NegotiationPhase.AGREED else b""
            self._session.consumed(stream_id, len(event.data) - len(leftover), now_ms)
            self._after_negotiation(stream_id, negotiation, events)
            if leftover:
                events.append(DataReceived(stream_id, leftover))
        elif isinstance(event, StreamReset):
            self._drop_negotiation(stream_id, negotiation, event.reason, events)
        else:
            self._fail_stream(stream_id, "multistream.finished", events)

    def _after_negotiation(
        self, stream_id: int, negotiation: multistream.Dialler | multistream.Listener, events: list[ConnectionEvent]
    ) -> None:
        self._answer(stream_id, negotiation)
        if negotiation.phase is multistream.NegotiationPhase.AGREED:
            assert negotiation.protocol is not None, "an agreement names a protocol"
            del self._negotiations[stream_id]
            inbound = isinstance(negotiation, multistream.Listener)
            events.append(StreamOpened(stream_id, negotiation.protocol, inbound))
        elif negotiation.phase is multistream.NegotiationPhase.REFUSED:
            self._fail_stream(stream_id, "multistream.refused", events)

    def _answer(self, stream_id: int, negotiation: multistream.Dialler | multistream.Listener) -> None:
        answer = negotiation.data_to_send()
        # The stream may be gone already: its reset can stand behind its opening in the same bytes.
        if answer and self._session.send_room(stream_id) >= len(answer):
            self._session.send(stream_id, answer)

    def _fail_stream(self, stream_id: int, rule: str, events: list[ConnectionEvent]) -> None:
        negotiation, _ = self._negotiations[stream_id]
        self._session.reset(stream_id)
        self._drop_negotiation(stream_id, negotiation, rule, events)

    def _drop_negotiation(
        self,
        stream_id: int,
        negotiation: multistream.Dialler | multistream.Listener,
        rule: str,
        events: list[ConnectionEvent],
    ) -> None:
        # Nobody has heard of an inbound stream without a protocol, so its end is nobody's news.
        del self._negotiations[stream_id]
        if isinstance(negotiation, multistream.Dialler):
            events.append(StreamReset(stream_id, rule))


def _last_words(code: int) -> Session:
    """Return a session with nothing to say but its go-away: streams' queued data dies with the connection."""
    session = Session(client=True)
    session.go_away(code)
    return session
