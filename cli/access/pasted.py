"""Lines that people carry by hand: a prefix that says what it is, and bytes in letters that no shell or form changes.

Not here: what the bytes mean, and invites, which bear a checksum besides (protocols/trust/invites.py).
"""

from __future__ import annotations

import base64


def pasted_line(prefix: str, data: bytes) -> str:
    """Return the line."""
    return prefix + base64.urlsafe_b64encode(data).decode().rstrip("=")


def pasted_bytes(text: str, prefix: str, max_characters: int) -> bytes | None:
    """Return what a line holds; None for one of another prefix, or too long. Raises ValueError for a damaged one."""
    line = text.strip()
    body = line.removeprefix(prefix)
    if body == line or len(body) > max_characters:
        return None
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
