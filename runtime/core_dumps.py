"""No dump of a process that holds what nobody may read: secrets' values, private keys.

A crashed process leaves no core file and none is handed to the machine's crash collector, which ignores the limit on
core files (core(5)); on Linux, other processes of the same user cannot read its memory either (prctl(2), PR_SET_DUMPABLE).
Not here: swap, and what root may do.
"""

from __future__ import annotations

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """Forbid dumps of this process from now on; what it starts by exec decides for itself."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
