"""A verifier that knows good signatures again, with every near miss: one byte of the key, the words or the signature."""

from __future__ import annotations

import pytest

from protocols.keys import GOOD_MAX, Ed25519Signer, Ed25519Verifier, RememberingVerifier

SIGNER, OTHER = Ed25519Signer(b"s" * 32), Ed25519Signer(b"o" * 32)
WORDS = b"a grant"


class Counting:
    """Checks, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        self.count += 1
        return Ed25519Verifier().verify(public_key, message, signature)

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        return Ed25519Verifier().verify_es256(point, message, signature)


def test_a_good_signature_is_checked_once() -> None:
    counting = Counting()
    verifier = RememberingVerifier(counting)
    good = SIGNER.sign(WORDS)
    assert [verifier.verify(SIGNER.public_key, WORDS, good) for _ in range(3)] == [True] * 3
    assert counting.count == 1


@pytest.mark.parametrize("what", ["key", "words", "signature", "shifted"])
def test_what_differs_by_a_byte_from_a_good_one_is_checked(what: str) -> None:
    verifier = RememberingVerifier(Counting())
    key, words, good = SIGNER.public_key, WORDS, SIGNER.sign(WORDS)
    assert verifier.verify(key, words, good)
    near = {
        "key": (OTHER.public_key, words, good),
        "words": (key, b"b" + words[1:], good),
        "signature": (key, words, bytes([good[0] ^ 1]) + good[1:]),
        "shifted": (key + good[:1], words, good[1:]),
    }[what]
    assert not verifier.verify(*near)


def test_a_bad_signature_is_never_remembered_and_the_memory_has_an_end() -> None:
    counting = Counting()
    verifier = RememberingVerifier(counting)
    assert not any(verifier.verify(OTHER.public_key, WORDS, SIGNER.sign(WORDS)) for _ in range(2))
    assert counting.count == 2
    first = SIGNER.sign(b"0")
    for number in range(GOOD_MAX + 1):
        words = str(number).encode()
        assert verifier.verify(SIGNER.public_key, words, SIGNER.sign(words))
    assert verifier.verify(SIGNER.public_key, b"0", first)
    assert counting.count == 2 + GOOD_MAX + 2  # the oldest was forgotten, and checked anew
