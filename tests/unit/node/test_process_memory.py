"""What a process freed is the system's again, though small pieces that stay lie between; and the near miss, without that."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import pytest

from node.process_memory import COLLECTOR_THRESHOLDS

CHURN = """
import sys
from pathlib import Path
from node.process_memory import return_freed_memory
if sys.argv[1] == "returned":
    return_freed_memory()
def resident_kib():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)
before = resident_kib()
bytearray(24 << 20)  # freed at once: from now on the C library keeps pieces up to this size
large, small = [], []
for number in range(64):
    large.append(bytearray(b"x" * (1 << 20)))
    small.append(bytearray(b"x" * 2000))
large.clear()
print(resident_kib() - before)
"""


def grown_mib(how: str) -> float:
    completed = subprocess.run([sys.executable, "-c", CHURN, how], capture_output=True, text=True, check=True)
    return int(completed.stdout) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that keeps what was freed")
def test_what_is_freed_goes_back_and_without_the_setting_it_does_not() -> None:
    assert grown_mib("returned") < 4
    assert grown_mib("kept") > 12


def test_what_lasts_is_out_of_the_collectors_sight() -> None:
    code = (
        "import gc; from node.process_memory import set_aside_lasting_objects as aside; kept = [[] for _ in range(5000)]\n"
        "aside(); print(gc.get_freeze_count() > 5000, len(gc.get_objects()) < 2000, gc.get_threshold())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"True True {COLLECTOR_THRESHOLDS}"
    assert gc.get_freeze_count() == 0  # and this process is as it was
