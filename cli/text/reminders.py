"""What a command says at its end besides its own answer: a grant that ends soon. Not here: finding that out."""

from __future__ import annotations

_waiting: list[str] = []
_told: set[str] = set()


def remind(text: str) -> None:
    """Have a sentence said at the end of this command, once; an empty one is none."""
    if text and text not in _waiting:
        _waiting.append(text)


def told(text: str) -> None:
    """The command says this itself."""
    _told.add(text)


def reminders() -> list[str]:
    """Return what is left to say, and begin anew."""
    left = [text for text in _waiting if text not in _told]
    _waiting.clear()
    _told.clear()
    return left
