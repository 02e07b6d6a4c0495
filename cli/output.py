"""What a command says, and where: results on standard output, everything else on standard error.

With `--json` the one object on standard output is the whole answer, with a stable shape: `{"ok": true, ...}` or
`{"ok": false, "error": {"kind", "message", "next_step"}}`. Without a terminal there is no colour and no moving
progress. Not here: what commands do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.text import Text

from cli.errors import CommandError


class Output:
    """One command's voice. It is also the `Progress` that builds report to."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        # Rich breaks lines at 80 columns where there is no terminal, which would cut paths and digests in two.
        width = None if sys.stderr.isatty() else 10_000
        self._err = Console(stderr=True, highlight=False, width=width, soft_wrap=True)
        self._spinner: Status | None = None

    @property
    def is_interactive(self) -> bool:
        """Whether a person may be asked something."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def step(self, app: str, text: str) -> None:
        """Tell what is being done now, for one app ("" for the whole project)."""
        self._err.print(Text.assemble(("  ", ""), (f"{app}: " if app else "", "cyan"), text))
        if self._err.is_terminal:
            self._settle()
            self._spinner = self._err.status(f"[dim]{escape(text)}[/dim]")
            self._spinner.start()

    def _settle(self) -> None:
        """Take the moving line away: what it told of is over."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def note(self, text: str) -> None:
        """Tell something worth knowing."""
        self._settle()
        self._err.print(Text(text))

    def warn(self, text: str) -> None:
        """Tell something that may need the reader."""
        self._err.print(Text.assemble(("warning: ", "yellow"), text))

    def hint(self, text: str) -> None:
        """Tell what to run next."""
        self._err.print(Text.assemble(("next: ", "green"), text))

    def line(self, text: Text) -> None:
        """Print one styled line on standard error."""
        self._err.print(text)

    def result(self, value: Mapping[str, Any], human: str) -> None:
        """Give the command's answer: `value` for programs, `human` for people."""
        self._settle()
        if self.as_json:
            sys.stdout.write(json.dumps({"ok": True, **value}, indent=2, ensure_ascii=False) + "\n")
        elif human:
            sys.stdout.write(human + "\n")
        sys.stdout.flush()

    def event(self, value: Mapping[str, Any]) -> None:
        """Give one of many answers of a command that keeps running: one JSON object a line, only with `--json`."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def error(self, error: CommandError) -> None:
        """Say why the command failed and what to do."""
        if self.as_json:
            told = {"kind": error.kind, "message": str(error), "next_step": error.next_step}
            sys.stdout.write(json.dumps({"ok": False, "error": told}, indent=2, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        self.failure(error)

    def failure(self, error: CommandError) -> None:
        """Say what went wrong without ending the command."""
        self._settle()
        self._err.print(Text.assemble(("error: ", "bold red"), str(error)))
        self.hint(error.next_step)
