"""Drafts that wait for a signature: bytes made here for a client that does not encode them itself.

They live in this process and end with it, or after an hour; a client makes one again. Each counts for the principal that
had it made, and its oldest gives way to its newest. Not here: making and signing them (node/api/papers/drafts.py).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from protocols.changes.change import Change
from protocols.machine import Digest
from protocols.state.commands import Command

DRAFTS_MAX = 256
DRAFTS_PER_PRINCIPAL_MAX = 32
LIFE_MS = 3_600_000
IMPORTS_KEPT_MAX = 256
"""Components whose imports are remembered: reading one takes its bytes."""


@dataclass(frozen=True, slots=True)
class HeldDraft:
    """A change or a command as canonical bytes; `to_sign` is what a signature must cover, until `expires_ms` (wall)."""

    principal: str
    digest: Digest
    payload: bytes
    to_sign: bytes
    expires_ms: int
    what: Change | Command


class Drafts:
    """The drafts of one node's process."""

    def __init__(self) -> None:
        """Begin with none."""
        self._held: OrderedDict[Digest, HeldDraft] = OrderedDict()
        self.imports: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        """By component: what it imports."""

    def keep(self, draft: HeldDraft) -> None:
        """Keep a draft under its digest."""
        mine = [name for name, held_draft in self._held.items() if held_draft.principal == draft.principal]
        if len(mine) >= DRAFTS_PER_PRINCIPAL_MAX:
            del self._held[mine[0]]
        self._held[draft.digest] = draft
        while len(self._held) > DRAFTS_MAX:
            self._held.popitem(last=False)

    def keep_imports(self, component: bytes, imports: tuple[str, ...]) -> None:
        """Remember what a component imports."""
        self.imports[component] = imports
        while len(self.imports) > IMPORTS_KEPT_MAX:
            self.imports.popitem(last=False)

    def find(self, name: bytes, principal: str, now_ms: int) -> HeldDraft | None:
        """Return this principal's draft; None for another's, or one that is too old."""
        held_draft = self._held.get(Digest(name))
        return (
            held_draft
            if held_draft is not None and held_draft.principal == principal and now_ms < held_draft.expires_ms
            else None
        )
