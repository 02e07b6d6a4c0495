"""What happened, in order: a running digest that two runs of one seed must share, and lines a person can read.

The digest covers every event that any host handled and every byte that any host persisted, so two runs that agree on it
took the same decisions. Lines are kept only when asked for; a run of a thousand seeds keeps none.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

LINES_MAX = 200_000
"""A trace longer than this is cut at the front: the end is where the violation is."""

VALUE_TEXT_MAX = 96
PENDING_MAX = 1_000
"""Events hashed at once, which is quicker than each by itself."""


class Trace:
    """Collects one run. `keep` asks for readable lines as well as the digest."""

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self.lines: list[str] = []
        self.event_count = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._pending: list[bytes] = []

    def record(self, time_ms: int, host: str, verb: str, subject: Any, content: bytes = b"") -> None:
        """Write down that at `time_ms` `host` did `verb` with `subject`; `content` is hashed, never printed."""
        self.event_count += 1
        name = subject if isinstance(subject, str) else type(subject).__name__
        self._pending.append(f"{time_ms} {host} {verb} {name}".encode())
        if content or len(self._pending) >= PENDING_MAX:
            self._pending.append(content)
            self._hash_pending()
        if self.keep:
            if len(self.lines) >= LINES_MAX:
                del self.lines[: LINES_MAX // 10]
            self.lines.append(f"{time_ms / 1000:9.3f}s  {host:<6} {verb:<9} {describe(subject)}")

    def _hash_pending(self) -> None:
        self._hash.update(b"".join(self._pending))
        self._pending.clear()

    def digest(self) -> str:
        """The hexadecimal digest of all recorded so far."""
        self._hash_pending()
        return self._hash.hexdigest()


def describe(value: Any) -> str:
    """A short one-line text of a Struct or dataclass: its name and its fields, long bytes as a digest prefix."""
    if isinstance(value, str):
        return value if len(value) <= VALUE_TEXT_MAX else value[: VALUE_TEXT_MAX - 1] + "…"
    if isinstance(value, bytes):
        return value.hex()[:8] if len(value) <= 64 else f"{len(value)} bytes {hashlib.sha256(value).hexdigest()[:8]}"
    if isinstance(value, tuple | list):
        shown = ", ".join(describe(item) for item in value[:4])
        return f"[{shown}{', …' if len(value) > 4 else ''}]"
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
    elif hasattr(value, "__dataclass_fields__"):
        fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    else:
        return str(value)
    return f"{type(value).__name__}({', '.join(f'{name}={describe(field)}' for name, field in fields.items())})"
