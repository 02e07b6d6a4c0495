"""`make demo`: shows the whole thing working, told for a newcomer. Exits 0 only if all was as said.

Builds and compiled code are kept in .cache/, so that a second run is quick. The story is in story.py, on the stage of
scene.py; laptop.py is its local environment, agent.py the coding agent, and checks.py counts the claims.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from examples import story
from examples.checks import Teller
from runtime.native.choice import choose

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "xdg"


def main() -> int:
    """Tell the story and sum it up."""
    os.environ["XDG_CACHE_HOME"] = str(CACHE)
    began_s = time.monotonic()
    teller = Teller()
    print("Freehold: a change, from a request to running software on machines you own.")
    print("Lines with `ok` are claims that were checked just now; `|` quotes a command or a file.")
    served = choose("auto", plain_listeners=1, local_only=False)
    engine = "the native engine" if served.engine == "native" else f"Python: {served.reason}"
    print(f"Plain requests are served in {engine}.")
    with tempfile.TemporaryDirectory(prefix="freehold-demo-") as folder:
        try:
            story.tell(teller, Path(folder), CACHE / "freehold" / "compiled")
        except Exception as error:
            traceback.print_exc()
            teller.failures.append(f"the story could not go on: {error}")
    print("\nWhere the time went")
    for title, seconds in teller.seconds:
        print(f"   {seconds:6.1f} s  {title}")
    print(f"   {time.monotonic() - began_s:6.1f} s  in all")
    for what in teller.skipped:
        print(f"   skipped: {what}")
    if teller.failures:
        print(f"\n{len(teller.failures)} of {teller.claims} claims did not hold:")
        for failure in teller.failures:
            print(f"   {failure[:400]}")
        return 1
    print(f"\nAll {teller.claims} claims held.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
