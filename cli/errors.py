"""What the command can fail with, and the exit code of each. Every error ends with the next thing to do.

    CommandError            1  something went wrong
    ├── UsageError          2  the command line or the project file is not right
    └── (policy, rollback, approval and changes have codes of their own: `ExitCode`)

Not here: how an error is printed (`output.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command (documented in README.md)."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    REFUSED_BY_POLICY = 3
    ROLLED_BACK = 4
    AWAITING_APPROVAL = 5
    CHANGES = 6


class CommandError(Exception):
    """A command cannot go on. `kind` is a stable word for programs, `next_step` what to run or change.

    `answer` is what a program is told beside the error: the results of tests of which one failed.
    """

    exit_code = ExitCode.ERROR

    def __init__(
        self, message: str, *, next_step: str, kind: str = "error", answer: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.next_step = next_step
        self.answer = answer or {}


class UsageError(CommandError):
    """The call itself is wrong: a bad argument, a missing or broken project file."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, next_step: str, kind: str = "usage") -> None:
        super().__init__(message, next_step=next_step, kind=kind)


NO_ROOM = ("No space left on device", "os error 28", "ENOSPC", "Disk quota exceeded", "EDQUOT")
"""How tools say, in whatever they print, that a disk is full."""


class BuildError(CommandError):
    """An app could not be built; `app` is its name."""

    def __init__(self, app: str, message: str, *, next_step: str, kind: str = "build-failed") -> None:
        super().__init__(f"app {app}: {message}", next_step=next_step, kind=kind)
        self.app = app


def refuse_full_disk(app: str, said: str) -> None:
    """Raise BuildError where a tool ended because a disk is full: nothing in the app would cure that."""
    line = next((line for line in said.splitlines() if any(words in line for words in NO_ROOM)), None)
    if line is not None:
        raise BuildError(
            app,
            f"a disk is full: {line.strip()[-300:]}",
            next_step="make room where the cache is (df -h; XDG_CACHE_HOME moves it), then run it again",
            kind="disk-full",
        )
