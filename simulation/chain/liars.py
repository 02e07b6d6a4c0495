"""A voter that breaks its word: the fault that the chain does not tolerate, but must detect and prove.

It hides what it accepted whenever it promises again, with good signatures. After each vote it is deaf to news of the
slot for a while and proposes nothing itself, so that others ask it again there. With its help two majorities can decide
one slot; then some honest node must end up holding a proof. Not here: what honest nodes do with it (witness.py).
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.chain.ballots import NO_BALLOT, sign_statement
from protocols.chain.chain import Chain
from protocols.chain.messages import Commit, Entries, Prepare, Promised, Propose, Voted
from protocols.machine import Effect, Now, Received, Send, Tick

DEAF_MS = 1_500
"""Longer than most proposers wait before they try again."""


class ForgetfulChain(Chain):
    """Says of every slot that it accepted nothing."""

    _deaf_until_ms = 0

    def handle(self, event: Any, now: Now) -> list[Effect]:
        """Handle as an honest chain does, but overhear decisions it voted for, and lie in every promise that leaves."""
        deaf = now.mono_ms < self._deaf_until_ms
        if deaf and isinstance(event, Received) and isinstance(event.message, Commit | Entries):
            event = Tick()
        effects = super().handle(event, now)
        if any(isinstance(effect, Send) and isinstance(effect.message, Voted) for effect in effects):
            self._deaf_until_ms = now.mono_ms + DEAF_MS
        return [self._lie(effect) for effect in effects if not (deaf and _proposes(effect))]

    def _lie(self, effect: Effect) -> Effect:
        if not isinstance(effect, Send) or not isinstance(effect.message, Promised):
            return effect
        promise = effect.message.promise
        if promise.accepted_ballot == NO_BALLOT:
            return effect
        hidden = msgspec.structs.replace(promise, accepted_ballot=NO_BALLOT, accepted_digest=b"")
        lie = sign_statement(self._setup.signer, self._setup.mesh, hidden)
        return Send(effect.peer, Promised(lie, effect.message.wall_ms))


def _proposes(effect: Effect) -> bool:
    return isinstance(effect, Send) and isinstance(effect.message, Prepare | Propose)
