"""Certificates and challenges as records: what form they must have, and who can open a key."""

from __future__ import annotations

import msgspec
import pytest

from protocols.changes.secrets import SealError, node_secret_key
from protocols.envelope import DecodeError, encode
from protocols.keys import Ed25519Signer, peer_id
from protocols.records.sites import (
    CHAIN_MAX_BYTES,
    ChallengeAnswer,
    challenge_key,
    open_site,
    read_challenge,
    read_site,
    seal_site,
    site_key,
    valid_site_name,
)

MESH, OTHER_MESH = b"m" * 32, b"n" * 32
SEEDS = [bytes([number]) * 32 for number in range(1, 4)]
NODES = [peer_id(Ed25519Signer(seed).public_key) for seed in SEEDS]
TOKEN, PRINT = "t" * 43, "p" * 43


class Counting:
    """Entropy that is never the same and always in the same order."""

    def __init__(self) -> None:
        self.count = 0

    def random_bytes(self, count: int) -> bytes:
        self.count += 1
        return bytes([self.count]) * count

    def uniform(self, low: float, high: float) -> float:
        return low


def sealed(name: str = "site.test", chain: bytes = b"chain", key: bytes = b"the key") -> bytes:
    return encode(seal_site(MESH, name, chain, key, nodes=NODES[:2], at_ms=5, entropy=Counting()))


def test_a_key_opens_for_the_nodes_that_it_is_sealed_to_and_for_no_other() -> None:
    site = read_site(sealed())
    assert b"the key" not in sealed()
    for node, seed in list(zip(NODES, SEEDS, strict=True))[:2]:
        assert open_site(MESH, site, node, node_secret_key(seed)) == b"the key"
    with pytest.raises(SealError, match="not sealed to this node"):
        open_site(MESH, site, NODES[2], node_secret_key(SEEDS[2]))
    with pytest.raises(SealError):
        open_site(MESH, site, NODES[0], node_secret_key(SEEDS[1]))
    with pytest.raises(SealError):
        open_site(OTHER_MESH, site, NODES[0], node_secret_key(SEEDS[0]))


def test_a_key_is_bound_to_its_name() -> None:
    site = read_site(sealed())
    for renamed in ("site:evil.test", "site.test", "SITE"):
        moved = msgspec.structs.replace(site.sealed, name=renamed)
        forged = msgspec.structs.replace(site, name=renamed.removeprefix("site:").lower() + ".test", sealed=moved)
        with pytest.raises((DecodeError, SealError)):
            open_site(MESH, read_site(encode(forged)), NODES[0], node_secret_key(SEEDS[0]))
    other = msgspec.structs.replace(
        site, name="evil.test", sealed=msgspec.structs.replace(site.sealed, name="site:evil.test")
    )
    with pytest.raises(SealError):  # a well-formed record of another name, with this one's key
        open_site(MESH, read_site(encode(other)), NODES[0], node_secret_key(SEEDS[0]))


@pytest.mark.parametrize(
    "name",
    ["", "localhost", "Site.test", "a..test", "-a.test", "a-.test", "a.test.", "*.*.test", "a.*.test", "*", "*.",
     "a b.test", "a.test/x", "a_b.test", "é.test", "x" * 64 + ".test", "a." * 127 + "test"],
    ids=["empty", "one-label", "upper", "empty-label", "dash-first", "dash-last", "dot-last", "two-stars", "star-inside",
         "star", "star-dot", "space", "path", "underscore", "unicode", "long-label", "long"],
)  # fmt: skip
def test_what_is_no_name_of_a_certificate(name: str) -> None:
    assert not valid_site_name(name)
    with pytest.raises((DecodeError, ValueError)):
        read_site(encode(msgspec.structs.replace(read_site(sealed()), name=name)))


@pytest.mark.parametrize("name", ["a.test", "*.a.test", "xn--bcher-kva.example", "x" * 63 + ".test", "1.2.example"])
def test_what_is_one(name: str) -> None:
    assert valid_site_name(name)
    assert read_site(sealed(name)).name == name


def test_chains_and_keys_are_bounded_before_they_are_sealed_and_when_they_come() -> None:
    with pytest.raises(SealError):
        sealed(chain=bytes(CHAIN_MAX_BYTES + 1))
    with pytest.raises(SealError):
        sealed(key=bytes(2049))
    whole = read_site(sealed())
    for broken in (
        msgspec.structs.replace(whole, chain=b""),
        msgspec.structs.replace(whole, chain=bytes(CHAIN_MAX_BYTES + 1)),
        msgspec.structs.replace(whole, sealed=msgspec.structs.replace(whole.sealed, ciphertext=bytes(2065))),
    ):
        with pytest.raises(DecodeError):
            read_site(encode(broken))


@pytest.mark.parametrize(
    ("name", "authorization"),
    [
        ("*.a.test", f"{TOKEN}.{PRINT}"), ("a.test", TOKEN), ("a.test", f"{TOKEN}.{PRINT}x"), ("a.test", f"short.{PRINT}"),
        ("a.test", f"../../../../../../../../x.{PRINT}"), ("a.test", f"{TOKEN}/.{PRINT}"), ("a.test", f"{TOKEN}.{PRINT}\n"),
        ("A.test", f"{TOKEN}.{PRINT}"), ("a.test", f"{'t' * 129}.{PRINT}"),
    ],
    ids=["wildcard", "no-thumbprint", "long-thumbprint", "short-token", "path", "slash", "newline", "upper", "long-token"],
)  # fmt: skip
def test_a_challenge_that_is_none(name: str, authorization: str) -> None:
    with pytest.raises(DecodeError):
        read_challenge(encode(ChallengeAnswer("http-01", name, authorization)))


def test_a_challenge_and_its_keys() -> None:
    answer = ChallengeAnswer("tls-alpn-01", "a.test", f"{TOKEN}.{PRINT}")
    assert read_challenge(encode(answer)) == answer
    assert challenge_key(NODES[0], answer) == f"/challenge/{NODES[0]}/{TOKEN}"
    site_certificate, next_one, other = (
        read_site(sealed(*what)) for what in (("a.test",), ("a.test", b"next"), ("b.test",))
    )
    assert len({site_key(NODES[0], site) for site in (site_certificate, next_one, other)}) == 3
    assert site_key(NODES[0], site_certificate) == site_key(
        NODES[0], read_site(sealed("a.test", b"chain", b"another key"))
    )
    with pytest.raises(DecodeError):
        read_challenge(encode(answer).replace(b"tls-alpn-01", b"dns-alpn-01"))
