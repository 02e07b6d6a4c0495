"""Python imports this at its start where its folder is on PYTHONPATH: the wall clock is ahead by what a file says. Not a test.

The file holds nanoseconds in eight bytes; it is mapped, so that all processes of a test jump at once, while they run.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

if "TEST_CLOCK" in os.environ:
    with open(os.environ["TEST_CLOCK"], "rb") as file:
        ahead = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    true_ns, true_s = time.time_ns, time.time
    time.time_ns = lambda: true_ns() + struct.unpack("<q", ahead[:8])[0]
    time.time = lambda: true_s() + struct.unpack("<q", ahead[:8])[0] / 1e9
