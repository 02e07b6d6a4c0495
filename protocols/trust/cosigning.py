"""Papers that as many admins sign as the mesh asks for: the first one's signature, and others' over the same bytes beside it.

The bytes begin as `envelope.Signed` does, so a node of a release that knows one signature alone reads the first one. Not
here: what the papers say (upgrades.py, changes/mandates.py), and commands, which carry their signatures themselves.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from protocols.envelope import DecodeError, Signed, sign, signing_bytes, verify
from protocols.machine import Signer, Verifier

COSIGNATURES_MAX = 16
"""As many as a mesh has admins."""


class Cosignature(msgspec.Struct, frozen=True, array_like=True):
    """One more key (32 bytes), and its signature (64 bytes) over the same bytes."""

    key: bytes
    signature: bytes


class Cosigned(msgspec.Struct, frozen=True, array_like=True):
    """A signed paper (see `Signed`) and what other admins signed of it."""

    payload: bytes
    key: bytes
    signature: bytes
    more: tuple[Cosignature, ...] = ()

    @property
    def signatures(self) -> tuple[Cosignature, ...]:
        """Each signature, the first one's first."""
        return (Cosignature(self.key, self.signature), *self.more)

    @property
    def keys(self) -> frozenset[bytes]:
        """Who is said to have signed, each once."""
        return frozenset((self.key, *(cosigner.key for cosigner in self.more)))


def begin_cosigning(signer: Signer, domain: str, mesh: bytes, value: Any) -> Cosigned:
    """Encode `value` and sign it as the first."""
    signed = sign(signer, domain, mesh, value)
    return Cosigned(signed.payload, signed.key, signed.signature)


def cosign(signer: Signer, domain: str, mesh: bytes, paper: Cosigned) -> Cosigned:
    """Return the paper with one more signature; a key that signed it already changes nothing."""
    if signer.public_key in paper.keys:
        return paper
    signature = signer.sign(signing_bytes(domain, mesh, paper.payload))
    return msgspec.structs.replace(paper, more=(*paper.more, Cosignature(signer.public_key, signature)))


def every_signature_holds(verifier: Verifier, domain: str, mesh: bytes, paper: Cosigned) -> bool:
    """Whether each signature of a paper verifies; whose they are is another question."""
    return all(
        verify(verifier, domain, mesh, Signed(paper.payload, signature.key, signature.signature))
        for signature in paper.signatures
    )


def require_admins(
    verifier: Verifier, domain: str, mesh: bytes, paper: Cosigned, admins: Collection[bytes], threshold: int
) -> None:
    """Raise DecodeError unless `threshold` of the admins signed a paper, and every signature in it is good.

    `admins` are those of now: whoever was removed meanwhile counts no more.
    """
    if len(paper.more) > COSIGNATURES_MAX:
        raise DecodeError(f"a paper has at most {COSIGNATURES_MAX} signatures more")
    if paper.key not in admins:
        raise DecodeError("the key that signed it is no admin's")
    if not every_signature_holds(verifier, domain, mesh, paper):
        raise DecodeError(f"signature does not verify for {domain}")
    count = len(paper.keys & frozenset(admins))
    if count < threshold:
        raise DecodeError(f"{count} of {threshold} admins signed it; another admin: freehold mesh cosign PAPER")
