"""What must hold in a machine whatever it was sent. Not here: checks of what others send, which are refusals."""

from __future__ import annotations


class InvariantError(AssertionError):
    """A machine stands where its protocol never leads: the node ends rather than say a word from there."""


def ensure(holds: bool, invariant: str) -> None:
    """Raise InvariantError with `invariant`, the sentence that should be true, unless it holds."""
    if not holds:
        raise InvariantError(invariant)
