"""A voter that breaks its word: the fault that the chain does not tolerate, but must detect and prove.

It hides what it accepted whenever it promises again, with good signatures. With its help two majorities can decide one
slot; then some honest node must end up holding a proof. Not here: what honest nodes do with it (witness.py).
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.ballots import NO_BALLOT, sign_statement
from protocols.chain import Chain
from protocols.chain_messages import Promised
from protocols.machine import Effect, Now, Send


class ForgetfulChain(Chain):
    """Says of every slot that it accepted nothing."""

    def handle(self, event: Any, now: Now) -> list[Effect]:
        """Handle as an honest chain does, but lie in every promise that leaves."""
        return [self._lie(effect) for effect in super().handle(event, now)]

    def _lie(self, effect: Effect) -> Effect:
        if not isinstance(effect, Send) or not isinstance(effect.message, Promised):
            return effect
        promise = effect.message.promise
        if promise.accepted_ballot == NO_BALLOT:
            return effect
        hidden = msgspec.structs.replace(promise, accepted_ballot=NO_BALLOT, accepted_digest=b"")
        lie = sign_statement(self._setup.signer, self._setup.mesh, hidden)
        return Send(effect.peer, Promised(lie, effect.message.wall_ms))
