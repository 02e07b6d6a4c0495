"""A key on paper: 14 groups of four letters that hold a seed and a checksum. Not here: whose key it is, and for what."""

from __future__ import annotations

import base64
import binascii
import hashlib

from cli.errors import UsageError
from protocols.keys import SEED_BYTES

CHECK_BYTES = 3
GROUP = 4
TEXT_CHARACTERS = 56


def on_paper(seed: bytes) -> str:
    """Return a seed as a person writes it down: letters and digits that are not taken for each other (RFC 4648 base32)."""
    text = base64.b32encode(seed + _check(seed)).decode().lower()
    return " ".join(text[start : start + GROUP] for start in range(0, len(text), GROUP))


def from_paper(text: str) -> bytes:
    """Return the seed of what a person typed. Raises UsageError that shows none of it."""
    letters = "".join(text.split()).replace("-", "").upper()
    step = "type the 14 groups again"
    if len(letters) != TEXT_CHARACTERS:
        raise UsageError(
            f"a key on paper has {TEXT_CHARACTERS} letters and digits, not {len(letters)}", next_step=step, kind="paper"
        )
    try:
        data = base64.b32decode(letters)
    except (ValueError, binascii.Error):
        raise UsageError(
            "a key on paper has the letters a to z and the digits 2 to 7", next_step=step, kind="paper"
        ) from None
    seed, check = data[:SEED_BYTES], data[SEED_BYTES:]
    if check != _check(seed):
        raise UsageError("a letter is wrong: the checksum does not fit", next_step=step, kind="paper")
    return seed


def _check(seed: bytes) -> bytes:
    return hashlib.sha256(b"freehold/paper/1" + seed).digest()[:CHECK_BYTES]
