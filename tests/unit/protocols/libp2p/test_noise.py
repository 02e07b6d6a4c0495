"""Noise XX against the published vectors, the libp2p payload, and the channel behind the handshake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.libp2p import peer_id, protobuf
from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError
from protocols.libp2p.noise import NONCE_END, CipherState, Handshake
from protocols.libp2p.noise_channel import MESSAGE_MAX_BYTES, PLAINTEXT_MAX_BYTES, NoiseChannel
from protocols.libp2p.noise_payload import MUXERS_MAX, PAYLOAD_MAX_BYTES, make_identity, verify_payload
from tests.support.protocols.libp2p_pair import SeededEntropy, identity, pieces

FIXTURE = Path(__file__).parents[3] / "fixtures" / "libp2p" / "noise_xx_vectors.json"
VECTORS = json.loads(FIXTURE.read_text())["vectors"]
KEY_A, KEY_B = bytes(range(32)), bytes(range(32, 64))


def handshakes(prologues: tuple[bytes, bytes] = (b"", b"")) -> tuple[Handshake, Handshake]:
    entropy = SeededEntropy(7)
    return (
        Handshake(initiator=True, static=KEY_A, ephemeral=entropy.random_bytes(32), prologue=prologues[0]),
        Handshake(initiator=False, static=KEY_B, ephemeral=entropy.random_bytes(32), prologue=prologues[1]),
    )


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_the_handshake_and_both_ciphers_reproduce_the_published_vectors(vector: dict[str, object]) -> None:
    def data(name: str) -> bytes:
        return bytes.fromhex(str(vector[name]))

    initiator = Handshake(
        initiator=True, static=data("init_static"), ephemeral=data("init_ephemeral"), prologue=data("init_prologue")
    )
    responder = Handshake(
        initiator=False, static=data("resp_static"), ephemeral=data("resp_ephemeral"), prologue=data("resp_prologue")
    )
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]  # type: ignore[attr-defined]
    for index, (payload, ciphertext) in enumerate(messages[:3]):
        writer, reader = (initiator, responder) if index % 2 == 0 else (responder, initiator)
        assert writer.write_message(payload) == ciphertext
        assert reader.read_message(ciphertext) == payload
    if "handshake_hash" in vector:
        assert initiator.handshake_hash == responder.handshake_hash == data("handshake_hash")
    (i_send, i_receive), (r_send, r_receive) = initiator.split(), responder.split()
    # The vectors go on alternating, so the responder writes first after three handshake messages.
    for index, (payload, ciphertext) in enumerate(messages[3:]):
        send, receive = (r_send, i_receive) if index % 2 == 0 else (i_send, r_receive)
        assert send.encrypt(payload) == ciphertext
        assert receive.decrypt(ciphertext) == payload


def test_each_side_speaks_in_its_turn_and_splits_at_the_end() -> None:
    initiator, responder = handshakes()
    with pytest.raises(LocalProtocolError, match=r"noise\.turn"):
        responder.write_message(b"")
    with pytest.raises(LocalProtocolError, match=r"noise\.turn"):
        initiator.read_message(b"")
    with pytest.raises(LocalProtocolError, match=r"noise\.unfinished"):
        initiator.split()
    responder.read_message(initiator.write_message(b""))
    initiator.read_message(responder.write_message(b""))
    responder.read_message(initiator.write_message(b""))
    with pytest.raises(LocalProtocolError, match=r"noise\.turn"):
        responder.read_message(b"")


def exchange(sides: tuple[Handshake, Handshake], step: int, damage: Callable[[bytes], bytes]) -> None:
    for index in range(3):
        message = sides[index % 2].write_message(b"payload")
        sides[1 - index % 2].read_message(damage(message) if index == step else message)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_changed_or_short_message_ends_the_handshake(step: int) -> None:
    for damage in (lambda m: m[:20], lambda m: m[:-1] + bytes([m[-1] ^ 1]), lambda m: bytes([m[0] ^ 1]) + m[1:]):
        sides = handshakes()
        with pytest.raises(RemoteProtocolError):
            exchange(sides, step, damage)


def test_a_different_prologue_ends_the_handshake() -> None:
    initiator, responder = handshakes((b"one", b"two"))
    responder.read_message(initiator.write_message(b""))
    with pytest.raises(RemoteProtocolError, match=r"noise\.decrypt"):
        initiator.read_message(responder.write_message(b""))


def test_a_low_order_key_is_refused() -> None:
    _, responder = handshakes()
    responder.read_message(bytes(32))
    with pytest.raises(RemoteProtocolError, match=r"noise\.weak-key"):
        responder.write_message(b"")


def test_a_cipher_stops_before_the_reserved_nonce() -> None:
    sender, receiver = CipherState(KEY_A, NONCE_END - 1), CipherState(KEY_A, NONCE_END - 1)
    last = sender.encrypt(b"last")
    assert receiver.decrypt(last) == b"last"
    with pytest.raises(LocalProtocolError, match=r"noise\.nonce-exhausted"):
        sender.encrypt(b"one more")
    with pytest.raises(RemoteProtocolError, match=r"noise\.nonce-exhausted"):
        receiver.decrypt(last)


def test_a_payload_proves_the_identity_behind_the_static_key() -> None:
    ours = identity(3, muxers=("/yamux/1.0.0",))
    handshake = Handshake(initiator=True, static=ours.static_private, ephemeral=KEY_A)
    public = handshake._static.public_key().public_bytes_raw()
    remote = verify_payload(ours.payload, public, Ed25519Verifier())
    assert (remote.peer, remote.muxers) == (ours.peer, ("/yamux/1.0.0",))
    with pytest.raises(RemoteProtocolError, match=r"noise\.identity"):
        verify_payload(ours.payload, KEY_B, Ed25519Verifier())
    assert "static_private" not in repr(ours)


def test_payloads_that_lack_something_are_refused_and_unknown_extensions_are_not() -> None:
    signer = Ed25519Signer(KEY_A)
    key = peer_id.encode_public_key(signer.public_key)
    signature = signer.sign(b"noise-libp2p-static-key:" + KEY_B)
    extensions = protobuf.encode([(1, b"hash"), (2, b"/m"), (99, 1)] + [(2, b"/more")] * MUXERS_MAX)
    good = protobuf.encode([(1, key), (2, signature), (3, b"old"), (4, extensions)])
    assert len(verify_payload(good, KEY_B, Ed25519Verifier()).muxers) == MUXERS_MAX
    for bad in (
        b"",
        protobuf.encode([(1, key)]),
        protobuf.encode([(1, key), (2, signature[:-1])]),
        protobuf.encode([(1, key[:-1]), (2, signature)]),
        protobuf.encode([(1, key), (2, signature), (4, b"\xff")]),
        good + bytes(PAYLOAD_MAX_BYTES),
    ):
        with pytest.raises(RemoteProtocolError):
            verify_payload(bad, KEY_B, Ed25519Verifier())


def test_two_identities_of_one_signer_have_different_static_keys() -> None:
    entropy, signer = SeededEntropy(1), Ed25519Signer(KEY_A)
    assert make_identity(signer, entropy, ()).static_private != make_identity(signer, entropy, ()).static_private


def channels() -> tuple[NoiseChannel, NoiseChannel]:
    return (
        NoiseChannel(CipherState(KEY_A), CipherState(KEY_B)),
        NoiseChannel(CipherState(KEY_B), CipherState(KEY_A)),
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 17, 65536, 10**6])
def test_the_channel_carries_messages_under_any_chunking(chunk: int) -> None:
    sender, receiver = channels()
    sizes = [1, 2, 100, 0, 5000] + ([PLAINTEXT_MAX_BYTES] if chunk > 3 else [])
    plaintexts = [bytes([size % 251]) * size for size in sizes]
    wire = b"".join(sender.seal(plaintext) for plaintext in plaintexts)
    received = [plaintext for piece in pieces(wire, chunk) for plaintext in receiver.receive_data(piece)]
    assert received == plaintexts


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_the_channel_does_not_care_where_bytes_are_cut(plaintexts: list[bytes], cuts: list[int]) -> None:
    sender, receiver = channels()
    wire = b"".join(sender.seal(plaintext) for plaintext in plaintexts)
    received, offset, turn = [], 0, 0
    while offset < len(wire):
        size = cuts[turn % len(cuts)]
        received += receiver.receive_data(wire[offset : offset + size])
        offset, turn = offset + size, turn + 1
    assert received == plaintexts


def test_the_channel_refuses_forged_and_short_messages_and_holds_one_at_most() -> None:
    sender, receiver = channels()
    with pytest.raises(RemoteProtocolError, match=r"noise\.short-message"):
        receiver.receive_data(b"\x00\x0f" + bytes(15))
    sender, receiver = channels()
    with pytest.raises(RemoteProtocolError, match=r"noise\.decrypt"):
        receiver.receive_data(sender.seal(b"x")[:-1] + b"\0")
    sender, receiver = channels()
    replay = sender.seal(b"x")
    receiver.receive_data(replay)
    with pytest.raises(RemoteProtocolError, match=r"noise\.decrypt"):
        receiver.receive_data(replay)
    _, receiver = channels()
    receiver.receive_data(b"\xff\xff" + bytes(60000))
    assert len(receiver._partial) <= MESSAGE_MAX_BYTES + 2
