"""yamux: the specification's cases, windows both ways, fair turns, and what a hostile peer may not do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.libp2p import yamux, yamux_frames
from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError
from protocols.libp2p.yamux import Session
from protocols.libp2p.yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    INITIAL_WINDOW_BYTES,
    PING,
    RST,
    STREAM_ID_MAX,
    SYN,
    WINDOW_UPDATE,
    DataReceived,
    GoneAway,
    Ponged,
    SessionEvent,
    StreamAccepted,
    StreamFinished,
    StreamReset,
)
from protocols.libp2p.yamux_stream import SEND_BUFFER_MAX_BYTES
from tests.support.protocols.libp2p_pair import pieces

BATCH = 65519


def header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length)


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return header(DATA, flags, stream_id, len(body)) + body


def drain(session: Session) -> bytes:
    out = b""
    while session.wants_to_send:
        piece = session.data_to_send(BATCH)
        if not piece:
            break
        out += piece
    return out


def parse(wire: bytes) -> list[tuple[int, int, int, int, bytes]]:
    pairs, offset = [], 0
    while offset < len(wire):
        _, kind, flags, stream_id, length = HEADER.unpack_from(wire, offset)
        offset += HEADER_BYTES
        body = wire[offset : offset + length] if kind == DATA else b""
        offset += len(body)
        pairs.append((kind, flags, stream_id, length, body))
    return pairs


def kinds(wire: bytes) -> list[tuple[int, int, int, int]]:
    return [frame[:4] for frame in parse(wire)]


def server(*wires: bytes) -> Session:
    session = Session(client=False)
    for wire in wires:
        session.receive_data(wire, 0)
    return session


def exchange(
    a: Session, b: Session, chunk: int = 10**6, now_ms: int = 0
) -> tuple[list[SessionEvent], list[SessionEvent]]:
    """Carry bytes until both are silent; return what each heard."""
    heard: tuple[list[SessionEvent], list[SessionEvent]] = ([], [])
    while True:
        there, back = drain(a), drain(b)
        if not there and not back:
            return heard
        for piece in pieces(there, chunk):
            heard[1].extend(b.receive_data(piece, now_ms))
        for piece in pieces(back, chunk):
            heard[0].extend(a.receive_data(piece, now_ms))


def text(events: list[SessionEvent], stream_id: int) -> bytes:
    return b"".join(e.data for e in events if isinstance(e, DataReceived) and e.stream_id == stream_id)


# --- the specification ------------------------------------------------------------------------------------------------


def test_the_dialler_opens_odd_streams_and_the_listener_even_ones() -> None:
    client, listener = Session(client=True), Session(client=False)
    assert [client.open_stream(0), client.open_stream(0)] == [1, 3]
    assert [listener.open_stream(0), listener.open_stream(0)] == [2, 4]


def test_data_may_follow_the_opening_at_once_and_the_listener_acknowledges() -> None:
    client = Session(client=True)
    client.send(client.open_stream(0), b"hello")
    wire = drain(client)
    assert parse(wire) == [(DATA, SYN, 1, 5, b"hello")]
    listener = Session(client=False)
    assert listener.receive_data(wire, 0) == [StreamAccepted(1), DataReceived(1, b"hello")]
    assert kinds(drain(listener)) == [(WINDOW_UPDATE, ACK, 1, 0)]


def test_a_stream_may_be_opened_without_data() -> None:
    client = Session(client=True)
    client.open_stream(0)
    assert kinds(drain(client)) == [(DATA, SYN, 1, 0)]
    assert server().receive_data(header(WINDOW_UPDATE, SYN, 1, 0), 0) == [StreamAccepted(1)]


@pytest.mark.parametrize("chunk", [1, 5, 12, 13, 1000])
def test_both_directions_close_on_their_own_under_any_chunking(chunk: int) -> None:
    client, listener = Session(client=True), Session(client=False)
    stream = client.open_stream(0)
    client.send(stream, b"question")
    client.finish(stream)
    _, heard = exchange(client, listener, chunk)
    assert text(heard, stream) == b"question"
    assert heard[-1] == StreamFinished(stream)
    listener.consumed(stream, 8, 0)
    listener.send(stream, b"answer")
    listener.finish(stream)
    heard, _ = exchange(client, listener, chunk)
    assert text(heard, stream) == b"answer"
    assert heard[-1] == StreamFinished(stream)
    client.consumed(stream, 6, 0)
    assert not client._streams
    assert not listener._streams


def test_the_end_is_a_frame_of_its_own() -> None:
    client = Session(client=True)
    stream = client.open_stream(0)
    client.send(stream, b"all")
    client.finish(stream)
    client.finish(stream)
    assert parse(drain(client)) == [(DATA, SYN, 1, 3, b"all"), (DATA, FIN, 1, 0, b"")]
    with pytest.raises(LocalProtocolError, match=r"yamux\.closed"):
        client.send(stream, b"more")
    assert client.send_room(stream) == 0


def test_a_reset_ends_both_directions_and_late_frames_are_dropped() -> None:
    listener = server(data(1, b"x", SYN))
    drain(listener)
    listener.reset(1)
    listener.reset(1)
    assert kinds(drain(listener)) == [(WINDOW_UPDATE, RST, 1, 0)]
    assert listener.receive_data(data(1, b"late") + header(WINDOW_UPDATE, 0, 1, 9), 0) == []
    assert listener.receive_data(data(3, b"y", SYN) + header(DATA, RST, 3, 0), 0)[-1] == StreamReset(3)
    assert not listener._streams


def test_a_stream_reset_before_it_was_ever_sent_leaves_no_trace() -> None:
    client = Session(client=True)
    stream = client.open_stream(0)
    client.send(stream, b"never mind")
    client.reset(stream)
    assert drain(client) == b""


def test_pings_are_answered_with_their_value_and_measured() -> None:
    client, listener = Session(client=True), Session(client=False)
    assert listener.receive_data(header(PING, SYN, 0, 77), 0) == []
    assert kinds(drain(listener)) == [(PING, ACK, 0, 77)]
    client.ping(1000)
    listener.receive_data(drain(client), 1000)
    assert client.receive_data(drain(listener), 1030) == [Ponged(30)]
    assert client.receive_data(header(PING, ACK, 0, 12345), 1040) == []


def test_a_go_away_ends_the_opening_of_streams_not_the_streams() -> None:
    client, listener = Session(client=True), Session(client=False)
    client.send(client.open_stream(0), b"x")
    exchange(client, listener)
    listener.go_away(yamux_frames.NORMAL)
    listener.go_away(yamux_frames.NORMAL)
    assert client.receive_data(drain(listener), 0) == [GoneAway(0)]
    with pytest.raises(LocalProtocolError, match=r"yamux\.leaving"):
        client.open_stream(0)
    client.send(1, b"y")
    assert listener.receive_data(drain(client), 0) == [DataReceived(1, b"y")]
    assert listener.receive_data(data(3, b"z", SYN), 0) == []
    assert kinds(drain(listener)) == [(WINDOW_UPDATE, RST, 3, 0)]


def test_when_stream_ids_are_used_up_we_go_away() -> None:
    client, listener = Session(client=True), Session(client=False)
    client._next_id = STREAM_ID_MAX
    assert client.open_stream(0) == STREAM_ID_MAX
    exchange(client, listener)
    with pytest.raises(LocalProtocolError, match=r"yamux\.leaving"):
        client.open_stream(0)
    assert listener.receive_data(drain(client), 0) == [GoneAway(0)]


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_sender_stops_at_the_window_and_goes_on_when_it_is_given_back() -> None:
    client, listener = Session(client=True), Session(client=False)
    stream = client.open_stream(0)
    body = bytes(range(256)) * 2048
    client.send(stream, body)
    _, heard = exchange(client, listener)
    assert len(text(heard, stream)) == INITIAL_WINDOW_BYTES
    assert client.buffered(stream) == len(body) - INITIAL_WINDOW_BYTES
    listener.consumed(stream, INITIAL_WINDOW_BYTES // 2 - 1, 10**6)
    assert not listener.wants_to_send
    listener.consumed(stream, 1, 10**6)
    _, more = exchange(client, listener, now_ms=10**6)
    assert text(heard + more, stream) == body[: INITIAL_WINDOW_BYTES * 3 // 2]


def test_a_window_overrun_ends_the_session() -> None:
    listener = server(data(1, bytes(INITIAL_WINDOW_BYTES), SYN))
    with pytest.raises(RemoteProtocolError, match=r"yamux\.window-overrun"):
        listener.receive_data(header(DATA, 0, 1, 1), 0)


def test_a_frame_larger_than_the_window_is_refused_before_its_body_arrives() -> None:
    with pytest.raises(RemoteProtocolError, match=r"yamux\.window-overrun"):
        server().receive_data(header(DATA, SYN, 1, 0xFFFFFFFF), 0)


def measure_rtt(session: Session, rtt_ms: int) -> None:
    session.ping(0)
    value = kinds(drain(session))[-1][3]
    assert session.receive_data(header(PING, ACK, 0, value), rtt_ms) == [Ponged(rtt_ms)]


def test_a_window_grows_while_it_is_used_up_within_a_few_round_trips() -> None:
    client, listener = Session(client=True), Session(client=False)
    stream = client.open_stream(0)
    measure_rtt(listener, 30)
    for _ in range(40):
        client.send(stream, bytes(client.send_room(stream)))
        _, heard = exchange(client, listener)
        listener.consumed(stream, len(text(heard, stream)), 0)
    assert listener._streams[stream].window_max_bytes == yamux.WINDOW_MAX_BYTES
    assert listener._grown_bytes == yamux.WINDOW_MAX_BYTES - INITIAL_WINDOW_BYTES
    listener.reset(stream)
    assert listener._grown_bytes == 0


@pytest.mark.parametrize("rtts", [[], [30], [30, 0]], ids=["unmeasured", "slow stream", "no round trip to fill"])
def test_a_window_does_not_grow_without_need(rtts: list[int]) -> None:
    client, listener = Session(client=True), Session(client=False)
    for rtt_ms in rtts:
        measure_rtt(listener, rtt_ms)
    stream = client.open_stream(0)
    for second in range(1, 10):
        client.send(stream, bytes(INITIAL_WINDOW_BYTES // 2))
        exchange(client, listener)
        listener.consumed(stream, INITIAL_WINDOW_BYTES // 2, second * (1000 if rtts == [30] else 1))
    assert listener._streams[stream].window_max_bytes == INITIAL_WINDOW_BYTES


def test_a_window_larger_than_its_field_is_refused() -> None:
    listener = server(header(WINDOW_UPDATE, SYN, 1, 0))
    with pytest.raises(RemoteProtocolError, match=r"yamux\.window-overflow"):
        listener.receive_data(header(WINDOW_UPDATE, 0, 1, 0xFFFFFFFF), 0)


def test_too_much_unread_resets_the_stream_that_brings_more_and_only_that_one() -> None:
    listener = Session(client=False)
    count = yamux.UNREAD_MAX_BYTES // INITIAL_WINDOW_BYTES
    for index in range(count):
        listener.receive_data(data(2 * index + 1, bytes(INITIAL_WINDOW_BYTES), SYN), 0)
    last = 2 * count + 1
    assert listener.receive_data(data(last, b"x", SYN), 0)[-1] == StreamReset(last, "yamux.unread")
    assert len(listener._streams) == count
    listener.consumed(1, INITIAL_WINDOW_BYTES, 0)
    assert listener.receive_data(data(last + 2, b"x", SYN), 0)[-1] == DataReceived(last + 2, b"x")


def test_a_finished_stream_still_counts_until_what_it_brought_is_consumed() -> None:
    listener = server(data(1, b"abc", SYN | FIN))
    listener.finish(1)
    drain(listener)
    assert 1 in listener._streams
    listener.consumed(1, 3, 0)
    assert not listener._streams
    assert listener._unread_bytes == 0


# --- turns ------------------------------------------------------------------------------------------------------------


def test_streams_take_turns_so_a_small_message_does_not_wait_behind_megabytes() -> None:
    client = Session(client=True)
    big, small = client.open_stream(0), client.open_stream(0)
    client.send(big, bytes(SEND_BUFFER_MAX_BYTES))
    client.send(small, b"urgent")
    first = parse(client.data_to_send(BATCH))
    assert [(frame[2], frame[3]) for frame in first][:2] == [(big, yamux.QUANTUM_BYTES), (small, 6)]


def test_a_reader_that_stops_holds_up_its_own_stream_alone() -> None:
    client, listener = Session(client=True), Session(client=False)
    stuck, moving = client.open_stream(0), client.open_stream(0)
    client.send(stuck, bytes(SEND_BUFFER_MAX_BYTES))
    exchange(client, listener)
    received = 0
    for _ in range(20):
        client.send(moving, bytes(100_000))
        _, heard = exchange(client, listener)
        received += len(text(heard, moving))
        listener.consumed(moving, len(text(heard, moving)), 0)
    assert received == 20 * 100_000


def test_session_frames_go_ahead_of_data() -> None:
    client = Session(client=True)
    client.send(client.open_stream(0), bytes(SEND_BUFFER_MAX_BYTES))
    client.ping(0)
    assert parse(client.data_to_send(BATCH))[0][0] == PING


def test_frames_stay_within_the_room_given() -> None:
    client = Session(client=True)
    client.send(client.open_stream(0), bytes(1000))
    client.ping(0)
    client.ping(0)
    sizes = []
    while client.wants_to_send:
        sizes.append(len(client.data_to_send(20)))
    assert max(sizes) <= 20


# --- limits -----------------------------------------------------------------------------------------------------------


def test_streams_over_the_cap_are_reset_and_the_others_go_on() -> None:
    listener = Session(client=False)
    for index in range(yamux.INBOUND_STREAMS_MAX):
        listener.receive_data(header(WINDOW_UPDATE, SYN, 2 * index + 1, 0), 0)
    drain(listener)
    extra = 2 * yamux.INBOUND_STREAMS_MAX + 1
    assert listener.receive_data(data(extra, b"x", SYN), 0) == []
    assert kinds(drain(listener)) == [(WINDOW_UPDATE, RST, extra, 0)]
    assert listener.receive_data(data(1, b"x"), 0) == [DataReceived(1, b"x")]


def test_we_open_no_more_than_the_backlog_unacknowledged() -> None:
    client = Session(client=True)
    for _ in range(yamux.UNACKNOWLEDGED_MAX):
        client.open_stream(0)
    with pytest.raises(LocalProtocolError, match=r"yamux\."):
        client.open_stream(0)
    client.receive_data(header(WINDOW_UPDATE, RST, 1, 0), 0)
    client.open_stream(0)


def test_the_backlog_is_counted_apart_from_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamux, "UNACKNOWLEDGED_MAX", 1)
    client, listener = Session(client=True), Session(client=False)
    client.open_stream(0)
    with pytest.raises(LocalProtocolError, match=r"yamux\.backlog"):
        client.open_stream(0)
    exchange(client, listener)
    client.open_stream(0)


def test_a_send_buffer_has_an_end() -> None:
    client = Session(client=True)
    stream = client.open_stream(0)
    assert client.send_room(stream) == SEND_BUFFER_MAX_BYTES
    client.send(stream, bytes(SEND_BUFFER_MAX_BYTES))
    client.send(stream, b"")
    with pytest.raises(LocalProtocolError, match=r"yamux\.send-buffer"):
        client.send(stream, b"x")
    with pytest.raises(LocalProtocolError, match=r"yamux\.closed"):
        client.send(99, b"x")
    assert client.buffered(99) == 0


@pytest.mark.parametrize(
    "flood",
    [
        header(PING, SYN, 0, 1),
        header(PING, ACK, 0, 9),
        header(DATA, 0, 1, 0),
        header(WINDOW_UPDATE, 0, 1, 0),
        header(DATA, 0, 9, 0),
        header(DATA, SYN, 3, 0) + header(DATA, RST, 3, 0),
    ],
    ids=["pings", "stray pongs", "empty data", "empty updates", "unknown streams", "opened and reset"],
)
def test_frames_that_carry_nothing_are_rationed(flood: bytes) -> None:
    listener = server(header(DATA, SYN, 1, 0))
    for _ in range(yamux.IDLE_FRAMES_MAX_PER_S):
        listener.receive_data(flood, 5000)
        drain(listener)
    listener.receive_data(flood, 6000)
    with pytest.raises(RemoteProtocolError, match=r"yamux\.idle-frames"):
        listener.receive_data(flood * (yamux.IDLE_FRAMES_MAX_PER_S + 1), 6500)


def test_a_peer_that_never_reads_its_answers_is_cut_off() -> None:
    listener = Session(client=False)
    pings = header(PING, SYN, 0, 1) * 900
    for second in range(6):
        listener.receive_data(pings, second * 1000)
    with pytest.raises(RemoteProtocolError, match=r"yamux\.deaf"):
        listener.receive_data(pings, 6000)
    assert len(listener._control) <= yamux.CONTROL_MAX_BYTES + HEADER_BYTES


@pytest.mark.parametrize(
    ("wire", "rule"),
    [
        (HEADER.pack(1, DATA, 0, 1, 0), "yamux.version"),
        (header(4, 0, 0, 0), "yamux.type"),
        (header(DATA, SYN, 0, 0), "yamux.stream-zero"),
        (header(PING, SYN, 1, 0), "yamux.session-frame"),
        (header(GO_AWAY, 0, 1, 0), "yamux.session-frame"),
        (header(DATA, SYN, 2, 0), "yamux.stream-parity"),
        (header(DATA, 0, 2, 0), "yamux.stream-unknown"),
        (header(DATA, SYN, 1, 0) * 2, "yamux.stream-twice"),
        (header(DATA, SYN | FIN, 1, 0) + data(1, b"x"), "yamux.data-after-fin"),
    ],
)
def test_what_the_specification_forbids_ends_the_session_by_rule(wire: bytes, rule: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        server().receive_data(wire, 0)
    assert caught.value.rule == rule


FRAME = st.builds(
    lambda kind, flags, stream_id, length, body: header(kind, flags, stream_id, length) + body,
    st.integers(0, 3),
    st.integers(0, 15),
    st.integers(0, 6),
    st.integers(0, 40),
    st.binary(max_size=40),
)


@settings(max_examples=200)
@given(st.lists(FRAME, max_size=30), st.integers(1, 50))
def test_any_frames_are_taken_or_refused_and_the_books_balance(wires: list[bytes], chunk: int) -> None:
    session = Session(client=False)
    session.open_stream(0)
    unread: dict[int, int] = {}
    try:
        for piece in pieces(b"".join(wires), chunk):
            for event in session.receive_data(piece, 0):
                if isinstance(event, DataReceived):
                    unread[event.stream_id] = unread.get(event.stream_id, 0) + len(event.data)
                elif isinstance(event, StreamReset | StreamAccepted):
                    unread.pop(event.stream_id, None)
            drain(session)
    except RemoteProtocolError:
        return
    assert session._unread_bytes == sum(stream.unread_bytes for stream in session._streams.values())
    assert session._inbound == sum(stream.inbound for stream in session._streams.values())
    for stream_id, count in unread.items():
        session.consumed(stream_id, count, 0)
    assert session._unread_bytes == 0


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 150_000)), max_size=8),
    st.integers(200, 70_000),
)
def test_every_byte_sent_on_any_stream_arrives_once_and_in_order(sends: list[tuple[int, int]], chunk: int) -> None:
    client, listener = Session(client=True), Session(client=False)
    ids = [client.open_stream(0) for _ in range(4)]
    expected = dict.fromkeys(ids, b"")
    got = dict.fromkeys(ids, b"")
    for turn, (index, size) in enumerate(sends):
        body = bytes([turn]) * min(size, client.send_room(ids[index]))
        client.send(ids[index], body)
        expected[ids[index]] += body
    for _ in range(100):
        _, heard = exchange(client, listener, chunk)
        for stream in ids:
            part = text(heard, stream)
            got[stream] += part
            listener.consumed(stream, len(part), 0)
        if not client.wants_to_send and not listener.wants_to_send:
            break
    assert got == expected
