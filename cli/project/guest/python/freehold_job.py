"""A plain `main()` function as a WASI command, for schedules. Runs only inside the sandbox."""

from __future__ import annotations

import sys
import traceback

from componentize_py_types import Err


def command(main):
    """Return the component's command class around `main`; an exception is logged and makes the run fail."""

    class Run:
        def run(self) -> None:
            try:
                main()
            except Exception:
                traceback.print_exc()
                raise Err(None) from None
            finally:
                sys.stdout.flush()
                sys.stderr.flush()

    return Run
