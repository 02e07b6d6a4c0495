"""Secrets sealed to nodes: who may open a value, and the signed paper that carries it.

A fresh data key encrypts the value once (ChaCha20-Poly1305, RFC 8439). The data key is wrapped for each node that may run
the app: X25519 (RFC 7748) between a fresh key and the node's, HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305. A node's X25519
key is its Ed25519 identity mapped to the Montgomery curve (RFC 7748, section 4.1), so a secret is sealed to the very key
that the mesh certifies, and none has to be published; the joint use of the two is sound (Thormarker, "On using the same
key pair for Ed25519 and an X25519 based KEM", 2021). Whoever holds a value may reseal the data key for another node.

What a principal signs: a `SealedSecret` is one version of one secret in one environment, a `SecretRemoval` takes versions
away. Everything beside the value is readable. Not here: which nodes and versions (node/serving/secrets.py), and redaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.changes.change import valid_name
from protocols.envelope import DIGEST_BYTES, DecodeError, Signed, digest, encode, open_signed, sign
from protocols.keys import public_key_of
from protocols.machine import Digest, Entropy, PeerId, Signer, Verifier

PAPER_DOMAIN = "freehold/secret/1"
WRAP_INFO = b"freehold/secret-wrap/1"
VALUE_MAX_BYTES = 8 * 1024
"""A certificate chain with its key fits; larger things are artifacts or files of another system."""

BOXES_MAX = 64
REMOVED_MAX = 256
NAME_MAX = 100
KEY_BYTES = 32
_NONCE = bytes(12)
"""Every key here encrypts exactly one message."""
_P = 2**255 - 19


class SealError(ValueError):
    """The value cannot be sealed, or this node cannot open it; says why without a byte of it."""


class Box(msgspec.Struct, frozen=True, array_like=True):
    """The data key for one node: `ephemeral` is the sealer's fresh X25519 key (32 bytes), `wrapped` 48 bytes."""

    node: PeerId
    ephemeral: bytes
    wrapped: bytes


class SealedSecret(msgspec.Struct, frozen=True, tag="secret"):
    """One version of a secret; its id is the digest of the signed form. `version` counts from 1, for people."""

    project: str
    environment: str
    name: str
    version: int
    created_ms: int
    ciphertext: bytes
    boxes: tuple[Box, ...]


class SecretRemoval(msgspec.Struct, frozen=True, tag="secret_removal"):
    """Versions, by id, that nobody needs any more."""

    project: str
    environment: str
    name: str
    versions: tuple[bytes, ...]
    at_ms: int


class Resealed(msgspec.Struct, frozen=True, tag="resealed"):
    """A version's data key for a node that came later; `secret` is the version's id."""

    secret: bytes
    box: Box


SecretPaper = SealedSecret | SecretRemoval


def node_secret_key(seed: bytes) -> X25519PrivateKey:
    """Return the X25519 key of a node from its Ed25519 seed: the scalar that RFC 8032, section 5.1.5 derives."""
    return X25519PrivateKey.from_private_bytes(hashlib.sha512(seed).digest()[:KEY_BYTES])


def node_public_key(node: PeerId) -> X25519PublicKey:
    """Return the X25519 key of a node from its peer id: u = (1 + y) / (1 - y). Raises SealError if it has none."""
    y = int.from_bytes(public_key_of(node), "little") & ((1 << 255) - 1)
    if y >= _P or y == 1:
        raise SealError(f"{node} is no key that anything can be sealed to")
    u = (1 + y) * pow(1 - y, _P - 2, _P) % _P
    return X25519PublicKey.from_public_bytes(u.to_bytes(KEY_BYTES, "little"))


def seal(mesh: bytes, secret: SealedSecret, value: bytes, nodes: Sequence[PeerId], entropy: Entropy) -> SealedSecret:
    """Return `secret` with the value sealed to the nodes, in ascending order. Raises SealError."""
    if not value or len(value) > VALUE_MAX_BYTES:
        raise SealError(f"a secret has 1 to {VALUE_MAX_BYTES} bytes")
    if not 0 < len(nodes) <= BOXES_MAX:
        raise SealError(f"a secret is sealed to 1 to {BOXES_MAX} nodes")
    data_key = entropy.random_bytes(KEY_BYTES)
    ciphertext = ChaCha20Poly1305(data_key).encrypt(_NONCE, value, _bound(mesh, secret))
    boxes = tuple(_wrap(mesh, secret, data_key, node, entropy) for node in sorted(set(nodes)))
    return msgspec.structs.replace(secret, ciphertext=ciphertext, boxes=boxes)


