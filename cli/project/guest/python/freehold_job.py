"""A plain `main()` function as a WASI command, for schedules. Runs only inside the sandbox."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from componentize_py_types import Err
from wit_world.imports import exit as wasi_exit


def command(main):
    """Return the component's command class around `main`; an exception is logged and makes the run fail."""

    class Run:
        def run(self) -> None:
            told(main)

    return Run


def told(main) -> None:
    """Run `main`; what it raises is logged, and the run has failed."""
    os._exit = leave
    try:
        main()
    except Err:
        raise
    except SystemExit as error:
        leave(code_of(error.code))
    except BaseException:
        traceback.print_exc()
        flush()
        raise Err(None) from None
    flush()


def code_of(given: object) -> int:
    """Return what the interpreter makes of sys.exit()'s argument: none is 0, a text is said and is 1."""
    if given is None or isinstance(given, int):
        return int(given or 0)
    print(given, file=sys.stderr)
    return 1


def leave(code: int) -> NoReturn:
    """End the run with an exit code, of which the lowest byte counts, as everywhere."""
    flush()
    wasi_exit.exit_with_code(code & 255)
    raise AssertionError("the host ends the run")


def flush() -> None:
    """Write out what was printed."""
    sys.stdout.flush()
    sys.stderr.flush()
