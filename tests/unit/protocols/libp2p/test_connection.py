"""The composed connection: upgrade, probation, admission, streams, keep-alive; two of them back to back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.keys import Ed25519Verifier
from protocols.libp2p import connection as rules
from protocols.libp2p import multistream, yamux_frames
from protocols.libp2p.connection import Connection, ConnectionEvent, Secured, State, StreamOpened
from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError
from protocols.libp2p.noise_channel import NoiseChannel
from protocols.libp2p.upgrade import MESSAGE_MAX_BYTES, Upgrade
from protocols.libp2p.yamux_frames import DataReceived, GoneAway, StreamFinished, StreamReset
from tests.support.protocols.libp2p_pair import SERVICES, Pair, SeededEntropy, connection, identity


def text(events: list[ConnectionEvent]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, DataReceived))


# --- upgrade ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 50, 1 << 20])
@pytest.mark.parametrize("ours", [(), ("/yamux/1.0.0",)], ids=["silent", "yamux"])
@pytest.mark.parametrize("theirs", [(), ("/mplex/6.7.0", "/yamux/1.0.0")], ids=["silent", "mplex and yamux"])
def test_two_peers_know_each_other_after_the_upgrade(
    chunk: int, ours: tuple[str, ...], theirs: tuple[str, ...]
) -> None:
    dialler = connection(initiator=True, seed=1, muxers=ours)
    pair = Pair(dialler, connection(initiator=False, seed=2, muxers=theirs), chunk)
    pair.run()
    assert pair.dialler_events == [Secured(identity(2).peer)]
    assert pair.listener_events == [Secured(identity(1).peer)]
    assert pair.dialler.state is pair.listener.state is State.PROBATION


def test_the_upgrade_takes_one_round_trip_and_a_half() -> None:
    pair = Pair()
    for _ in range(2):
        pair.listener.receive_data(pair.dialler.data_to_send(), 0)
        pair.dialler.receive_data(pair.listener.data_to_send(), 0)
    assert pair.dialler.peer == identity(2).peer
    assert pair.listener.peer == identity(1).peer


def test_a_peer_other_than_the_one_expected_is_refused() -> None:
    pair = Pair(dialler=connection(initiator=True, seed=1, expected=identity(9).peer))
    with pytest.raises(RemoteProtocolError, match=r"upgrade\.peer"):
        pair.run()
    assert Pair(dialler=connection(initiator=True, seed=1, expected=identity(2).peer)).admitted().dialler.peer


def test_a_peer_that_offers_only_another_muxer_is_refused() -> None:
    pair = Pair(dialler=connection(initiator=True, seed=1, muxers=("/mplex/6.7.0",)))
    with pytest.raises(RemoteProtocolError, match=r"upgrade\.muxer"):
        pair.run()


def test_a_peer_that_does_not_speak_noise_is_refused() -> None:
    dialler = connection(initiator=True, seed=1)
    with pytest.raises(RemoteProtocolError, match=r"upgrade\.refused"):
        dialler.receive_data(multistream.frame(b"/multistream/1.0.0") + multistream.frame(b"na"), 0)
    assert dialler.state is State.CLOSED
    assert dialler.receive_data(b"more", 0) == []


def test_plaintext_is_never_agreed() -> None:
    listener = connection(initiator=False, seed=2)
    listener.receive_data(multistream.frame(b"/multistream/1.0.0") + multistream.frame(b"/plaintext/2.0.0"), 0)
    assert listener.data_to_send().endswith(multistream.frame(b"na"))


def test_a_handshake_message_has_a_cap_before_it_is_held() -> None:
    listener = connection(initiator=False, seed=2)
    listener.receive_data(multistream.frame(b"/multistream/1.0.0") + multistream.frame(b"/noise"), 0)
    with pytest.raises(RemoteProtocolError, match=r"upgrade\.message-length"):
        listener.receive_data((MESSAGE_MAX_BYTES + 1).to_bytes(2, "big"), 0)


def test_an_upgrade_that_takes_too_long_ends() -> None:
    listener = connection(initiator=False, seed=2)
    assert listener.deadline_ms() == rules.UPGRADE_MS
    assert listener.tick(rules.UPGRADE_MS - 1) == []
    with pytest.raises(RemoteProtocolError, match=r"connection\.upgrade-timeout"):
        listener.tick(rules.UPGRADE_MS)
    assert listener.deadline_ms() is None
    assert listener.tick(99_999) == []


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=100), max_size=10), st.integers(0, 3), st.integers(1, 400))
def test_any_bytes_at_any_stage_are_taken_or_refused(junk: list[bytes], rounds: int, cut: int) -> None:
    for victim in ("dialler", "listener"):
        pair = Pair()
        for _ in range(rounds):
            pair.listener.receive_data(pair.dialler.data_to_send(), 0)
            pair.dialler.receive_data(pair.listener.data_to_send(), 0)
        target = getattr(pair, victim)
        try:
            target.receive_data((pair.listener if victim == "dialler" else pair.dialler).data_to_send()[:cut], 0)
            for chunk in junk:
                target.receive_data(chunk, 0)
        except RemoteProtocolError:
            assert target.state is State.CLOSED


def upgraded_by_hand(listener: Connection) -> NoiseChannel:
    """Finish an upgrade as a dialler that then writes whatever it likes."""
    entropy = SeededEntropy(5)
    upgrade = Upgrade(initiator=True, identity=identity(5), entropy=entropy, verifier=Ed25519Verifier())
    listener.receive_data(upgrade.data_to_send(), 0)
    upgrade.receive_data(listener.data_to_send())
    listener.receive_data(upgrade.data_to_send(), 0)
    assert upgrade.result is not None
    return upgrade.result.channel


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=10))
def test_any_bytes_of_an_authenticated_peer_are_taken_or_refused(junk: list[bytes]) -> None:
    listener = connection(initiator=False, seed=2)
    channel = upgraded_by_hand(listener)
    listener.admit()
    try:
        for chunk in junk:
            listener.receive_data(channel.seal(chunk), 0)
            listener.data_to_send()
    except RemoteProtocolError:
        assert listener.state is State.CLOSED


# --- probation and admission ------------------------------------------------------------------------------------------


def test_an_unadmitted_peer_gets_only_the_protocols_of_probation() -> None:
    pair = Pair()
    pair.run()
    hello, echo = pair.dialler.open_stream("/hello", 0), pair.dialler.open_stream("/echo", 0)
    pair.run()
    assert pair.listener_events[1:] == [StreamOpened(hello, "/hello", inbound=True)]
    assert pair.dialler_events[1:] == [
        StreamOpened(hello, "/hello", inbound=False),
        StreamReset(echo, "multistream.refused"),
    ]


def test_a_held_protocol_is_agreed_when_the_peer_is_admitted() -> None:
    pair = Pair()
    pair.run()
    control = pair.dialler.open_stream("/control", 0)
    pair.run()
    assert len(pair.listener_events) == 1
    assert pair.listener.admit() == [StreamOpened(control, "/control", inbound=True)]
    assert pair.listener.admit() == []
    pair.run()
    assert pair.dialler_events[1:] == [StreamOpened(control, "/control", inbound=False)]


def test_an_unadmitted_peer_has_64_kib() -> None:
    pair = Pair()
    pair.run()
    hello = pair.dialler.open_stream("/hello", 0)
    pair.run()
    pair.dialler.send(hello, bytes(rules.PROBATION_MAX_BYTES))
    with pytest.raises(RemoteProtocolError, match=r"connection\.probation-bytes"):
        pair.run()


def test_an_unadmitted_peer_has_5_seconds() -> None:
    pair = Pair()
    pair.run()
    assert pair.listener.deadline_ms() == rules.PROBATION_MS
    with pytest.raises(RemoteProtocolError, match=r"connection\.probation-timeout"):
        pair.listener.tick(rules.PROBATION_MS)
    pair.listener.data_to_send()


def test_admission_lifts_both_limits() -> None:
    pair = Pair().admitted()
    stream = pair.dialler.open_stream("/echo", 0)
    pair.dialler.send(stream, bytes(200_000))
    pair.run()
    pair.listener.tick(rules.PROBATION_MS)
    assert len(text(pair.listener_events)) == 200_000


def test_a_held_proposal_with_impatient_data_loses_the_stream_alone() -> None:
    pair = Pair()
    pair.run()
    stream = pair.dialler.open_stream("/control", 0)
    pair.dialler.send(stream, b"too early")
    pair.run()
    assert pair.dialler_events[1:] == [StreamReset(stream)]
    assert pair.listener.state is State.PROBATION


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 20])
def test_a_stream_echoes_and_closes_under_any_chunking(chunk: int) -> None:
    pair = Pair(chunk=chunk).admitted()
    stream = pair.dialler.open_stream("/echo", 0)
    pair.dialler.send(stream, b"hello")
    pair.dialler.finish(stream)
    pair.run()
    assert pair.listener_events[0] == StreamOpened(stream, "/echo", inbound=True)
    assert text(pair.listener_events) == b"hello"
    assert pair.listener_events[-1] == StreamFinished(stream)
    pair.listener.consumed(stream, 5, 0)
    pair.listener.send(stream, b"HELLO")
    pair.listener.finish(stream)
    pair.run()
    assert pair.dialler_events[0] == StreamOpened(stream, "/echo", inbound=False)
    assert (text(pair.dialler_events), pair.dialler_events[-1]) == (b"HELLO", StreamFinished(stream))
    assert pair.dialler.buffered(stream) == 0


def test_either_side_may_open_streams_and_reset_them() -> None:
    pair = Pair().admitted()
    stream = pair.listener.open_stream("/echo", 0)
    pair.run()
    assert pair.dialler_events == [StreamOpened(stream, "/echo", inbound=True)]
    pair.listener.reset(stream)
    pair.run()
    assert pair.dialler_events[-1] == StreamReset(stream)
    assert pair.dialler.send_room(stream) == 0


def test_a_protocol_nobody_serves_resets_the_stream_alone() -> None:
    pair = Pair().admitted()
    bad, good = pair.dialler.open_stream("/nobody", 0), pair.dialler.open_stream("/echo", 0)
    pair.dialler.send(good, b"x")
    pair.run()
    assert StreamReset(bad, "multistream.refused") in pair.dialler_events
    assert text(pair.listener_events) == b"x"


def test_a_megabyte_passes_with_the_windows_of_the_connection() -> None:
    pair = Pair().admitted()
    stream = pair.dialler.open_stream("/echo", 0)
    sent = bytes(range(256)) * 4000
    pair.dialler.send(stream, sent)
    for _ in range(30):
        pair.run()
        fresh = len(text(pair.listener_events)) - getattr(pair, "taken", 0)
        pair.taken = len(text(pair.listener_events))  # type: ignore[attr-defined]
        if fresh:
            pair.listener.consumed(stream, fresh, 0)
    assert text(pair.listener_events) == sent


def in_stream(channel: NoiseChannel, stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return channel.seal(yamux_frames.HEADER.pack(0, yamux_frames.DATA, flags, stream_id, len(body)) + body)


@pytest.mark.parametrize(
    "talk",
    [b"\x01\n", b"\xff" * 12, multistream.frame(b"/multistream/1.0.0") + multistream.frame(b"\xff\xfe") * 17],
    ids=["no header", "bad varint", "too many proposals"],
)
def test_a_stream_that_negotiates_nonsense_is_reset_and_the_next_one_works(talk: bytes) -> None:
    listener = connection(initiator=False, seed=2)
    channel = upgraded_by_hand(listener)
    listener.admit()
    assert listener.receive_data(in_stream(channel, 1, talk, yamux_frames.SYN), 0) == []
    good = multistream.frame(b"/multistream/1.0.0") + multistream.frame(b"/echo") + b"hi"
    assert listener.receive_data(in_stream(channel, 3, good, yamux_frames.SYN), 0) == [
        StreamOpened(3, "/echo", inbound=True),
        DataReceived(3, b"hi"),
    ]


def test_a_stream_opened_and_ended_in_one_breath_is_nobodys_news() -> None:
    listener = connection(initiator=False, seed=2)
    channel = upgraded_by_hand(listener)
    listener.admit()
    header = yamux_frames.HEADER.pack
    opened_and_reset = header(0, yamux_frames.DATA, yamux_frames.SYN, 1, 0) + header(
        0, yamux_frames.DATA, yamux_frames.RST, 1, 0
    )
    assert listener.receive_data(channel.seal(opened_and_reset), 0) == []
    assert listener.receive_data(in_stream(channel, 3, b"", yamux_frames.SYN | yamux_frames.FIN), 0) == []
    assert listener.deadline_ms() == rules.KEEP_ALIVE_MS


def test_a_stream_without_a_protocol_is_reset_in_time() -> None:
    listener = connection(initiator=False, seed=2)
    channel = upgraded_by_hand(listener)
    listener.admit()
    listener.receive_data(in_stream(channel, 1, b"", yamux_frames.SYN), 100)
    listener.receive_data(in_stream(channel, 3, b"", yamux_frames.SYN), 200)
    listener.tick(rules.KEEP_ALIVE_MS)
    listener.receive_data(
        channel.seal(yamux_frames.HEADER.pack(0, yamux_frames.PING, yamux_frames.ACK, 0, 1)), rules.KEEP_ALIVE_MS + 1
    )
    listener.tick(100 + rules.NEGOTIATION_MS)
    good = multistream.frame(b"/multistream/1.0.0") + multistream.frame(b"/echo")
    assert listener.receive_data(in_stream(channel, 1, good), 10_150) == []
    assert listener.receive_data(in_stream(channel, 3, good), 10_150) == [StreamOpened(3, "/echo", inbound=True)]


def test_our_own_stream_that_is_not_answered_is_reset_in_time() -> None:
    pair = Pair().admitted()
    stream = pair.dialler.open_stream("/echo", 0)
    pair.dialler.reset(pair.dialler.open_stream("/echo", 0))
    assert pair.dialler.tick(rules.NEGOTIATION_MS) == [StreamReset(stream, "multistream.timeout")]


def test_streams_need_an_authenticated_peer() -> None:
    with pytest.raises(LocalProtocolError, match=r"connection\.state"):
        connection(initiator=True, seed=1).open_stream("/echo", 0)


# --- keep-alive and the end -------------------------------------------------------------------------------------------


def test_a_live_peer_answers_pings_and_stays() -> None:
    pair = Pair().admitted()
    for now_ms in range(0, 60_000, 1000):
        pair.now_ms = now_ms
        for side in (pair.dialler, pair.listener):
            due = side.deadline_ms()
            assert due is not None
            if due <= now_ms:
                side.tick(now_ms)
        pair.run()
    assert pair.pongs == 2 * (1 + 11)


def test_a_hung_peer_is_noticed_within_fifteen_seconds() -> None:
    dialler = Pair().admitted().dialler
    pinged_at_ms = dialler.deadline_ms() or 0
    dialler.tick(pinged_at_ms)
    noticed_at_ms = dialler.deadline_ms() or 0
    assert pinged_at_ms < noticed_at_ms < 15_000
    dialler.tick(noticed_at_ms - 1)
    with pytest.raises(RemoteProtocolError, match=r"connection\.silent"):
        dialler.tick(noticed_at_ms)


def test_closing_says_go_away_and_nothing_else() -> None:
    pair = Pair().admitted()
    stream = pair.dialler.open_stream("/echo", 0)
    pair.dialler.send(stream, bytes(100_000))
    pair.dialler.close()
    pair.dialler.close()
    pair.run()
    assert pair.listener_events == [GoneAway(yamux_frames.NORMAL)]
    assert pair.dialler.state is State.CLOSED


def test_a_broken_rule_is_answered_with_a_protocol_error() -> None:
    pair = Pair().admitted()
    channel = pair.listener._channel
    assert channel is not None
    with pytest.raises(RemoteProtocolError, match=r"yamux\.version"):
        pair.dialler.receive_data(channel.seal(bytes([9] * 12)), 0)
    assert pair.listener.receive_data(pair.dialler.data_to_send(), 0) == [GoneAway(yamux_frames.PROTOCOL_ERROR)]


def test_closing_before_the_upgrade_says_nothing() -> None:
    side = connection(initiator=False, seed=2)
    side.close()
    assert side.data_to_send() == b""
    assert side.state is State.CLOSED


def test_the_protocols_served_are_plain_values() -> None:
    assert SERVICES.held == ("/control",)
