"""What keys are called: as what they may do now says, or by a grant that has expired or was revoked.

Of use to people who read what such a key did. Not here: any right; a name from the past gives none.
"""

from __future__ import annotations

from collections import Counter

from node.control import Control
from protocols.core import NodeCore
from protocols.envelope import DecodeError, Signed, decode
from protocols.trust.grants import BEFORE_EXPIRY_MS, Rights

GONE = ("grant.expired", "grant.revoked")
"""Rules by which a key had rights once. One that was never let in has no name: it would have chosen it itself."""


NAMES_READ_AGAIN_MS = 5_000
"""Anybody may ask for a name, and reading them all costs a signature check for each grant."""


class KeyNames:
    """The names of keys at one moment. Made for one answer: it remembers what it found."""

    def __init__(self, core: NodeCore, at_ms: int) -> None:
        """Take the node and the moment."""
        self._core, self._at_ms = core, at_ms
        self._known: dict[bytes, str] = {}
        self._filed: dict[str, list[bytes]] | None = None

    def of(self, key: bytes) -> str:
        """Return what grants call a key, or called it once; empty if none did."""
        if key not in self._known:
            name = self._core.dossiers.name_of(key, self._at_ms)
            past = None if name else self.past(key)
            self._known[key] = name if past is None else past.name
        return self._known[key]

    def past(self, key: bytes) -> Rights | None:
        """Return what one of its grants gave a key that has no rights any more."""
        now = self._core.dossiers.rights(key, self._at_ms)
        if isinstance(now, Rights) or now.rule not in GONE:
            return None
        before = self._core.dossiers.rights(key, BEFORE_EXPIRY_MS)
        if isinstance(before, Rights):
            return before
        for body in self._bodies().get(key.hex(), ()):
            try:
                chain: tuple[Signed, ...] = decode(body, tuple[Signed, ...])
            except DecodeError:
                continue
            answer = self._core.trust.check_grants(chain)
            if isinstance(answer, Rights) and answer.key == key:
                return answer
        return None

    def _bodies(self) -> dict[str, list[bytes]]:
        """Every filed grant by its key in hex, in one pass over the records."""
        if self._filed is None:
            self._filed = {}
            for name, entry in self._core.records.store.entries.items():
                if name.startswith("/grant/") and not entry.record.tombstone:
                    self._filed.setdefault(entry.parsed.parts[0], []).append(entry.record.body)
        return self._filed


class PrincipalNames:
    """Finds the one key that a name means now, for signers that name themselves so; read again after a few seconds."""

    def __init__(self, control: Control) -> None:
        """Take the node."""
        self._control = control
        self._keys: dict[str, bytes | None] = {}
        self._read_ms = -NAMES_READ_AGAIN_MS

    def key_of(self, name: str) -> bytes | None:
        """Return the key that has this name; None if no key has it, or several."""
        now = self._control.clock()
        if now.mono_ms - self._read_ms >= NAMES_READ_AGAIN_MS:
            dossiers, self._read_ms = self._control.core.dossiers, now.mono_ms
            named = [(dossiers.name_of(key, now.wall_ms), key) for key in dossiers.principals()]
            count = Counter(text for text, _ in named)
            self._keys = {text: key if count[text] == 1 else None for text, key in named if text}
        return self._keys.get(name)
