"""From `freehold mesh join LINE` and `freehold node run` on a new machine to a member, and to a voter.

Both commands are the processes an operator would start, one after the other, on this machine; the time runs from the
first one's start until the new node itself says that the mesh confirmed it. Nodes may vote two seconds after they were
connected (`--voter-after 2`; the default is a minute), and a mesh has one voter or three: so the second newcomer brings
both into the vote, and its time to a voter is the row. Each moment is looked for every tenth of a second.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks import fleet
from benchmarks.rows import Row
from tests.support.mesh.nodes import Fleet, until

NEWCOMERS: Final = 4
TIMEOUT_S: Final = 60
SECOND: Final = 2


def run(quick: bool) -> Iterator[Row]:
    folder = Path(tempfile.mkdtemp(prefix="fh"))
    mesh = Fleet(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(mesh.close)
        first = mesh.found("n0", "--policy", "solo")
        running, member = [], []
        for number in range(1, (SECOND if quick else NEWCOMERS) + 1):
            line = mesh.invite(first, *fleet.ROLES)
            began_s = time.monotonic()
            newcomer = mesh.join(line, f"n{number}")
            running.append(time.monotonic() - began_s)
            wait_for(newcomer, "confirmed")
            member.append(time.monotonic() - began_s)
            if number == SECOND:
                wait_for(newcomer, "voter")
                voter_s = time.monotonic() - began_s
    note = f"the median of {len(member)} newcomers"
    yield Row("join: until the new node's API answers", round(median(running), 2), "s", note=note)
    yield Row("join: until it is a confirmed member", round(median(member), 2), "s", note=note)
    yield Row("join: until it votes, with --voter-after 2", round(voter_s, 2), "s")


def wait_for(machine: fleet.Machine, word: str) -> None:
    """Wait until a node says so of itself as a member."""
    until(lambda: bool(machine.members()[machine.status()["node"]][word]), TIMEOUT_S, f"the newcomer to be {word}")
