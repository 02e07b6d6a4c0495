"""Runs the compatibility suite: `python -m tests.compatibility [--summary] [--table] [SHAPE ...]`; exits 1 if one is wrong."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.compatibility.suite import Judged, judge, lacking, shapes, table
from tests.support.runtime.projects import own_cache


async def _judged(names: list[str], *, quiet: bool) -> list[Judged]:
    results = []
    for shape in shapes():
        if names and shape.name not in names:
            continue
        with own_cache():
            missing = lacking(shape)
        if missing:
            print(f"skipped {shape.name}: it needs {missing}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as work:
            async for judged in judge(shape, Path(work)):
                results.append(judged)
                if not quiet or judged.verdict == "wrong":
                    print(f"{judged.verdict:8}{judged.subject}  {judged.said}".rstrip(), flush=True)
    return results


def main() -> int:
    """Judge the shapes named, by default all; return how the process ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility")
    parser.add_argument("--summary", action="store_true", help="name only what is wrong, then count")
    parser.add_argument("--table", action="store_true", help="print the page of the documentation, and run nothing")
    parser.add_argument("names", nargs="*", metavar="SHAPE")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - {shape.name for shape in shapes()}:
        parser.error(
            f"there is no shape {', '.join(sorted(unknown))}; there are {', '.join(shape.name for shape in shapes())}"
        )
    if chosen.table:
        print(table(), end="")
        return 0
    counted = Counter(judged.verdict for judged in asyncio.run(_judged(chosen.names, quiet=chosen.summary)))
    print(f"right {counted['right']}, refused {counted['refused']}, wrong {counted['wrong']}")
    return 1 if counted["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
