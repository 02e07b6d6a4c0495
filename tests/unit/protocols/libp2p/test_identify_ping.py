"""identify and ping: what they say, and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import keys
from protocols.libp2p import identify, multiaddr, ping, protobuf, varint
from protocols.libp2p.errors import RemoteProtocolError
from protocols.libp2p.identify import Identify, IdentifyReader

SIGNER = keys.Ed25519Signer(bytes(32))
PEER = keys.peer_id(SIGNER.public_key)
MESSAGE = Identify(
    public_key=SIGNER.public_key,
    listen=(multiaddr.parse("/ip4/10.0.0.1/tcp/4001"), multiaddr.parse("/ip6/::1/tcp/4001")),
    protocols=("/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"),
    observed=multiaddr.parse("/ip4/127.0.0.1/tcp/50000"),
    protocol_version="freehold/1",
    agent_version="freehold/0.1.0",
)


@pytest.mark.parametrize("chunk", [1, 10, 10_000])
def test_an_identify_message_comes_back_under_any_chunking(chunk: int) -> None:
    wire, reader, result = identify.encode(MESSAGE), IdentifyReader(), None
    for start in range(0, len(wire), chunk):
        assert result is None
        result = reader.receive_data(wire[start : start + chunk], PEER)
    assert result == MESSAGE


def test_fields_may_be_missing_and_the_connection_knows_the_key() -> None:
    assert identify.decode(b"", PEER) == Identify(public_key=SIGNER.public_key)


def test_a_foreign_key_is_refused() -> None:
    other = keys.peer_id(keys.Ed25519Signer(bytes([1]) * 32).public_key)
    with pytest.raises(RemoteProtocolError, match=r"identify\.key"):
        identify.decode(identify.encode(MESSAGE)[2:], other)


def test_addresses_we_cannot_dial_are_skipped_and_text_is_made_printable() -> None:
    body = protobuf.encode(
        [(2, b"\xcc\x03"), (2, MESSAGE.listen[0].encode()), (4, b"?"), (6, b"evil\x1b[2J\xff" + b"x" * 999)]
    )
    message = identify.decode(body, PEER)
    assert message.listen == MESSAGE.listen[:1]
    assert message.observed is None
    assert message.agent_version.startswith("evil?[2J")
    assert len(message.agent_version) == identify.TEXT_MAX_CHARS


def test_a_long_message_is_refused_by_its_length() -> None:
    with pytest.raises(RemoteProtocolError, match=r"identify\.length"):
        IdentifyReader().receive_data(varint.encode(identify.MESSAGE_MAX_BYTES + 1), PEER)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_identify_message_or_refused(data: bytes) -> None:
    try:
        identify.decode(data, PEER)
        IdentifyReader().receive_data(data, PEER)
    except RemoteProtocolError:
        return


def test_ping_echoes_whole_payloads_and_holds_less_than_one() -> None:
    responder = ping.Responder()
    payload = bytes(range(32))
    assert responder.receive_data(payload[:31]) == b""
    assert responder.receive_data(payload[31:] + payload + b"x") == payload * 2
    assert len(responder._partial) == 1
