"""How fast one principal may file papers through one node: so many bytes at once, and then at a pace.

What is filed stays in the memory of every node for months, and each paper's call has an entry of the audit log, so
filing is not as cheap as it is fast. People, pipelines and agents file some papers for each deploy. Not here: how much of
a principal's papers is kept at all (protocols/records/quotas.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from protocols.refusal import Refusal

AT_ONCE_MAX_BYTES: Final = 8 * 1024 * 1024
"""A hundred apps deployed at once file a quarter of it. The principal pays."""

BYTES_PER_S: Final = 16 * 1024
BESIDE_BYTES: Final = 4 * 1024
"""What a paper takes beside its own bytes: its record, its index, and the entry of the audit log."""


class PaperPace:
    """What each principal has left. Those who have all of it are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take a clock in seconds."""
        self._clock = clock
        self._spent: dict[str, tuple[float, float]] = {}
        """Bytes that each principal had spent, and when it was looked at."""

    def take(self, payer: str, size_bytes: int) -> Refusal | None:
        """Charge a paper to a principal; return why it has to wait instead."""
        now_s, cost = self._clock(), size_bytes + BESIDE_BYTES
        self._spent = {
            name: (left, now_s)
            for name, (spent, at_s) in self._spent.items()
            if (left := spent - (now_s - at_s) * BYTES_PER_S) > 0
        }
        spent, _ = self._spent.get(payer, (0.0, now_s))
        over = spent + cost - AT_ONCE_MAX_BYTES
        if over > 0:
            return Refusal(
                "quota.pace",
                f"this principal filed {AT_ONCE_MAX_BYTES >> 20} MiB of papers here in a short time; the next one of this "
                f"size is taken in {math.ceil(over / BYTES_PER_S)} s",
            )
        self._spent[payer] = spent + cost, now_s
        return None
