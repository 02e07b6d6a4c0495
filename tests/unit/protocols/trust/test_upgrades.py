"""An admin's paper on an upgrade, and which release may follow which: what is taken, and the near misses."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocols.envelope import DecodeError, encode
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.trust.cosigning import Cosigned, begin_cosigning
from protocols.trust.upgrades import (
    GOOD_FOR_MS,
    WHEELS_MAX,
    UpgradePaper,
    Wheel,
    following_problem,
    open_upgrade,
    sign_upgrade,
)

ADMIN, OTHER = Ed25519Signer(b"a" * 32), Ed25519Signer(b"o" * 32)
MESH, NOW_MS = b"m" * 32, 1_000_000_000_000
WHEEL = Wheel("freehold-0.2.0-py3-none-any.whl", b"d" * 32)
START = UpgradePaper("start", NOW_MS, "0.2.0", (WHEEL,), 30)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("0.1.0", "0.1.1", ""), ("0.1.9", "0.2.0", ""), ("0.1.0", "0.2.7", ""), ("0.9.0", "1.0.0", ""), ("1.9.3", "2.0.4", ""),
        ("0.1.0", "0.3.0", "next to"), ("0.9.0", "1.1.0", "next to"), ("0.9.0", "2.0.0", "next to"),
        ("0.2.0", "0.1.9", "older"), ("1.0.0", "0.9.9", "older"), ("0.2.0", "0.2.0", "already"),
        ("0.2.10", "0.2.9", "older"), ("0.2.0", "0.3", "three numbers"), ("0.2.0", "0.3.0rc1", "three numbers"),
        ("0.2.0+x", "0.3.0", "three numbers"), ("0.2.0", "0.03.0", "three numbers"), ("0.2.0", "0.3.0\n", "three numbers"),
    ],
)  # fmt: skip
def test_only_a_neighbour_that_is_newer_may_follow(old: str, new: str, word: str) -> None:
    text = following_problem(old, new)
    assert word in text
    assert bool(text) == bool(word)


def opened(signed: Cosigned, now_ms: int = NOW_MS) -> UpgradePaper:
    return open_upgrade(Ed25519Verifier(), MESH, (ADMIN.public_key,), 1, signed, now_ms)


@pytest.mark.parametrize("action", ["pause", "resume", "abort"])
def test_an_admins_word_is_taken(action: Any) -> None:
    assert opened(sign_upgrade(ADMIN, MESH, START)) == START
    word = UpgradePaper(action, NOW_MS, order=b"o" * 32)
    assert opened(sign_upgrade(ADMIN, MESH, word)) == word
    with pytest.raises(DecodeError, match="names no order"):
        opened(sign_upgrade(ADMIN, MESH, replace(word, order=b"o" * 31)))


@pytest.mark.parametrize(
    "signed",
    [
        sign_upgrade(OTHER, MESH, START),
        sign_upgrade(ADMIN, b"n" * 32, START),
        begin_cosigning(ADMIN, "freehold/upgrade/2", MESH, START),
        Cosigned(encode(replace(START, version="0.2.1")), ADMIN.public_key, sign_upgrade(ADMIN, MESH, START).signature),
        Cosigned(encode(START), ADMIN.public_key, sign_upgrade(OTHER, MESH, START).signature),
    ],
    ids=["another key", "another mesh", "another domain", "another payload", "another's signature"],
)
def test_nobody_elses_word_is_taken(signed: Cosigned) -> None:
    with pytest.raises(DecodeError):
        opened(signed)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": "0.2"}, "version"), ({"wheels": ()}, "wheels"), ({"wheels": (WHEEL,) * 2}, "name of its own"),
        ({"wheels": tuple(Wheel(f"x{n}.whl", b"d" * 32) for n in range(WHEELS_MAX + 1))}, "wheels"),
        ({"wheels": (Wheel("../x.whl", b"d" * 32),)}, "name of its own"), ({"wheels": (Wheel("x.zip", b"d" * 32),)}, "name"),
        ({"wheels": (Wheel("x.whl", b"d" * 31),)}, "digest"), ({"window_s": 0}, "window"), ({"window_s": 3601}, "window"),
        ({"at_ms": NOW_MS - GOOD_FOR_MS - 1}, "week"), ({"at_ms": NOW_MS + GOOD_FOR_MS + 1}, "week"),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, dict) else one,
)  # fmt: skip
def test_a_paper_that_says_nothing_good_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(DecodeError, match=word):
        opened(sign_upgrade(ADMIN, MESH, replace(START, **change)))
