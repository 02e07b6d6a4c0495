"""How many lines of the node's own log one caller may cause in a minute, so that nobody washes away what the node says.

Lines that a caller causes name who pays for them. What goes beyond a payer's lines of a minute is counted, and the first
line of a later minute tells how many there were. Writes are in the audit log too, each of them. Not here: what guests
write, of which each app has an allowance (runtime/services/log_sink.py), and what members cause (mesh.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LINES_MAX = 60
"""A minute, of one payer: ten such payers leave a day of lines in a full ring."""

WINDOW_S = 60.0
PAYERS_MAX = 1_024
"""Payers whose lines are counted at once; the one whose minute began first is forgotten."""

STRANGERS = "strangers"
"""Who pays for what is refused to keys without a grant: all of them together, for anybody makes keys."""


class CausedLines(logging.Filter):
    """Lets lines of the node pass, and of those that a payer caused so many a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take a clock in seconds."""
        super().__init__()
        self._clock = clock
        self._minutes: dict[str, tuple[float, int]] = {}
        """When the minute of each payer began, and how many lines it caused since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written; the first after some that were not says so in its field `count`."""
        payer = getattr(record, "payer", "")
        if not payer:
            return True
        now_s = self._clock()
        began_s, count = self._minutes.get(payer, (now_s, 0))
        if now_s - began_s >= WINDOW_S:
            unsaid = max(0, count - LINES_MAX)
            if unsaid:
                record.count = unsaid + 1
            began_s, count = now_s, 0
            self._minutes.pop(payer)
        self._minutes[payer] = began_s, count + 1
        while len(self._minutes) > PAYERS_MAX:
            del self._minutes[next(iter(self._minutes))]
        return count < LINES_MAX
