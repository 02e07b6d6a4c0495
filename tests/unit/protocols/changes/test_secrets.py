"""A sealed secret opens for the nodes it was sealed to, whole and as it was meant, and for nobody else."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from node.keys import SystemEntropy
from protocols.changes.secrets import (
    VALUE_MAX_BYTES,
    SealedSecret,
    SealError,
    SecretRemoval,
    _wrap,
    node_public_key,
    node_secret_key,
    open_paper,
    reseal,
    seal,
    sign_paper,
    unseal,
)
from protocols.envelope import DecodeError, encode
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.machine import PeerId

MESH = b"m" * 32
ENTROPY = SystemEntropy()
SEEDS = [bytes([number]) * 32 for number in range(1, 4)]
A, B, C = (peer_id(Ed25519Signer(seed).public_key) for seed in SEEDS)
KEY_A, KEY_B, KEY_C = (node_secret_key(seed) for seed in SEEDS)
BLANK = SealedSecret("shop", "live", "API_KEY", 1, 1_000, b"", ())


def sealed(value: bytes = b"hunter2") -> SealedSecret:
    return seal(MESH, BLANK, value, [B, A], ENTROPY)


@given(st.binary(min_size=32, max_size=32))
def test_a_nodes_identity_and_its_sealing_key_are_two_sides_of_one_key(seed: bytes) -> None:
    node = peer_id(Ed25519Signer(seed).public_key)
    assert node_public_key(node).public_bytes_raw() == node_secret_key(seed).public_key().public_bytes_raw()


def test_the_mapping_agrees_with_a_published_vector() -> None:
    # libsodium, test/default/ed25519_convert.c: its keypair seed, and the curve key it prints.
    seed = bytes.fromhex("421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee")
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    expected = "f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50"
    assert node_public_key(peer_id(public)).public_bytes_raw().hex() == expected
    assert node_secret_key(seed).public_key().public_bytes_raw().hex() == expected


def test_each_recipient_opens_it_and_nobody_else_does() -> None:
    secret = sealed()
    assert [box.node for box in secret.boxes] == sorted([A, B])
    by_node = {box.node: box for box in secret.boxes}
    assert unseal(MESH, secret, by_node[A], KEY_A) == b"hunter2"
    assert unseal(MESH, secret, by_node[B], KEY_B) == b"hunter2"
    for box, key in ((by_node[A], KEY_B), (by_node[B], KEY_C)):
        with pytest.raises(SealError, match="not sealed to this node"):
            unseal(MESH, secret, box, key)


def test_a_holder_seals_it_again_for_a_node_that_came_later() -> None:
    secret = sealed()
    box = next(box for box in secret.boxes if box.node == A)
    later = reseal(MESH, secret, box, KEY_A, C, ENTROPY)
    assert unseal(MESH, secret, later, KEY_C) == b"hunter2"
    with pytest.raises(SealError):
        reseal(MESH, secret, box, KEY_C, C, ENTROPY)


@pytest.mark.parametrize(
    "change",
    [{"project": "other"}, {"environment": "staging"}, {"name": "OTHER"}, {"version": 2}, {"created_ms": 1_001}],
)
def test_what_was_sealed_for_one_place_opens_nowhere_else(change: dict[str, object]) -> None:
    secret = sealed()
    box = next(box for box in secret.boxes if box.node == A)
    with pytest.raises(SealError):
        unseal(MESH, msgspec.structs.replace(secret, **change), box, KEY_A)
    with pytest.raises(SealError):
        unseal(b"n" * 32, secret, box, KEY_A)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_any_flipped_bit_of_ciphertext_or_box_is_noticed(position: int, bit: int) -> None:
    secret = sealed()
    box = next(box for box in secret.boxes if box.node == A)
    data = bytearray(secret.ciphertext + box.wrapped)
    data[position % len(data)] ^= 1 << bit
    cut = len(secret.ciphertext)
    with pytest.raises(SealError):
        unseal(
            MESH, msgspec.structs.replace(secret, ciphertext=bytes(data[:cut])),
            msgspec.structs.replace(box, wrapped=bytes(data[cut:])), KEY_A,
        )  # fmt: skip


def test_two_sealings_of_one_value_have_nothing_in_common() -> None:
    first, second = sealed(), sealed()
    assert first.ciphertext != second.ciphertext
    assert not {box.wrapped for box in first.boxes} & {box.wrapped for box in second.boxes}
    assert b"hunter2" not in encode(first)


def test_values_and_recipients_have_bounds() -> None:
    for value in (b"", b"x" * (VALUE_MAX_BYTES + 1)):
        with pytest.raises(SealError):
            sealed(value)
    with pytest.raises(SealError):
        seal(MESH, BLANK, b"x", [], ENTROPY)
    neutral = peer_id((1).to_bytes(32, "little"))
    with pytest.raises(SealError):
        seal(MESH, BLANK, b"x", [neutral], ENTROPY)
    low_order = peer_id(((1 << 255) - 20).to_bytes(32, "little"))
    with pytest.raises(SealError):
        seal(MESH, BLANK, b"x", [low_order], ENTROPY)


def test_a_paper_counts_only_as_signed_and_within_bounds() -> None:
    signer, verifier = Ed25519Signer(b"s" * 32), Ed25519Verifier()
    signed = sign_paper(signer, MESH, sealed())
    assert open_paper(verifier, MESH, signed) == msgspec.msgpack.decode(signed.payload, type=SealedSecret)
    with pytest.raises(DecodeError):
        open_paper(verifier, MESH, msgspec.structs.replace(signed, payload=signed.payload + b"\0"))
    with pytest.raises(DecodeError):
        open_paper(verifier, b"n" * 32, signed)
    for bad in (
        msgspec.structs.replace(sealed(), name="../etc"),
        msgspec.structs.replace(sealed(), boxes=()),
        SecretRemoval("shop", "live", "API_KEY", (b"short",), 1),
    ):
        with pytest.raises(DecodeError):
            open_paper(verifier, MESH, sign_paper(signer, MESH, bad))


def test_a_data_key_of_the_wrong_length_is_no_crash() -> None:
    box = _wrap(MESH, BLANK, b"short", A, ENTROPY)
    secret = msgspec.structs.replace(BLANK, ciphertext=b"x" * 32, boxes=(box,))
    with pytest.raises(SealError, match="wrong length"):
        unseal(MESH, secret, box, KEY_A)


def test_a_box_for_a_strange_key_is_no_crash() -> None:
    stranger = X25519PrivateKey.generate()
    secret = sealed()
    assert PeerId(A) in {box.node for box in secret.boxes}
    with pytest.raises(SealError):
        unseal(MESH, secret, msgspec.structs.replace(secret.boxes[0], ephemeral=b"short"), stranger)
