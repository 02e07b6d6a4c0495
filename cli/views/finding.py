"""One thing that was found to be wrong, with what to do about it. Not here: judging (checks.py, jobs.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. A `fault` makes `doctor` exit with 1; a warning does not."""

    fault: bool
    what: str
    advice: str