def unseal(mesh: bytes, secret: SealedSecret, box: Box, key: X25519PrivateKey) -> bytes:
    """Return the value. Raises SealError if the box is not for this key, or anything was altered."""
    data_key = _unwrap(mesh, secret, box, key)
    try:
        return ChaCha20Poly1305(data_key).decrypt(_NONCE, secret.ciphertext, _bound(mesh, secret))
    except InvalidTag:
        raise SealError(f"secret {secret.name}: its ciphertext was altered") from None


def reseal(mesh: bytes, secret: SealedSecret, box: Box, key: X25519PrivateKey, node: PeerId, entropy: Entropy) -> Box:
    """Return the data key of `box`, which `key` opens, wrapped for another node. Raises SealError."""
    return _wrap(mesh, secret, _unwrap(mesh, secret, box, key), node, entropy)


def sign_paper(signer: Signer, mesh: bytes, paper: SecretPaper) -> Signed:
    """Sign a version or a removal with a principal's key."""
    return sign(signer, PAPER_DOMAIN, mesh, paper)


def open_paper(verifier: Verifier, mesh: bytes, signed: Signed) -> SecretPaper:
    """Check a paper's signature and bounds; whether its author may is the caller's question. Raises DecodeError."""
    paper: SecretPaper = open_signed(verifier, PAPER_DOMAIN, mesh, signed, SecretPaper)
    problem = paper_problem(paper)
    if problem:
        raise DecodeError(problem)
    return paper


def paper_problem(paper: SecretPaper) -> str:
    """Return which bound a paper breaks, empty for none."""
    if not valid_name(paper.project) or not valid_name(paper.environment):
        return "a secret belongs to a project and an environment"
    if not 0 < len(paper.name) <= NAME_MAX or not paper.name.isascii() or not paper.name.replace("_", "").isalnum():
        return "a secret's name is made of letters, digits and _"
    if isinstance(paper, SecretRemoval):
        sound = 0 < len(paper.versions) <= REMOVED_MAX and all(
            len(version) == DIGEST_BYTES for version in paper.versions
        )
        return "" if sound else "a removal names 1 to 256 versions by digest"
    if paper.version < 1 or not 0 < len(paper.boxes) <= BOXES_MAX:
        return "a version counts from 1 and is sealed to at least one node"
    return "" if len(paper.ciphertext) <= VALUE_MAX_BYTES + 16 else "the sealed value is too long"


def secret_id(signed: Signed) -> Digest:
    """The id of a version: the digest of its record's body."""
    return digest(encode(signed))


def _bound(mesh: bytes, secret: SealedSecret) -> bytes:
    """What ciphertext and boxes are bound to: they open for this version in this mesh and for nothing else."""
    return encode((mesh, secret.project, secret.environment, secret.name, secret.version, secret.created_ms))


def _wrap(mesh: bytes, secret: SealedSecret, data_key: bytes, node: PeerId, entropy: Entropy) -> Box:
    fresh = X25519PrivateKey.from_private_bytes(entropy.random_bytes(KEY_BYTES))
    ephemeral = fresh.public_key().public_bytes_raw()
    public = node_public_key(node)
    try:
        shared = fresh.exchange(public)
    except ValueError:
        raise SealError(f"{node} is no key that anything can be sealed to") from None
    key = _wrapping_key(shared, ephemeral, public.public_bytes_raw())
    return Box(node, ephemeral, ChaCha20Poly1305(key).encrypt(_NONCE, data_key, _bound(mesh, secret)))


def _unwrap(mesh: bytes, secret: SealedSecret, box: Box, key: X25519PrivateKey) -> bytes:
    mine = key.public_key().public_bytes_raw()
    try:
        shared = key.exchange(X25519PublicKey.from_public_bytes(box.ephemeral))
        wrapping = _wrapping_key(shared, box.ephemeral, mine)
        data_key = ChaCha20Poly1305(wrapping).decrypt(_NONCE, box.wrapped, _bound(mesh, secret))
    except (ValueError, InvalidTag):
        raise SealError(f"secret {secret.name}: it is not sealed to this node") from None
    if len(data_key) != KEY_BYTES:
        raise SealError(f"secret {secret.name}: it is sealed with a key of the wrong length; set it anew")
    return data_key


def _wrapping_key(shared: bytes, ephemeral: bytes, public: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=WRAP_INFO + ephemeral + public).derive(shared)
