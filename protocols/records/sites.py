"""What the mesh holds so that visitors get certificates: answers to an authority's challenges, and certificates of names.

A `challenge` is public and of the moment: whoever serves visitors answers the authority with it, for any node may be asked.
A `site` is a certificate with its key, sealed as secrets are, to nodes that may run what the name leads to; the node that
ordered it is its owner, seals it to those that come later, and takes it away when it has ended. Both are published under
SITE_RULES and later alone, because an older release knows neither row. Not here: talking to the authority (node/acme/).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocols.changes.secrets import SealedSecret, SealError, seal, unseal
from protocols.envelope import DecodeError, decode
from protocols.machine import Entropy, PeerId
from protocols.records.key_table import BODY_MAX_BYTES, make_key

SITE_RULES: Final = 4
"""Under these rules of the mesh nodes share certificates of names."""

CHALLENGE_TTL_MS: Final = 600_000
CHAIN_MAX_BYTES: Final = 10 * 1024
"""PEM: a leaf and two intermediates with RSA keys have 6 KiB; a box for each of 32 nodes takes 4 KiB of the rest."""

KEY_MAX_BYTES: Final = 2 * 1024
NAME_PREFIX: Final = "site:"
"""Before the name that a sealed key is bound to: no app's secret can have it."""

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z)(\*\.)?({_LABEL}\.)+{_LABEL}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{22,128}")
_AUTHORIZATION: Final = re.compile(r"[A-Za-z0-9_-]{22,128}\.[A-Za-z0-9_-]{43}")


class ChallengeAnswer(msgspec.Struct, frozen=True, tag="challenge"):
    """How nodes answer for `name` (RFC 8555, 8.3; RFC 8737): `authorization` is TOKEN.THUMBPRINT."""

    kind: Literal["http-01", "tls-alpn-01"]
    name: str
    authorization: str

    @property
    def token(self) -> str:
        """What the authority asks for."""
        return self.authorization.partition(".")[0]


class SiteCertificate(msgspec.Struct, frozen=True, tag="site"):
    """A certificate of `name`: its chain in PEM, leaf first, and its key sealed to nodes."""

    name: str
    chain: bytes
    sealed: SealedSecret


def valid_site_name(name: str) -> bool:
    """Return whether a name can stand in a certificate: a DNS name of two labels or more in lower case, or a wildcard."""
    return _NAME.fullmatch(name) is not None


def challenge_key(node: PeerId, answer: ChallengeAnswer) -> str:
    """The key of a challenge's record."""
    return make_key("challenge", node, answer.token)


def site_key(node: PeerId, site: SiteCertificate) -> str:
    """The key of the record of a certificate that `node` got; its successor is another record, and the first can be revoked."""
    return make_key("site", node, hashlib.sha256(site.name.encode() + b"\0" + site.chain).hexdigest()[:32])


def read_challenge(body: bytes) -> ChallengeAnswer:
    """Return the answer in a record's body. Raises DecodeError if it cannot be one."""
    answer: ChallengeAnswer = decode(body, ChallengeAnswer, 2048)
    if not valid_site_name(answer.name) or answer.name.startswith("*"):
        raise DecodeError("a challenge is for one DNS name")
    if not _AUTHORIZATION.fullmatch(answer.authorization) or not _TOKEN.fullmatch(answer.token):
        raise DecodeError("a challenge is answered by TOKEN.THUMBPRINT")
    return answer


def read_site(body: bytes) -> SiteCertificate:
    """Return the certificate in a record's body. Raises DecodeError if its form or its bounds are broken."""
    site: SiteCertificate = decode(body, SiteCertificate, BODY_MAX_BYTES)
    if not valid_site_name(site.name) or site.sealed.name != NAME_PREFIX + site.name:
        raise DecodeError("a certificate and its sealed key are of one DNS name")
    if not 0 < len(site.chain) <= CHAIN_MAX_BYTES or len(site.sealed.ciphertext) > KEY_MAX_BYTES + 16:
        raise DecodeError("a chain or a key is too long")
    return site


def seal_site(
    mesh: bytes, name: str, chain: bytes, key: bytes, *, nodes: Sequence[PeerId], at_ms: int, entropy: Entropy
) -> SiteCertificate:
    """Return a certificate whose key (PEM) only `nodes` can open. Raises SealError."""
    if len(chain) > CHAIN_MAX_BYTES or len(key) > KEY_MAX_BYTES:
        raise SealError(f"a chain has at most {CHAIN_MAX_BYTES} bytes and a key {KEY_MAX_BYTES}")
    empty = SealedSecret("", "", NAME_PREFIX + name, 1, at_ms, b"", ())
    return SiteCertificate(name, chain, seal(mesh, empty, key, nodes, entropy))


def open_site(mesh: bytes, site: SiteCertificate, node: PeerId, key: X25519PrivateKey) -> bytes:
    """Return the key (PEM) of a certificate. Raises SealError if it is not sealed to `node`, or was altered."""
    box = next((box for box in site.sealed.boxes if box.node == node), None)
    if box is None:
        raise SealError(f"the key of {site.name} is not sealed to this node")
    return unseal(mesh, site.sealed, box, key)
