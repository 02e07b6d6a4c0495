"""What a command has set going and cannot take back by ending: said when it is interrupted, with how to stop it.

One command at a time is under way in a process, so the last that was set going is what is told. Not here: taking anything
back, and signals (cli/frame.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GoingOn:
    """`what` is a sentence, `next_step` the command that stops it or shows what became of it."""

    what: str
    next_step: str
    answer: Mapping[str, object] = field(default_factory=dict)


class _Held:
    now: GoingOn | None = None


def goes_on(what: str, next_step: str, answer: Mapping[str, object] | None = None) -> None:
    """Say that from here on ending the command does not end this."""
    _Held.now = GoingOn(what, next_step, answer or {})


def nothing_goes_on() -> None:
    """Say that what was set going has come to its end."""
    _Held.now = None


def what_goes_on() -> GoingOn | None:
    """Return what ending the command would leave under way."""
    return _Held.now
