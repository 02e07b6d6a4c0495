"""What became of each change that was started and runs no longer, as the chain says.

A lane knows what runs, what is coming and what it can go back to; of everything else only the decisions tell how it ended.
They are followed from the first on, each read once. Not here: where a change stands that a lane still holds
(api/reports/views.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from protocols.api_models import DecisionView

Ending = Literal["rolled-back", "aborted", "superseded"]


@dataclass(frozen=True, slots=True)
class Fate:
    """How a change ended: health or a rollback took it back, a person aborted it, or another was started in its place."""

    ending: Ending
    at_ms: int
    why: str


class Fates:
    """The fates of all changes; `read` returns a slot's decision, `digest_at` what names the chain up to it."""

    def __init__(self, read: Callable[[int], DecisionView], digest_at: Callable[[int], bytes]) -> None:
        self._read = read
        self._digest_at = digest_at
        self._slot = 0
        self._seen = b""
        self._newest: dict[tuple[str, str], str] = {}
        self._fates: dict[str, Fate] = {}

    def of(self, change: str, newest: int) -> Fate | None:
        """Return how a change ended by slot `newest`; None if it was not started since, or nothing took its place."""
        if self._slot and (newest < self._slot or self._digest_at(self._slot) != self._seen):
            self._slot = 0  # admins began a new era before what was read
            self._newest.clear()
            self._fates.clear()
        while self._slot < newest:
            self._slot += 1
            self._take(self._read(self._slot))
        self._seen = self._digest_at(self._slot)
        return self._fates.get(change)

    def _take(self, one: DecisionView) -> None:
        lane = (one.project, one.environment)
        before = self._newest.get(lane, "")
        match one.action:
            case "start":
                self._end(before, Fate("superseded", one.at_ms, f"change {one.subject[:12]} was started"))
                self._begin(lane, one.subject)
            case "rollback":
                self._end(before, Fate("rolled-back", one.at_ms, one.reason))
                self._begin(lane, one.subject)
            case "abort":
                self._end(before, Fate("aborted" if one.signers else "rolled-back", one.at_ms, abort_words(one)))
                self._newest.pop(lane, None)
            case _:
                pass

    def _begin(self, lane: tuple[str, str], change: str) -> None:
        self._newest[lane] = change
        self._fates.pop(change, None)

    def _end(self, change: str, fate: Fate) -> None:
        if change:
            self._fates[change] = fate


def abort_words(decision: DecisionView) -> str:
    """Say why a rollout was aborted, with what each node measured."""
    numbers = "; ".join(
        f"{number.node[-6:]}: {number.errors} errors in {number.requests} requests {number.reason}".strip()
        for number in decision.numbers
    )
    return f"{decision.reason} ({numbers})" if numbers else decision.reason
