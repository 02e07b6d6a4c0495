"""Varints, protobuf fields, peer ids and multiaddresses, against the published vectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import keys
from protocols.libp2p import multiaddr, peer_id, protobuf, varint
from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError
from protocols.machine import PeerId

# Test vectors of the libp2p peer id specification (key messages) and of the multiformats unsigned-varint document.
ED25519_PUBLIC = bytes.fromhex("080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
ED25519_PRIVATE_SEED = bytes.fromhex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d")
SECP256K1_PUBLIC = bytes.fromhex("08021221037777e994e452c21604f91de093ce415f5432f701dd8cd1a7a6fea0e630bfca99")
SPEC_PEER = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"
VARINTS = [(1, "01"), (127, "7f"), (128, "8001"), (255, "ff01"), (300, "ac02"), (16384, "808001")]


@pytest.mark.parametrize(("value", "text"), VARINTS)
def test_varints_match_the_published_table(value: int, text: str) -> None:
    assert varint.encode(value) == bytes.fromhex(text)
    assert varint.decode(bytes.fromhex(text)) == (value, len(text) // 2)


@given(st.integers(0, varint.VALUE_MAX), st.binary(max_size=3))
def test_a_varint_comes_back_whatever_follows_it(value: int, tail: bytes) -> None:
    data = varint.encode(value)
    assert varint.decode(data + tail) == (value, len(data))
    assert all(varint.decode(data[:cut]) is None for cut in range(len(data)))


def test_a_varint_has_one_spelling_and_nine_bytes() -> None:
    for bad, rule in [(b"\x80\x00", "varint.not-minimal"), (b"\xff" * 9 + b"\x01", "varint.too-long")]:
        with pytest.raises(RemoteProtocolError, match=rule):
            varint.decode(bad)
    for value in (-1, 2**63):
        with pytest.raises(LocalProtocolError):
            varint.encode(value)
    with pytest.raises(RemoteProtocolError, match="truncated"):
        varint.decode_whole(b"\x80")


def test_protobuf_keeps_known_fields_and_skips_fixed_width_ones() -> None:
    data = protobuf.encode([(1, 5), (2, b"two"), (2, b"again")]) + b"\x1d\0\0\0\0" + b"\x21" + bytes(8)
    fields = protobuf.decode(data)
    assert fields == [(1, 5), (2, b"two"), (2, b"again")]
    assert protobuf.last_int(fields, 1) == 5
    assert protobuf.last_bytes(fields, 2) == b"again"
    assert protobuf.all_bytes(fields, 2) == (b"two", b"again")
    assert protobuf.last_bytes(fields, 9) is None
    assert protobuf.last_int(fields, 9) is None


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\x00\x00", "protobuf.field-zero"),
        (b"\x0b", "protobuf.wire-type"),
        (b"\x0a\x05abc", "protobuf.truncated"),
        (b"\x0d\x00", "protobuf.truncated"),
        (b"\x08", "protobuf.truncated"),
        (b"\x08" + b"\xff" * 10, "protobuf.varint-too-long"),
        (b"\x08\x00" * (protobuf.FIELDS_MAX + 1), "protobuf.too-many-fields"),
    ],
)
def test_malformed_protobuf_is_refused_by_rule(data: bytes, rule: str) -> None:
    with pytest.raises(RemoteProtocolError, match=rule):
        protobuf.decode(data)


def test_a_field_of_the_wrong_kind_is_refused() -> None:
    fields = protobuf.decode(b"\x08\x01\x12\x01a")
    for read, number in [(protobuf.last_bytes, 1), (protobuf.all_bytes, 1), (protobuf.last_int, 2)]:
        with pytest.raises(RemoteProtocolError, match="field-type"):
            read(fields, number)


def test_the_key_message_of_the_specification_is_ours() -> None:
    signer = keys.Ed25519Signer(ED25519_PRIVATE_SEED)
    assert peer_id.encode_public_key(signer.public_key) == ED25519_PUBLIC
    assert peer_id.decode_public_key(ED25519_PUBLIC) == signer.public_key


def test_a_peer_id_has_one_text_and_one_binary_form() -> None:
    peer = peer_id.parse(SPEC_PEER)
    data = peer_id.to_bytes(peer)
    assert len(data) == peer_id.PEER_ID_BYTES
    assert peer_id.from_bytes(data) == SPEC_PEER == keys.peer_id(keys.public_key_of(peer))


@pytest.mark.parametrize(
    "text", ["", "1", "1" + SPEC_PEER, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "0OIl", "é" * 52]
)
def test_text_that_is_not_the_canonical_id_of_an_ed25519_key_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        peer_id.parse(text)


def test_one_key_has_one_spelling_as_a_peer_id() -> None:
    assert keys.public_key_of(PeerId(SPEC_PEER))
    for spelling in ("1" + SPEC_PEER, "11" + SPEC_PEER, SPEC_PEER[1:]):
        with pytest.raises(ValueError, match="peer id"):
            keys.public_key_of(PeerId(spelling))


def test_other_kinds_of_keys_are_refused_by_name() -> None:
    with pytest.raises(RemoteProtocolError, match=r"peer-id\.key-type"):
        peer_id.decode_public_key(SECP256K1_PUBLIC)
    with pytest.raises(RemoteProtocolError, match=r"peer-id\.key-length"):
        peer_id.decode_public_key(b"\x08\x01\x12\x01a")
    for data in (b"", b"\x12\x20" + bytes(36), b"\x00\x24\x12\x20" + bytes(32) + b"\x08\x01"):
        with pytest.raises(RemoteProtocolError, match=r"peer-id"):
            peer_id.from_bytes(data)


ADDRESSES = [
    ("/ip4/127.0.0.1/tcp/4001", "047f000001060fa1"),
    ("/ip6/::1/tcp/0", "2900000000000000000000000000000001060000"),
    ("/dns4/example.org/tcp/443", "360b6578616d706c652e6f72670601bb"),
    (
        f"/ip4/1.2.3.4/tcp/80/p2p/{SPEC_PEER}",
        "0401020304060050a50326" + peer_id.to_bytes(peer_id.parse(SPEC_PEER)).hex(),
    ),
]


@pytest.mark.parametrize(("text", "binary"), ADDRESSES)
def test_multiaddresses_have_their_published_bytes(text: str, binary: str) -> None:
    address = multiaddr.parse(text)
    assert address.encode() == bytes.fromhex(binary)
    assert multiaddr.decode(bytes.fromhex(binary)) == address
    assert str(address) == text


def test_a_multiaddress_gives_host_port_and_peer() -> None:
    address = multiaddr.from_tcp("10.0.0.7", 4001)
    assert address.tcp() == ("10.0.0.7", 4001)
    assert address.peer() is None
    named = address.with_peer(peer_id.parse(SPEC_PEER))
    assert (named.tcp(), named.peer()) == (("10.0.0.7", 4001), SPEC_PEER)
    assert named.with_peer(peer_id.parse(SPEC_PEER)) == named
    assert multiaddr.from_tcp("fe80::1", 1).tcp() == ("fe80::1", 1)
    assert str(multiaddr.from_tcp("Node.Example", 1)) == "/dns/node.example/tcp/1"
    assert multiaddr.parse("/dns/a/p2p/" + SPEC_PEER).tcp() is None
    assert multiaddr.parse("/ip4/1.1.1.1/tcp/1/tcp/2").tcp() is None
    assert multiaddr.parse("/ip4/1.1.1.1/tcp/1/ipfs/" + SPEC_PEER).peer() == SPEC_PEER


@pytest.mark.parametrize(
    "text",
    ["", "/", "ip4/1.2.3.4", "/ip4", "/ip4/1.2.3", "/ip6/fe80::1%eth0", "/ip4/1.2.3.4/tcp/65536", "/ip4/1.2.3.4/tcp/٣",
     "/ip4/1.2.3.4/udp/1", "/dns/a b/tcp/1", "/dns/-/", "/p2p/Qm", "/tcp/1" * 5, "/dns/" + "a." * 300 + "a"],
)  # fmt: skip
def test_malformed_multiaddress_text_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        multiaddr.parse(text)


@pytest.mark.parametrize(
    "data", [b"", b"\x04\x01", b"\x36\x05ab", b"\x36\x01\xff", b"\x91\x02\x00", b"\x06\x00\x01" * 5, bytes(513)]
)
def test_malformed_multiaddress_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        multiaddr.decode(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_address_or_refused(data: bytes) -> None:
    try:
        address = multiaddr.decode(data)
    except RemoteProtocolError:
        return
    assert multiaddr.decode(address.encode()) == address
    assert multiaddr.parse(str(address)) == address


@given(st.text(max_size=80))
def test_any_text_is_a_peer_id_or_refused(text: str) -> None:
    try:
        assert peer_id.parse(text) == text
    except RemoteProtocolError:
        return


@given(st.binary(max_size=200))
def test_any_bytes_are_protobuf_fields_or_refused(data: bytes) -> None:
    try:
        fields = protobuf.decode(data)
    except RemoteProtocolError:
        return
    assert sum(len(value) for _, value in fields if isinstance(value, bytes)) <= len(data)
