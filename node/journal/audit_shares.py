"""Who pays for a node's audit log: a share for each principal, a reserve for operators, and refusals told together.

Entries stay for over a year, so what one principal may have taken down has a limit, which is asked before its write is
begun; the last eighth of the log is for the node itself, for admins and for the callers on its socket. Refused calls of
one principal make one entry at once and one at the end of a window that tells how many more there were; the window
doubles, from a minute to a day, while they go on; what a window has counted is lost with the process (the node's own log
has a line for each of the first sixty a minute). Not here: the entries (audit.py), and what a store holds (quotas.py).
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from protocols.records.audit import KEPT_MS

PRINCIPAL_SHARE = 5 / 8
"""Of the entries of one node; the principal pays. 400 days of 20 deploys a day by one key are seven tenths of it."""

OPERATORS_SHARE = 1 / 8
"""Of the entries of one node: what nobody else can fill."""

WINDOW_MIN_MS = 60_000
WINDOW_MAX_MS = 86_400_000
WINDOWS_MAX = 4_096
"""Principals whose refusals are counted at once; beyond it the oldest window ends early."""

RULES_TOLD_MAX = 5


@dataclass(frozen=True, slots=True)
class RefusalsTold:
    """What is said at the end of a window: how many more calls of a caller were refused, from when to when, by what."""

    caller: str
    count: int
    first_ms: int
    last_ms: int
    rules: tuple[str, ...]


@dataclass(slots=True)
class _Window:
    ends_ms: int
    width_ms: int
    count: int = 0
    first_ms: int = 0
    last_ms: int = 0
    rules: tuple[str, ...] = ()


class Refusals:
    """The windows of refused calls, by caller."""

    def __init__(self) -> None:
        """Begin with none."""
        self._windows: dict[str, _Window] = {}

    def alone(self, caller: str, rule: str, wall_ms: int) -> bool:
        """Whether a refused call gets an entry of its own, as the first of its window; otherwise it is counted."""
        window = self._windows.get(caller)
        if window is None:
            self._windows[caller] = _Window(wall_ms + WINDOW_MIN_MS, WINDOW_MIN_MS)
            return True
        window.first_ms = window.first_ms if window.count else wall_ms
        window.count, window.last_ms = window.count + 1, wall_ms
        if rule not in window.rules and len(window.rules) < RULES_TOLD_MAX:
            window.rules = (*window.rules, rule)
        return False

    def due(self, wall_ms: int) -> list[RefusalsTold]:
        """Return what is to be told now: the windows that are over; one without a refusal is forgotten."""
        told = []
        early = list(self._windows)[: max(0, len(self._windows) - WINDOWS_MAX)]
        for caller in [*early, *(text for text, window in self._windows.items() if window.ends_ms <= wall_ms)]:
            window = self._windows.pop(caller, None)
            if window is None or not window.count:
                continue
            told.append(RefusalsTold(caller, window.count, window.first_ms, window.last_ms, window.rules))
            width_ms = min(2 * window.width_ms, WINDOW_MAX_MS)
            self._windows[caller] = _Window(wall_ms + width_ms, width_ms)
        return told


class CallerShares:
    """How many of a node's live entries each caller has caused."""

    def __init__(self) -> None:
        """Begin with none."""
        self._count: Counter[str] = Counter()
        self._ends: deque[tuple[int, str]] = deque()

    def add(self, caller: str, at_ms: int) -> None:
        """Count one entry, until it expires."""
        self._count[caller] += 1
        self._ends.append((at_ms + KEPT_MS, caller))

    def of(self, caller: str, wall_ms: int) -> int:
        """How many live entries a caller has caused."""
        while self._ends and self._ends[0][0] <= wall_ms:
            _, gone = self._ends.popleft()
            self._count[gone] -= 1
            if not self._count[gone]:
                del self._count[gone]
        return self._count[caller]
