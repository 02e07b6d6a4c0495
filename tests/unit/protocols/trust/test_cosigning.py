"""Papers that several admins sign: who counts, each once and as the admins are now; and the near misses."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocols.envelope import DecodeError
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.trust.cosigning import COSIGNATURES_MAX, Cosignature, Cosigned, begin_cosigning, cosign, require_admins
from protocols.trust.upgrades import UPGRADE_DOMAIN, UpgradePaper

MESH, OTHER_MESH = b"m" * 32, b"o" * 32
ONE, TWO, THREE = (Ed25519Signer(name * 32) for name in (b"1", b"2", b"3"))
ADMINS = (ONE.public_key, TWO.public_key)
SAID = UpgradePaper("resume", 1, order=b"o" * 32)
BEGUN = begin_cosigning(ONE, UPGRADE_DOMAIN, MESH, SAID)


def judged(paper: Cosigned, admins: tuple[bytes, ...] = ADMINS, threshold: int = 2) -> None:
    require_admins(Ed25519Verifier(), UPGRADE_DOMAIN, MESH, paper, admins, threshold)


def by(*others: Ed25519Signer, domain: str = UPGRADE_DOMAIN, mesh: bytes = MESH) -> Cosigned:
    paper = BEGUN
    for other in others:
        paper = cosign(other, domain, mesh, paper)
    return paper


def test_two_admins_of_now_are_two_whoever_signed_first_and_one_is_enough_where_one_is_asked_for() -> None:
    judged(by(TWO))
    judged(cosign(ONE, UPGRADE_DOMAIN, MESH, begin_cosigning(TWO, UPGRADE_DOMAIN, MESH, SAID)))
    judged(by(THREE, TWO))
    judged(BEGUN, threshold=1)


TWICE = replace(BEGUN, more=(Cosignature(BEGUN.key, BEGUN.signature),) * 2)
OTHERS_BYTES = replace(
    BEGUN, more=by(TWO).more, payload=begin_cosigning(ONE, UPGRADE_DOMAIN, MESH, replace(SAID, at_ms=2)).payload
)


@pytest.mark.parametrize(
    ("paper", "admins", "word"),
    [
        (BEGUN, ADMINS, "1 of 2"),
        (TWICE, ADMINS, "1 of 2"),
        (by(THREE), ADMINS, "1 of 2"),
        (by(TWO), (ONE.public_key, THREE.public_key), "1 of 2"),
        (by(TWO), (TWO.public_key, THREE.public_key), "no admin's"),
        (by(TWO, mesh=OTHER_MESH), ADMINS, "does not verify"),
        (by(TWO, domain="freehold/data-mandate/1"), ADMINS, "does not verify"),
        (OTHERS_BYTES, ADMINS, "does not verify"),
        (replace(BEGUN, more=(Cosignature(TWO.public_key, BEGUN.signature),)), ADMINS, "does not verify"),
        (replace(BEGUN, more=by(TWO).more * (COSIGNATURES_MAX + 1)), ADMINS, "at most"),
    ],
    ids=["alone", "the same twice", "a stranger", "the second was removed", "the first was removed", "another mesh",
         "another kind of paper", "other bytes", "the first one's signature", "too many"],
)  # fmt: skip
def test_near_misses_of_two_admins(paper: Cosigned, admins: tuple[bytes, ...], word: str) -> None:
    with pytest.raises(DecodeError, match=word):
        judged(paper, admins)


def test_a_key_signs_once() -> None:
    assert by(TWO, TWO) == by(TWO)
    assert by(ONE) == BEGUN
