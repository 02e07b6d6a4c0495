"""`skewed.py SECONDS PYTHON -c CODE ARGUMENTS...`: runs the code in this process with a wall clock that is off. Not a test."""

from __future__ import annotations

import sys
import time

if __name__ == "__main__":
    seconds, code = int(sys.argv[1]), sys.argv[4]
    true_ns, true_s = time.time_ns, time.time
    time.time_ns = lambda: true_ns() + seconds * 1_000_000_000
    time.time = lambda: true_s() + seconds
    sys.argv = ["freehold", *sys.argv[5:]]
    exec(code, {"__name__": "__main__"})
